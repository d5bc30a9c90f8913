"""Takeover: who is taken for dead, who succeeds, and what holds everybody back."""

from collections.abc import Collection
from dataclasses import replace

import pytest

from facegrid.ids import KEY_LAST, GalleryName, NodeId, ShardId
from facegrid.model import HashRange, ShardAssignment, ShardMap
from facegrid.succession import candidates, succeeded
from indexd.replica.takeover import (
    Absences,
    MapSeen,
    Proposal,
    Rules,
    Standing,
    Verdict,
    decide,
)

RULES = Rules(patience_s=5.0, calm_s=10.0)
N = [NodeId(f"n{number}") for number in range(11)]


def shard(number: int, *nodes: NodeId) -> ShardAssignment:
    half = (KEY_LAST + 1) // 2
    first, last = (0, half - 1) if number == 0 else (half, KEY_LAST)
    return ShardAssignment(ShardId(f"g.{number}"), HashRange(first, last), nodes)


def seen(first: ShardAssignment, second: ShardAssignment, version: int = 7) -> MapSeen:
    return MapSeen(ShardMap(GalleryName("g"), "uid", version, (first, second)), 70 + version)


def standing(me: NodeId, map_seen: MapSeen, registered: Collection[NodeId]) -> Standing:
    return Standing(me, [map_seen], registered, [ShardId("g.0"), ShardId("g.1")])


def absences(since_s: dict[NodeId, float], calm_until_s: float = 0.0) -> Absences:
    return Absences(RULES, calm_until_s, since_s, seen=set(since_s))


def test_the_first_follower_proposes_itself_and_the_old_primary_becomes_the_last() -> None:
    before = seen(shard(0, N[1], N[2], N[3]), shard(1, N[2], N[1]))

    verdict = decide(standing(N[2], before, [N[2], N[3]]), absences({N[1]: 100.0}), 105.0)

    after = (shard(0, N[2], N[3], N[1]), shard(1, N[2], N[1]))
    expected = ShardMap(GalleryName("g"), "uid", 8, after)
    assert verdict == Verdict((Proposal(expected, 77, (ShardId("g.0"),), (N[1],)),))


@pytest.mark.parametrize(
    ("now_s", "me", "proposals_count"),
    [
        (104.9, N[2], 0),
        (105.0, N[2], 1),
        (105.0, N[3], 0),
        (110.0, N[3], 1),
    ],
)
def test_patience_grows_with_the_place_in_the_order(
    now_s: float, me: NodeId, proposals_count: int
) -> None:
    before = seen(shard(0, N[1], N[2], N[3]), shard(1, N[2], N[1]))
    verdict = decide(standing(me, before, [N[2], N[3]]), absences({N[1]: 100.0}), now_s)

    assert len(verdict.proposals) == proposals_count


def test_a_follower_that_does_not_serve_leaves_it_to_the_next() -> None:
    before = seen(shard(0, N[1], N[2], N[3]), shard(1, N[2], N[1]))
    sick = Standing(N[2], [before], [N[2], N[3]], ready=[])

    assert decide(sick, absences({N[1]: 100.0}), 105.0) == Verdict()


def test_shards_without_a_follower_go_to_the_nodes_with_fewest_shards() -> None:
    """n1 had both alone; n2 and n3 have none, and each takes one."""
    before = seen(shard(0, N[1]), shard(1, N[1]))
    taken = {
        me: [
            shard_id
            for proposal in decide(
                standing(me, before, [N[2], N[3]]), absences({N[1]: 100.0}), 105.0
            ).proposals
            for shard_id in proposal.taken
        ]
        for me in (N[2], N[3])
    }

    assert taken == {N[2]: ["g.0"], N[3]: ["g.1"]}
    assert succeeded(shard(0, N[1]), N[2]) == shard(0, N[2]), "one copy was wanted"


def test_followers_that_are_gone_too_are_passed_over_and_kept() -> None:
    lonely = shard(0, N[1], N[2])

    assert candidates(lonely, [N[3]], {}) == [N[3]]
    assert succeeded(lonely, N[3]) == shard(0, N[3], N[2], N[1])


