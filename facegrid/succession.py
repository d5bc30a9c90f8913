"""Who becomes the primary of a shard after its primary: pure, and the same for all who decide.

Nodes decide by themselves when a primary has gone (`indexd.replica.takeover`), routers when an
operator says so.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from facegrid.ids import NodeId
from facegrid.model import ShardAssignment, ShardMap


def candidates(
    shard: ShardAssignment, registered: Collection[NodeId], loads: Mapping[NodeId, int]
) -> list[NodeId]:
    """Return who may become a shard's primary, best first: its followers in the order of the map;
    where none is there, any node, those with fewer shards first. Nodes that join the shard come
    only where there is nobody else: they may be far behind, and have to load it like any other.
    """
    followers = [node for node in shard.node_ids[1:] if node in registered]
    if followers:
        return followers
    others = set(registered) - set(shard.holders)
    if not others:
        return [node for node in shard.joining if node in registered]
    return sorted(others, key=lambda node: (loads.get(node, 0), node))


def succeeded(shard: ShardAssignment, node_id: NodeId) -> ShardAssignment:
    """Return a shard with another primary, which does not join it any more. The old one becomes
    its last follower, unless it was the only copy: who wanted one copy gets one.
    """
    shard = replace(shard, joining=tuple(node for node in shard.joining if node != node_id))
    if len(shard.node_ids) == 1:
        return replace(shard, node_ids=(node_id,))
    rest = [node for node in shard.node_ids[1:] if node != node_id]
    return replace(shard, node_ids=(node_id, *rest, shard.primary))


def with_held(shard_map: ShardMap, held: Sequence[ShardAssignment]) -> ShardMap:
    """Return the next version of a map, with these in the place of all shards that nodes hold:
    those that serve first, then those that are being filled, as many as before.
    """
    count = len(shard_map.shards)
    assert len(held) == len(shard_map.held), "takeover makes no shards and drops none"
    return replace(
        shard_map,
        version=shard_map.version + 1,
        shards=tuple(held[:count]),
        pending=tuple(held[count:]),
    )
