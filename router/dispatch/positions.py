"""How far the shards' logs are known to have come."""

from collections.abc import Iterable, Mapping

from facegrid.ids import ShardId
from facegrid.model import ShardMap, Token


class Positions:
    """The highest position seen of every shard, in answers to reads and writes."""

    def __init__(self) -> None:
        self._seen: dict[ShardId, int] = {}

    def note(self, positions: Iterable[tuple[ShardId, int]]) -> None:
        """Take notice of positions that nodes told."""
        for shard_id, position in positions:
            if position > self._seen.get(shard_id, 0):
                self._seen[shard_id] = position

    def reached(self, demanded: Mapping[ShardId, int]) -> bool:
        """Tell whether some node has been seen at every position demanded."""
        return all(
            position <= self._seen.get(shard_id, 0) for shard_id, position in demanded.items()
        )


def demanded(token: Token, shard_map: ShardMap) -> dict[ShardId, int]:
    """Return what a token demands of one gallery's shards; it may speak of others too."""
    if not token.positions:
        return {}
    return {
        shard.shard_id: token.positions[shard.shard_id]
        for shard in shard_map.shards
        if shard.shard_id in token.positions
    }
