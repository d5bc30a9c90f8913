"""Deletes the erasure journal of a gallery that is gone, when none of its snapshots is kept."""

from facegrid.blob.port import BlobStore
from facegrid.coord import keys
from facegrid.coord.port import Coordinator
from facegrid.errors import ConflictError, NotFoundError
from facegrid.format.erasures import journal_prefix
from facegrid.format.records import decode_dropped
from fgctl.meta.recovery import read_current
from fgctl.snapshot.cut import by_uid


async def plan(coord: Coordinator, store: BlobStore, uid: str) -> list[str]:
    """Return the names of the journal's objects.

    Raises:
        ConflictError: the gallery is there, or just being dropped (GALLERY_EXISTS).
        NotFoundError: there is no such journal (JOURNAL_UNKNOWN).
    """
    meta = (await read_current(coord, unix_ms=0)).meta
    dropping = [
        decode_dropped(value).gallery_uid
        for key, value in meta.values.items()
        if key.startswith(keys.DROPPED)
    ]
    if by_uid(meta, uid) is not None or uid in dropping:
        raise ConflictError(
            f"the gallery is not gone, its journal is needed uid={uid}", reason="GALLERY_EXISTS"
        )
    names = await store.list(journal_prefix(uid))
    if not names:
        raise NotFoundError(f"there is no erasure journal uid={uid}", reason="JOURNAL_UNKNOWN")
    return list(names)


async def forget(coord: Coordinator, store: BlobStore, uid: str) -> int:
    """Delete a journal; return how many objects it had. See `plan` for the errors."""
    names = await plan(coord, store, uid)
    for name in names:
        await store.delete(name)
    return len(names)
