"""How far the shards' logs are known to have come, and on which nodes."""

from collections.abc import Collection, Iterable, Mapping

from facegrid.ids import NodeId, ShardId
from facegrid.model import ShardAssignment


class Positions:
    """The highest position seen of every shard on every node, in answers to reads and writes."""

    def __init__(self) -> None:
        self._seen: dict[ShardId, dict[NodeId, int]] = {}

    def note(self, node_id: NodeId, positions: Iterable[tuple[ShardId, int]]) -> None:
        """Take notice of positions that a node told."""
        for shard_id, position in positions:
            seen = self._seen.setdefault(shard_id, {})
            if position > seen.get(node_id, 0):
                seen[node_id] = position

    def keep(self, shard_ids: Collection[ShardId]) -> None:
        """Forget shards that are gone: their ids are never used again."""
        self._seen = {
            shard_id: seen for shard_id, seen in self._seen.items() if shard_id in shard_ids
        }

    @property
    def shards_count(self) -> int:
        """The number of shards of which something is known."""
        return len(self._seen)

    def reached(self, demanded: Mapping[ShardId, int]) -> bool:
        """Tell whether some node has been seen at every position demanded."""
        return all(
            position <= max(self._seen.get(shard_id, {}).values(), default=0)
            for shard_id, position in demanded.items()
        )

    def may_wait(self, node_id: NodeId, demanded: Mapping[ShardId, int]) -> bool:
        """Tell whether a node was not yet seen at every position demanded: it may use up all the
        time it is given, waiting for the rest, and be sound.
        """
        return any(
            position > self._seen.get(shard_id, {}).get(node_id, 0)
            for shard_id, position in demanded.items()
        )

    def behind(self, shard: ShardAssignment, position: int) -> Collection[NodeId]:
        """Return the followers not yet seen at a position: asked for it, they might have to wait
        for the primary's records, while the primary has them.
        """
        if position == 0:
            return ()
        seen = self._seen.get(shard.shard_id, {})
        return {node_id for node_id in shard.node_ids[1:] if seen.get(node_id, 0) < position}
