"""Which segments are rewritten."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from indexd.engine.compaction import (
    FEW_SEGMENTS,
    Run,
    SegmentSize,
    erased_runs,
    small_runs,
)


def sizes(*rows: int) -> list[SegmentSize]:
    return [SegmentSize(count, 0) for count in rows]


def test_few_segments_are_left_alone() -> None:
    assert small_runs(sizes(*[1] * (FEW_SEGMENTS - 1)), 1000) == []


def test_many_small_neighbours_are_joined() -> None:
    assert small_runs(sizes(*[1] * FEW_SEGMENTS), 1000) == [Run(0, FEW_SEGMENTS)]


def test_a_large_segment_separates_runs() -> None:
    many = [1] * FEW_SEGMENTS

    assert small_runs(sizes(*many, 1000, *many, 1), 1000) == [
        Run(0, FEW_SEGMENTS),
        Run(FEW_SEGMENTS + 1, 2 * FEW_SEGMENTS + 2),
    ]


def test_segments_with_erased_rows_are_rewritten_each_by_itself() -> None:
    assert erased_runs([SegmentSize(5, 0), SegmentSize(5, 1), SegmentSize(5, 5)]) == [
        Run(1, 2),
        Run(2, 3),
    ]


@given(st.lists(st.integers(0, 300), max_size=60))
def test_runs_are_apart_long_enough_small_enough_and_in_order(rows: list[int]) -> None:
    runs = small_runs(sizes(*rows), 1000)

    assert all(run.last - run.first >= FEW_SEGMENTS for run in runs)
    assert all(sum(rows[run.first : run.last]) <= 1000 for run in runs)
    assert all(one.last <= other.first for one, other in pairwise(runs))
