"""Fan-out: which node is asked for which shard, and which shard a subject lies in."""

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from facegrid.ids import NodeId, ShardId, subject_key, subject_keys
from facegrid.model import ShardAssignment, ShardMap


@dataclass(frozen=True, slots=True)
class NodeLoad:
    """What the router last saw of a node.

    Attributes:
        latency_s: recent time of a call; 0 while unknown, so that an unknown node is tried.
        calls_count: calls under way.
        failing: it failed recently; ask it only where nobody else can be asked.
    """

    latency_s: float = 0.0
    calls_count: int = 0
    failing: bool = False

    @property
    def expected_s(self) -> float:
        """About how long one more call would take."""
        return self.latency_s * (self.calls_count + 1)


UNKNOWN = NodeLoad()


def choose_node(
    node_ids: Sequence[NodeId], *, loads: Mapping[NodeId, NodeLoad], turn: int
) -> NodeId:
    """Return which replica to ask: the less loaded of two, failing ones last.

    The two are taken round-robin by `turn`, so that with many replicas all are looked at in time.
    Between equals the one nearer the front of the map wins: with two, that is the primary.
    """
    sound = [node for node in node_ids if not loads.get(node, UNKNOWN).failing]
    usable = sound or list(node_ids)
    first, second = turn % len(usable), (turn + 1) % len(usable)
    pair = [usable[index] for index in sorted({first, second})]
    return min(pair, key=lambda node: loads.get(node, UNKNOWN).expected_s)


def group_by_node(
    shards: Sequence[ShardAssignment],
    *,
    loads: Mapping[NodeId, NodeLoad],
    avoid: Mapping[ShardId, Collection[NodeId]],
    turn: int,
) -> dict[NodeId, list[ShardAssignment]]:
    """Return which node to ask for which shards, each shard exactly once.

    Args:
        shards: those to be searched.
        loads: what is known of the nodes.
        avoid: nodes that just failed or refused a shard; taken again only if there is no other.
        turn: grows by one with every batch.
    """
    groups: dict[NodeId, list[ShardAssignment]] = {}
    for shard in shards:
        shunned = avoid.get(shard.shard_id, ())
        open_to = [node for node in shard.node_ids if node not in shunned] or shard.node_ids
        # What it was given of this batch counts: else the fastest node gets all that it has copies
        # of, and the others wait for it.
        given = {node: _with(loads, node, len(groups.get(node, ()))) for node in open_to}
        groups.setdefault(choose_node(open_to, loads=given, turn=turn), []).append(shard)
    return groups


def _with(loads: Mapping[NodeId, NodeLoad], node: NodeId, shards_count: int) -> NodeLoad:
    """Return the load of a node that was given shards of the batch that is being divided."""
    load = loads.get(node, UNKNOWN)
    return replace(load, calls_count=load.calls_count + shards_count) if shards_count else load


def shard_of(shard_map: ShardMap, subject_id: str) -> ShardAssignment:
    """Return the shard that a subject lies in."""
    key = subject_key(subject_id)
    position = bisect_right(shard_map.shards, key, key=lambda shard: shard.range.first) - 1
    return shard_map.shards[position]


def rows_by_shard(
    shard_map: ShardMap, subject_ids: Sequence[str]
) -> list[tuple[ShardAssignment, list[int]]]:
    """Return the shards that the rows fall into, in map order, each with its rows in order."""
    if not subject_ids:
        return []
    if len(subject_ids) == 1:  # NumPy would cost more than the rest
        return [(shard_of(shard_map, subject_ids[0]), [0])]
    firsts = np.array([shard.range.first for shard in shard_map.shards], np.uint64)
    keys = subject_keys([subject_id.encode() for subject_id in subject_ids])
    positions = np.searchsorted(firsts, keys, "right") - 1
    order = np.argsort(positions, kind="stable")
    ordered = positions[order]
    begins = np.flatnonzero(np.diff(ordered, prepend=-1))
    return [
        (shard_map.shards[position], rows.tolist())
        for position, rows in zip(
            ordered[begins].tolist(), np.split(order, begins[1:]), strict=True
        )
    ]
