"""What a new primary makes of log objects that etcd does not know of.

Two things leave such: a process that died between storing and committing an object, and an etcd
that was set back to an older backup. They look alike when it is one object that follows the tip.
Nobody may have heard of it, or somebody may rely on it, so the new primary commits it: the first
may be there as well as not, the second must. More than that only an etcd that was set back leaves,
and then the shard is not served: what else etcd forgot, nobody here can tell.
"""

from collections.abc import Sequence
from dataclasses import replace

from facegrid.blob.port import BlobStore
from facegrid.coord import keys
from facegrid.coord.port import Coordinator, Guard, Put, ValueGuard
from facegrid.errors import CorruptError, FencedError, NotFoundError
from facegrid.format.chain import LogEntry, connect, log_entry
from facegrid.format.log import decode_log, log_prefix, log_ref, parse_log_name
from facegrid.format.manifest import Manifest, decode_manifest, manifest_name, manifest_prefix
from facegrid.format.records import Tip, decode_generation, decode_tip, encode_tip
from facegrid.ids import ShardId
from facegrid.telemetry.log import Logger
from indexd.replica import bulk
from indexd.replica.fence import Fence


async def settle(
    coord: Coordinator, store: BlobStore, shard_id: ShardId, *, fence: Fence, log: Logger
) -> Fence:
    """Return the fence with the tip that the store shows, committed in etcd.

    Raises:
        CorruptError: etcd is behind the store (ETCD_BEHIND): `fgctl meta recover` is needed.
        FencedError: somebody else claimed the shard meanwhile.
        UnavailableError: etcd or the store cannot be reached; claiming again is safe.
    """
    covered = 0 if fence.tip is None else fence.tip.last_position
    await _check_manifests(coord, store, shard_id, fence=fence, log=log)
    beyond: list[str] = []
    for name in await store.list(log_prefix(shard_id)):
        parsed = parse_log_name(name)
        if parsed is None or parsed[1] <= covered:
            continue
        generation, first, _ = parsed
        if generation >= fence.generation or first > covered + 1:
            await _refuse(coord, shard_id, fence, name)
        beyond.append(name)
    if not beyond:
        return fence
    chain = connect(await log_entries(store, beyond, log), after=fence.tip)
    if not chain.entries:
        return fence
    ref = chain.entries[0].ref
    result = await coord.txn(
        [
            ValueGuard(keys.generation(shard_id), fence.claim),
            Guard(keys.tip(shard_id), fence.tip_revision),
        ],
        [Put(keys.tip(shard_id), encode_tip(Tip(ref)))],
    )
    if not result.succeeded:
        raise _fenced(shard_id)
    log.info("unsettled log object committed", position=ref.last_position)
    return replace(fence, tip=ref, tip_revision=result.revision)


async def check_not_behind(
    coord: Coordinator, store: BlobStore, shard_id: ShardId, log: Logger
) -> None:
    """Refuse if the store shows what etcd does not know of. For copies that only follow.

    The store is listed first: whatever it shows was made after etcd knew of what went before.

    Raises:
        CorruptError: etcd is behind the store (ETCD_BEHIND): `fgctl meta recover` is needed.
        UnavailableError: etcd or the store cannot be reached.
    """
    logged = [parse_log_name(name) for name in await store.list(log_prefix(shard_id))]
    manifests = await store.list(manifest_prefix(shard_id))
    claim = await coord.get(keys.generation(shard_id))
    tip = await coord.get(keys.tip(shard_id))
    generation = 0 if claim is None else decode_generation(claim.value).generation
    covered = 0 if tip is None else decode_tip(tip.value).log.last_position
    for parsed in logged:
        if parsed is not None and (parsed[0] > generation or parsed[1] > covered + 1):
            raise _behind(shard_id, f"{parsed[0]}-{parsed[1]}")
    for name in manifests:
        position = await _position_of(store, name, log)
        if position > covered:
            raise _behind(shard_id, name)


async def _check_manifests(
    coord: Coordinator, store: BlobStore, shard_id: ShardId, *, fence: Fence, log: Logger
) -> None:
    """Refuse if a manifest covers more than etcd's tip: only committed records get into one."""
    covered = 0 if fence.tip is None else fence.tip.last_position
    ruling = "" if fence.manifest is None else manifest_name(shard_id, fence.manifest.sha256)
    for name in await store.list(manifest_prefix(shard_id)):
        if name != ruling and await _position_of(store, name, log) > covered:
            await _refuse(coord, shard_id, fence, name)


async def _position_of(store: BlobStore, name: str, log: Logger) -> int:
    """Return how far a manifest goes; 0 if it cannot be read."""
    manifest = await manifest_at(store, name, log)
    return 0 if manifest is None else manifest.position


async def manifest_at(store: BlobStore, name: str, log: Logger) -> Manifest | None:
    """Return a manifest; None if it is gone, or damaged: whoever needs it will tell."""
    try:
        return decode_manifest(await store.get(name))
    except NotFoundError:
        return None
    except CorruptError as error:
        log.warning("manifest is damaged", name=name, problem=error.message)
        return None


async def log_entries(store: BlobStore, names: Sequence[str], log: Logger) -> list[LogEntry]:
    """Read the objects. A damaged one that nothing names is as if it were not there."""
    entries = []
    for name in names:
        parsed = parse_log_name(name)
        assert parsed is not None, "only log objects are asked for"
        try:
            data = await store.get(name)
            group = decode_log(data)
        except NotFoundError:
            # Somebody claimed the shard since, and sweeps; the guards of the commit will tell.
            continue
        except CorruptError as error:
            log.warning("unsettled log object is damaged", name=name, problem=error.message)
            continue
        if not await bulk.all_stored(store, group):
            # Its load was given up, and swept. Had it been committed, the segments were kept.
            log.warning("unsettled load is without its segments", name=name)
            continue
        entries.append(log_entry(group, log_ref(group, parsed[2], data)))
    return entries


async def _refuse(coord: Coordinator, shard_id: ShardId, fence: Fence, name: str) -> None:
    """Raise: etcd was set back, unless somebody has claimed the shard and written since."""
    held = await coord.get(keys.generation(shard_id))
    if held is None or held.value != fence.claim:
        raise _fenced(shard_id)
    raise _behind(shard_id, name)


def _behind(shard_id: ShardId, name: str) -> CorruptError:
    return CorruptError(
        f"etcd is behind the store, as after a restored backup: stop the nodes and run"
        f" fgctl meta recover shard={shard_id} object={name}",
        reason="ETCD_BEHIND",
        shard=shard_id,
    )


def _fenced(shard_id: ShardId) -> FencedError:
    return FencedError(f"another process claimed the shard shard={shard_id}", shard=shard_id)
