"""One shard in memory: what a write changes, and what a retry does."""

from collections import deque
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facegrid import vectors
from facegrid.errors import ConflictError, FacegridError, InvalidError
from facegrid.format.log import LogRef
from facegrid.ids import KEY_LAST, ShardId, subject_key
from facegrid.model import HashRange
from indexd.engine.group import form_group
from indexd.engine.loading import ShardShape
from indexd.engine.planning import overlay_of, plan, vectors_decide
from indexd.engine.requests import EnrolRequest, EraseRequest, Outcome, WriteRequest
from indexd.engine.state import ShardState

DIM = 16
LOG = LogRef(1, 1, 1, "uuid", "0" * 64)


@dataclass
class Ticket:
    """A waiting write, as the committer has them."""

    request: WriteRequest


def rows(count: int, seed: int = 0) -> vectors.Int8:
    x = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    return vectors.quantize(x / np.linalg.norm(x, axis=1, keepdims=True))


def new_state() -> ShardState:
    return ShardState(ShardShape(ShardId("g.1.0000"), HashRange(0, KEY_LAST), DIM))


def write(state: ShardState, request: WriteRequest) -> Outcome:
    """Plan and apply one request, as a group of one."""
    planned = plan(state, request, overlay_of(state), 0)
    return planned if isinstance(planned, Outcome) else state.apply(planned, LOG)


def enrol(request_id: str, ids: list[tuple[str, str]], codes: vectors.Int8) -> EnrolRequest:
    return EnrolRequest(request_id, [t for _, t in ids], [s for s, _ in ids], codes)


PAIRS = [("s-1", "t-1"), ("s-1", "t-2"), ("s-2", "t-1")]


def test_enrolling_again_with_the_same_vectors_changes_nothing() -> None:
    state, codes = new_state(), rows(3)

    first = write(state, enrol("r-1", PAIRS, codes))
    digest = state.digest
    again = write(state, enrol("r-2", PAIRS, codes))

    assert first == Outcome(1, enrolled_count=3)
    assert again == Outcome(2, unchanged_count=3)
    assert (state.digest, state.templates_count) == (digest, 3)


def test_a_retry_hears_what_the_first_try_heard_and_has_no_further_effect() -> None:
    state, codes = new_state(), rows(3)
    first = write(state, enrol("r-1", PAIRS, codes))
    write(state, EraseRequest("r-2", [], ["s-1"]))

    assert write(state, enrol("r-1", PAIRS, codes)) == first
    assert state.templates_count == 1, "a late retry does not bring erased rows back"


def test_a_request_id_used_for_something_else_is_refused() -> None:
    state, codes = new_state(), rows(3)
    write(state, enrol("r-1", PAIRS, codes))

    with pytest.raises(InvalidError) as refused:
        write(state, enrol("r-1", PAIRS[:2], codes[:2]))

    assert refused.value.reason == "REQUEST_ID_REUSED"


def test_another_vector_for_a_template_is_refused_with_its_row_and_changes_nothing() -> None:
    state, codes = new_state(), rows(3)
    write(state, enrol("r-1", PAIRS, codes))
    other = codes.copy()
    other[2] = rows(1, seed=9)[0]

    with pytest.raises(ConflictError) as refused:
        write(state, enrol("r-2", PAIRS, other))

    assert (refused.value.reason, refused.value.row) == ("TEMPLATE_EXISTS", 2)
    assert (state.position, state.templates_count) == (1, 3)


@pytest.mark.parametrize(
    ("request_id", "pair", "decide"),
    [
        ("r-1", ("new", "new"), True),  # heard before: what it asks must be the same
        ("r-2", ("s-1", "t-2"), True),
        ("r-2", ("s-1", "new"), False),
        ("r-2", ("new", "t-1"), False),
        ("r-2", ("s-2", "t-1"), False),  # erased
    ],
)
def test_vectors_decide_about_what_is_there_already(
    request_id: str, pair: tuple[str, str], *, decide: bool
) -> None:
    state, codes = new_state(), rows(3)
    write(state, enrol("r-1", PAIRS, codes))
    write(state, EraseRequest("e-1", [], ["s-2"]))

    assert vectors_decide(state, request_id, ["fresh", pair[1]], ["other", pair[0]]) == decide
    assert vectors_decide(state, request_id, [pair[1], pair[1]], [pair[0], pair[0]])


def test_a_template_twice_in_a_request_counts_once_or_is_refused() -> None:
    state, codes = new_state(), rows(2)
    twice = [("s", "t"), ("s", "t")]

    same = write(state, enrol("r-1", twice, codes[[0, 0]]))
    with pytest.raises(InvalidError) as refused:
        write(new_state(), enrol("r-2", twice, codes))

    assert same == Outcome(1, enrolled_count=1, unchanged_count=1)
    assert (refused.value.reason, refused.value.row) == ("DUPLICATE_ROW", 1)


def test_erasing_a_template_id_erases_it_for_every_subject() -> None:
    state = new_state()
    write(state, enrol("r-1", PAIRS, rows(3)))

    outcome = write(state, EraseRequest("r-2", ["t-1", "t-9"], []))

    assert outcome == Outcome(2, erased_count=2)
    assert [state.live_rows("s-1"), state.live_rows("s-2")] == [[1], []]


def test_an_erased_template_may_be_enrolled_with_another_vector() -> None:
    state = new_state()
    write(state, enrol("r-1", PAIRS[:1], rows(1)))
    write(state, EraseRequest("r-2", [], ["s-1"]))

    assert write(state, enrol("r-3", PAIRS[:1], rows(1, seed=5))) == Outcome(3, enrolled_count=1)
    assert state.live_rows("s-1") == [1]


