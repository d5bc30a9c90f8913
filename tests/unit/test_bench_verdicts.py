"""What bench.soak, bench.failover and bench.recovery make of what they measured."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.chaos.ledger import Ledger
from bench.chaos.load import FRESH_S
from bench.chaos.tally import Tally, WriteGaps
from bench.failover import Death, verdict
from bench.recovery import Recovered
from bench.reshard import answers
from bench.soak import MIB, Held, Sample, growths
from bench.steady import Searches, Target
from facegrid.testing.manual_clock import ManualClock

GOOD = Death(
    victim="n1",
    role="node",
    failed_reads=0,
    p99_before_ms=10.0,
    p99_shock_ms=500.0,
    p99_after_ms=20.0,
    searches_before=100,
    searches_after=100,
    write_gap_s=30.0,
    gap_need_s=30.0,
)


def sample(memory_mib: float, files: int = 20, objects: int = 10) -> Sample:
    held = Held(int(memory_mib * MIB), files, 5)
    return Sample(
        {"n1": held},
        objects,
        1000,
        journal_objects=3 * objects,
        journal_bytes=0,
        keys=17,
        templates=500,
    )


def grown(samples: list[Sample]) -> list[str]:
    return [one.what for one in growths(samples) if not one.flat]


def test_memory_that_goes_up_and_down_is_flat_and_one_that_creeps_is_not() -> None:
    up_and_down = [100, 120, 101, 119, 100, 121, 102, 118, 103]
    creeping = 100 * 1.02 ** np.arange(9)

    assert grown([sample(mib) for mib in up_and_down]) == []
    assert grown([sample(mib) for mib in creeping]) == ["memory_mib n1"]


def test_two_files_more_are_no_growth_and_three_or_an_object_for_each_cycle_are() -> None:
    assert grown([sample(100, files=20 + 2 * (number > 2)) for number in range(6)]) == []
    assert grown([sample(100, files=20 + 3 * (number > 2)) for number in range(6)]) == ["files n1"]
    assert grown([sample(100, objects=10 + number) for number in range(6)]) == ["objects"]


def test_the_first_and_the_last_third_are_compared() -> None:
    found = growths([sample(mib) for mib in (1, 3, 50, 90, 5, 7, 9)])

    memory = next(one for one in found if one.what == "memory_mib n1")
    assert (memory.first, memory.last, memory.share) == (2, 8, 3.0)


@pytest.mark.parametrize(
    "bad",
    [
        replace(GOOD, failed_reads=1),
        replace(GOOD, p99_after_ms=20.1),
        replace(GOOD, write_gap_s=30.1),
        replace(GOOD, p99_after_ms=float("nan")),
    ],
)
def test_a_death_that_costs_more_than_promised_is_told(bad: Death) -> None:
    assert (GOOD.met, bad.met) == (True, False)
    assert verdict([GOOD], Tally()).startswith("failover: ok deaths=1 failed_reads=0 lost=0")
    assert verdict([GOOD, bad], Tally()).startswith("failover: failed")
    assert "met=no" in bad.line


def test_a_lost_write_or_no_death_at_all_is_a_failure() -> None:
    tally = Tally()
    tally.lose("s-1")

    assert verdict([GOOD], tally).startswith("failover: failed deaths=1 failed_reads=0 lost=1")
    assert verdict([], Tally()).startswith("failover: failed")


async def test_the_gap_that_is_still_open_counts() -> None:
    clock = ManualClock()
    gaps = WriteGaps([0, 2**63], clock).fresh()
    await clock.advance(2.0)
    gaps.acked(["s-1", "s-2", "s-3", "s-4", "s-5"])
    await clock.advance(3.0)

    assert (gaps.longest_s, gaps.open_s) == (2.0, 3.0)


def test_recovery_is_told_for_a_million_templates() -> None:
    recovered = Recovered("killed", [9.0, 12.0, 10.0], [8.0], 2 * MIB, 3 * MIB, 200_000)

    assert recovered.per_million_s == 50.0
    assert recovered.line == (
        "recovery: case=killed templates=200000 log_mib=2 segments_mib=3"
        " seconds=10.00_(9.00_to_12.00,_3_runs) processor_s=8.0 per_million_s=50.0 need=60 met=yes"
    )


async def test_a_search_misses_who_was_just_enrolled_and_loses_who_was_long_ago(
    tmp_path: Path,
) -> None:
    """A follower may be some seconds behind; after that whoever is not found is lost."""
    clock = ManualClock()
    ledger = Ledger(tmp_path / "ledger", clock)
    ledger.acknowledge("enrol", "r-1", ["s-1"])
    tally = Tally()
    searches = Searches(Target([], "g", ledger, tally, clock), per_s=1.0, clients=1, seed=1)

    searches._missed("s-1", clock.now_s() + FRESH_S)
    at_first = set(tally.lost)
    searches._missed("s-1", clock.now_s() + FRESH_S + 0.1)
    ledger.close()

    assert (at_first, tally.lost) == (set(), {"s-1"})
    assert list(tally.done.values()) == [1]


FULL = [("base-1", 1.0), ("base-2", 0.5), ("base-3", 0.25)]


@pytest.mark.parametrize(
    ("answer", "share", "wrong"),
    [
        (FULL[:2], 1.0, False),
        (FULL, 1.0, False),
        ([], 1.0, True),
        (FULL[1:], 1.0, True),
        ([FULL[0], FULL[2]], 1.0, True),
        ([FULL[0], FULL[0]], 1.0, True),
        ([("base-1", 0.99)], 1.0, True),
        (FULL[:2], 0.75, True),
    ],
    ids=["fewer", "all", "empty", "no mate", "a gap", "twice", "a score", "in part"],
)
def test_an_answer_that_is_not_the_untouched_cluster_s_is_told(
    answer: answers.Ranked, share: float, *, wrong: bool
) -> None:
    assert bool(answers.difference(answer, share, FULL)) is wrong
