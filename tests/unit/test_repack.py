"""Repacking: erased rows leave the memory, and nobody can tell by the answers."""

from dataclasses import replace

import numpy as np
import pytest

from facegrid import limits, vectors
from facegrid.errors import CorruptError
from facegrid.format.erasures import JournalRef
from facegrid.format.log import LogRef
from facegrid.ids import KEY_LAST, ShardId
from facegrid.model import HashRange
from indexd.ann.train import train
from indexd.engine import coded
from indexd.engine.coded import NamedCodebook
from indexd.engine.flush import Kept, Persisted, StoredSegment, capture, span
from indexd.engine.loading import LoadedRows, ShardShape
from indexd.engine.planning import overlay_of, plan
from indexd.engine.repack import Repack, due
from indexd.engine.requests import EnrolRequest, EraseRequest, Outcome, WriteRequest
from indexd.engine.state import ShardState

DIM = 16
LOG = LogRef(1, 1, 1, "uuid", "0" * 64)
SUBJECTS = 60
ROWS = 3 * SUBJECTS


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REPACK_STEP_ROWS", 50)
    monkeypatch.setattr(limits, "REPACK_ERASED_MIN", 10)


def rows(count: int, seed: int = 0) -> vectors.Int8:
    x = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    return vectors.quantize(x / np.linalg.norm(x, axis=1, keepdims=True))


def write(state: ShardState, request: WriteRequest) -> Outcome:
    """Plan and apply one request, as a group of one."""
    planned = plan(state, request, overlay_of(state), 0)
    return planned if isinstance(planned, Outcome) else state.apply(planned, LOG)


def enrol(state: ShardState, first: int, count: int) -> None:
    """Enrol templates with these numbers, three to a subject."""
    numbers = range(first, first + count)
    codes = np.concatenate([rows(1, number) for number in numbers])
    templates = [f"t-{number}" for number in numbers]
    subjects = [f"s-{number % SUBJECTS}" for number in numbers]
    write(state, EnrolRequest(f"r-{first}", templates, subjects, codes))


def erase(state: ShardState, *subjects: int) -> None:
    write(state, EraseRequest(f"e-{subjects}", [], [f"s-{number}" for number in subjects]))


def filled(codebook: NamedCodebook | None = None) -> ShardState:
    """Return a state of ROWS rows, the first 100 of them coded if there is a codebook."""
    state = ShardState(ShardShape(ShardId("g.1.0000"), HashRange(0, KEY_LAST), DIM))
    if codebook is not None:
        state.use_codebook(codebook)
    enrol(state, 0, 100)
    state.index.absorb()
    enrol(state, 100, ROWS - 100)
    return state


@pytest.fixture(scope="module")
def codebook() -> NamedCodebook:
    """Return a codebook that rescores every row, so that answers must agree in full."""
    trained = replace(train(rows(1200, 7), seed=3, threads=1), rescore_factor=10 * ROWS)
    return NamedCodebook(coded.encode(trained)[1], trained)


def come_near(repack: Repack) -> None:
    while (step := repack.next_step()) is not None:
        repack.copy(step, repack.encoded(step))
    repack.erase()


def answers(state: ShardState) -> list[tuple[int, str, str, float]]:
    """Return the best rows for a hundred probes, with the ids of the rows."""
    probes = vectors.prepare_probes(vectors.dequantize(rows(100, 5)))
    hits = state.index.search(probes, 20, -1.0)
    numbers = np.repeat(np.arange(100), hits.counts).tolist()
    found = zip(numbers, hits.rows.tolist(), hits.scores.tolist(), strict=True)
    return [
        (number, state.subjects.name_of_row(row), state.templates[row], score)
        for number, row, score in found
    ]


@pytest.mark.parametrize("trained", [False, True])
def test_answers_stay_the_same_and_erased_rows_are_gone(
    codebook: NamedCodebook,
    trained: bool,  # noqa: FBT001 - a table
) -> None:
    state = filled(codebook if trained else None)
    erase(state, *range(20))
    before = answers(state)

    repack = Repack(state)
    come_near(repack)
    packed = repack.finish()

    assert (packed.rows_count, packed.erased_count) == (ROWS - 60, 0)
    assert (packed.digest, packed.position, packed.log) == (state.digest, 3, LOG)
    assert packed.erasures_count == state.erasures_count == 60
    assert packed.index.indexed_count == (60 if trained else 0), "codes are taken along"
    assert packed.codebook == state.codebook
    assert answers(packed) == before
    assert len(packed.subjects) == 40, "subjects without rows are forgotten"
    assert packed.memory_bytes < state.memory_bytes


def test_what_is_written_meanwhile_is_in_it(codebook: NamedCodebook) -> None:
    """1 copy a part; 2 erase of that and of the rest, and enrol; 3 copy the rest; 4 the same."""
    state = filled(codebook)
    erase(state, *range(20))
    repack = Repack(state)
    step = repack.next_step()
    assert step is not None
    repack.copy(step, repack.encoded(step))
    erase(state, 20, 59)
    enrol(state, 1000, 70)
    come_near(repack)
    erase(state, 21)
    enrol(state, 2000, 5)
    before = answers(state)

    packed = repack.finish()

    assert answers(packed) == before
    assert (packed.digest, packed.templates_count) == (state.digest, state.templates_count)
    assert packed.erased_count == 5, "one row of 20 and four of 21 had been copied"
    assert packed.rows_count + packed.dropped_count == state.rows_count
    enrol(state, 2000, 5)
    assert packed.requests.recall(EraseRequest("e-(21,)", [], ["s-21"])) is not None