def test_the_digest_depends_on_the_rows_and_not_on_their_order_or_history() -> None:
    codes = rows(3)
    one, other = new_state(), new_state()
    write(one, enrol("r-1", PAIRS, codes))
    write(other, enrol("r-1", PAIRS[::-1], codes[::-1]))
    write(other, enrol("r-2", [("s-3", "t")], rows(1, seed=4)))
    write(other, EraseRequest("r-3", [], ["s-3"]))

    assert one.digest == other.digest != new_state().digest


def test_a_group_ends_behind_an_erasure_and_before_a_repeated_request_id() -> None:
    """1 enrol s-1; 2 enrol s-1 again under its id; 3 erase; 4 enrol s-1 with another vector."""
    state, codes = new_state(), rows(2)
    first = enrol("r-1", PAIRS[:1], codes[:1])
    waiting = deque(
        [
            Ticket(first),
            Ticket(first),
            Ticket(EraseRequest("r-2", [], ["s-1"])),
            Ticket(enrol("r-3", PAIRS[:1], codes[1:])),
        ]
    )
    outcomes: list[Outcome | FacegridError] = []
    sizes = []
    while waiting:
        group = form_group(state, waiting, bytes_max=1 << 20, unix_ms=0)
        outcomes += [outcome for outcome, _ in group.settled]
        outcomes += [state.apply(record, LOG) for record, _ in group.records]
        sizes.append(len(group.records))

    assert outcomes == [
        Outcome(1, enrolled_count=1),
        Outcome(1, enrolled_count=1),
        Outcome(2, erased_count=1),
        Outcome(3, enrolled_count=1),
    ]
    assert sizes == [1, 1, 1]


def test_a_record_of_a_group_is_planned_against_those_before_it() -> None:
    state, codes = new_state(), rows(3)
    waiting = deque(
        [
            Ticket(enrol("r-1", [("s", "t")], codes[:1])),
            Ticket(enrol("r-2", [("s", "t"), ("s", "u")], codes[:2])),
            Ticket(enrol("r-3", [("s", "u"), ("s", "t")], codes[1:])),
            Ticket(enrol("r-4", [("s", "u")], codes[1:2])),
        ]
    )

    group = form_group(state, waiting, bytes_max=1 << 20, unix_ms=0)
    ((refused, ticket),) = group.settled
    outcomes = [state.apply(record, LOG) for record, _ in group.records]

    assert isinstance(refused, ConflictError)
    assert (ticket.request.request_id, refused.row) == ("r-3", 1)
    assert outcomes == [
        Outcome(1, enrolled_count=1),
        Outcome(2, enrolled_count=1, unchanged_count=1),
        Outcome(3, unchanged_count=1),
    ]
    assert state.live_rows("s") == [0, 1]


def test_a_subject_of_another_range_is_refused() -> None:
    state = ShardState(ShardShape(ShardId("g.1.0000"), HashRange(0, 0), DIM))

    with pytest.raises(InvalidError) as refused:
        write(state, enrol("r-1", PAIRS[:1], rows(1)))

    assert refused.value.reason == "SUBJECT_ELSEWHERE"


def test_of_several_rows_that_cannot_be_taken_the_first_is_named() -> None:
    """Two copies that differ, and behind them a subject of another shard; and the other way."""
    inside, outside = sorted(["s-1", "s-2"], key=subject_key)
    state = ShardState(ShardShape(ShardId("g.1.0000"), HashRange(0, subject_key(inside)), DIM))
    twice, other = [(inside, "t-1"), (inside, "t-1")], (outside, "t-2")

    with pytest.raises(InvalidError) as first:
        write(state, enrol("r-1", [*twice, other], rows(3)))
    with pytest.raises(InvalidError) as second:
        write(state, enrol("r-1", [twice[0], other, twice[1]], rows(3)))

    assert (first.value.reason, first.value.facts["row"]) == ("DUPLICATE_ROW", "1")
    assert (second.value.reason, second.value.facts["row"]) == ("SUBJECT_ELSEWHERE", "1")


IDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc",)), min_size=1, max_size=40)
BATCHES = st.lists(st.lists(st.tuples(st.integers(0, 5), IDS), max_size=12), max_size=4)


@given(st.lists(IDS, min_size=6, max_size=6, unique=True), BATCHES)
def test_many_rows_registered_at_once_are_those_registered_one_by_one(
    names: list[str], batches: list[list[tuple[int, str]]]
) -> None:
    """Some subjects come again in later batches; each batch names its own in its own order."""
    one_by_one, at_once = new_state(), new_state()
    for number, batch in enumerate(batches):
        templates, codes = [template for _, template in batch], rows(len(batch), number)
        one_by_one.register(templates, [names[subject] for subject, _ in batch], codes)
        distinct = sorted({subject for subject, _ in batch}, reverse=True)
        places = np.array([distinct.index(subject) for subject, _ in batch], np.int32)
        at_once.register_many(templates, [names[one] for one in distinct], places, codes)

    count = one_by_one.rows_count
    assert (at_once.rows_count, at_once.digest) == (count, one_by_one.digest)
    assert at_once.templates_count == count
    for row in range(count):
        assert at_once.templates[row] == one_by_one.templates[row]
        assert at_once.subjects.name_of_row(row) == one_by_one.subjects.name_of_row(row)
        assert not at_once.is_erased(row)
    for name in names:
        assert at_once.live_rows(name) == one_by_one.live_rows(name)
    wanted = [template for batch in batches for _, template in batch][:3]
    np.testing.assert_array_equal(at_once.find(wanted, []), one_by_one.find(wanted, []))
