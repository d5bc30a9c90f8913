"""Rebalancing by example: what an operator does, and what is proposed."""

from collections.abc import Mapping, Sequence

import pytest

from facegrid.ids import GalleryName, NodeId, ShardId
from facegrid.model import ShardAssignment, ShardMap
from router.plan.hosts import zoned
from router.plan.placement import equal_ranges
from router.plan.rebalance import Host, Proposal, Spread, propose

MIB = 1024 * 1024


def hosts(*names: str, **of: Mapping[str, object]) -> list[Host]:
    """Return nodes; what is said of one by its name, for instance n1={"draining": True}."""
    return [Host(NodeId(name), **of.get(name, {})) for name in names]  # type: ignore[arg-type]  # given by name


def gallery(
    *copies: str, replicas: int = 2, joining: Mapping[int, str] | None = None, name: str = "g"
) -> Spread:
    """Return a gallery whose shards lie on these nodes, for instance "n1 n2"."""
    ranges = equal_ranges(len(copies))
    shards = tuple(
        ShardAssignment(
            ShardId(f"{name}.{number}"),
            ranges[number],
            tuple(NodeId(one) for one in text.split()),
            joining=tuple(NodeId(one) for one in (joining or {}).get(number, "").split()),
        )
        for number, text in enumerate(copies)
    )
    return Spread(ShardMap(GalleryName(name), "u", 1, shards), replicas)


def proposed(
    nodes: Sequence[Host], *spreads: Spread, sizes: Mapping[str, int] | None = None
) -> Proposal:
    """Return what is proposed; shards have 100 MiB where nothing is said."""
    bytes_of = {
        shard.shard_id: (sizes or {}).get(shard.shard_id, 100) * MIB
        for spread in spreads
        for shard in spread.shard_map.shards
    }
    return propose(nodes, spreads, bytes_of=bytes_of)


def told(proposal: Proposal) -> list[tuple[str, str, str]]:
    return [(move.shard_id, " ".join(move.node_ids), move.cause) for move in proposal.moves]


def held(proposal: Proposal) -> dict[str, tuple[int, int]]:
    """Return copies and primaries of each node after the moves."""
    return {
        change.host.node_id: (change.after.replicas_count, change.after.primaries_count)
        for change in proposal.hosts
    }


def test_a_balanced_cluster_is_left_alone() -> None:
    proposal = proposed(hosts("n1", "n2"), gallery("n1 n2", "n2 n1"))

    assert (proposal.moves, proposal.problems) == ((), ())


def test_an_empty_node_gets_its_share_and_no_copy_moves_twice() -> None:
    six = gallery("n1 n2", "n2 n1", "n1 n2", "n2 n1", "n1 n2", "n2 n1")
    proposal = proposed(hosts("n1", "n2", "n3"), six)

    assert held(proposal) == {"n1": (4, 2), "n2": (4, 2), "n3": (4, 2)}
    assert sum(move.moved_bytes for move in proposal.moves) == 4 * 100 * MIB
    assert len(proposal.moves) <= 6
    told_of = " ".join(move.cause for move in proposal.moves)
    assert "n1 holds 600.4 MiB, n3 0 B" in told_of
    assert "n2 holds 600.4 MiB, n3 0 B" in told_of
    assert proposal.problems == ()


def test_roles_are_swapped_where_no_bytes_need_to_move() -> None:
    proposal = proposed(hosts("n1", "n2"), gallery(*["n1 n2"] * 4))

    assert told(proposal) == [
        ("g.0", "n2 n1", "n1 is the primary of 4 shards, n2 of 0"),
        ("g.1", "n2 n1", "n1 is the primary of 4 shards, n2 of 0"),
    ]
    assert [move.moved_bytes for move in proposal.moves] == [0, 0]


def test_roles_are_handed_on_over_a_node_between() -> None:
    """n1 shares shards with n2 alone, n2 with n3: one role goes from n1 to n2, one on to n3."""
    chain = gallery("n1 n2", "n1 n2", "n2 n3", replicas=2)
    proposal = proposed(hosts("n1", "n2", "n3"), chain, sizes={"g.2": 200})

    assert held(proposal)["n3"][1] == 1
    assert {primaries for _, primaries in held(proposal).values()} == {1}


def test_a_draining_node_is_emptied() -> None:
    nodes = hosts("n1", "n2", "n3", n3={"draining": True})
    proposal = proposed(nodes, gallery("n3 n1", "n1 n2", "n2 n3", "n1 n2"))

    assert told(proposal) == [
        ("g.0", "n2 n1", "n3 is draining"),
        ("g.2", "n2 n1", "n3 is draining"),
    ]
    assert held(proposal)["n3"] == (0, 0)


def test_a_draining_node_whose_copies_fit_nowhere_keeps_them_and_hands_its_roles_on() -> None:
    nodes = hosts("n1", "n2", n2={"draining": True})
    proposal = proposed(nodes, gallery("n2 n1", "n1 n2"))

    assert told(proposal) == [("g.0", "n1 n2", "n2 is draining")]
    assert proposal.problems == (
        "nowhere to go: 2 shards of n2; fewer nodes than copies, 1 node can take any",
    )


