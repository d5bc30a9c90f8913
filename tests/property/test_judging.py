"""Efforts hold on what they were chosen by, whatever was measured."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facegrid.errors import InvalidError
from facegrid.tuning import Profile
from indexd.ann.judging import (
    POINTS_MAX,
    Accepted,
    Probed,
    Shape,
    accepted_of,
    choose_efforts,
    curve_of,
    threshold_of,
)
from indexd.ann.miss_rate import miss_rate_bound, misses_allowed

NLISTS = st.sampled_from([4, 16, 64, 1024])
RATES = st.sampled_from([1e-4, 1e-3, 1e-2, 0.1])


@st.composite
def accepted_mates(draw: st.DrawFn, nlist: int) -> Accepted:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = draw(st.sampled_from([30, 300, 4000]))
    easy = draw(st.floats(0.5, 30))
    return Accepted(
        scores=rng.uniform(0.3, 1, count).astype(np.float32),
        list_places=np.minimum(rng.exponential(nlist / easy, count), nlist - 1).astype(np.int64),
        code_places=rng.exponential(draw(st.floats(0.01, 300)), count).astype(np.int64),
        pseudo_count=0,
    )


@settings(max_examples=40)
@given(st.data(), NLISTS, RATES)
def test_what_is_proven_misses_no_more_than_the_bound_allows(
    data: st.DataObject, nlist: int, rate_max: float
) -> None:
    accepted = data.draw(accepted_mates(nlist))

    efforts = choose_efforts(accepted, Shape(nlist, 1e5), rate_max)

    for profile, effort in efforts.items():
        misses = int(np.count_nonzero(accepted.missed(effort.nprobe, effort.depth)))
        bound = miss_rate_bound(misses, len(accepted))
        assert (effort.misses_count, effort.extra_fnir_max) == (misses, bound)
        if effort.proven:
            assert bound <= profile.miss_rate_max(rate_max)
        else:
            assert effort.nprobe == nlist
    assert efforts[Profile.EXHAUSTIVE].nprobe == nlist


@settings(max_examples=40)
@given(st.data(), NLISTS, RATES)
def test_steps_miss_no_mate_that_the_effort_finds(
    data: st.DataObject, nlist: int, rate_max: float
) -> None:
    """At worst a stranger scores just below each mate, so that its own step decides."""
    accepted = data.draw(accepted_mates(nlist))

    for effort in choose_efforts(accepted, Shape(nlist, 1e5), rate_max).values():
        if not effort.steps:
            continue
        scores = [step.score for step in effort.steps]
        nprobes = [step.nprobe for step in effort.steps]
        assert scores == sorted(scores, reverse=True)
        assert nprobes == sorted(nprobes)
        assert nprobes[-1] == effort.nprobe
        found = ~accepted.missed(effort.nprobe, effort.depth)
        for step in effort.steps:
            high = accepted.scores >= step.score
            assert (accepted.list_places[high & found] < step.nprobe).all()


@settings(max_examples=40)
@given(st.data(), NLISTS)
def test_the_curve_rises_in_cost_and_falls_in_misses(data: st.DataObject, nlist: int) -> None:
    accepted, shape = data.draw(accepted_mates(nlist)), Shape(nlist, 1e5)

    points = curve_of(accepted, shape)

    costs = [shape.cost(point.nprobe, point.depth) for point in points]
    misses = [point.misses_count for point in points]
    assert costs == sorted(costs)
    assert misses == sorted(misses, reverse=True)
    assert 1 <= len(points) <= POINTS_MAX


@given(st.integers(1, 50_000), RATES)
def test_the_misses_allowed_are_the_most_that_show_the_rate(trials: int, rate: float) -> None:
    allowed = misses_allowed(rate, trials)

    assert allowed < 0 or miss_rate_bound(allowed, trials) <= rate
    assert miss_rate_bound(allowed + 1, trials) > rate or allowed + 1 > rate * trials


def probed(mates: list[float], rivals: list[float], rows_count: int = 100) -> Probed:
    zeros = np.zeros(len(mates), np.int32)
    return Probed(
        np.array(mates, np.float32),
        np.array(rivals, np.float32),
        zeros,
        zeros,
        np.zeros(len(mates), np.bool_),
        rows_count,
    )


def test_the_threshold_leaves_three_false_positives_in_a_thousand_searches() -> None:
    rivals = np.arange(10_000) / 10_000

    threshold = threshold_of([probed([1.0] * 10_000, rivals.tolist())])

    assert np.mean(rivals >= threshold) == pytest.approx(0.003, rel=0.05)


def test_a_search_of_ten_shards_meets_ten_times_the_strangers() -> None:
    rivals = np.arange(10_000) / 10_000
    shards = [probed([1.0] * 10_000, rivals.tolist())] * 10

    exceeding = int(np.count_nonzero(rivals >= threshold_of(shards)))
    assert exceeding in (3, 4)  # of 10,000; the tenth part of what all shards may


def test_from_too_few_mates_nothing_follows() -> None:
    with pytest.raises(InvalidError) as caught:
        accepted_of([probed([0.9] * 29 + [0.2] * 50, [0.3] * 79)], 0.5)
    assert caught.value.reason == "TOO_FEW_MATES"
