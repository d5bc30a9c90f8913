"""When what canaries saw raises an alarm, and when it ends; and how much time they may take."""

import math

import pytest

from facegrid.testing.manual_clock import ManualClock
from indexd.ann.miss_rate import miss_rate_min
from indexd.ann.train import miss_rate_bound
from indexd.engine.alarms import (
    BLOCKS,
    MISSES_MIN,
    Change,
    TuningId,
    Watch,
    Window,
)
from indexd.engine.budget import SAVED_S_MAX, Budget

OLD, NEW = TuningId("ab", 1), TuningId("ab", 2)


@pytest.mark.parametrize(
    ("misses", "low", "high"),
    # Exact limits of a Poisson mean at 95 % each, from any table of chi-square quantiles.
    [(0, 0.0, 2.9957), (1, 0.0513, 4.7439), (3, 0.8177, 7.7537), (10, 5.4254, 16.9622)],
)
def test_limits_are_exact(misses: int, low: float, high: float) -> None:
    assert miss_rate_min(misses, 1000) == pytest.approx(low / 1000, abs=1e-7)
    assert miss_rate_bound(misses, 1000) == pytest.approx(high / 1000, abs=1e-7)


def test_the_lower_limit_is_where_so_many_misses_are_one_of_twenty_cases() -> None:
    for misses in (1, 4, 40, 400):
        mean = miss_rate_min(misses, 1)
        below = sum(
            math.exp(i * math.log(mean) - mean - math.lgamma(i + 1)) for i in range(misses)
        )
        assert below == pytest.approx(0.95)


def test_a_window_forgets_what_is_old() -> None:
    window = Window(mates_max=1000)
    window.add(500, 100)
    for _ in range(1000):
        window.add(10, 1)

    assert 1000 <= window.mates < 1000 * (1 + 2 / BLOCKS)
    assert window.misses == window.mates / 10
    assert len(window._blocks) <= BLOCKS + 1


def test_an_alarm_rises_when_chance_is_no_excuse_and_ends_when_the_rate_is_shown() -> None:
    watch = Watch(0.01, OLD)
    changes = [watch.add(100, misses) for misses in (1, 1, 1, 9, 9)]
    assert changes == [None, None, None, Change.RAISED, None]
    assert (watch.is_raised, watch.proven) == (True, True)

    watch.take(0.01, NEW)
    assert (watch.is_raised, watch.proven) == (True, False), "of the new one nothing was seen"
    assert [watch.add(100, 0) for _ in range(3)] == [None, None, Change.CLEARED]
    assert not watch.is_raised


def test_between_the_limits_nothing_flickers() -> None:
    watch = Watch(0.01, OLD)
    watch.add(100, 10)
    assert watch.is_raised
    # The window is full of a rate that is neither shown to be too high nor to be low enough.
    assert {watch.add(100, 1) for _ in range(40)} == {None}
    assert watch.is_raised


def test_few_misses_raise_no_alarm_however_few_mates_there_were() -> None:
    watch = Watch(1e-6, OLD)
    assert [watch.add(1, 1) for _ in range(MISSES_MIN)] == [None, None, Change.RAISED]


def test_the_same_tuning_with_another_allowance_is_watched_anew() -> None:
    watch = Watch(0.001, OLD)
    watch.add(1000, 8)
    assert watch.is_raised

    watch.take(0.1, OLD)
    assert watch.add(100, 0) is Change.CLEARED


def test_a_budget_is_kept_in_the_long_run() -> None:
    clock = ManualClock()
    budget = Budget(0.01, clock)
    worked_s, now_s = 0.0, clock.now_s()
    while clock.now_s() < now_s + 1000:
        wait_s = budget.wait_s()
        clock._now_s += wait_s + 0.02
        budget.spend(0.02)
        worked_s += 0.02

    assert worked_s == pytest.approx(budget.spent_s)
    assert 9.9 < worked_s <= 0.01 * 1000 + SAVED_S_MAX + 2 * 0.02


def test_what_is_not_spent_is_saved_only_for_a_moment() -> None:
    clock = ManualClock()
    budget = Budget(0.5, clock)
    clock._now_s += 10_000

    budget.spend(SAVED_S_MAX + 0.1)
    assert budget.wait_s() == pytest.approx(0.2)
    clock._now_s += 0.2
    assert budget.wait_s() == pytest.approx(0)
