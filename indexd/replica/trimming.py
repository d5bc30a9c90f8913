"""Which objects of a shard nobody needs any more."""

from collections.abc import Mapping

from facegrid.coord import keys
from facegrid.format.log import log_prefix, parse_log_name
from facegrid.format.manifest import manifest_name, manifest_prefix
from facegrid.format.records import decode_shard_map
from facegrid.format.segment import segment_name, segment_prefix
from facegrid.ids import ShardId
from indexd.replica import bulk
from indexd.replica.shard_copy import ShardCopy


async def unneeded(copy: ShardCopy, mirrored: Mapping[ShardId, int]) -> list[str]:
    """Return the names of objects that the manifest covers, or does not name.

    Segments of bulk loads are listed before their pins, and what was loaded is looked at last:
    a pin is stored before its segment, and deleted when the segment's record is applied here.

    While the shard is brought into others they need its log, and the segments that this names.
    `mirrored` says how far they are, as far as that is known. etcd is asked who they are: whoever
    comes later begins with the rows that there are then.
    """
    store, shard_id = copy.ports.store, copy.assignment.shard_id
    names = [
        *await store.list(segment_prefix(shard_id)),
        *await store.list(manifest_prefix(shard_id)),
    ]
    kept = await bulk.pinned(store, shard_id)
    kept |= bulk.loaded(copy.state, copy.persisted)
    kept |= {segment_name(shard_id, segment.sha256) for segment in copy.persisted.segments}
    if copy.loaded_from is not None:
        kept.add(manifest_name(shard_id, copy.loaded_from.sha256))
    covered = 0 if copy.loaded_from is None else copy.loaded_from.position
    brought = await _brought(copy, mirrored, covered)
    # What a manifest does not name any more may be named by a load that it covers.
    found = [name for name in names if name not in kept] if brought >= covered else []
    covered = min(covered, brought)
    for name in await store.list(log_prefix(shard_id)):
        parsed = parse_log_name(name)
        if parsed is not None and parsed[1] <= covered:
            found.append(name)
    return found


async def _brought(copy: ShardCopy, mirrored: Mapping[ShardId, int], position: int) -> int:
    """Return how far the shard has been brought into all that are filled from it; the position
    itself where there are none.
    """
    item = await copy.ports.coord.get(keys.shard_map(copy.gallery.name))
    pending = () if item is None else decode_shard_map(item.value).pending
    children = [one.shard_id for one in pending if copy.assignment.shard_id in one.sources]
    return min([position, *(mirrored.get(child, 0) for child in children)])
