"""Which probes are taken, and what counts as a miss: without a thread or a clock."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from facegrid import vectors
from facegrid.tuning import Profile
from facegrid.vectors import Float32
from indexd.engine import canary as canaries
from indexd.engine.alarms import TuningId
from indexd.engine.canary import (
    KEPT,
    NO_SCORE,
    Canary,
    Comparison,
    Reservoir,
    Searched,
    Verdict,
    canary,
)
from indexd.engine.search import Found, Wish, search
from indexd.engine.state import ShardState
from tests.fakes.canary_world import PEOPLE, THRESHOLD, enrol, seen_again, shard_state, tuning

NEAR = seen_again(PEOPLE, 0.9, 5)
FOUND, MISSED, STRANGER, UNKNOWN = (
    Verdict.FOUND,
    Verdict.MISSED,
    Verdict.STRANGER,
    Verdict.UNKNOWN,
)


def taken(
    state: ShardState, x: Float32, found: Found, *, threshold: float = THRESHOLD
) -> list[Canary]:
    shards = (Searched.of(state, found.rows_counts[0]),)
    return [
        canary(
            x,
            number,
            found,
            shards,
            profile=Profile.FAST,
            tuning=TuningId("ab", 1),
            threshold=threshold,
        )
        for number in range(len(x))
    ]


def searched(state: ShardState, x: Float32, nprobe: int = 16, k: int = 3) -> list[Canary]:
    """Search by so many lists, and take all probes."""
    wish = Wish(k, -2.0, Profile.FAST, tuning(nprobe))
    return taken(state, x, search([state], vectors.prepare_probes(x), wish))


def verdicts(some: list[Canary]) -> list[Verdict]:
    comparison = Comparison(some)
    for piece in comparison.pieces():
        state = piece.shard.state()
        assert state is not None
        comparison.look(piece, state)
    return comparison.verdicts()


def without(one: Canary, subject_id: str) -> Canary:
    return replace(one, subject_ids=one.subject_ids - {subject_id}, score=NO_SCORE)


@pytest.mark.parametrize("count", [3, 10, 11, 500])
def test_every_element_of_a_stream_is_kept_with_the_same_chance_and_once(count: int) -> None:
    kept: Counter[int] = Counter()
    rng = np.random.default_rng(1)
    rounds = 400
    for _ in range(rounds):
        reservoir: Reservoir[int] = Reservoir(10, rng)
        for first in range(0, count, 7):
            batch = range(first, min(first + 7, count))
            for number, place in reservoir.picks(len(batch)):
                reservoir.put(place, batch[number])
        held = reservoir.take()
        assert len(held) == len(set(held)) == min(10, count)
        kept.update(held)

    expected = rounds * min(10, count) / count
    thirds = [sum(kept[i] for i in range(count) if i * 3 // count == part) for part in range(3)]
    assert sum(thirds) == rounds * min(10, count)
    if count == 500:
        # Of 4,000 picks each third of the stream has 1,333 but for 4 standard deviations.
        assert all(
            abs(third - expected * count / 3) < 4 * np.sqrt(rounds * 10 * 2 / 9)
            for third in thirds
        )


def test_a_reservoir_begins_anew_once_it_was_taken() -> None:
    reservoir: Reservoir[int] = Reservoir(2, np.random.default_rng(1))
    reservoir.picks(1000)
    reservoir.take()

    assert reservoir.picks(2) == [(0, 0), (1, 1)]
    assert not reservoir.is_full, "nothing was put there"


def test_who_was_found_was_found_and_strangers_are_strangers() -> None:
    state = shard_state()
    far = seen_again(PEOPLE[:5], 0.3, 9)

    assert verdicts(searched(state, NEAR[:50])) == [FOUND] * 50
    assert verdicts(searched(state, far)) == [STRANGER] * 5


def test_few_lists_miss_mates_and_that_is_seen() -> None:
    state = shard_state()
    some = searched(state, NEAR, nprobe=1)
    lacking = [f"s-{number}" not in one.subject_ids for number, one in enumerate(some)]

    assert sum(lacking) > 50
    assert verdicts(some) == [MISSED if lacks else FOUND for lacks in lacking]


def test_a_threshold_that_is_higher_counts() -> None:
    state = shard_state()
    wish = Wish(3, 0.95, Profile.FAST, tuning(1))
    x = seen_again(PEOPLE[:20], 0.9, 5)
    found = search([state], vectors.prepare_probes(x), wish)

    assert verdicts(taken(state, x, found, threshold=0.95)) == [STRANGER] * 20


def test_rows_enrolled_after_the_search_are_no_misses() -> None:
    """1 search for strangers; 2 they are enrolled; 3 compare: there was nobody to be found."""
    state = shard_state()
    x = seen_again(people_like_nobody(), 0.95, 5)
    some = searched(state, x)
    enrol(state, people_like_nobody())
    state.index.absorb()

    assert verdicts(some) == [STRANGER] * len(x)
    assert verdicts(searched(state, x)) == [FOUND] * len(x), "they are there by now"


def people_like_nobody() -> Float32:
    x = -PEOPLE[:8]
    scores = x @ PEOPLE.T
    return x[scores.max(axis=1) < 0.65]


def test_probes_of_one_batch_met_different_rows() -> None:
    state = shard_state()
    x = seen_again(people_like_nobody(), 0.95, 5)
    before = searched(state, x)
    enrol(state, people_like_nobody())
    after = [without(one, f"s-{600 + number}") for number, one in enumerate(searched(state, x))]

    assert verdicts([*before, *after]) == [STRANGER] * len(x) + [MISSED] * len(x)


def test_who_was_erased_since_is_no_miss_and_neither_is_whom_the_list_had_no_room_for() -> None:
    """Two templates alike: 1 a search with room for one finds the better; 2 it is erased; 3 exact
    search has the other one at rank 1 now, which the answer lacked.
    """
    state = shard_state()
    twin = seen_again(NEAR[:1], 0.97, 6)
    enrol(state, twin)
    state.index.absorb()
    first = searched(state, twin, k=1)[0]
    assert first.subject_ids == {"s-600"}
    missed = without(first, "s-600")
    state.erase_rows(np.array([600]))

    assert verdicts([first]) == [FOUND]
    assert verdicts([missed]) == [MISSED], "the other one, whom it lacked as well"
    state.erase_rows(np.array([0]))
    assert verdicts([first, missed]) == [STRANGER, STRANGER]


def test_an_equal_score_is_as_good() -> None:
    state = shard_state()
    enrol(state, PEOPLE[:1])
    state.index.absorb()
    one = searched(state, NEAR[:1], k=1)[0]

    assert len(one.subject_ids) == 1
    assert verdicts([one]) == [FOUND]


def test_nothing_is_known_once_all_that_was_seen_is_erased() -> None:
    state = shard_state(np.repeat(PEOPLE[:1], KEPT + 4, axis=0))
    some = [without(searched(state, NEAR[:1], k=1)[0], "s-0")]
    comparison = Comparison(some)
    for piece in comparison.pieces():
        comparison.look(piece, state)
    state.erase_rows(np.sort(comparison._rows[0]))

    assert comparison.verdicts() == [UNKNOWN]


def test_pieces_cover_all_rows_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canaries, "PIECE_ROWS", 250)
    state = shard_state()
    early = searched(state, NEAR[:2])
    enrol(state, people_like_nobody())
    late = searched(state, NEAR[2:4])

    pieces = [(p.first, p.last, p.members.tolist()) for p in Comparison([*early, *late]).pieces()]

    count = 600 + len(people_like_nobody())
    everybody = [0, 1, 2, 3]
    assert pieces == [
        (0, 250, everybody),
        (250, 500, everybody),
        (500, 600, everybody),
        (600, count, [2, 3]),
    ]
    assert verdicts([*early, *late]) == [FOUND] * 4


def test_the_rows_of_a_shard_are_not_held() -> None:
    """A copy that is let go of, or repacked, takes its rows along though canaries wait."""
    state = shard_state()
    some = searched(state, NEAR[:2])
    ref = some[0].shards[0].shard.state
    del state

    assert ref() is None
    comparison = Comparison(some)
    for piece in comparison.pieces():
        assert piece.shard.state() is None
        comparison.give_up(piece.shard)
    assert comparison.is_over
    assert comparison.verdicts() == [UNKNOWN, UNKNOWN]
