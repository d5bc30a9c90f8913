"""Canaries judge like a loop over all rows does, whatever happens after the search."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from facegrid import vectors
from facegrid.tuning import Profile
from facegrid.vectors import Float32
from indexd.engine.alarms import TuningId
from indexd.engine.canary import NO_SCORE, Canary, Comparison, Searched, Verdict, canary
from indexd.engine.search import Wish, search
from indexd.engine.state import ShardState
from tests.fakes.canary_world import DIM, codebook, people, seen_again, shard_state, tuning

COUNT = 40
# Few different people, so that scores tie.
ROWS = np.repeat(people(COUNT // 2, 31), 2, axis=0)
PROBES = np.concatenate([seen_again(ROWS[::5], 0.8, 32), people(6, 33)])
BOOK = codebook()
EFFORT = tuning(16)

Change = Callable[[ShardState], None]


def _erase(rows: list[int]) -> Change:
    def change(state: ShardState) -> None:
        live = [row for row in rows if row < state.rows_count and not state.is_erased(row)]
        state.erase_rows(np.array(sorted(set(live)), np.int64))

    return change


def _enrol(seed: int) -> Change:
    def change(state: ShardState) -> None:
        # Some are as good as a mate of a probe, and are no miss: they came too late.
        x = seen_again(PROBES[seed % len(PROBES)][None], 0.95, seed)
        number = state.rows_count
        state.add_rows([f"t-{number}"], [f"s-{number}"], vectors.quantize(x))

    return change


def _absorb(state: ShardState) -> None:
    state.index.absorb()


CHANGES = st.lists(
    st.one_of(
        st.builds(_erase, st.lists(st.integers(0, COUNT + 8), max_size=6)),
        st.builds(_enrol, st.integers(0, 99)),
        st.just(_absorb),
    ),
    max_size=6,
)


def taken(state: ShardState, k: int, threshold: float) -> list[Canary]:
    """Search all lists, rescore all rows, and take every probe."""
    wish = Wish(k, -2.0, Profile.FAST, EFFORT)
    found = search([state], vectors.prepare_probes(PROBES), wish)
    shards = (Searched.of(state, found.rows_counts[0]),)
    return [
        canary(
            PROBES,
            number,
            found,
            shards,
            profile=Profile.FAST,
            tuning=TuningId.of(EFFORT),
            threshold=threshold,
        )
        for number in range(len(PROBES))
    ]


def judged(some: list[Canary], state: ShardState) -> list[Verdict]:
    comparison = Comparison(some)
    for piece in comparison.pieces():
        comparison.look(piece, state)
    return comparison.verdicts()


def expected(one: Canary, x: Float32, state: ShardState) -> Verdict:
    """Score all rows that there were, in a loop."""
    probe = vectors.prepare_probes(x)
    best = NO_SCORE, ""
    for row in range(one.shards[0].rows_count):
        if not state.is_erased(row):
            score = float(state.index.compare(probe, np.array([row]))[0])
            if score > best[0]:
                best = score, state.subjects.name_of_row(row)
    if best[0] < one.threshold:
        return Verdict.STRANGER
    found = best[1] in one.subject_ids or one.score >= best[0]
    return Verdict.FOUND if found else Verdict.MISSED


@settings(max_examples=60, deadline=None)
@given(before=CHANGES, after=CHANGES, k=st.integers(1, 4), threshold=st.floats(-1, 1))
def test_an_exhaustive_index_never_misses(
    before: list[Change], after: list[Change], k: int, threshold: float
) -> None:
    state = shard_state(ROWS, BOOK)
    for change in before:
        change(state)
    some = taken(state, k, threshold)
    for change in after:
        change(state)

    assert Verdict.MISSED not in judged(some, state)


@settings(max_examples=30, deadline=None)
@given(after=CHANGES, lacked=st.sets(st.integers(0, COUNT - 1)), threshold=st.floats(-1, 1))
def test_what_an_answer_lacked_is_judged_as_a_loop_over_all_rows_does(
    after: list[Change], lacked: set[int], threshold: float
) -> None:
    assert PROBES.shape[1] == DIM
    state = shard_state(ROWS, BOOK)
    names = {f"s-{number}" for number in lacked}
    some = [
        replace(one, subject_ids=one.subject_ids - names, score=NO_SCORE)
        for one in taken(state, 3, threshold)
    ]
    for change in after:
        change(state)

    wanted = [expected(one, one.x, state) for one in some]
    seen = judged(some, state)
    # Of rows that score the same either may be at rank 1.
    ties = [_ties(one, state) for one in some]
    assert [v for v, tie in zip(seen, ties, strict=True) if not tie] == [
        v for v, tie in zip(wanted, ties, strict=True) if not tie
    ]


def _ties(one: Canary, state: ShardState) -> bool:
    """Tell whether two live rows of different subjects share rank 1."""
    rows = [row for row in range(one.shards[0].rows_count) if not state.is_erased(row)]
    if len(rows) < 2:
        return False
    scores = np.sort(state.index.compare(vectors.prepare_probes(one.x), np.array(rows, np.int64)))
    return bool(scores[-1] == scores[-2])
