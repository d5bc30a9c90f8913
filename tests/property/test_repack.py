"""However a shard was flushed, repacked and started again, it answers like one that never was."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from facegrid import limits, vectors
from facegrid.errors import ConflictError
from facegrid.format.log import LoadRecord, LogRecord, LogRef
from facegrid.format.manifest import Manifest, decode_manifest
from facegrid.format.segment import segment_name
from facegrid.ids import KEY_LAST, ShardId
from facegrid.model import HashRange
from facegrid.steps import finished
from facegrid.testing.memory_blob import MemoryBlobStore
from fgctl.bulk.rows import ShardRows
from fgctl.bulk.segments import build_segment
from indexd.ann.train import train
from indexd.engine import coded, compaction, loading, recovery, staging
from indexd.engine import flush as flushing
from indexd.engine.coded import NamedCodebook
from indexd.engine.flush import Persisted
from indexd.engine.planning import overlay_of, plan
from indexd.engine.repack import Repack
from indexd.engine.requests import (
    EnrolRequest,
    EraseRequest,
    LoadRequest,
    NamedSegment,
    Outcome,
    WriteRequest,
)
from indexd.engine.state import ShardState

DIM = 16
SHARD = loading.ShardShape(ShardId("g.1.0000"), HashRange(0, KEY_LAST), DIM)
STEP_ROWS = 5
SUBJECTS = st.integers(0, 7)
TEMPLATES = st.integers(0, 3)

T = TypeVar("T")
Row = tuple[str, str, bytes]


def _rows(count: int, seed: int) -> vectors.Int8:
    x = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    return vectors.quantize(x / np.linalg.norm(x, axis=1, keepdims=True))


VECTORS = _rows(24, 1)
"""The vectors that exist. There are fewer than templates, so that scores tie."""
PROBES = vectors.prepare_probes(vectors.dequantize(_rows(8, 2)))
TRAINED = replace(train(_rows(1100, 3), seed=3, threads=1), rescore_factor=1000)
CODEBOOK = NamedCodebook(coded.encode(TRAINED)[1], TRAINED)
"""Rescores every row, so that answers must agree in full."""


def new_state(codebook: NamedCodebook | None) -> ShardState:
    state = ShardState(SHARD)
    if codebook is not None:
        state.use_codebook(codebook)
    return state


def log_of(record: LogRecord) -> LogRef:
    """Return the log object that a record is in: each has its own."""
    return LogRef(1, record.position, record.position, "uuid", "0" * 64)


def live_rows(state: ShardState) -> list[Row]:
    """Return the rows that are not erased, in their order."""
    rows = np.arange(state.rows_count, dtype=np.int64)
    rows = rows[~state.erased_mask(rows)]
    names = [(state.subjects.name_of_row(row), state.templates[row]) for row in rows.tolist()]
    codes = state.index.codes(rows) if len(rows) else []
    return [(*name, data.tobytes()) for name, data in zip(names, codes, strict=True)]


def answers(state: ShardState) -> list[tuple[str, str, float]]:
    hits = state.index.search(PROBES, 5, -1.0)
    return [
        (state.subjects.name_of_row(row), state.templates[row], score)
        for row, score in zip(hits.rows.tolist(), hits.scores.tolist(), strict=True)
    ]


async def at_once(work: Callable[[], T]) -> T:
    return work()


class Repacked(RuleBasedStateMachine):
    """Two shards take the same writes; only one of them is flushed, repacked, started again."""

    codebook: NamedCodebook | None = None

    def __init__(self) -> None:
        super().__init__()
        self.plain = new_state(self.codebook)
        self.state = new_state(self.codebook)
        self.persisted = Persisted()
        self.manifest: Manifest | None = None
        self.store = MemoryBlobStore()
        self.log: list[LogRecord] = []
        self.repack: Repack | None = None
        self.requests = 0

    def write(self, request: WriteRequest) -> None:
        planned = plan(self.state, request, overlay_of(self.state), 0)
        assert not isinstance(planned, Outcome), "every request id is new"
        log = log_of(planned)
        assert self.state.apply(planned, log) == self.plain.apply(planned, log)
        self.log.append(planned)

    @rule(subjects=st.lists(SUBJECTS, min_size=1, max_size=6), template=TEMPLATES)
    def enrol(self, subjects: list[int], template: int) -> None:
        self.requests += 1
        chosen = sorted(set(subjects))
        numbers = [(3 * subject + 5 * template) % len(VECTORS) for subject in chosen]
        try:
            self.write(
                EnrolRequest(
                    f"r-{self.requests}",
                    [f"t-{template}"] * len(chosen),
                    [f"s-{subject}" for subject in chosen],
                    VECTORS[numbers],
                )
            )
        except ConflictError:
            raise AssertionError("a template has one vector here") from None

    @rule(subject=SUBJECTS)
    def erase_subject(self, subject: int) -> None:
        self.requests += 1
        self.write(EraseRequest(f"r-{self.requests}", [], [f"s-{subject}"]))

    @rule(template=TEMPLATES)
    def erase_template(self, template: int) -> None:
        self.requests += 1
        self.write(EraseRequest(f"r-{self.requests}", [f"t-{template}"], []))

    @rule(subjects=st.lists(SUBJECTS, min_size=1, max_size=6), template=TEMPLATES)
    def load(self, subjects: list[int], template: int) -> None:
        """Rows come around the log; what is there already counts as erased from the beginning."""
        self.requests += 1
        chosen = sorted(set(subjects))
        numbers = [(3 * subject + 5 * template) % len(VECTORS) for subject in chosen]
        rows = ShardRows(
            [f"t-{template}"] * len(chosen),
            [f"s-{subject}" for subject in chosen],
            VECTORS[numbers],
            shard_id=SHARD.shard_id,
        )
        built = build_segment(rows, f"{self.requests:032x}")
        sha256 = built.named.sha256
        self.store.objects[segment_name(SHARD.shard_id, sha256)] = built.data
        prepared = loading.prepare(built.data, sha256, SHARD)
        request = LoadRequest(f"r-{self.requests}", (NamedSegment(sha256, len(chosen)),))
        for state in (self.plain, self.state):
            staging.stage_new(state, request.request_id, [prepared])
        if self.repack is not None:
            assert not self.repack.of(self.state), "not while rows are staged"
        self.write(request)

    @rule()
    def absorb(self) -> None:
        self.state.index.absorb()

    @rule(rewrite=st.booleans())
    def flush(self, rewrite: bool) -> None:  # noqa: FBT001 - Hypothesis calls it
        sizes = flushing.sizes(self.state, self.persisted)
        runs = compaction.erased_runs(sizes) if rewrite else compaction.small_runs(sizes)
        captured = flushing.capture(self.state, self.persisted, 1, runs)
        coding = flushing.coding(captured)
        while coding.step():
            pass
        built = finished(flushing.building(captured, coding.found))
        for item in built.segments:
            self.store.objects[item.name] = item.data
        self.manifest = decode_manifest(built.manifest.data)
        self.persisted = built.persisted
        self.state.erasures.forget(captured.position)
        self.log.clear()

    @rule()
    def start_again(self) -> None:
        loads = recovery.Loads(self.store, at_once)
        self.state, self.persisted = asyncio.run(
            recovery.load_segments(loads, SHARD, self.manifest, self.codebook)
        )
        for record in self.log:
            if isinstance(record, LoadRecord):
                asyncio.run(loads.stage(self.state, record))
            self.state.apply(record, log_of(record))
        self.repack = None

    @rule()
    def take_over(self) -> None:
        """A follower that has these rows becomes the primary, and knows what it knows."""
        self.persisted = flushing.inherited(self.state, self.persisted, self.manifest)

    @rule()
    def begin_repacking(self) -> None:
        self.repack = Repack(self.state)

    @precondition(lambda self: self.repack is not None)
    @rule(erase=st.booleans())
    def step(self, erase: bool) -> None:  # noqa: FBT001 - Hypothesis calls it
        assert self.repack is not None
        step = self.repack.next_step()
        if step is not None:
            self.repack.copy(step, self.repack.encoded(step))
        if erase:
            self.repack.erase()

    @precondition(lambda self: self.repack is not None)
    @rule()
    def exchange(self) -> None:
        assert self.repack is not None
        packed = self.repack.finish()
        self.persisted = self.repack.persisted(self.persisted)
        self.state, self.repack = packed, None

    @rule()
    def repack_at_once(self) -> None:
        self.begin_repacking()
        assert self.repack is not None
        while self.repack.next_step() is not None:
            self.step(erase=False)
        self.exchange()

    @invariant()
    def same_rows_and_same_answers(self) -> None:
        assert self.state.digest == self.plain.digest
        assert live_rows(self.state) == live_rows(self.plain)
        assert answers(self.state) == answers(self.plain)
        assert self.state.position == self.plain.position


class RepackedAndCoded(Repacked):
    """The same with a codebook."""

    codebook = CODEBOOK


limits_before = limits.REPACK_STEP_ROWS


def _small(machine: type[Repacked]) -> type[RuleBasedStateMachine.TestCase]:
    """Return the test of a machine, which copies a few rows at a time."""

    class Small(machine.TestCase):  # type: ignore[misc,name-defined]  # made by Hypothesis
        settings = settings(max_examples=40, stateful_step_count=30, deadline=None)

        def setUp(self) -> None:
            limits.REPACK_STEP_ROWS = STEP_ROWS

        def tearDown(self) -> None:
            limits.REPACK_STEP_ROWS = limits_before

    return Small


TestRepacked = _small(Repacked)
TestRepackedAndCoded = _small(RepackedAndCoded)
