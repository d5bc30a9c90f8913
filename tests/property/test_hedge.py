"""The budget of hedges, when calls are looked at, and what two hearings together amount to."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from facegrid.errors import UnavailableError
from facegrid.ids import NodeId, ShardId
from facegrid.model import HashRange, ShardAssignment
from router.dispatch.question import Failure, Heard, Searched, joined
from router.plan import hedge
from router.plan.merge import Part

durations = st.floats(0, 100)
SHARDS = [
    ShardAssignment(ShardId(f"s{n}"), HashRange(n, n), (NodeId("n1"), NodeId("n2")))
    for n in range(6)
]


@given(st.lists(st.booleans(), max_size=600))
def test_hedges_are_never_more_than_one_in_twenty_calls(wishes: list[bool]) -> None:
    budget, hedges = hedge.Budget(), 0
    for calls, wants_hedge in enumerate(wishes, start=1):
        budget = budget.earned()
        spent = budget.spent() if wants_hedge else None
        if spent is not None:
            budget, hedges = spent, hedges + 1
        assert hedges * hedge.CALLS_PER_HEDGE <= calls


@given(st.integers(0, 10_000))
def test_a_calm_time_saves_up_only_so_much(calls: int) -> None:
    budget = hedge.Budget()
    for _ in range(calls):
        budget = budget.earned()
    hedges = 0
    while (spent := budget.spent()) is not None:
        budget, hedges = spent, hedges + 1

    assert hedges == min(calls // hedge.CALLS_PER_HEDGE, hedge.HEDGES_SAVED_MAX)


@given(st.lists(durations, max_size=hedge.RECENT_MAX))
def test_slow_is_what_few_recent_calls_exceeded(recent_s: list[float]) -> None:
    slow_s = hedge.slow_after_s(recent_s)

    if len(recent_s) < hedge.RECENT_MIN:
        assert slow_s is None
        return
    assert slow_s is not None
    assert slow_s >= hedge.SLOW_S_MIN
    slower = sum(took_s > slow_s for took_s in recent_s)
    assert slower <= (1 - hedge.SLOW_SHARE) * len(recent_s) + 1


@given(durations, st.none() | durations)
def test_a_call_is_looked_at_when_it_turns_slow_and_at_least_once_a_second(
    waited_s: float, slow_s: float | None
) -> None:
    look_s = hedge.next_look_s(waited_s, slow_s)

    assert 0 < look_s <= max(hedge.LOOK_AGAIN_S, hedge.QUIET_S)
    if slow_s is not None and waited_s < slow_s:
        assert waited_s + look_s <= slow_s or look_s <= slow_s - waited_s
    if waited_s < hedge.QUIET_S:
        assert waited_s + look_s <= hedge.QUIET_S * (1 + 1e-9)


@st.composite
def hearings(draw: st.DrawFn) -> Heard:
    """Return what came of asking for all shards: each in one answer, or failed."""
    groups = draw(st.lists(st.integers(0, 3), min_size=len(SHARDS), max_size=len(SHARDS)))
    part = Part(np.zeros(1, np.int64), np.empty(0, np.float32), [], [])
    answers = [
        Searched(
            NodeId("n1"), part, tuple(s for s, at in zip(SHARDS, groups, strict=True) if at == n)
        )
        for n in (1, 2, 3)
        if n in groups
    ]
    failures = [
        Failure(shard.shard_id, NodeId("n1"), UnavailableError("no"))
        for shard, at in zip(SHARDS, groups, strict=True)
        if at == 0
    ]
    return Heard(tuple(answers), tuple(failures))


@given(hearings(), hearings())
def test_two_hearings_joined_account_for_every_shard_once_and_search_no_less(
    one: Heard, other: Heard
) -> None:
    both = joined(one, other)

    searched = [shard.shard_id for answer in both.answers for shard in answer.shards]
    failed = [item.shard_id for item in both.failures]
    assert sorted([*searched, *failed]) == sorted(shard.shard_id for shard in SHARDS)
    assert both.shards_count >= max(one.shards_count, other.shards_count)
