"""How far an operation has come, by what nodes say of the rows that they hold. Pure."""

from collections.abc import Mapping

from facegrid.format.operations import Operation, Replicas
from facegrid.ids import NodeId, ShardId
from facegrid.model import ShardMap
from router.plan.kinds import steps_of

Counts = Mapping[tuple[NodeId, ShardId], int]
"""Templates of each copy that a node told of."""


def involved(operation: Operation, shard_map: ShardMap) -> set[NodeId]:
    """Return the nodes that hold, or are to hold, what an operation changes."""
    named = {*operation.former_node_ids}
    if isinstance(operation.kind, Replicas):
        named.update(operation.kind.node_ids)
    for shard in shard_map.held:
        if shard.shard_id in operation.locked_ids:
            named.update(shard.holders)
    return named


def arrived_share(operation: Operation, shard_map: ShardMap, counts: Counts) -> float:
    """Return the share of the rows that have arrived where they shall be, 0 to 1."""
    steps = steps_of(operation.kind)
    if operation.step in steps and steps.index(operation.step) > steps.index("cutover"):
        return 1.0
    held = {shard.shard_id: shard for shard in shard_map.held}
    if isinstance(operation.kind, Replicas):
        shard = held.get(operation.kind.shard_id)
        new = [node for node in operation.kind.node_ids if node not in operation.former_node_ids]
        if shard is None:
            return 0.0
        whole = counts.get((shard.primary, shard.shard_id), 0) * len(new)
        there = sum(counts.get((node, shard.shard_id), 0) for node in new)
        return _share(there, whole, nothing=float(all(node in shard.holders for node in new)))
    sources = [held[one] for one in operation.source_ids if one in held]
    children = [held[one] for one in operation.child_ids if one in held]
    whole = sum(counts.get((shard.primary, shard.shard_id), 0) for shard in sources)
    there = sum(counts.get((shard.primary, shard.shard_id), 0) for shard in children)
    return _share(there, whole, nothing=float(bool(children)))


def _share(there: int, whole: int, *, nothing: float) -> float:
    return min(1.0, there / whole) if whole else nothing
