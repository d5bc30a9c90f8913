"""What comes next in a split or merge: pending shards are filled, and replace their sources."""

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Final

from facegrid import limits
from facegrid.format.operations import Operation, OperationState
from facegrid.format.records import Dropped
from facegrid.ids import NodeId, ShardId
from facegrid.model import ShardAssignment, ShardMap
from router.plan import kinds, reshape
from router.plan.decision import (
    Decision,
    HandOver,
    Seen,
    Wait,
    absent,
    ended,
    not_following,
    not_leading,
    stepped,
    unknown,
)
from router.plan.moving import ROUTERS_GRACE_MS

DROP_GRACE_MS: Final = limits.HOLD_MS_MAX + ROUTERS_GRACE_MS + round(1000 * limits.LINGER_S)
"""How long after the decision to cut over the sources stay: until the transaction a hold may pass;
then routers hear of the map, and copies that nobody is to search any more go on answering."""
LAG_RECORDS_MAX: Final = 256
"""Records of a source that may be missing in a child before writes are held back to bring them
over: a few log objects, which takes a small part of a hold."""


def decide(operation: Operation, seen: Seen, shard_map: ShardMap) -> Decision:
    """Return what comes next."""
    if operation.state is OperationState.ABORTING:
        return _back(operation, seen, shard_map)
    if operation.step == "drop":
        return _drop(operation, seen, shard_map)
    sources = [reshape.shard_of(shard_map, source_id) for source_id in operation.source_ids]
    present = tuple(source for source in sources if source is not None)
    if len(present) < len(sources):
        note = "the map does not have the shards any more"
        return ended(operation, seen, OperationState.ABORTED, note=note)
    pending = {shard.shard_id for shard in shard_map.pending}
    if operation.step != "fill" and not pending.issuperset(operation.child_ids):
        # A recovery of etcd did that, and has them deleted: their ids are not used again.
        note = "the new shards were given up"
        return _back(replace(operation, note=note), seen, shard_map)
    alone = reshape.without_pending(
        shard_map, [one.shard_id for one in _strangers(operation, shard_map)]
    )
    if operation.step == "fill" and not pending.issuperset(operation.child_ids):
        operation = _numbered(operation, seen, shard_map)
    filling = reshape.with_pending(alone, reshape.children_of(operation, shard_map))
    if filling != shard_map:
        return _fill(operation, seen, shard_map, filling)
    return _advance(operation, seen, shard_map, present)


def _numbered(operation: Operation, seen: Seen, shard_map: ShardMap) -> Operation:
    """Return an operation whose shards have numbers that no map has counted yet. Others may have
    made shards since it was begun: of one with a lower number everybody believes, as long as he
    does not know it, that it was replaced already.
    """
    if all(reshape.number_of(one) >= shard_map.next_number for one in operation.child_ids):
        return operation
    names = reshape.next_shard_ids(shard_map, len(operation.child_ids), taken=seen.taken)
    return replace(operation, kind=kinds.making(operation.kind, names))


def _strangers(operation: Operation, shard_map: ShardMap) -> list[ShardAssignment]:
    """Return pending shards of the same sources: left by an operation that nobody remembers, since
    whoever has the locks of the sources is alone with them.
    """
    return [
        shard
        for shard in shard_map.pending
        if shard.shard_id not in operation.child_ids
        and not set(operation.source_ids).isdisjoint(shard.sources)
    ]


def _fill(operation: Operation, seen: Seen, shard_map: ShardMap, filling: ShardMap) -> Decision:
    children = [shard for shard in filling.pending if shard.shard_id in operation.child_ids]
    if problem := absent(seen, sorted({node for child in children for node in child.holders})):
        return Wait(problem)
    dropped = tuple(
        _dropped(operation, seen, stranger.shard_id, stranger.holders)
        for stranger in _strangers(operation, shard_map)
    )
    return replace(stepped(operation, seen, "follow", shard_map=filling), dropped=dropped)


