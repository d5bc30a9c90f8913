"""Which searches go together, and when."""

from collections.abc import Hashable

import pytest

from facegrid.errors import OverloadedError
from indexd.engine.batches import NOTHING, Asked, Batches, BatchLimits

LIMITS = BatchLimits(probes_max=4, candidates_max=1000, waiting_probes_max=10, wait_s_max=1.0)
SEVERAL = BatchLimits(probes_max=4, waiting_probes_max=10, wait_s_max=1.0, searches_max=2)


def asked(
    item: str,
    *,
    gallery: str = "g",
    lane: Hashable = 0,
    probes: int = 1,
    k: int = 10,
    came_s: float = 0.0,
) -> Asked[str]:
    return Asked(gallery, lane, probes, k, 60.0, came_s, item)


def batches(limits: BatchLimits, *searches: Asked[str]) -> Batches[str]:
    waiting: Batches[str] = Batches(limits)
    for one in searches:
        waiting.join(one)
    return waiting


def taken(waiting: Batches[str], now_s: float = 0.0, running_count: int = 0) -> str:
    return "".join(one.item for one in waiting.take(now_s, running_count))


def test_an_idle_device_begins_at_once() -> None:
    waiting = batches(LIMITS, asked("a", came_s=5.0))

    assert taken(waiting, now_s=5.0) == "a"
    assert (waiting.probes_count, taken(waiting)) == (0, "")


def test_who_comes_while_the_device_is_busy_goes_together() -> None:
    waiting = batches(LIMITS, asked("a"), asked("b", probes=2), asked("c"))

    assert taken(waiting, running_count=1) == ""
    assert taken(waiting) == "abc"


def test_a_batch_takes_no_more_than_fit_and_leaves_nobody_out_of_turn() -> None:
    waiting = batches(LIMITS, asked("a"), asked("b", probes=3), asked("c", probes=3), asked("d"))

    assert [taken(waiting) for _ in range(3)] == ["ab", "cd", ""]


def test_one_caller_alone_may_have_more_than_fit() -> None:
    waiting = batches(LIMITS, asked("a", probes=9), asked("b"))

    assert [taken(waiting), taken(waiting)] == ["a", "b"]


def test_long_lists_make_small_batches() -> None:
    waiting = batches(LIMITS, *(asked(item, k=500) for item in "abc"))

    assert [taken(waiting), taken(waiting)] == ["ab", "c"]


def test_other_wishes_go_by_themselves() -> None:
    waiting = batches(LIMITS, asked("a", lane="x"), asked("b", lane="y"), asked("c", lane="x"))

    assert [taken(waiting), taken(waiting)] == ["ac", "b"]


def test_galleries_take_turns_and_so_do_the_lanes_of_one() -> None:
    waiting = batches(
        BatchLimits(probes_max=1, waiting_probes_max=10),
        *(asked(item, gallery="many", lane="x") for item in "abc"),
        asked("d", gallery="many", lane="y"),
        asked("e", gallery="few"),
    )

    assert [taken(waiting) for _ in range(5)] == ["a", "e", "d", "b", "c"]


def test_beside_a_search_another_waits_for_company_as_long_as_stated() -> None:
    waiting = batches(SEVERAL, asked("a", came_s=5.0))

    assert waiting.due_s(1) == 6.0
    assert taken(waiting, now_s=5.5, running_count=1) == ""
    waiting.join(asked("b", came_s=5.6))
    assert taken(waiting, now_s=6.0, running_count=1) == "ab"
    assert waiting.due_s(1) == NOTHING


def test_a_full_batch_waits_for_nobody() -> None:
    waiting = batches(SEVERAL, asked("a", probes=2), asked("b", probes=2))

    assert waiting.due_s(1) < 0
    assert taken(waiting, running_count=1) == "ab"


def test_no_more_searches_run_than_there_are_threads() -> None:
    waiting = batches(SEVERAL, asked("a", probes=4))

    assert (taken(waiting, now_s=99.0, running_count=2), waiting.due_s(2)) == ("", NOTHING)


def test_who_leaves_is_not_searched_and_frees_the_place() -> None:
    gone = asked("b", probes=9)
    waiting = batches(LIMITS, asked("a"), gone)
    waiting.leave(gone)
    waiting.leave(gone)
    waiting.join(asked("c", probes=9))

    assert [taken(waiting), taken(waiting), waiting.probes_count] == ["a", "c", 0]


def test_beyond_the_bound_callers_are_told_to_slow_down() -> None:
    waiting = batches(LIMITS, asked("a", probes=9))

    with pytest.raises(OverloadedError) as told:
        waiting.join(asked("b", probes=2))

    assert (told.value.reason, told.value.facts["limit"]) == ("QUEUE_FULL", "10")
    assert waiting.probes_count == 9
