"""A shape that is being thought out: where copies would be, and what that amounts to."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from facegrid.ids import GalleryName, NodeId, ShardId
from facegrid.model import ShardAssignment
from router.plan.hosts import Holding, Host, Spread

COPY_BYTES: Final = 64 * 1024
"""What a copy weighs beyond its bytes: so empty shards are spread too, by their number."""


@dataclass(slots=True)
class Placed:
    """A shard and where its copies would be.

    Attributes:
        gallery: the shard's.
        shard_id: which.
        bytes: what one copy takes.
        wanted_count: how many copies it is to have.
        former: where they are.
        fixed: it stays as it is.
        node_ids: where they would be, the primary first.
        causes: why something is to change, each once: how urgent, 0 most, and in words.
    """

    gallery: GalleryName
    shard_id: ShardId
    bytes: int
    wanted_count: int
    former: tuple[NodeId, ...]
    fixed: bool
    node_ids: list[NodeId]
    causes: dict[str, int] = field(default_factory=dict)

    @property
    def weight(self) -> int:
        """What a copy counts when nodes are compared."""
        return self.bytes + COPY_BYTES


class Layout:
    """Where copies would be. Changed a step at a time; what nodes hold is counted along.

    Args:
        hosts: all nodes; those that only maps name count as not registered.
        spreads: all galleries.
        bytes_of: what one copy of a shard takes.
        busy: shards that stay as they are.
    """

    def __init__(
        self,
        hosts: Sequence[Host],
        spreads: Sequence[Spread],
        *,
        bytes_of: Mapping[ShardId, int],
        busy: Collection[ShardId],
    ) -> None:
        self.hosts = {host.node_id: host for host in hosts}
        self.placed: list[Placed] = []
        self.steps_count = 0
        self._weights: Counter[NodeId] = Counter()
        self._primaries: Counter[NodeId] = Counter()
        self._added: Counter[NodeId] = Counter()
        for spread in spreads:
            for placed in _placed_of(spread, bytes_of, busy):
                self.placed.append(placed)
                for node_id in placed.node_ids:
                    self.hosts.setdefault(node_id, Host(node_id, registered=False))
                    self._weights[node_id] += placed.weight
                self._primaries[placed.node_ids[0]] += 1
        self.first_weights = self._weights.copy()
        self.first_primaries = self._primaries.copy()
        self.hosts = dict(sorted(self.hosts.items()))
        self.placed.sort(key=lambda placed: (-placed.bytes, placed.shard_id))

    @property
    def movable(self) -> Iterator[Placed]:
        """The shards that may be changed, the largest first."""
        return (placed for placed in self.placed if not placed.fixed)

    @property
    def usable(self) -> list[Host]:
        """The nodes that copies may come to."""
        return [host for host in self.hosts.values() if host.usable]

    @property
    def mean(self) -> float:
        """The weight that a usable node would have if all had the same."""
        usable = self.usable
        return sum(self._weights[host.node_id] for host in usable) / max(len(usable), 1)

    def weight(self, node_id: NodeId) -> int:
        """Return the weight of what a node holds."""
        return self._weights[node_id]

    def primaries_count(self, node_id: NodeId) -> int:
        """Return of how many shards a node is the primary."""
        return self._primaries[node_id]

    def has_room(self, placed: Placed, node_id: NodeId) -> bool:
        """Tell whether a copy fits on a node. What leaves it meanwhile makes no room yet."""
        room = self.hosts[node_id].room_bytes
        if room is None or node_id in placed.former:
            return True
        return self._added[node_id] + placed.bytes <= room

    def zones_count(self, node_ids: Collection[NodeId]) -> int:
        """Return in how many zones nodes are."""
        return len({self.hosts[node_id].zone for node_id in node_ids})

    def target(self, placed: Placed, *, gone: NodeId | None = None) -> NodeId | None:
        """Return the best node for one more copy, in the place of `gone`; None: there is none.

        Another zone comes first, then the lightest node, then the one with fewest primaries.
        """
        kept = [node_id for node_id in placed.node_ids if node_id != gone]
        zones = {self.hosts[node_id].zone for node_id in kept}
        return min(
            (
                host.node_id
                for host in self.usable
                if host.node_id not in placed.node_ids and self.has_room(placed, host.node_id)
            ),
            key=lambda node_id: (
                self.hosts[node_id].zone in zones,
                self._weights[node_id],
                self._primaries[node_id],
                self.hosts[node_id].load,
                node_id,
            ),
            default=None,
        )

    def add(self, placed: Placed, node_id: NodeId) -> None:
        """Put a copy on a node, as the last follower."""
        placed.node_ids.append(node_id)
        self._count(placed, node_id, 1)

    def drop(self, placed: Placed, node_id: NodeId) -> None:
        """Take a copy away from a node; where it was the primary, the next usable one is."""
        if node_id == placed.node_ids[0]:
            rest = placed.node_ids[1:]
            heirs = [one for one in rest if self.hosts[one].usable]
            self.promote(placed, (heirs or rest)[0])
        placed.node_ids.remove(node_id)
        self._count(placed, node_id, -1)

    def exchange(self, placed: Placed, gone: NodeId, new: NodeId) -> None:
        """Put a copy on another node, in the same role."""
        place = placed.node_ids.index(gone)
        placed.node_ids[place] = new
        self._count(placed, gone, -1)
        self._count(placed, new, 1)
        if place == 0:
            self._primaries[gone] -= 1
            self._primaries[new] += 1

    def promote(self, placed: Placed, node_id: NodeId) -> None:
        """Make a follower the primary, and the primary the first follower."""
        self._primaries[placed.node_ids[0]] -= 1
        self._primaries[node_id] += 1
        placed.node_ids.remove(node_id)
        placed.node_ids.insert(0, node_id)
        self.steps_count += 1

    def _count(self, placed: Placed, node_id: NodeId, sign: int) -> None:
        self._weights[node_id] += sign * placed.weight
        if node_id not in placed.former:
            self._added[node_id] += sign * placed.bytes
        self.steps_count += 1

    def holdings(self, *, former: bool) -> dict[NodeId, Holding]:
        """Return what each node holds, or held."""
        held = dict.fromkeys(self.hosts, Holding())
        for placed in self.placed:
            for place, node_id in enumerate(placed.former if former else placed.node_ids):
                one = held[node_id]
                held[node_id] = replace(
                    one,
                    bytes=one.bytes + placed.bytes,
                    primaries_count=one.primaries_count + (place == 0),
                    replicas_count=one.replicas_count + 1,
                )
        return held


def _placed_of(
    spread: Spread, bytes_of: Mapping[ShardId, int], busy: Collection[ShardId]
) -> Iterator[Placed]:
    """Return the shards of a gallery. Those that an operation has stay as they are."""
    shard_map = spread.shard_map
    sources = {source for shard in shard_map.pending for source in shard.sources}

    def is_fixed(shard: ShardAssignment) -> bool:
        at_work = bool(shard.joining or shard.sources) or shard.shard_id in sources
        return at_work or shard.shard_id in busy

    for shard in shard_map.held:
        yield Placed(
            gallery=shard_map.gallery,
            shard_id=shard.shard_id,
            bytes=bytes_of.get(shard.shard_id, 0),
            wanted_count=spread.replicas_count,
            former=shard.holders,
            fixed=is_fixed(shard),
            node_ids=list(shard.holders),
        )
