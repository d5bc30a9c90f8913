"""Any order of enrolments, loads, erasures, flushes, rewrites and crashes equals a plain model."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facegrid import limits, vectors
from facegrid.clock import SystemClock
from facegrid.coord import keys
from facegrid.coord.port import Put
from facegrid.format import digest as digests
from facegrid.format.records import encode_gallery, encode_shard_map
from facegrid.format.segment import decode_segment
from facegrid.model import ShardMap
from facegrid.testing.memory_blob import MemoryBlobStore
from fgctl.bulk.publish import LoadStore, request_id
from fgctl.bulk.rows import ShardRows
from fgctl.bulk.segments import build_segment
from indexd.engine.requests import EnrolRequest, EraseRequest, LoadRequest, NamedSegment
from indexd.replica.primary import Primary
from indexd.replica.repacking import Repacker
from tests.unit.test_replica import DIM, GALLERY, SHARD, FlakyCoordinator, World

Pair = tuple[str, str]
NUMBERS = st.lists(st.integers(0, 11), min_size=1, max_size=6, unique=True)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("enrol"), NUMBERS),
        st.tuples(st.just("load"), NUMBERS),
        st.tuples(st.just("erase"), NUMBERS),
        st.tuples(st.just("repeat"), st.just([])),
        st.tuples(st.just("flush"), st.just([])),
        st.tuples(st.just("rewrite"), st.just([])),
        st.tuples(st.just("repack"), st.just([])),
        st.tuples(st.just("crash"), st.just([])),
    ),
    min_size=1,
    max_size=14,
)


def pair(number: int) -> Pair:
    """Twelve templates of five subjects."""
    return f"s-{number % 5}", f"t-{number}"


CODES = vectors.quantize(np.random.default_rng(3).normal(size=(12, DIM)).astype(np.float32))


@dataclass
class Run:
    """A shard under test, and what it should hold."""

    world: World
    live: dict[Pair, bytes] = field(default_factory=dict)
    numbers: "count[int]" = field(default_factory=count)
    last: Callable[[Primary], Awaitable[object]] | None = None
    answer: object = None

    async def enrol(self, primary: Primary, rows: list[int]) -> None:
        request = EnrolRequest(
            f"e-{next(self.numbers)}",
            [pair(row)[1] for row in rows],
            [pair(row)[0] for row in rows],
            CODES[rows],
        )
        await self.write(primary, lambda one: one.write(request))
        self.live.update({pair(row): CODES[row].tobytes() for row in rows})

    async def load(self, primary: Primary, rows: list[int]) -> None:
        """Load rows in two segments."""
        load_id = f"{next(self.numbers):032d}"
        segments = [
            build_segment(
                ShardRows(
                    [pair(row)[1] for row in part],
                    [pair(row)[0] for row in part],
                    CODES[part],
                    shard_id=SHARD.shard_id,
                ),
                load_id,
            )
            for part in (rows[:2], rows[2:])
            if part
        ]
        store = LoadStore(self.world.store, load_id)
        for one in segments:
            await store.put(one)
        named = tuple(NamedSegment(one.named.sha256, one.named.rows_count) for one in segments)
        request = LoadRequest(request_id(load_id, SHARD.shard_id), named)
        await self.write(primary, lambda one: one.load_segments(request))
        await store.unpin(one.named for one in segments)
        self.live.update({pair(row): CODES[row].tobytes() for row in rows})

    async def erase(self, primary: Primary, rows: list[int]) -> None:
        """Erase the first by its template, the others with all of their subject's."""
        template_id, subjects = pair(rows[0])[1], {pair(row)[0] for row in rows[1:]}
        request = EraseRequest(f"d-{next(self.numbers)}", [template_id], sorted(subjects))
        await self.write(primary, lambda one: one.write(request))
        self.live = {
            key: codes
            for key, codes in self.live.items()
            if key[0] not in subjects and key[1] != template_id
        }

    async def write(self, primary: Primary, work: Callable[[Primary], Awaitable[object]]) -> None:
        self.last, self.answer = work, await work(primary)

    async def repeat(self, primary: Primary) -> None:
        """Send the last request again: the same answer, and no effect."""
        if self.last is not None:
            assert await self.last(primary) == self.answer

    async def rewrite(self, primary: Primary) -> None:
        """Rewrite: nothing that is not alive is left in any segment."""
        await primary.rewrite()
        stored = [
            decode_segment(data)
            for name, data in self.world.store.objects.items()
            if "/segments/" in name
        ]
        held = [
            (one.subject_ids[subject], template_id)
            for one in stored
            for subject, template_id in zip(one.subject_rows, one.template_ids, strict=True)
        ]
        assert sorted(held) == sorted(self.live)

    async def do(self, primary: Primary, name: str, rows: list[int]) -> None:
        """Carry out an operation by its name."""
        match name:
            case "enrol":
                await self.enrol(primary, rows)
            case "load":
                await self.load(primary, rows)
            case "erase":
                await self.erase(primary, rows)
            case "repeat":
                await self.repeat(primary)
            case "flush":
                await primary.flush()
            case "rewrite":
                await self.rewrite(primary)
            case "repack":
                await Repacker().repack(primary)
                assert primary.state.erased_count == 0

    def check(self, primary: Primary) -> None:
        """The shard holds what the model says, and each template finds itself."""
        state = primary.state
        expected = 0
        for (subject_id, template_id), codes in self.live.items():
            row = digests.row_digest(subject_id, template_id, codes)
            expected = digests.add(expected, row)
        held = {
            (state.subjects.name_of_row(row), state.templates[row])
            for row in range(state.rows_count)
            if not state.is_erased(row)
        }
        assert held == self.live.keys()
        assert (state.templates_count, state.digest) == (len(self.live), expected)
        for subject_id, template_id in held:
            rows = [
                row for row in state.live_rows(subject_id) if state.templates[row] == template_id
            ]
            assert len(rows) == 1
        for (subject_id, _), codes in self.live.items():
            probe = vectors.prepare_probes(
                vectors.dequantize(np.frombuffer(codes, np.int8).reshape(1, DIM))
            )
            (row,) = state.index.search(probe, 1, 0.99).rows.tolist()
            assert state.subjects.name_of_row(row) == subject_id


