"""Deletes a snapshot: first its descriptor, then every object that no other descriptor names."""

from dataclasses import dataclass

from facegrid.blob.port import BlobStore
from facegrid.blob.reader import BlobReader
from facegrid.errors import NotFoundError
from facegrid.format.snapshot import DELETING, object_name
from fgctl.snapshot import repository
from fgctl.snapshot.repository import Mark, Named, Tools


@dataclass(frozen=True, slots=True)
class Doomed:
    """What a deletion will do.

    Attributes:
        named: the descriptor; None: a deletion that was broken off has removed it already.
        objects: sha256 of the objects that only it needs, and of those that nothing needs.
    """

    named: Named | None
    objects: tuple[str, ...]


async def plan(store: BlobReader, snapshot_id: str) -> Doomed:
    """Return what deleting a snapshot would do.

    Raises:
        NotFoundError: there is no such snapshot, nor an object that nothing needs
            (SNAPSHOT_UNKNOWN).
        CorruptError: a descriptor is damaged, so that nobody knows what it needs.
    """
    known = (await repository.descriptors(store)).whole()
    doomed = next((one for one in known if one.snapshot.snapshot_id == snapshot_id), None)
    kept = repository.needed([one for one in known if one is not doomed])
    unneeded = sorted(await repository.object_hashes(store) - kept)
    if doomed is None and not unneeded:
        raise NotFoundError(
            f"the repository has no such snapshot snapshot={snapshot_id}",
            reason="SNAPSHOT_UNKNOWN",
        )
    return Doomed(doomed, tuple(unneeded))


async def delete(
    store: BlobStore, snapshot_id: str, *, tools: Tools, others_ended: bool = False
) -> Doomed:
    """Delete a snapshot, and objects that nothing needs; return what was deleted.

    A deletion that was broken off is finished by another one, of whatever snapshot.

    Raises:
        ConflictError: somebody else is at work in the repository (REPOSITORY_BUSY).
        NotFoundError, CorruptError: as for `plan`.
        UnavailableError: the repository cannot be reached; repeat it.
    """
    async with Mark(
        store, tools, prefix=DELETING, snapshot_id=snapshot_id, others_ended=others_ended
    ):
        # Planned anew: from here on nobody makes or deletes another one.
        doomed = await plan(store, snapshot_id)
        if doomed.named is not None:
            await store.delete(doomed.named.name)
        for sha256 in doomed.objects:
            await store.delete(object_name(sha256))
    return doomed
