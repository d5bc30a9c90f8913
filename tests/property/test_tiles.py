"""The tile check: exactly once, or it says what is missing."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facegrid.errors import CorruptError
from facegrid.ids import KEY_LAST
from facegrid.model import Coverage, HashRange
from router.plan import tiles

keys = st.integers(0, KEY_LAST)


@st.composite
def tilings(draw: st.DrawFn) -> list[HashRange]:
    """Return ranges that tile the key space, in any order."""
    cuts = sorted(draw(st.sets(st.integers(1, KEY_LAST), max_size=12)))
    firsts = [0, *cuts]
    lasts = [cut - 1 for cut in cuts] + [KEY_LAST]
    return draw(st.permutations([HashRange(*pair) for pair in zip(firsts, lasts, strict=True)]))


@given(tilings())
def test_ranges_that_tile_the_space_miss_nothing(ranges: list[HashRange]) -> None:
    assert tiles.coverage(ranges, shards_count=len(ranges)) == Coverage(
        share=1.0, shards_answered_count=len(ranges), shards_count=len(ranges)
    )


@given(tilings(), st.data())
def test_what_is_taken_away_is_what_is_missing(
    ranges: list[HashRange], data: st.DataObject
) -> None:
    answered = data.draw(st.lists(st.sampled_from(ranges), unique=True))

    missing = tiles.missing_ranges(answered)

    lost = [item for item in ranges if item not in answered]
    assert sum(item.size for item in missing) == sum(item.size for item in lost)
    assert all(any(part.contains(item.first) for part in missing) for item in lost)
    assert all(before.last + 1 < after.first for before, after in itertools.pairwise(missing))
    assert (tiles.share_without(missing) == 1.0) == (not missing)


@given(tilings(), keys)
def test_a_range_covered_twice_is_refused(ranges: list[HashRange], key: int) -> None:
    with pytest.raises(CorruptError) as caught:
        tiles.missing_ranges([*ranges, HashRange(key, key)])

    assert caught.value.reason == "RANGES_OVERLAP"


def test_one_key_missing_is_less_than_everything() -> None:
    found = tiles.coverage([HashRange(1, KEY_LAST)], shards_count=2)

    assert found.share < 1.0
    assert found.missing == (HashRange(0, 0),)


def test_no_answer_covers_nothing() -> None:
    assert tiles.coverage([], shards_count=4) == Coverage(
        share=0.0, shards_answered_count=0, shards_count=4, missing=(HashRange(0, KEY_LAST),)
    )


@given(tilings(), st.data())
def test_what_is_unconfirmed_is_a_share_of_the_keys(
    ranges: list[HashRange], data: st.DataObject
) -> None:
    unconfirmed = data.draw(st.lists(st.sampled_from(ranges), unique=True))

    share = tiles.coverage(
        ranges, shards_count=len(ranges), unconfirmed=unconfirmed
    ).unconfirmed_share

    assert (share == 0.0) == (not unconfirmed)
    assert (share == 1.0) == (len(unconfirmed) == len(ranges))
    assert share == pytest.approx(sum(item.size for item in unconfirmed) / tiles.KEYS_COUNT)


@given(
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)).map(sorted), max_size=5),
    st.tuples(st.integers(0, 11), st.integers(0, 11)).map(sorted),
)
def test_a_range_is_covered_when_each_of_its_keys_is(
    pairs: list[list[int]], wanted: list[int]
) -> None:
    ranges = [HashRange(*pair) for pair in pairs]

    covered = all(
        any(one.contains(key) for one in ranges) for key in range(wanted[0], wanted[1] + 1)
    )

    assert tiles.is_covered(HashRange(*wanted), ranges) == covered
