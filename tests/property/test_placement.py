"""Placement and fan-out: every shard somewhere, every subject in one shard, nobody overloaded."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facegrid.errors import UnavailableError
from facegrid.ids import GalleryName, NodeId, ShardId
from facegrid.model import Gallery, HashRange, ShardAssignment, ShardMap
from router.plan import fanout, placement, tiles

SUBJECTS = st.one_of(st.sampled_from(["a", "b", "c"]), st.text(min_size=1, max_size=4))
NODES = [NodeId(f"n{number}") for number in range(1, 6)]


def gallery(shards: int, replicas: int = 1) -> Gallery:
    return Gallery(
        name=GalleryName("staff"),
        uid="1f00aa23",
        dim=8,
        extractor="e@1",
        shards_count=shards,
        replicas_count=replicas,
        train_at_templates_count=0,
    )


@given(st.integers(1, 1024))
def test_equal_ranges_tile_the_key_space(count: int) -> None:
    ranges = placement.equal_ranges(count)

    assert tiles.missing_ranges(ranges) == ()
    assert len(ranges) == count
    sizes = {item.size for item in ranges}
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 64), st.integers(1, 5), st.sets(st.sampled_from(NODES), min_size=1))
def test_replicas_are_on_distinct_live_nodes_and_spread_evenly(
    shards: int, replicas: int, live: set[NodeId]
) -> None:
    if len(live) < replicas:
        with pytest.raises(UnavailableError) as caught:
            placement.place(gallery(shards, replicas), live=live)
        assert caught.value.reason == "TOO_FEW_NODES"
        return

    shard_map = placement.place(gallery(shards, replicas), live=live)

    assert [shard.shard_id for shard in shard_map.shards] == [
        f"staff.1f00aa23.{number:04d}" for number in range(shards)
    ]
    assert all(len(set(shard.node_ids)) == replicas for shard in shard_map.shards)
    held = Counter(node for shard in shard_map.shards for node in shard.node_ids)
    led = Counter(shard.primary for shard in shard_map.shards)
    assert set(held) <= live
    assert max(led[node] for node in live) - min(led[node] for node in live) <= 1
    assert max(held[node] for node in live) - min(held[node] for node in live) <= 2


def test_a_new_gallery_goes_where_there_is_least() -> None:
    first = placement.place(gallery(3), live=NODES[:2])

    second = placement.place(gallery(1), live=NODES[:2], present=[first])

    assert [shard.primary for shard in first.shards] == ["n1", "n2", "n1"]
    assert [shard.primary for shard in second.shards] == ["n2"]


@given(st.integers(1, 64), st.lists(SUBJECTS, max_size=30))
def test_every_row_goes_to_the_one_shard_of_its_subject(shards: int, subjects: list[str]) -> None:
    shard_map = placement.place(gallery(shards), live=NODES)

    found = fanout.rows_by_shard(shard_map, subjects)

    numbers = [shard_map.shards.index(shard) for shard, _ in found]
    assert numbers == sorted(set(numbers)), "in map order, each once"
    assert sorted(row for _, rows in found for row in rows) == list(range(len(subjects)))
    assert all(
        fanout.shard_of(shard_map, subjects[row]) == shard for shard, rows in found for row in rows
    )
    assert all(rows == sorted(rows) and rows for _, rows in found)


def shard(number: int, *nodes: str) -> ShardAssignment:
    return ShardAssignment(
        ShardId(f"s{number}"), HashRange(number, number), tuple(NodeId(node) for node in nodes)
    )


def test_the_faster_of_two_is_asked() -> None:
    loads = {NodeId("a"): fanout.NodeLoad(0.010), NodeId("b"): fanout.NodeLoad(0.002)}

    assert fanout.choose_node(shard(0, "a", "b").node_ids, loads=loads, turn=0) == "b"


def test_a_busy_node_is_passed_over() -> None:
    loads = {
        NodeId("a"): fanout.NodeLoad(0.002, calls_count=9),
        NodeId("b"): fanout.NodeLoad(0.010),
    }

    assert fanout.choose_node(shard(0, "a", "b").node_ids, loads=loads, turn=0) == "b"


def test_a_failing_node_is_asked_only_where_there_is_no_other() -> None:
    loads = {NodeId("a"): fanout.NodeLoad(failing=True)}

    groups = fanout.group_by_node(
        [shard(0, "a", "b"), shard(1, "a"), shard(2, "b")], loads=loads, avoid={}, turn=0
    )

    assert groups == {
        NodeId("b"): [shard(0, "a", "b"), shard(2, "b")],
        NodeId("a"): [shard(1, "a")],
    }


def test_a_node_that_refused_a_shard_is_not_asked_for_it_again() -> None:
    groups = fanout.group_by_node(
        [shard(0, "a", "b"), shard(1, "a", "b")],
        loads={},
        avoid={ShardId("s0"): [NodeId("a")]},
        turn=0,
    )

    assert groups == {NodeId("b"): [shard(0, "a", "b")], NodeId("a"): [shard(1, "a", "b")]}


@given(st.integers(2, 12), st.integers(0, 20), st.floats(0.5, 1.5))
def test_a_batch_is_shared_between_nodes_that_are_about_as_fast(
    nodes_count: int, turn: int, faster: float
) -> None:
    """Else one node gets all that it has copies of, and the whole batch waits for it."""
    nodes = [NodeId(f"n{number:02}") for number in range(nodes_count)]
    shard_map = placement.place(gallery(4 * nodes_count, replicas=2), live=nodes)
    loads = {node: fanout.NodeLoad(0.01) for node in nodes}
    loads[nodes[0]] = fanout.NodeLoad(0.01 * faster)

    groups = fanout.group_by_node(shard_map.shards, loads=loads, avoid={}, turn=turn)

    assert max(map(len, groups.values())) <= 6


@given(st.integers(0, 20))
def test_with_many_replicas_everyone_gets_a_turn(turn: int) -> None:
    nodes = shard(0, "a", "b", "c").node_ids
    asked = {fanout.choose_node(nodes, loads={}, turn=turn + step) for step in range(3)}

    assert len(asked) >= 2


def test_a_map_names_its_gallery() -> None:
    assert placement.place(gallery(1), live=NODES) == ShardMap(
        gallery=GalleryName("staff"),
        gallery_uid="1f00aa23",
        version=1,
        shards=(
            ShardAssignment(
                ShardId("staff.1f00aa23.0000"), HashRange(0, 2**64 - 1), (NodeId("n1"),)
            ),
        ),
    )
