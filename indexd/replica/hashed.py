"""Storing objects that are named by their hash."""

from facegrid.blob.port import BlobStore
from facegrid.errors import ConflictError, CorruptError, NotFoundError, UnavailableError
from indexd.engine.flush import StoredObject


async def put(store: BlobStore, item: StoredObject) -> None:
    """Store an object; one that is there already must be the same.

    Raises:
        UnavailableError: the store cannot be reached.
        CorruptError: other bytes are there under this name (OBJECT_DAMAGED).
    """
    try:
        await store.put_new(item.name, item.data)
    except (ConflictError, UnavailableError) as open_outcome:
        try:
            there = await store.get(item.name)
        except (NotFoundError, UnavailableError):
            raise open_outcome from None
        if there != item.data:
            raise CorruptError(
                f"object does not match its hash name={item.name}",
                reason="OBJECT_DAMAGED",
                name=item.name,
            ) from open_outcome
