"""Properties of rebalancing, over clusters of any shape."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from facegrid.ids import GalleryName, NodeId, ShardId
from facegrid.model import ShardAssignment, ShardMap
from router.plan.layout import COPY_BYTES
from router.plan.placement import equal_ranges
from router.plan.rebalance import Host, Proposal, Spread, propose


@dataclass(frozen=True, slots=True)
class World:
    """A cluster to be rebalanced."""

    hosts: tuple[Host, ...]
    spreads: tuple[Spread, ...]
    bytes_of: dict[ShardId, int]

    @property
    def proposal(self) -> Proposal:
        return propose(self.hosts, self.spreads, bytes_of=self.bytes_of)

    @property
    def copies(self) -> dict[ShardId, tuple[NodeId, ...]]:
        return {
            shard.shard_id: shard.node_ids
            for spread in self.spreads
            for shard in spread.shard_map.shards
        }

    def host(self, node_id: NodeId) -> Host:
        return next(host for host in self.hosts if host.node_id == node_id)

    def after(self, proposal: Proposal) -> "World":
        """Return the cluster once all moves are done; what left a node made no room there."""
        targets = {move.shard_id: move.node_ids for move in proposal.moves}
        added = {host.node_id: 0 for host in self.hosts}
        for move in proposal.moves:
            for node_id in {*move.node_ids} - {*move.former_node_ids}:
                added[node_id] += self.bytes_of[move.shard_id]
        return World(
            hosts=tuple(
                host
                if host.room_bytes is None
                else replace(host, room_bytes=host.room_bytes - added[host.node_id])
                for host in self.hosts
            ),
            spreads=tuple(_moved(spread, targets) for spread in self.spreads),
            bytes_of=self.bytes_of,
        )

    def measures(self) -> tuple[float, ...]:
        """Return what rebalancing makes smaller, the weightiest first: copies missing or on nodes
        to be left, copies that share a zone, the squares of what nodes weigh.
        """
        wanted = {
            shard.shard_id: spread.replicas_count
            for spread in self.spreads
            for shard in spread.shard_map.shards
        }
        unmet = sum(abs(wanted[one] - len(nodes)) for one, nodes in self.copies.items())
        unmet += sum(
            self.host(node_id).left for nodes in self.copies.values() for node_id in nodes
        )
        shared = sum(
            len(nodes) - len({self.host(node_id).zone for node_id in nodes})
            for nodes in self.copies.values()
        )
        return (unmet, shared, sum(weight**2 for weight in self.weights()))

    def weights(self) -> list[int]:
        return [
            sum(
                self.bytes_of[shard_id] + COPY_BYTES
                for shard_id, nodes in self.copies.items()
                if host.node_id in nodes
            )
            for host in self.hosts
            if host.usable
        ]


def _moved(spread: Spread, targets: dict[ShardId, tuple[NodeId, ...]]) -> Spread:
    shards = tuple(
        replace(shard, node_ids=targets.get(shard.shard_id, shard.node_ids))
        for shard in spread.shard_map.shards
    )
    return replace(spread, shard_map=replace(spread.shard_map, shards=shards))


@st.composite
def worlds(draw: st.DrawFn) -> World:
    names = [NodeId(f"n{number}") for number in range(draw(st.integers(1, 6)))]
    hosts = tuple(
        Host(
            name,
            zone=draw(st.sampled_from(["", "a", "b", "c"])),
            registered=draw(st.integers(0, 5)) > 0,
            draining=draw(st.integers(0, 5)) == 0,
            lost=draw(st.integers(0, 7)) == 0,
            room_bytes=draw(st.none() | st.integers(0, 5_000_000)),
            load=draw(st.sampled_from([0.0, 1.0])),
        )
        for name in names
    )
    bytes_of: dict[ShardId, int] = {}
    spreads = []
    for number in range(draw(st.integers(1, 3))):
        ranges = equal_ranges(draw(st.integers(1, 6)))
        replicas = draw(st.integers(1, 3))
        shards = []
        for place, hash_range in enumerate(ranges):
            name = ShardId(f"g{number}.{place}")
            bytes_of[name] = draw(st.integers(0, 4_000_000))
            copies = draw(st.permutations(names))[: draw(st.integers(1, 3))]
            shards.append(ShardAssignment(name, hash_range, tuple(copies)))
        shard_map = ShardMap(GalleryName(f"g{number}"), f"u{number}", 1, tuple(shards))
        spreads.append(Spread(shard_map, replicas))
    return World(hosts, tuple(spreads), bytes_of)


@given(worlds())
def test_a_proposal_can_be_carried_out(world: World) -> None:
    for move in world.proposal.moves:
        new = {*move.node_ids} - {*move.former_node_ids}
        assert len({*move.node_ids}) == len(move.node_ids) > 0
        assert move.former_node_ids == world.copies[move.shard_id] != move.node_ids
        assert all(world.host(node_id).usable for node_id in new)
        assert move.moved_bytes == len(new) * world.bytes_of[move.shard_id]
        assert move.cause
    for host in world.after(world.proposal).hosts:
        assert host.room_bytes is None or host.room_bytes >= 0


@given(worlds())
def test_the_outcome_of_a_proposal_is_left_alone(world: World) -> None:
    after = world.after(world.proposal)

    assert after.proposal.moves == ()
    assert [change.before for change in after.proposal.hosts] == [
        change.after for change in world.proposal.hosts
    ]


@given(worlds())
def test_a_proposal_never_makes_things_worse(world: World) -> None:
    after = world.after(world.proposal)

    assert after.measures() <= world.measures()
    for shard_id, nodes in after.copies.items():
        former = world.copies[shard_id]
        assert len(nodes) >= min(len(former), _wanted(world, shard_id))
    if not _needs_more_than_balance(world):
        assert spread_of(after.weights()) <= spread_of(world.weights())


def _wanted(world: World, shard_id: ShardId) -> int:
    return next(
        spread.replicas_count
        for spread in world.spreads
        if any(shard.shard_id == shard_id for shard in spread.shard_map.shards)
    )


def _needs_more_than_balance(world: World) -> bool:
    unmet, shared, _ = world.measures()
    return unmet + shared > 0


def spread_of(weights: Sequence[int]) -> int:
    return max(weights, default=0) - min(weights, default=0)


@given(worlds(), st.randoms(use_true_random=False))
def test_the_order_of_what_is_given_does_not_matter(world: World, chance: object) -> None:
    hosts, spreads = [*world.hosts], [*world.spreads]
    chance.shuffle(hosts)  # type: ignore[attr-defined]  # a random.Random, which lint bans by name
    chance.shuffle(spreads)  # type: ignore[attr-defined]  # likewise

    assert propose(hosts, spreads, bytes_of=world.bytes_of) == world.proposal


@settings(max_examples=200)
@given(worlds())
def test_nodes_with_room_elsewhere_are_emptied(world: World) -> None:
    roomy = replace(world, hosts=tuple(replace(host, room_bytes=None) for host in world.hosts))
    after = roomy.after(roomy.proposal)

    usable_count = sum(host.usable for host in roomy.hosts)
    for spread in after.spreads:
        for shard in spread.shard_map.shards:
            away = [one for one in shard.node_ids if not roomy.host(one).registered]
            if usable_count + len(away) >= max(spread.replicas_count, len(shard.node_ids)):
                assert not any(roomy.host(one).left for one in shard.node_ids) or (
                    usable_count < len(shard.node_ids)
                )


@given(worlds())
def test_who_is_found_lacking_is_told(world: World) -> None:
    """Whatever is not as it should be afterwards stands among the problems."""
    after = world.after(world.proposal)
    unmet, _, _ = after.measures()

    assert (unmet == 0) or world.proposal.problems
