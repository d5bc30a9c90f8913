"""Rates of hand-made cases."""

import pytest

from bench.accuracy import Accuracy, measure, threshold_at
from bench.truth import Ranking


def ranking(**scores: float) -> Ranking:
    return Ranking(tuple(scores), tuple(scores.values()))


EMPTY = Ranking((), ())


def test_threshold_lets_the_wanted_share_of_false_positives_through() -> None:
    nonmated = [ranking(x=score / 1024) for score in range(1000)]

    threshold = threshold_at(nonmated, fpir=0.003)

    assert threshold is not None
    assert sum(row.best_score >= threshold for row in nonmated) == 3
    assert threshold == pytest.approx(996 / 1024, abs=1e-6)


def test_few_nonmated_probes_allow_no_false_positive() -> None:
    nonmated = [ranking(x=0.25), ranking(x=0.5)]

    threshold = threshold_at(nonmated, fpir=0.003)

    assert threshold is not None
    assert 0.5 < threshold < 0.5001


def test_no_threshold_without_nonmated_probes() -> None:
    assert threshold_at([], fpir=0.003) is None


def test_all_rates_of_a_small_run() -> None:
    mates = ["ann", "bob", "cem", "dan", None, None]
    exact = [
        ranking(ann=0.75, eve=0.25),
        ranking(bob=0.75),
        ranking(cem=0.125),  # below the threshold: no mate that the index could lose
        ranking(eve=0.625, dan=0.5),  # exact search itself is wrong
        ranking(eve=0.25),
        ranking(fay=0.5),
    ]
    found = [
        ranking(ann=0.75, eve=0.25),
        ranking(eve=0.375),  # lost by the index
        EMPTY,
        ranking(eve=0.625),
        ranking(eve=0.25),
        ranking(fay=0.5625),
    ]

    assert measure(mates, exact=exact, found=found) == Accuracy(
        mated_count=4,
        nonmated_count=2,
        threshold=pytest.approx(0.5, abs=1e-6),
        rank1=0.25,
        exact_rank1=0.75,
        fnir=0.75,
        exact_fnir=0.5,
        extra_fnir=0.25,
        fpir=0.5,
        recall=5 / 8,
    )


def test_a_mate_found_below_the_threshold_is_lost() -> None:
    measured = measure(
        ["ann", None],
        exact=[ranking(ann=0.75), ranking(eve=0.5)],
        found=[ranking(ann=0.375), ranking(eve=0.5)],
    )

    assert (measured.rank1, measured.extra_fnir) == (1.0, 1.0)


def test_rates_without_probes_are_unknown_rather_than_zero() -> None:
    measured = measure([None], exact=[ranking(eve=0.5)], found=[EMPTY])

    assert (measured.rank1, measured.extra_fnir, measured.fpir) == (None, None, 0.0)
