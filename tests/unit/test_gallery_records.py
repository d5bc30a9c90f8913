"""The records of a gallery in the store, which several nodes keep and one tidies up."""

import pytest
from typing_extensions import override

from facegrid.errors import ConflictError, CorruptError, UnavailableError
from facegrid.format.stored_gallery import StoredGallery
from facegrid.testing.memory_blob import MemoryBlobStore
from indexd.replica import gallery_records
from tests.fakes.mirror_rig import GALLERY, whole_map

OLD, NEW = (StoredGallery(GALLERY, whole_map(version)) for version in (1, 2))


class Swept(MemoryBlobStore):
    """A store from which whatever is there already is deleted as soon as somebody finds it."""

    @override
    async def put_new(self, name: str, data: bytes) -> None:
        try:
            await super().put_new(name, data)
        except ConflictError:
            await self.delete(name)
            raise


async def test_records_that_another_node_has_just_replaced_are_no_damage() -> None:
    """1 two nodes keep version 1; 2 while the second looks at it, the first keeps version 2 and
    tidies up. The second tries again; else it would give its shard up for good.
    """
    store = Swept()
    await gallery_records.keep(store, OLD)

    with pytest.raises(UnavailableError) as caught:
        await gallery_records.keep(store, OLD)
    name = await gallery_records.keep(store, NEW)

    assert caught.value.reason == "RECORD_REPLACED"
    assert list(store.objects) == [name]


async def test_records_that_are_damaged_are_damage() -> None:
    store = MemoryBlobStore()
    name = await gallery_records.keep(store, OLD)
    store.objects[name] = b"x" + store.objects[name][1:]

    with pytest.raises(CorruptError, match=name):
        await gallery_records.keep(store, OLD)
