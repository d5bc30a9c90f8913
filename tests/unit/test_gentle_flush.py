"""Large segments are made in steps, with rests between; the bytes are those of one step."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facegrid import limits, vectors
from facegrid.clock import SystemClock
from facegrid.errors import FencedError
from facegrid.format.frame import Kind, encode_frame, framing
from facegrid.format.segment import decode_segment, segment_name
from facegrid.format.stored_gallery import StoredGallery
from facegrid.steps import Steps, finished
from indexd.ann.ivfpq import IvfPq
from indexd.ann.train import train
from indexd.engine import coded, flush
from indexd.engine.coded import NamedCodebook
from indexd.engine.columns import PackedTexts, SubjectRows, TextColumn, in_order_met
from indexd.engine.compaction import flush_rows
from indexd.engine.requests import EnrolRequest
from indexd.replica.primary import Primary
from indexd.replica.shard_copy import ABSORB_ROWS
from tests.fakes.mirror_rig import DIM, N1, Rig, S, rigged, whole_map

ROWS = 4 * limits.FLUSH_STEP_ROWS + 17


def rows(count: int, seed: int) -> vectors.Int8:
    x = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    return vectors.quantize(x / np.linalg.norm(x, axis=1, keepdims=True))


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with rigged() as rig:
        await rig.start(N1)
        yield rig


@pytest.fixture
async def primary(rig: Rig) -> Primary:
    primary = await rig.serving(S)
    ids = [f"é{row}" for row in range(ROWS)]
    subjects = [f"s{row // 2}" for row in range(ROWS)]
    await primary.write(EnrolRequest("r", ids, subjects, rows(ROWS, 1)))
    return primary


def codebook() -> NamedCodebook:
    trained = train(rows(1200, 7), seed=3, threads=1)
    return NamedCodebook(coded.encode(trained)[1], trained)


class RestingClock(SystemClock):
    """Remembers the rests, and takes none."""

    def __init__(self) -> None:
        self.rests: list[float] = []
        self.rested = asyncio.Event()

    async def sleep(self, duration_s: float) -> None:
        self.rests.append(duration_s)
        self.rested.set()
        await super().sleep(0)


def count_steps(steps: Steps[flush.Flush]) -> tuple[int, flush.Flush]:
    count = 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return count, end.value
        count += 1


async def test_a_large_flush_is_made_in_steps_and_holds_every_row(primary: Primary) -> None:
    await primary.use_codebook(codebook())
    captured = flush.capture(primary.state, primary.persisted, 1)
    coding = flush.coding(captured)
    steps = 1
    while coding.step():
        steps += 1
    assert steps == 5

    count, built = count_steps(flush.building(captured, coding.found))
    assert count >= 8

    segment = decode_segment(built.segments[0].data)
    state = primary.state
    assert segment.template_ids == [state.templates[row] for row in range(ROWS)]
    assert [segment.subject_ids[at] for at in segment.subject_rows.tolist()] == [
        state.subjects.name_of_row(row) for row in range(ROWS)
    ]
    every = np.arange(ROWS, dtype=np.int64)
    np.testing.assert_array_equal(segment.codes, state.index.codes(every))
    whole = state.index.encoded(0, ROWS)
    assert whole is not None
    assert segment.lists is not None
    assert segment.pq_codes is not None
    np.testing.assert_array_equal(segment.lists, whole.lists)
    np.testing.assert_array_equal(segment.pq_codes, whole.codes)


async def test_whoever_flushes_rests_between_steps_unless_somebody_waits(
    primary: Primary,
) -> None:
    clock = RestingClock()
    primary.ports = replace(primary.ports, clock=clock)
    await primary.flush()
    assert len(clock.rests) >= 4
    assert max(clock.rests) <= 0.02

    ids = [f"t{row}" for row in range(ROWS)]
    await primary.write(EnrolRequest("r2", ids, ids, rows(ROWS, 2)))
    clock.rests.clear()
    primary.waiting += 1
    await primary.flush()
    assert clock.rests == []
    assert len(primary.persisted.segments) == 2


async def test_rows_that_wait_to_be_coded_are_stored_with_codes(
    rig: Rig, primary: Primary
) -> None:
    """1 all but the last rows are coded; 2 flush: the segment has the codes of all of them."""
    await primary.use_codebook(codebook())
    ids = [f"t{row}" for row in range(ABSORB_ROWS - 1)]
    await primary.write(EnrolRequest("r2", ids, ids, rows(len(ids), 2)))
    assert not primary.absorb_due

    await primary.flush()

    (one,) = primary.persisted.segments
    segment = decode_segment(await rig.store.get(segment_name(S, one.sha256)))
    whole = primary.state.index.encoded(0, ROWS + len(ids))
    assert whole is not None
    assert segment.codebook == codebook().sha256
    np.testing.assert_array_equal(segment.pq_codes, whole.codes)


@pytest.mark.parametrize("few", [True, False])
async def test_a_flush_codes_what_it_writes_and_nothing_when_too_much_waits(
    primary: Primary, monkeypatch: pytest.MonkeyPatch, *, few: bool
) -> None:
    """Nobody codes in the background here; as many rows wait as a flush may code, or one more."""
    state, named = primary.state, codebook()
    state.adopt(IvfPq(named.codebook), named.sha256)
    monkeypatch.setattr("indexd.replica.shard_copy.FLUSH_ABSORB_ROWS_MAX", ROWS - 1 + few)
    captured = flush.capture(state, primary.persisted, 1)
    await primary.write(EnrolRequest("r2", ["t"], ["t"], rows(1, 2)))

    await primary.absorb_few(state, captured.rows_written_last)

    assert captured.rows_written_last == ROWS
    indexed_count = state.index.indexed_count
    assert indexed_count >= ROWS if few else indexed_count == 0


async def handed_over(primary: Primary) -> None:
    async with primary.handed_over():
        pass


async def flushed(primary: Primary) -> None:
    with suppress(FencedError):
        await primary.flush()


async def gallery_kept(primary: Primary) -> None:
    await primary.keep_coming(None, StoredGallery(primary.gallery, whole_map()))


@pytest.mark.parametrize("end", [Primary.close, Primary.abandon, handed_over, gallery_kept])
async def test_a_flush_goes_on_without_rests_for_who_waits_for_its_end(
    primary: Primary, end: Callable[[Primary], Coroutine[None, None, None]]
) -> None:
    clock = RestingClock()
    primary.ports = replace(primary.ports, clock=clock)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(flushed(primary))
        await clock.rested.wait()
        await end(primary)
    assert len(clock.rests) <= 2


async def test_codes_of_a_codebook_that_is_replaced_meanwhile_are_left_out(
    primary: Primary,
) -> None:
    await primary.use_codebook(codebook())
    coding = flush.coding(flush.capture(primary.state, primary.persisted, 1))
    assert coding.step()
    trained = train(rows(1200, 8), seed=4, threads=1)
    await primary.use_codebook(NamedCodebook(coded.encode(trained)[1], trained))
    while coding.step():
        pass
    assert coding.found == [None]


TEXTS = st.lists(st.text(max_size=6), min_size=1, max_size=60)


@given(TEXTS, st.data())
def test_entries_taken_together_are_those_taken_one_by_one(
    texts: list[str], data: st.DataObject
) -> None:
    column = TextColumn()
    half = len(texts) // 2
    column.add([text.encode() for text in texts[:half]])
    column.extend(PackedTexts.of([text.encode() for text in texts[half:]]))
    places = st.lists(st.integers(0, len(texts) - 1), max_size=40)
    numbers = np.array(data.draw(places), np.int64)

    assert column.take(numbers) == [texts[number] for number in numbers.tolist()]


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=60), st.data())
def test_subjects_of_rows_are_found_together_and_in_the_order_met(
    names: list[str], data: st.DataObject
) -> None:
    subjects = SubjectRows()
    subjects.add_rows(names, [name.encode() for name in names])
    taken = np.array(sorted(data.draw(st.sets(st.integers(0, len(names) - 1)))), np.int64)

    distinct, places = in_order_met(subjects.numbers_of(taken))
    found = subjects.names.take(distinct)

    expected = [names[row] for row in taken.tolist()]
    assert found == list(dict.fromkeys(expected))
    assert [found[place] for place in places.tolist()] == expected


def test_shards_of_a_gallery_are_flushed_at_different_times_and_never_late() -> None:
    found = {flush_rows(f"g.1f00aa23.{number:04d}") for number in range(64)}

    assert len(found) > 60
    assert min(found) >= limits.FLUSH_ROWS * 7 // 8
    assert max(found) <= limits.FLUSH_ROWS


def test_steps_return_what_the_work_returns() -> None:
    def work() -> Steps[int]:
        yield
        yield
        return 7

    assert finished(work()) == 7


def test_a_large_frame_is_made_in_steps_and_is_the_frame_made_at_once() -> None:
    payload = np.random.default_rng(1).integers(0, 256, 9 << 20, np.uint8).tobytes()
    steps = framing(Kind.SEGMENT_CODES, memoryview(payload), compress="none")
    assert next(steps) is None

    assert b"".join(finished(steps)) == encode_frame(Kind.SEGMENT_CODES, payload, compress="none")


def test_what_is_hashed_in_steps_has_the_hash_of_the_whole() -> None:
    data = bytes(range(256)) * (5 << 12) + b"end"
    small = flush.hashing(data[:1000])

    assert finished(flush.hashing(data * 4)) == hashlib.sha256(data * 4).hexdigest()
    assert finished(small) == hashlib.sha256(data[:1000]).hexdigest()