def test_nobody_is_taken_for_dead_shortly_after_etcd_was_silent() -> None:
    before = seen(shard(0, N[1], N[2]), shard(1, N[2], N[1]))
    watched = absences({N[1]: 90.0})
    watched.note(mapped=N[1:3], registered=[N[2]], heard_s=96.0, now_s=100.0)
    watched.note(mapped=N[1:3], registered=[N[2]], heard_s=101.0, now_s=101.0)

    held = decide(standing(N[2], before, [N[2]]), watched, 109.9)
    later = decide(standing(N[2], before, [N[2]]), watched, 110.1)

    assert (held, bool(later.proposals)) == (Verdict((), "etcd was silent lately"), True)


def test_too_many_that_vanish_together_are_left_to_people() -> None:
    """Of ten nodes three may vanish at once, four not; of three nodes one."""
    ten = seen(shard(0, *N[1:6]), shard(1, *N[6:11]))

    def verdict(gone: Collection[NodeId]) -> Verdict:
        there = [node for node in N[1:] if node not in gone]
        return decide(standing(N[2], ten, there), absences(dict.fromkeys(gone, 100.0)), 105.0)

    assert verdict([N[1], N[7], N[8]]).held == ""
    assert verdict([N[1], N[7], N[8], N[9]]) == Verdict(
        (), "too many nodes vanished together limit=3"
    )
    spread = absences({N[1]: 100.0, N[7]: 80.0, N[8]: 60.0, N[9]: 40.0})
    assert decide(standing(N[2], ten, [N[2]]), spread, 105.0).proposals, "one after the other"


def test_a_node_that_is_back_starts_over() -> None:
    watched = absences({N[1]: 90.0, N[4]: 90.0})
    watched.note(mapped=N[1:5], registered=N[1:4], heard_s=100.0, now_s=100.0)
    watched.note(mapped=N[1:5], registered=N[2:4], heard_s=101.0, now_s=101.0)

    assert watched.since_s == {N[1]: 101.0, N[4]: 90.0}


def pending(*nodes: NodeId, joining: tuple[NodeId, ...] = ()) -> ShardAssignment:
    """A shard that is filled from the first one."""
    whole = shard(0, *nodes)
    return replace(whole, shard_id=ShardId("g.2"), joining=joining, sources=(ShardId("g.0"),))


def test_a_shard_that_is_being_filled_is_taken_over_and_keeps_who_joins_and_its_sources() -> None:
    before = seen(shard(0, N[4]), shard(1, N[4]))
    child = pending(N[1], N[2], joining=(N[3],))
    before = MapSeen(replace(before.shard_map, pending=(child,), made_count=3), before.revision)
    there = Standing(N[2], [before], N[2:5], [ShardId("g.2")])

    verdict = decide(there, absences({N[1]: 100.0}), 105.0)

    after = replace(child, node_ids=(N[2], N[1]))
    expected = replace(before.shard_map, version=8, pending=(after,))
    assert verdict.proposals == (Proposal(expected, 77, (ShardId("g.2"),), (N[1],)),)


def test_who_joins_becomes_the_primary_only_where_nobody_else_is_there() -> None:
    """n1 was alone; n2 joins, n3 has nothing to do with it. Of two nodes the shard would else be
    without a primary for as long as n1 is away.
    """
    lonely = replace(shard(0, N[1]), joining=(N[2],))

    assert candidates(lonely, [N[2], N[3]], {N[3]: 9}) == [N[3]]
    assert succeeded(lonely, N[3]) == replace(shard(0, N[3]), joining=(N[2],))
    assert candidates(lonely, [N[2]], {}) == [N[2]]
    assert succeeded(lonely, N[2]) == shard(0, N[2])
    assert candidates(lonely, [], {}) == []

    before = seen(lonely, shard(1, N[2]))
    loading = Standing(N[2], [before], [N[2]], ready=[])
    level = Standing(N[2], [before], [N[2]], ready=[ShardId("g.0")])
    verdicts = [decide(one, absences({N[1]: 100.0}), 105.0) for one in (loading, level)]
    assert [len(verdict.proposals) for verdict in verdicts] == [0, 1]


def test_copies_that_join_or_are_filled_count_as_load() -> None:
    """n2 joins a shard, and n3 does not."""
    before = seen(shard(0, N[1]), replace(shard(1, N[4]), joining=(N[2],)))

    assert not decide(standing(N[2], before, N[2:5]), absences({N[1]: 100.0}), 105.0).proposals
    assert decide(standing(N[3], before, N[2:5]), absences({N[1]: 100.0}), 105.0).proposals
