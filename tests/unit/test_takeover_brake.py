"""The brake of takeover, when nodes that vanished together come back one by one."""

from facegrid.ids import KEY_LAST, GalleryName, NodeId, ShardId
from facegrid.model import HashRange, ShardAssignment, ShardMap
from indexd.replica.takeover import Absences, MapSeen, Rules, Standing, Verdict, decide

N1, N2, N3 = (NodeId(f"n{number}") for number in (1, 2, 3))
SHARD = ShardAssignment(ShardId("g.0"), HashRange(0, KEY_LAST), (N1, N2))
OTHER = ShardAssignment(ShardId("h.0"), HashRange(0, KEY_LAST), (N3, N2))


def test_the_last_to_come_back_of_many_that_vanished_together_is_not_taken_for_dead() -> None:
    """1 all leases end at once; 2 two nodes register again; 3 the third is a moment late.

    Found by row 14 of the fault matrix with `takeover_after_s` of 1: after all leases had been
    revoked, a shard moved in the half second before the last node was back.
    """
    absences = Absences(Rules(patience_s=1.0, calm_s=4.0), 0.0)
    maps = [
        MapSeen(ShardMap(GalleryName("g"), "uid", 1, (SHARD,)), 7),
        MapSeen(ShardMap(GalleryName("h"), "uid", 1, (OTHER,)), 8),
    ]
    nodes = [N1, N2, N3]
    for registered, now_s in (([], 100.0), ([N2], 100.5), ([N2, N3], 101.2)):
        absences.note(mapped=nodes, registered=registered, heard_s=now_s, now_s=now_s)
    verdict = decide(
        Standing(N2, maps, registered=[N2, N3], ready=[SHARD.shard_id]), absences, 101.2
    )

    assert verdict == Verdict((), "too many nodes vanished together limit=1")


def test_nodes_that_came_back_long_ago_hold_nobody_back() -> None:
    """1 n3 is restarted; 2 right after it n1 dies; 3 when n3 has been back for a while, all is
    as if n1 had died alone.
    """
    absences = Absences(Rules(patience_s=1.0, calm_s=4.0), 0.0)
    maps = [MapSeen(ShardMap(GalleryName("g"), "uid", 1, (SHARD,)), 7)]
    told = []
    steps = (
        ([N1, N2], 100.0),
        ([N1, N2, N3], 101.0),
        ([N2, N3], 102.0),
        ([N2, N3], 104.0),
        ([N2, N3], 105.5),
    )
    for registered, now_s in steps:
        absences.note(mapped=[N1, N2, N3], registered=registered, heard_s=now_s, now_s=now_s)
        standing = Standing(N2, maps, registered=registered, ready=[SHARD.shard_id])
        told.append(bool(decide(standing, absences, now_s).proposals))

    assert told == [False, False, False, False, True]


def taken_over(absences: Absences, registered: list[NodeId], heard_s: float, now_s: float) -> bool:
    """Tell whether n3 would take over from n2, when n1 is the last follower of both."""
    shard = ShardAssignment(ShardId("g.0"), HashRange(0, KEY_LAST), (N2, N3, N1))
    maps = [MapSeen(ShardMap(GalleryName("g"), "uid", 2, (shard,)), 7)]
    absences.note(mapped=[N1, N2, N3], registered=registered, heard_s=heard_s, now_s=now_s)
    standing = Standing(N3, maps, registered=registered, ready=[shard.shard_id])
    return bool(decide(standing, absences, now_s).proposals)


def test_a_node_long_dead_holds_nobody_back_after_etcd_was_silent() -> None:
    """1 n1 has been dead for long, and n2 is the primary in its place; 2 etcd is silent for four
    seconds; 3 n2 dies.
    """
    absences = Absences(Rules(patience_s=5.0, calm_s=10.0), 0.0)
    told = [
        taken_over(absences, [N1, N2, N3], 100.0, 100.0),
        taken_over(absences, [N2, N3], 200.0, 200.0),
        taken_over(absences, [N2, N3], 1000.5, 1004.0),
        taken_over(absences, [N2, N3], 1005.0, 1005.0),
        taken_over(absences, [N3], 1010.0, 1010.0),
        taken_over(absences, [N3], 1016.0, 1016.0),
    ]

    assert told == [False, False, False, False, False, True]


def test_a_node_dead_since_before_one_looked_holds_nobody_back() -> None:
    """1 n1 has been dead for long; 2 n3 is started, and looks; 3 n2 dies."""
    absences = Absences(Rules(patience_s=5.0, calm_s=10.0), 1010.0)
    told = [
        taken_over(absences, [N2, N3], 1000.0, 1000.0),
        taken_over(absences, [N3], 1007.0, 1007.0),
        taken_over(absences, [N3], 1013.0, 1013.0),
    ]

    assert told == [False, False, True]
