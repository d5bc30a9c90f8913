"""Who had the keys of a shard before its primary knew, and may still be taken for confirmed."""

from dataclasses import dataclass, field

from facegrid import limits
from facegrid.ids import NodeId
from facegrid.model import ShardAssignment


@dataclass(slots=True)
class Forerunners:
    """What an erasure waits for, beside the copies that the map names now.

    Attributes:
        alone_from_s: from when on nobody who had these keys before can be taken for one who has
            them now.
        until_s: nodes that the map gave a copy lately, and until when theirs may be confirmed.
    """

    alone_from_s: float = float("-inf")
    until_s: dict[NodeId, float] = field(default_factory=dict)

    def claimed(self, generation: int, map_version: int, now_s: float) -> None:
        """Take in that the shard was claimed just before. Only the first primary by a gallery's
        first map is one before whom there was nobody.
        """
        if generation > 1 or map_version > 1:
            self.alone_from_s = now_s + limits.CONFIRMATION_OVER_S

    def moved(self, before: ShardAssignment, after: ShardAssignment, now_s: float) -> None:
        """Take in a newer map. Who does not hold the shard any more may not have heard of it, and
        was confirmed at the latest just before the map changed; so were the copies of the shards
        whose place this one takes.
        """
        self.until_s = {node: until_s for node, until_s in self.until_s.items() if until_s > now_s}
        for node_id in before.holders:
            if node_id not in after.holders:
                self.until_s[node_id] = now_s + limits.CONFIRMATION_OVER_S
        if before.sources and not after.sources:
            self.alone_from_s = max(self.alone_from_s, now_s + limits.CONFIRMATION_OVER_S)
