"""When to take over the shards of a primary that has gone, and which: pure decisions.

A wrong guess costs a pause and no data: whoever commits is decided by the generation in etcd. So
the rules are about not guessing too often. A node that has not been registered for a while is
taken for dead, but not

- while etcd is silent, nor for a lease time after it was: registrations may have ended meanwhile
  without anybody having died;
- when more than a share of the nodes vanished together: that is an outage, and moving everything
  makes it worse. People decide then.

The candidates of a shard are put in an order that every node finds by itself. The first proposes;
each next one only if those before it have not for as long again.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from facegrid.ids import NodeId, ShardId
from facegrid.model import ShardAssignment, ShardMap
from facegrid.succession import candidates, succeeded, with_held

SILENCE_S = 3.0
"""A watch tells of progress each second; after this time etcd counts as having been away."""
VANISHED_SHARE_MAX = 0.3
"""Share of the nodes that may vanish together and still be taken over; one node always may."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How patient to be.

    Attributes:
        patience_s: how long a node is not registered before it is taken for dead.
        calm_s: how long after a silence of etcd nobody is, and within which time of one another
            nodes vanish together.
    """

    patience_s: float
    calm_s: float


@dataclass(frozen=True, slots=True)
class Proposal:
    """A gallery's next map, in which other nodes are primaries of some shards.

    Attributes:
        shard_map: the map to be, one version on.
        map_revision: of the map that it replaces.
        taken: the shards concerned.
        absent: the primaries that are replaced.
    """

    shard_map: ShardMap
    map_revision: int
    taken: tuple[ShardId, ...]
    absent: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to propose; and if nothing although a primary is absent, why not."""

    proposals: tuple[Proposal, ...] = ()
    held: str = ""


@dataclass(slots=True)
class Absences:
    """Since when nodes that maps name have not been registered, as etcd told without a break."""

    rules: Rules
    calm_until_s: float
    since_s: dict[NodeId, float] = field(default_factory=dict)
    returned: dict[NodeId, tuple[float, float]] = field(default_factory=dict)
    """Nodes that are back, each with since when it was absent and since when it is not."""
    seen: set[NodeId] = field(default_factory=set)
    """Nodes that were registered at some time while this was watched."""

    def note(
        self,
        *,
        mapped: Collection[NodeId],
        registered: Collection[NodeId],
        heard_s: float,
        now_s: float,
    ) -> None:
        """Take in what etcd says, heard last at a time."""
        if now_s - heard_s > SILENCE_S:
            # Who was away before is so still, or is seen to be back; nobody newly counts as away.
            self.calm_until_s = now_s + self.rules.calm_s
            return
        self.seen.update(registered)
        absent = set(mapped) - set(registered)
        for node in self.since_s.keys() - absent:
            self.returned[node] = (self.since_s[node], now_s)
        self.returned = {
            node: (since_s, back_s)
            for node, (since_s, back_s) in self.returned.items()
            if node not in absent and now_s - back_s < self.rules.calm_s
        }
        self.since_s = {node: self.since_s.get(node, now_s) for node in absent}

    def absent_for_s(self, node_id: NodeId, now_s: float) -> float:
        """Return for how long a node has been absent; below zero: it is not."""
        return now_s - self.since_s[node_id] if node_id in self.since_s else -1.0

    def together(self, node_id: NodeId) -> Collection[NodeId]:
        """Return the nodes that vanished about when this one did, with it. Those too that have
        just come back: whatever it was may be over for them, and not for this one yet.
        """
        at_s = self.since_s[node_id]
        vanished = self.since_s | {node: since_s for node, (since_s, _) in self.returned.items()}
        return [
            node for node, since_s in vanished.items() if abs(since_s - at_s) < self.rules.calm_s
        ]


@dataclass(frozen=True, slots=True)
class MapSeen:
    """A map, and the revision that guards it."""

    shard_map: ShardMap
    revision: int


@dataclass(frozen=True, slots=True)
class Standing:
    """What one node sees when it decides.

    Attributes:
        me: the node that decides.
        maps: of all galleries.
        registered: the nodes that are there.
        ready: shards that this node follows and serves.
    """

    me: NodeId
    maps: Sequence[MapSeen]
    registered: Collection[NodeId]
    ready: Collection[ShardId]


def decide(standing: Standing, absences: Absences, now_s: float) -> Verdict:
    """Return which shards this node should take over now."""
    gone, held = _gone(standing, absences, now_s)
    loads = _loads(standing.maps)
    proposals: list[Proposal] = []
    for seen in sorted(standing.maps, key=lambda seen: seen.shard_map.gallery):
        taken: list[ShardAssignment] = []
        shards: list[ShardAssignment] = []
        for shard in seen.shard_map.held:
            turns = int(gone.get(shard.primary, 0.0) / absences.rules.patience_s)
            order = candidates(shard, standing.registered, loads) if turns else []
            mine = standing.me in order[:turns] and _able(shard, standing)
            loads.update(order[:1])
            taken += [shard] if mine else []
            shards.append(succeeded(shard, standing.me) if mine else shard)
        if taken:
            proposals.append(_proposal(seen, shards, taken))
    return Verdict(tuple(proposals), held)


def _gone(standing: Standing, absences: Absences, now_s: float) -> tuple[dict[NodeId, float], str]:
    """Return for how long nodes have been away that count as dead; and if some are away that do
    not, why.
    """
    nodes = {
        node for seen in standing.maps for shard in seen.shard_map.held for node in shard.holders
    }
    primaries = {shard.primary for seen in standing.maps for shard in seen.shard_map.held}
    away = {
        node: absences.absent_for_s(node, now_s)
        for node in sorted(primaries)
        if absences.absent_for_s(node, now_s) >= absences.rules.patience_s
    }
    if away and now_s < absences.calm_until_s:
        return {}, "etcd was silent lately"
    limit = max(1, int(VANISHED_SHARE_MAX * len(nodes)))
    # Who has been dead since before this was watched did not vanish now: of such a node others
    # have taken over all that it was the primary of.
    counted = primaries | absences.seen
    many = {node for node in away if len(counted.intersection(absences.together(node))) > limit}
    held = f"too many nodes vanished together limit={limit}" if many else ""
    return {node: away_s for node, away_s in away.items() if node not in many}, held


def _able(shard: ShardAssignment, standing: Standing) -> bool:
    """Tell whether this node can go on where the primary stopped: as a follower that serves, or
    from the store where there is no follower.
    """
    return standing.me not in shard.holders or shard.shard_id in standing.ready


def _proposal(
    seen: MapSeen, shards: Sequence[ShardAssignment], taken: Sequence[ShardAssignment]
) -> Proposal:
    """Return the map with these shards in the place of those that it held."""
    return Proposal(
        with_held(seen.shard_map, shards),
        seen.revision,
        tuple(shard.shard_id for shard in taken),
        tuple(dict.fromkeys(shard.primary for shard in taken)),
    )


def _loads(maps: Sequence[MapSeen]) -> Counter[NodeId]:
    """Return how many shards each node holds."""
    return Counter(
        node for seen in maps for shard in seen.shard_map.held for node in shard.holders
    )