async def play(operations: list[tuple[str, list[int]]], threads: ThreadPoolExecutor) -> None:
    coord = FlakyCoordinator(SystemClock())
    shard_map = ShardMap(GALLERY.name, GALLERY.uid, 1, (SHARD,))
    made = await coord.txn(
        [],
        [
            Put(keys.gallery(GALLERY.name), encode_gallery(GALLERY)),
            Put(keys.shard_map(GALLERY.name), encode_shard_map(shard_map)),
        ],
    )
    run = Run(World(coord, MemoryBlobStore(), made.revision, count(), (threads, threads)))
    left = list(operations)
    for boot in range(len(operations) + 2):
        async with run.world.primary(f"b{boot}") as primary:
            run.check(primary)
            while left:
                name, rows = left.pop(0)
                if name == "crash":
                    break
                await run.do(primary, name, rows)
                run.check(primary)


@pytest.fixture(autouse=True, scope="module")
def _repack_at_once() -> Iterator[None]:
    """One erased row is enough to repack."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "REPACK_ERASED_MIN", 0)
        patch.setattr(limits, "REPACK_ERASED_SHARE", 0.0)
        patch.setattr(limits, "REPACK_STEP_ROWS", 2)
        yield


@settings(max_examples=150)
@given(OPERATIONS)
def test_a_shard_equals_a_plain_model_whatever_happens_to_it(
    operations: list[tuple[str, list[int]]],
) -> None:
    with ThreadPoolExecutor(1) as threads:
        asyncio.run(play(operations, threads))