def test_a_stored_segment_keeps_its_erased_rows_and_its_place() -> None:
    state = filled()
    segments = (
        StoredSegment("a", np.arange(40, dtype=np.int64)),
        StoredSegment("b", np.arange(40, 90, dtype=np.int64)),
    )
    erase(state, 0, 59)
    repack = Repack(state)
    come_near(repack)
    packed = repack.finish()

    once = repack.persisted(Persisted(segments, 90, 2))
    erase(packed, 1)
    again = Repack(packed)
    come_near(again)
    more = again.finish()
    twice = again.persisted(once)

    assert once.segments[0].rows.tolist() == [~0, *range(39)]
    assert once.segments[1].rows.tolist()[19:22] == [~58, ~58, 58]
    assert [span(one.rows) for one in once.segments] == [(0, 39), (39, 87)]
    assert (once.rows_count, twice.rows_count) == (87, 85)
    assert twice.segments[0].rows.tolist() == [~0, ~0, *range(38)]
    assert [span(one.rows) for one in twice.segments] == [(0, 38), (38, 85)]
    erased = [int(np.count_nonzero(more.erased_mask(one.rows))) for one in twice.segments]
    assert erased == [2, 3]
    kept = twice.segments[1].rows[twice.segments[1].rows >= 0]
    assert [more.templates[row] for row in kept.tolist()] == [
        f"t-{number}" for number in range(40, 90) if number % SUBJECTS not in (0, 1, 59)
    ]


def test_a_state_without_rows_left_becomes_an_empty_one() -> None:
    state = filled()
    erase(state, *range(SUBJECTS))
    repack = Repack(state)
    come_near(repack)

    packed = repack.finish()

    assert (packed.rows_count, packed.digest, len(packed.subjects)) == (0, 0, 0)
    assert packed.erased_mask(np.array([-1, -1])).tolist() == [True, True]
    enrol(packed, 5000, 3)
    assert packed.templates_count == 3


def test_rows_that_differ_are_refused() -> None:
    """A bit of a vector in memory flips between two steps: the copy is not put in its place."""
    state = filled()
    erase(state, *range(20))
    state.index._rows._chunks[0][150, 0] ^= 1
    repack = Repack(state)
    come_near(repack)

    with pytest.raises(CorruptError) as refused:
        repack.finish()

    assert refused.value.reason == "REPACK_MISMATCH"


def test_it_is_due_when_a_share_of_the_rows_and_not_just_a_few_are_erased() -> None:
    state = filled()
    erase(state, 0, 1, 2)
    few = due(state)
    erase(state, *range(3, 15))
    a_quarter = due(state)
    erase(state, 15)

    assert (few, a_quarter, due(state)) == (False, False, True)


def test_a_loaded_segment_keeps_its_erased_rows_and_its_place() -> None:
    """Some rows of it have left the memory, and no manifest has it yet."""
    state = filled()
    state.loaded = [LoadedRows("a", 20, 60), LoadedRows("b", 60, 70)]
    erase(state, 0, 21)
    repack = Repack(state)
    come_near(repack)
    packed = repack.finish()

    repack.persisted(Persisted((), 10, 1))

    one, other = packed.loaded
    assert (one.first, one.last, other.first, other.last) == (19, 58, 58, 67)
    assert one.numbers().tolist() == [19, ~20, *range(20, 58)]
    assert other.numbers().tolist() == [~58, *range(58, 67)]
    pieces = capture(packed, Persisted((), 9, 1), 1).pieces
    assert [len(piece.segment.rows) for piece in pieces if isinstance(piece, Kept)] == [40, 10]


CARRIED = {
    "shape",
    "shard_id",
    "range",
    "dim",
    "requests",
    "erasures",
    "sources",
    "position",
    "log",
    "inherited",
}
"""What of a state repacking must hand on as it is."""
MADE_ANEW = {
    "index", "subjects", "templates", "_template_hashes", "_erased", "loaded", "staged",
    "digest", "templates_count", "dropped_count", "codebook",
}  # fmt: skip
"""What it makes anew, and other tests look at."""


def test_repacking_hands_on_all_of_a_state_that_has_nothing_to_do_with_row_numbers() -> None:
    """A new field of ShardState must be put into one of the two sets, and into Repack."""
    state = filled()
    erase(state, *range(30))
    state.sources[ShardId("g.1.0001")] = 41
    journal = JournalRef(7, "0" * 64)
    repack = Repack(state)
    come_near(repack)
    packed = repack.finish()
    persisted = repack.persisted(Persisted(position=3, journal=journal))

    assert set(vars(state)) == CARRIED | MADE_ANEW
    assert [name for name in CARRIED if getattr(packed, name) != getattr(state, name)] == []
    assert len(packed.erasures) == 1
    assert (persisted.position, persisted.journal) == (3, journal)
