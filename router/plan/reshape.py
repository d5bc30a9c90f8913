"""Maps that follow from maps: one function for each step of a change of shape (RFC 0009). Pure.

Each leaves the version to `next_version`, which is called once for a transaction, and every
function called again on what it returned returns the same.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from itertools import pairwise

from facegrid.format.operations import Merge, Operation, Replicas, Split
from facegrid.ids import NodeId, ShardId
from facegrid.model import HashRange, ShardAssignment, ShardMap
from router.plan.placement import shard_id


def next_version(before: ShardMap, after: ShardMap) -> ShardMap:
    """Return the map to be written in the place of another; the same one where nothing changed."""
    if after == before:
        return before
    return replace(after, version=before.version + 1)


def shard_of(shard_map: ShardMap, wanted: ShardId) -> ShardAssignment | None:
    """Return a shard that serves; None where the map has none of that name."""
    return next((shard for shard in shard_map.shards if shard.shard_id == wanted), None)


def joined(shard_map: ShardMap, wanted: ShardId, node_ids: Sequence[NodeId]) -> ShardMap:
    """Return the map in which those of the nodes that do not hold the shard join it, and nobody
    else does.
    """

    def change(shard: ShardAssignment) -> ShardAssignment:
        new = tuple(node for node in node_ids if node not in shard.holders)
        joining = tuple(node for node in shard.joining if node in node_ids)
        return replace(shard, joining=(*joining, *new))

    return _changed(shard_map, wanted, change)


def served(shard_map: ShardMap, wanted: ShardId, node_ids: Collection[NodeId]) -> ShardMap:
    """Return the map in which joining nodes, those of the given ones, serve behind the others."""

    def change(shard: ShardAssignment) -> ShardAssignment:
        ready = tuple(node for node in shard.joining if node in node_ids)
        rest = tuple(node for node in shard.joining if node not in node_ids)
        return replace(shard, node_ids=(*shard.node_ids, *ready), joining=rest)

    return _changed(shard_map, wanted, change)


def led(shard_map: ShardMap, wanted: ShardId, primary: NodeId) -> ShardMap:
    """Return the map in which a node that serves the shard leads it, the old primary behind."""

    def change(shard: ShardAssignment) -> ShardAssignment:
        assert primary in shard.node_ids, f"it does not serve the shard: {primary} {shard}"
        rest = tuple(node for node in shard.node_ids if node != primary)
        return replace(shard, node_ids=(primary, *rest))

    return _changed(shard_map, wanted, change)


def left(shard_map: ShardMap, wanted: ShardId, stay: Sequence[NodeId]) -> ShardMap:
    """Return the map in which only nodes that shall stay hold the shard, in the order given,
    behind the primary. That one stays in any case.
    """

    def change(shard: ShardAssignment) -> ShardAssignment:
        others = [node for node in stay if node in shard.node_ids and node != shard.primary]
        joining = tuple(node for node in shard.joining if node in stay)
        return replace(shard, node_ids=(shard.primary, *others), joining=joining)

    return _changed(shard_map, wanted, change)


def with_pending(shard_map: ShardMap, children: Sequence[ShardAssignment]) -> ShardMap:
    """Return the map with shards that are to be filled; those that are there already stay."""
    there = {shard.shard_id for shard in shard_map.held}
    new = tuple(child for child in children if child.shard_id not in there)
    if not new:
        return shard_map
    numbers = [number_of(child.shard_id) for child in new]
    return replace(
        shard_map,
        pending=(*shard_map.pending, *new),
        made_count=max(shard_map.next_number, max(numbers) + 1),
    )


def replaced(shard_map: ShardMap, child_ids: Collection[ShardId]) -> ShardMap:
    """Return the map in which pending shards have taken the place of their sources."""
    children = [shard for shard in shard_map.pending if shard.shard_id in child_ids]
    gone = {source for child in children for source in child.sources}
    stay = [shard for shard in shard_map.shards if shard.shard_id not in gone]
    new = [replace(child, sources=()) for child in children]
    return replace(
        shard_map,
        shards=tuple(sorted([*stay, *new], key=lambda shard: shard.range)),
        pending=tuple(shard for shard in shard_map.pending if shard.shard_id not in child_ids),
        made_count=shard_map.next_number if children else shard_map.made_count,
    )


def without_pending(shard_map: ShardMap, child_ids: Collection[ShardId]) -> ShardMap:
    """Return the map without pending shards. Their numbers are not given again."""
    stay = tuple(shard for shard in shard_map.pending if shard.shard_id not in child_ids)
    if stay == shard_map.pending:
        return shard_map
    return replace(shard_map, pending=stay, made_count=shard_map.next_number)


def children_of(operation: Operation, shard_map: ShardMap) -> tuple[ShardAssignment, ...]:
    """Return the shards that an operation makes, as they begin. Those of a split have half the
    range each and the nodes of their source; the second node, if there is one, leads the upper.
    That of a merge has the nodes of the first source. A change of copies makes none.

    All sources must serve in the map.
    """
    sources = [shard_of(shard_map, source_id) for source_id in operation.source_ids]
    present = [source for source in sources if source is not None]
    assert len(present) == len(sources), f"sources are not in the map: {operation.source_ids}"
    first = present[0]
    match operation.kind:
        case Replicas():
            return ()
        case Split(at=at, child_ids=(lower, upper)):
            ranges = HashRange(first.range.first, at - 1), HashRange(at, first.range.last)
            spread = (*first.node_ids[1:2], first.node_ids[0], *first.node_ids[2:])
            return (
                ShardAssignment(lower, ranges[0], first.node_ids, sources=(first.shard_id,)),
                ShardAssignment(upper, ranges[1], spread, sources=(first.shard_id,)),
            )
        case Merge(shard_ids=shard_ids, child_id=child_id):
            whole = HashRange(first.range.first, present[-1].range.last)
            return (ShardAssignment(child_id, whole, first.node_ids, sources=shard_ids),)
        case Split():
            raise AssertionError(f"a split makes two shards: {operation.kind}")


def middle(hash_range: HashRange) -> int:
    """Return the first key of the upper half; the range must have more than one key."""
    assert hash_range.size > 1, f"it cannot be halved: {hash_range}"
    return hash_range.first + hash_range.size // 2


def neighbours(shards: Sequence[ShardAssignment]) -> bool:
    """Tell whether shards, by rising key, follow one another without a gap."""
    return all(one.range.last + 1 == other.range.first for one, other in pairwise(shards))


def next_shard_ids(
    shard_map: ShardMap, count: int, *, taken: Collection[ShardId]
) -> tuple[ShardId, ...]:
    """Return names for new shards of a gallery: never used, and not promised to others."""
    names: list[ShardId] = []
    number = shard_map.next_number
    while len(names) < count:
        name = shard_id(shard_map.gallery, shard_map.gallery_uid, number)
        if name not in taken:
            names.append(name)
        number += 1
    return tuple(names)


def number_of(wanted: ShardId) -> int:
    """Return the number in the name of a shard."""
    return int(wanted.rpartition(".")[2])


def _changed(
    shard_map: ShardMap, wanted: ShardId, change: Callable[[ShardAssignment], ShardAssignment]
) -> ShardMap:
    return replace(
        shard_map,
        shards=tuple(
            change(shard) if shard.shard_id == wanted else shard for shard in shard_map.shards
        ),
    )
