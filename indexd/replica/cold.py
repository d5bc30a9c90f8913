"""What of a shard was committed, as far as the store alone can tell: for starts without etcd.

The log in the store shows what was committed (`facegrid.format.chain`), except that its last
object may not have been. So what is read like this is served as unconfirmed only, and never
written to.
"""

from dataclasses import dataclass

from facegrid.blob.port import BlobStore
from facegrid.errors import CorruptError
from facegrid.format.chain import connect
from facegrid.format.log import LogRef, log_prefix, parse_log_name
from facegrid.format.manifest import Manifest, manifest_prefix
from facegrid.format.records import ManifestPointer
from facegrid.ids import ShardId
from facegrid.telemetry.log import Logger
from indexd.replica.unsettled import log_entries, manifest_at


@dataclass(frozen=True, slots=True)
class InStore:
    """The newest manifest, and the end of the log behind it; None where there is none."""

    manifest: ManifestPointer | None
    tip: LogRef | None


async def committed_in_store(store: BlobStore, shard_id: ShardId, log: Logger) -> InStore:
    """Return where a shard stands by its objects.

    Raises:
        UnavailableError: the store cannot be reached.
        CorruptError: log objects are there that nothing connects with the rest (LOG_BROKEN).
    """
    newest: tuple[Manifest, str] | None = None
    for name in await store.list(manifest_prefix(shard_id)):
        manifest = await manifest_at(store, name, log)
        if manifest is None:
            continue
        if newest is None or _standing(manifest) > _standing(newest[0]):
            newest = manifest, name.rpartition("/")[2]
    after = None if newest is None else newest[0].log
    names = [name for name in await store.list(log_prefix(shard_id)) if parse_log_name(name)]
    chain = connect(await log_entries(store, names, log), after=after)
    if chain.detached:
        raise CorruptError(
            f"log objects do not connect with the manifest shard={shard_id}"
            f" objects={len(chain.detached)}",
            reason="LOG_BROKEN",
            shard=shard_id,
        )
    pointer = None
    if newest is not None:
        manifest, sha256 = newest
        pointer = ManifestPointer(sha256, manifest.position, manifest.generation)
    return InStore(pointer, chain.entries[-1].ref if chain.entries else after)


def _standing(manifest: Manifest) -> tuple[int, int]:
    """Return what tells which of two manifests is the newer."""
    return manifest.position, manifest.generation
