"""The parts of operations: maps from maps, costs, comparisons, progress, and what is timed."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facegrid import limits
from facegrid.api.admin.v1 import admin_service_pb2 as pb
from facegrid.errors import InvalidError, PreconditionError
from facegrid.format.operations import Merge, Operation, OperationState, Replicas, Split
from facegrid.format.tiling import tiling_problem
from facegrid.ids import KEY_LAST, GalleryName, NodeId, ShardId
from facegrid.model import HashRange, ShardAssignment, ShardMap
from facegrid.testing.manual_clock import ManualClock
from router.dispatch.latencies import Latencies
from router.operate.handover import PAUSE_S, PAUSE_S_MAX, pause_s
from router.plan import alike, estimate, kinds, reshape
from router.plan.decide import decide
from router.plan.decision import Next, Seen, Wait
from router.plan.estimate import LOAD_BYTES_PER_S, STEPS_S, Room, ShardSize
from router.plan.placement import equal_ranges, shard_id
from router.plan.progress import arrived_share
from tests.fakes.router_cluster import cluster

N1, N2, N3 = (NodeId(f"n{number}") for number in range(1, 4))
S0, S1, S2, S3 = (ShardId(f"staff.1f00aa23.{number:04d}") for number in range(4))
MIB = limits.MIB


def a_map(shards: int = 2) -> ShardMap:
    """Return a map with shards on n1 and n2."""
    assigned = tuple(
        ShardAssignment(shard_id("staff", "1f00aa23", number), hash_range, (N1, N2))
        for number, hash_range in enumerate(equal_ranges(shards))
    )
    return ShardMap(GalleryName("staff"), "1f00aa23", 1, assigned)


def an_operation(kind: Replicas | Split | Merge, step: str) -> Operation:
    return Operation(
        "op-1",
        GalleryName("staff"),
        "1f00aa23",
        kind,
        OperationState.RUNNING,
        step,
        former_node_ids=(N1, N2),
    )


@given(shards=st.integers(1, 9), picked=st.integers(0, 8), width=st.integers(2, 4))
def test_maps_tile_through_a_split_and_a_merge(shards: int, picked: int, width: int) -> None:
    first = a_map(shards)
    shard = first.shards[picked % shards]

    split = kinds.split(first, shard.shard_id, taken=())
    children = reshape.children_of(an_operation(split, "fill"), first)
    filling = reshape.with_pending(first, children)
    halves = reshape.replaced(filling, split.child_ids)
    count = min(width, len(halves.shards))
    merge = kinds.merge(halves, [one.shard_id for one in halves.shards[:count]], taken=())
    whole = reshape.with_pending(halves, reshape.children_of(an_operation(merge, "fill"), halves))
    merged = reshape.replaced(whole, [merge.child_id])
    back = reshape.without_pending(filling, split.child_ids)

    for one in (filling, halves, whole, merged, back):
        assert tiling_problem(one) == ""
    assert reshape.with_pending(filling, children) == filling
    assert reshape.replaced(halves, split.child_ids) == halves
    assert reshape.without_pending(back, split.child_ids) == back
    assert len(halves.shards) == shards + 1
    assert len(merged.shards) == shards + 2 - count
    assert back.shards == first.shards
    # No number is given twice, not even one whose shard never served.
    assert back.next_number == filling.next_number == shards + 2
    assert merged.next_number == shards + 3


def test_numbers_that_were_promised_to_others_are_passed_over() -> None:
    first = a_map(2)

    assert reshape.next_shard_ids(first, 2, taken={S2}) == (
        S3,
        ShardId("staff.1f00aa23.0004"),
    )


def test_a_range_of_one_key_is_not_split() -> None:
    one_key = ShardAssignment(S0, HashRange(0, 0), (N1,))
    rest = ShardAssignment(S1, HashRange(1, KEY_LAST), (N1,))
    tiny = replace(a_map(), shards=(one_key, rest))

    with pytest.raises(InvalidError) as refused:
        kinds.split(tiny, S0, taken=())

    assert refused.value.reason == "SHARD_TOO_SMALL"
    assert reshape.middle(HashRange(0, 1)) == 1


def test_a_copy_joins_serves_leads_and_the_others_leave() -> None:
    first = a_map(1)

    joined = reshape.joined(first, S0, [N3, N1])
    served = reshape.served(joined, S0, [N3])
    led = reshape.led(served, S0, N3)
    left = reshape.left(led, S0, [N3, N1])

    assert [
        (one.shards[0].node_ids, one.shards[0].joining) for one in (joined, served, led, left)
    ] == [
        ((N1, N2), (N3,)),
        ((N1, N2, N3), ()),
        ((N3, N1, N2), ()),
        ((N3, N1), ()),
    ]
    assert reshape.next_version(first, joined).version == 2
    assert reshape.next_version(first, first) == first


def test_a_plan_counts_bytes_and_memory() -> None:
    sizes = {S0: ShardSize(5000, 30 * MIB, 40 * MIB), S1: ShardSize(5000, 10 * MIB, 20 * MIB)}
    available = {N1: 50 * MIB, N2: 0, N3: 100 * MIB}

    moved = estimate.estimate(Replicas(S0, (N3, N1)), a_map(), sizes=sizes, available=available)
    merged = estimate.estimate(Merge((S0, S1), S2), a_map(), sizes=sizes, available=available)

    assert (moved.moved_bytes, moved.duration_s) == (
        30 * MIB,
        STEPS_S + 30 * MIB / LOAD_BYTES_PER_S,
    )
    assert moved.rooms == (Room(N3, 40 * MIB, 100 * MIB),)
    assert merged.moved_bytes == 2 * 40 * MIB
    assert merged.rooms == (Room(N1, 60 * MIB, 50 * MIB), Room(N2, 60 * MIB, 0))
    estimate.check_room(moved)
    with pytest.raises(PreconditionError) as refused:
        estimate.check_room(merged)
    assert refused.value.facts["node"] == N1


A = [[("a", "t", 0.9), ("b", "t", 0.5)], []]


@pytest.mark.parametrize(
    ("new", "problem"),
    [
        (A, ""),
        ([[("a", "t", 0.9), ("c", "t", 0.6)], []], ""),
        ([[("a", "t", 0.9)], []], "a worse list probe=0"),
        ([[("a", "t", 0.9), ("c", "t", 0.4)], []], "a worse list probe=0"),
        ([[("a", "t", 0.95), ("b", "t", 0.5)], []], "another score probe=0"),
        ([A[0]], "lists=2 other=1"),
    ],
)
def test_the_new_side_may_nowhere_be_worse(new: alike.Lists, problem: str) -> None:
    assert alike.sides_differ(A, new, ranks=alike.SPLIT_RANKS) == problem


def test_a_merged_shard_may_leave_out_strangers_and_no_mate() -> None:
    """A trained index over more rows finds others far down a list; so merges would never end."""
    before = [[("a", "t", 1.0), ("b", "t", 0.3), ("c", "t", 0.2)]]
    without_b, without_a = [[before[0][0], before[0][2]]], [before[0][1:]]
    other_score = [[("a", "t", 1.0), ("c", "t", 0.25)]]
    ranks = alike.MERGE_RANKS

    assert alike.sides_differ(before, without_b, ranks=ranks) == ""
    assert alike.sides_differ(before, without_a, ranks=ranks) == "a worse list probe=0"
    assert alike.sides_differ(before, other_score, ranks=ranks) == "another score probe=0"
    assert alike.sides_differ(before, without_b, ranks=alike.SPLIT_RANKS) == "a worse list probe=0"


def test_copies_must_answer_exactly_alike() -> None:
    other = [[("a", "t", 0.9), ("b", "t2", 0.5)], []]

    assert alike.copies_differ(A, A) == ""
    assert alike.copies_differ(A, other) == "probe=0"


def test_answers_of_several_shards_are_one_list() -> None:
    assert alike.merged([[[("a", "t", 0.9)]], [[("b", "t", 0.95), ("c", "t", 0.1)]]]) == [
        [("b", "t", 0.95), ("a", "t", 0.9), ("c", "t", 0.1)]
    ]


def test_progress_is_the_share_of_the_rows_that_arrived() -> None:
    joined = reshape.joined(a_map(1), S0, [N3])
    moving = an_operation(Replicas(S0, (N3, N1)), "verify")
    split = kinds.split(a_map(1), S0, taken=())
    filling = an_operation(split, "follow")
    pending = reshape.with_pending(a_map(1), reshape.children_of(filling, a_map(1)))
    counts = {(N1, S0): 100, (N3, S0): 25, (N1, S1): 30, (N2, S2): 20}

    assert arrived_share(moving, joined, counts) == 0.25
    assert arrived_share(filling, pending, counts) == 0.5
    assert arrived_share(replace(filling, step="drop"), pending, counts) == 1.0


def test_the_slowest_hundredth_of_the_last_half_minute_is_told() -> None:
    clock = ManualClock()
    latencies = Latencies(clock)
    for _ in range(19):
        latencies.note(0.1)

    assert latencies.p99_ms() == 0.0
    for number in range(181):
        latencies.note(0.1 if number else 2.0)
    assert latencies.p99_ms() == pytest.approx(100.0)
    for _ in range(2):
        latencies.note(2.0)
    assert latencies.p99_ms() == pytest.approx(2000.0)


async def test_old_searches_are_forgotten() -> None:
    clock = ManualClock()
    latencies = Latencies(clock)
    for _ in range(50):
        latencies.note(1.0)

    await clock.advance(31.0)

    assert latencies.p99_ms() == 0.0


def test_pauses_between_handovers_grow_to_a_minute() -> None:
    assert [pause_s(count) for count in (1, 2, 3, 4, 5, 500)] == [
        PAUSE_S,
        2 * PAUSE_S,
        4 * PAUSE_S,
        8 * PAUSE_S,
        PAUSE_S_MAX,
        PAUSE_S_MAX,
    ]
    # Writers wait for a second at most of each pause.
    assert limits.HOLD_MS_MAX / 1000 <= PAUSE_S / 5


async def test_automatic_mode_empties_a_draining_node() -> None:
    async with cluster(3) as running:
        client = running.client
        await client.create(shards_count=2, replicas_count=1)
        held = {one.id for one in (await client.status()).shards if one.node_ids == ["n1"]}
        mark = pb.MarkNodeRequest(node_id="n1", draining=True)
        await client.call(client.admin.MarkNode, mark)
        settings = pb.RebalancerRequest(automatic=True)
        await client.call(client.admin.Rebalancer, settings)

        async with running.patience():
            known = pb.ListOperationsResponse()
            while not known.operations:
                request = pb.ListOperationsRequest()
                known = await client.call(client.admin.ListOperations, request)

    (begun,) = known.operations
    assert begun.spec.replicas.shard_id in held
    assert (begun.spec.cause, begun.state) == ("n1 is draining", pb.OPERATION_STATE_RUNNING)


def test_nobody_waits_for_wanted_nodes_that_have_no_copy_any_more() -> None:
    """Who took over leads the shard, and no wanted node is among its copies: none can lead it."""
    operation = an_operation(Replicas(S0, (N2, N1)), "leave")
    shards = a_map(1).shards

    def decided(*node_ids: NodeId) -> Next | Wait:
        shard_map = replace(a_map(1), shards=(replace(shards[0], node_ids=node_ids),))
        decision = decide(operation, Seen(shard_map, {N1, N2, N3}, {}, {}, now_ms=1000))
        assert isinstance(decision, Next | Wait)
        return decision

    waiting, ended = decided(N3, N1), decided(N3)
    assert isinstance(waiting, Wait)
    assert isinstance(ended, Next)
    assert (ended.operation.state, ended.shard_map) == (OperationState.ABORTED, None)
    assert ended.operation.note == "no wanted node has a copy any more; n3 leads the shard"