def test_a_node_that_is_lost_is_replaced_and_one_that_is_away_is_waited_for() -> None:
    away = hosts("n1", "n2", "n3", n3={"registered": False})
    lost = hosts("n1", "n2", "n3", n3={"registered": False, "lost": True})
    spread = gallery("n1 n3", "n2 n1")

    waits = proposed(away, spread)
    replaced = proposed(lost, spread)

    assert waits.moves == ()
    assert "n3 is not registered and may come back" in waits.problems[0]
    assert told(replaced) == [("g.0", "n1 n2", "n3 is lost")]
    assert replaced.problems == ()


def test_copies_are_added_where_a_gallery_has_too_few_and_taken_away_where_too_many() -> None:
    more = proposed(hosts("n1", "n2"), gallery("n1", "n2", replicas=2))
    fewer = proposed(hosts("n1", "n2"), gallery("n1 n2", "n2 n1", replicas=1))

    assert told(more) == [
        ("g.0", "n1 n2", "it has 1 of 2 copies"),
        ("g.1", "n2 n1", "it has 1 of 2 copies"),
    ]
    assert told(fewer) == [
        ("g.0", "n1", "it has 2 copies and shall have 1"),
        ("g.1", "n2", "it has 2 copies and shall have 1"),
    ]


def test_copies_of_a_shard_go_to_different_zones() -> None:
    zones = {"n1": {"zone": "a"}, "n2": {"zone": "a"}, "n3": {"zone": "b"}, "n4": {"zone": "b"}}
    proposal = proposed(
        hosts("n1", "n2", "n3", "n4", **zones), gallery("n1 n2", "n3 n4", "n2 n1", "n4 n3")
    )

    for move in proposal.moves:
        assert {zones[node_id]["zone"] for node_id in move.node_ids} == {"a", "b"}
        assert "more than one of its copies is in zone" in move.cause
    assert len(proposal.moves) == 4
    assert {copies for copies, _ in held(proposal).values()} == {2}
    assert proposal.problems == ()


def test_the_smaller_zone_holds_as_much_as_the_larger() -> None:
    """Two zones, one node in the one and two in the other: apart counts more than even."""
    zones = {"n1": {"zone": "a"}, "n2": {"zone": "b"}, "n3": {"zone": "b"}}
    proposal = proposed(hosts("n1", "n2", "n3", **zones), gallery(*["n1 n2"] * 4))

    assert {node: copies for node, (copies, _) in held(proposal).items()} == {
        "n1": 4,
        "n2": 2,
        "n3": 2,
    }
    assert "alone is" in proposal.problems[0]


def test_nothing_goes_where_there_is_no_room() -> None:
    nodes = hosts("n1", "n2", n2={"room_bytes": 150 * MIB})
    proposal = proposed(nodes, gallery("n1", "n1", "n1", "n1", replicas=1))
    short = proposed(hosts("n1", "n2", n2={"room_bytes": 1}), gallery("n1", replicas=2))

    assert [move.node_ids for move in proposal.moves] == [("n2",)]
    assert short.moves == ()
    assert short.problems[0] == (
        "1 of 2 copies: 1 shard of gallery g; no room for 100.0 MiB on n2"
    )


def test_a_shard_too_large_to_balance_is_named() -> None:
    proposal = proposed(
        hosts("n1", "n2"), gallery("n1", "n2", "n2", replicas=1), sizes={"g.0": 900}
    )

    assert proposal.moves == ()
    (problem,) = proposal.problems
    assert problem == (
        "n1 holds 900.1 MiB, n2 200.1 MiB: shard g.0 alone is 164% of what a node holds on"
        " average; split it to come closer"
    )


def test_shards_are_exchanged_where_no_single_one_fits() -> None:
    sizes = {"g.0": 60, "g.1": 60, "g.2": 40, "g.3": 40}
    proposal = proposed(
        hosts("n1", "n2"), gallery("n1", "n1", "n2", "n2", replicas=1), sizes=sizes
    )

    assert [(move.shard_id, move.node_ids) for move in proposal.moves] == [
        ("g.0", ("n2",)),
        ("g.2", ("n1",)),
    ]
    assert proposal.moves[1].cause == "in exchange for g.0"


def test_shards_at_work_stay_as_they_are() -> None:
    spread = gallery("n1 n2", "n1 n2", "n1 n2", joining={0: "n3"})
    nodes = hosts("n1", "n2", "n3", n1={"draining": True})
    proposal = propose(nodes, [spread], bytes_of={}, busy={ShardId("g.1")})

    assert [move.shard_id for move in proposal.moves] == ["g.2"]


def test_of_equals_the_one_with_less_to_do_takes_a_copy() -> None:
    nodes = hosts("n1", "n2", "n3", n2={"load": 0.9}, n3={"load": 0.1})

    assert proposed(nodes, gallery("n1", replicas=2)).moves[0].node_ids == ("n1", "n3")


@pytest.mark.parametrize("replicas", [1, 2])
def test_without_nodes_there_is_nothing_to_propose(replicas: int) -> None:
    assert proposed([], gallery("n1", replicas=replicas)).moves == ()


def test_zones_count_only_when_every_node_names_one() -> None:
    """The first node that is given one would else get a copy of everything."""
    some = [Host("n1", zone="a"), Host("n2"), Host("n3"), Host("n4", registered=False)]
    all_named = [Host("n1", zone="a"), Host("n2", zone="b"), Host("n4", registered=False)]

    without, problem = zoned(some)
    assert {host.zone for host in without} == {""}
    assert problem == "zones are not looked at until every node names one; without: n2, n3"
    assert zoned(all_named) == (all_named, "")
    assert zoned([Host("n1"), Host("n2")])[1] == ""
