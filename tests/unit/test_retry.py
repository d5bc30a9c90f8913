"""Delays between attempts."""

import itertools
from random import Random  # noqa: TID251 - seeded

import pytest

from facegrid.retry import Backoff


class Longest:
    """Always draws the longest delay."""

    def uniform(self, a: float, b: float) -> float:
        """Return the upper bound."""
        assert a == 0
        return b


def test_bounds_grow_by_the_factor_up_to_the_limit() -> None:
    backoff = Backoff(0.1, 2, 0.5, Longest())
    assert list(itertools.islice(backoff, 5)) == [0.1, 0.2, 0.4, 0.5, 0.5]


def test_every_iteration_starts_anew() -> None:
    backoff = Backoff(0.1, 2, 0.5, Longest())
    assert [next(iter(backoff)), next(iter(backoff))] == [0.1, 0.1]


def test_delays_are_spread_over_the_whole_bound_and_repeat_with_the_seed() -> None:
    def draw() -> list[float]:
        return list(itertools.islice(Backoff(1, 1, 1, Random(7)), 100))

    delays = draw()
    assert draw() == delays
    assert min(delays) < 0.1
    assert max(delays) > 0.9


def test_settings_that_would_not_grow_are_a_bug() -> None:
    with pytest.raises(AssertionError):
        Backoff(1, 0.5, 1, Longest())
    with pytest.raises(AssertionError):
        Backoff(2, 1, 1, Longest())