def _advance(
    operation: Operation,
    seen: Seen,
    shard_map: ShardMap,
    sources: tuple[ShardAssignment, ...],
) -> Decision:
    children = tuple(shard for shard in shard_map.pending if shard.shard_id in operation.child_ids)
    if operation.step == "fill":
        return stepped(operation, seen, "follow")
    if problem := _not_filled(seen, sources, children):
        return Wait(problem)
    if operation.step == "follow":
        return stepped(operation, seen, "cutover")
    if operation.step == "cutover":
        after = reshape.replaced(shard_map, operation.child_ids)
        return HandOver(sources, children, stepped(operation, seen, "drop", shard_map=after))
    return unknown(operation)


def _not_filled(
    seen: Seen, sources: tuple[ShardAssignment, ...], children: tuple[ShardAssignment, ...]
) -> str:
    """Say what is missing before the children could take their sources' place."""
    problems = [not_leading(seen, shard) for shard in (*sources, *children)]
    for child in children:
        problems += [
            not_following(seen, child, node, searched=False) for node in child.node_ids[1:]
        ]
    if problem := next(filter(None, problems), ""):
        return problem
    for child in children:
        copy = seen.copies[child.primary, child.shard_id]
        for source in sources:
            there = copy.sources.get(source.shard_id)
            end = seen.copies[source.primary, source.shard_id].position
            # A source that was never written has nothing to bring, and position 0.
            if there is None and end > 0:
                return f"waits for the base of a shard shard={child.shard_id}"
            if (there or 0) + LAG_RECORDS_MAX < end:
                return f"waits for the log of a shard shard={child.shard_id}"
        for node in child.node_ids[1:]:
            if seen.copies[node, child.shard_id].position + LAG_RECORDS_MAX < copy.position:
                return f"waits for a follower shard={child.shard_id} node={node}"
    return ""


def _drop(operation: Operation, seen: Seen, shard_map: ShardMap) -> Decision:
    children = [reshape.shard_of(shard_map, child_id) for child_id in operation.child_ids]
    # One that is not there any more was itself replaced, for which it had to serve.
    for child in children:
        if child is not None and (problem := not_leading(seen, child)):
            return Wait(problem)
    if abs(seen.now_ms - operation.step_unix_ms) < DROP_GRACE_MS:
        return Wait("waits for routers to hear of the map")
    holders = [node for child in children if child is not None for node in child.holders]
    dropped = sources_dropped(operation, seen, holders)
    return ended(operation, seen, OperationState.DONE, dropped=dropped)


def sources_dropped(
    operation: Operation, seen: Seen, holders: Collection[NodeId]
) -> tuple[Dropped, ...]:
    """Return what tells nodes to delete the sources."""
    nodes = dict.fromkeys([*operation.former_node_ids, *holders])
    return tuple(_dropped(operation, seen, source, nodes) for source in operation.source_ids)


def _back(operation: Operation, seen: Seen, shard_map: ShardMap) -> Decision:
    """Return to where the operation began: what was filled is deleted."""
    children = [shard for shard in shard_map.pending if shard.shard_id in operation.child_ids]
    return ended(
        operation,
        seen,
        OperationState.ABORTED,
        shard_map=reshape.without_pending(shard_map, operation.child_ids),
        dropped=tuple(
            _dropped(operation, seen, child.shard_id, child.holders) for child in children
        ),
        note=operation.note,
    )


def _dropped(
    operation: Operation, seen: Seen, shard_id: ShardId, nodes: Iterable[NodeId]
) -> Dropped:
    """Return what tells a node to delete a shard: the first one named, so one that is there."""
    order = sorted(nodes, key=lambda node: node not in seen.registered)
    return Dropped(
        shard_id,
        operation.gallery_uid,
        tuple(order),
        gallery_lives=seen.shard_map is not None,
    )
