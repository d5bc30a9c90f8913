"""Turns the log into segments: what a flush captures, and the bytes it makes of it.

Capture happens in one step of the event loop, so that everything in it belongs to one position.
Building the bytes takes long and happens in a thread: it reads only rows that the capture names,
and those never change.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from facegrid import limits
from facegrid.format import digest as digests
from facegrid.format.erasures import Erasure, JournalRef, journal_objects
from facegrid.format.log import LogRef
from facegrid.format.manifest import (
    Manifest,
    ManifestSegment,
    RememberedRequest,
    encode_manifest,
    manifest_name,
)
from facegrid.format.segment import Segment, encoding, segment_name, segment_rows_max
from facegrid.format.sources import InheritedRequest, SourcePosition
from facegrid.steps import Steps
from indexd.ann.ivfpq import EncodedRows, joined
from indexd.engine.columns import TextColumn, in_order_met
from indexd.engine.compaction import Run, SegmentSize
from indexd.engine.loading import LoadedRows
from indexd.engine.requests import RequestMemory
from indexd.engine.state import Int64, ShardState

HASHED_BYTES = 8 * 1024 * 1024
"""Bytes that are hashed in one step."""


@dataclass(frozen=True, slots=True, eq=False)
class StoredSegment:
    """A segment in the store: which rows of this replica's memory it holds, in its own order.

    A number below zero stands for an erased row that repacking has left out: ~number is that of
    the row after it.
    """

    sha256: str
    rows: Int64


@dataclass(frozen=True, slots=True, eq=False)
class Persisted:
    """What the manifest says: its segments, the rows and records that they cover, and the end of
    the erasure journal.
    """

    segments: tuple[StoredSegment, ...] = ()
    rows_count: int = 0
    position: int = 0
    journal: JournalRef | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """A segment that stays as it is, and which of its rows are erased by now."""

    segment: StoredSegment
    erased: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Fresh:
    """Rows to be written: none of them erased, rising."""

    rows: Int64


@dataclass(frozen=True, slots=True, eq=False)
class Capture:
    """A shard at one position, enough to write a manifest of it.

    `pieces` are in the order of their rows, so that a restart numbers the rows in the same order.
    """

    state: ShardState
    generation: int
    position: int
    log: LogRef | None
    digest: int
    templates_count: int
    rows_count: int
    pieces: tuple[Kept | Fresh, ...]
    requests: tuple[RememberedRequest, ...]
    journal: JournalRef | None
    erasures: tuple[Erasure, ...]
    sources: tuple[SourcePosition, ...]
    inherited: tuple[InheritedRequest, ...]

    @property
    def rows_written_count(self) -> int:
        """Rows that the flush writes."""
        return sum(len(piece.rows) for piece in self.pieces if isinstance(piece, Fresh))

    @property
    def rows_written_last(self) -> int:
        """The number behind the last row that the flush writes; 0: it writes none."""
        lasts = [int(piece.rows[-1]) for piece in self.pieces if isinstance(piece, Fresh)]
        return max(lasts, default=-1) + 1


@dataclass(frozen=True, slots=True, eq=False)
class CodedRows:
    """Rows as a codebook codes them, and the codebook's sha256."""

    codebook: str
    rows: EncodedRows


@dataclass(frozen=True, slots=True)
class StoredObject:
    """Bytes to be stored under the name that their hash gives."""

    name: str
    sha256: str
    data: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Flush:
    """The objects of a flush, and what will be persisted once its manifest is committed."""

    journals: tuple[StoredObject, ...]
    segments: tuple[StoredObject, ...]
    manifest: StoredObject
    persisted: Persisted
    capture: Capture


def sizes(state: ShardState, persisted: Persisted) -> list[SegmentSize]:
    """Return the sizes of the segments as they are now, for `indexd.engine.compaction`."""
    return [
        SegmentSize(len(segment.rows), int(np.count_nonzero(state.erased_mask(segment.rows))))
        for segment in persisted.segments
    ]


def capture(
    state: ShardState, persisted: Persisted, generation: int, rewritten: Sequence[Run] = ()
) -> Capture:
    """Fix what a flush will write: new rows, and the rows of segments to be rewritten.

    Rows erased by now are not written. Segments of which every row is erased are left out.
    """
    at = {run.first: run for run in rewritten}
    pieces: list[Kept | Fresh] = []
    number, row = 0, 0
    while number < len(persisted.segments):
        run = at.get(number, Run(number, number + 1))
        segments = persisted.segments[run.first : run.last]
        first, last = span(segments[0].rows)[0], span(segments[-1].rows)[1]
        # Between segments all rows are erased, unless they were inherited without these segments.
        pieces += _fresh(state, np.arange(row, first, dtype=np.int64))
        if number in at:
            pieces += _fresh(state, np.arange(first, last, dtype=np.int64))
        else:
            erased = state.erased_mask(segments[0].rows)
            pieces += [] if erased.all() else [Kept(segments[0], erased)]
        number, row = run.last, max(row, last)
    pieces += _behind(state, persisted.rows_count)
    return Capture(
        state=state,
        generation=generation,
        position=state.position,
        log=state.log,
        digest=state.digest,
        templates_count=state.templates_count,
        rows_count=state.rows_count,
        pieces=tuple(pieces),
        requests=_remembered(state.requests),
        journal=persisted.journal,
        erasures=state.erasures.up_to(state.position),
        sources=tuple(sorted(SourcePosition(*one) for one in state.sources.items())),
        inherited=tuple(state.inherited),
    )


def inherited(state: ShardState, known: Persisted, manifest: Manifest | None) -> Persisted:
    """Return what is persisted of rows whose flushes this copy did not follow: the segments that
    it knows and that the manifest in force still names. All other rows are to be written again.
    """
    named = set() if manifest is None else {entry.sha256 for entry in manifest.segments}
    segments = {one.sha256: one for one in known.segments if one.sha256 in named}
    for one in state.loaded:
        if one.sha256 in named:
            segments[one.sha256] = StoredSegment(one.sha256, one.numbers())
    # What is not among them now may have been rewritten, and deleted, by who flushed.
    state.loaded = []
    journal = known.journal
    # What this copy loaded without etcd may be newer, and was perhaps never committed; its journal
    # holds what was committed all the same, and is never deleted.
    if manifest is not None and manifest.position >= known.position:
        journal = manifest.journal
        state.erasures.forget(manifest.position)
    kept = tuple(sorted(segments.values(), key=lambda segment: span(segment.rows)))
    return Persisted(
        kept,
        rows_count=span(kept[-1].rows)[1] if kept else 0,
        journal=journal,
    )


def span(rows: Int64) -> tuple[int, int]:
    """Return the first row of a segment in memory and the one behind the last."""
    first, last = int(rows[0]), int(rows[-1])
    return (first if first >= 0 else ~first), (last + 1 if last >= 0 else ~last)


def _behind(state: ShardState, first: int) -> list[Kept | Fresh]:
    """Return the rows that no manifest has yet: those of bulk loads lie in segments already."""
    pieces: list[Kept | Fresh] = []
    for loaded in not_persisted(state, first):
        pieces += _fresh(state, np.arange(first, loaded.first, dtype=np.int64))
        rows = loaded.numbers()
        erased = state.erased_mask(rows)
        pieces += [] if erased.all() else [Kept(StoredSegment(loaded.sha256, rows), erased)]
        first = loaded.last
    pieces += _fresh(state, np.arange(first, state.rows_count, dtype=np.int64))
    return pieces


def not_persisted(state: ShardState, rows_count: int) -> list[LoadedRows]:
    """Return what was loaded behind the first `rows_count` rows, which a manifest has."""
    return [loaded for loaded in state.loaded if loaded.first >= rows_count]


def forget(captured: Capture) -> None:
    """Forget what only the log knew of and the manifest of a flush has: it is committed."""
    state = captured.state
    state.erasures.forget(captured.position)
    state.loaded = not_persisted(state, captured.rows_count)


def _fresh(state: ShardState, rows: Int64) -> list[Kept | Fresh]:
    """Return what is to be written of some rows, in pieces that fit into a segment."""
    live = rows[~state.erased_mask(rows)]
    step = segment_rows_max(state.dim)
    return [Fresh(live[begin : begin + step]) for begin in range(0, len(live), step)]


def building(captured: Capture, coded: Sequence[CodedRows | None]) -> Steps[Flush]:
    """Return the objects of a flush. For a thread: it encodes and hashes all rows to be written.

    `coded` is what `coding` found: the codes of each fresh piece, where it has some.
    """
    state = captured.state
    codes = iter(coded)
    stored: list[StoredSegment] = []
    entries: list[ManifestSegment] = []
    segments: list[StoredObject] = []
    for piece in captured.pieces:
        if isinstance(piece, Kept):
            kept, erased = piece.segment, piece.erased
        else:
            segment = yield from segment_of(state, piece.rows, next(codes))
            written = replace(segment, generation=captured.generation, position=captured.position)
            data = yield from encoding(written)
            del segment, written
            sha256 = yield from hashing(data)
            item = StoredObject(segment_name(state.shard_id, sha256), sha256, data)
            del data
            segments.append(item)
            kept = StoredSegment(item.sha256, piece.rows)
            erased = np.zeros(len(piece.rows), np.bool_)
        stored.append(kept)
        entries.append(
            ManifestSegment(sha256=kept.sha256, rows_count=len(kept.rows), erased=erased)
        )
    journals = journal_objects(
        state.shard_id,
        captured.journal,
        captured.erasures,
        last_position=captured.position,
    )
    journal = journals[-1].ref if journals else captured.journal
    manifest = Manifest(
        shard_id=state.shard_id,
        range=state.range,
        dim=state.dim,
        position=captured.position,
        generation=captured.generation,
        log=captured.log,
        segments=tuple(entries),
        requests=captured.requests,
        digest=digests.to_bytes(captured.digest),
        templates_count=captured.templates_count,
        journal=journal,
        sources=captured.sources,
        inherited=captured.inherited,
    )
    return Flush(
        journals=tuple(StoredObject(one.name, one.ref.sha256, one.data) for one in journals),
        segments=tuple(segments),
        manifest=_stored(
            encode_manifest(manifest), lambda sha256: manifest_name(state.shard_id, sha256)
        ),
        persisted=Persisted(tuple(stored), captured.rows_count, captured.position, journal),
        capture=captured,
    )


class Coding:
    """Takes the codes of rows out of their index in steps, so that searches come in between.

    Args:
        state: whose rows they are.
        pieces: rows, rising, of each segment to be.

    Attributes:
        found: each piece as the codebook codes it, None where a row of it is not coded.
    """

    def __init__(self, state: ShardState, pieces: Sequence[Int64]) -> None:
        self._state = state
        self._left = list(pieces)
        self._at = 0
        self._parts: list[EncodedRows] = []
        self._codebook = state.codebook
        self.found: list[CodedRows | None] = []

    def step(self) -> bool:
        """Take the next ones; tell whether any are left. For the owner thread of the index."""
        state = self._state
        if not self._codebook or state.codebook != self._codebook:
            self.found += [None] * len(self._left)
            self._left = []
        if not self._left:
            return False
        piece = self._left[0]
        rows = piece[self._at : self._at + limits.FLUSH_STEP_ROWS]
        first = int(rows[0])
        encoded = state.index.encoded(first, int(rows[-1]) + 1)
        if encoded is not None:
            at = rows - first
            self._parts.append(EncodedRows(encoded.lists[at], encoded.codes[at]))
            self._at += len(rows)
        if encoded is None or self._at == len(piece):
            self._end(complete=encoded is not None)
        return bool(self._left)

    def _end(self, *, complete: bool) -> None:
        coded = CodedRows(self._codebook, joined(self._parts)) if complete else None
        self.found.append(coded)
        self._parts, self._at = [], 0
        del self._left[0]


def coding(captured: Capture) -> Coding:
    """Return what takes the codes of each fresh piece."""
    fresh = [piece.rows for piece in captured.pieces if isinstance(piece, Fresh)]
    return Coding(captured.state, fresh)


def segment_of(state: ShardState, rows: Int64, coded: CodedRows | None) -> Steps[Segment]:
    """Return rows as a segment, with their codes where they have some. For a thread."""
    subjects, subject_rows = in_order_met(state.subjects.numbers_of(rows))
    template_ids = yield from texts(state.templates, rows)
    subject_ids = yield from texts(state.subjects.names, subjects)
    return Segment(
        shard_id=state.shard_id,
        dim=state.dim,
        template_ids=template_ids,
        subject_ids=subject_ids,
        subject_rows=subject_rows,
        codes=state.index.codes(rows),
        codebook="" if coded is None else coded.codebook,
        lists=None if coded is None else coded.rows.lists,
        pq_codes=None if coded is None else coded.rows.codes,
    )


def texts(column: TextColumn, numbers: Int64) -> Steps[list[str]]:
    """Return some entries of a column."""
    found: list[str] = []
    step = limits.FLUSH_STEP_ROWS
    for first in range(0, len(numbers), step):
        if first:
            yield
        found += column.take(numbers[first : first + step])
    return found


def hashing(data: bytes) -> Steps[str]:
    """Return the SHA-256 of bytes in hex."""
    view, found = memoryview(data), hashlib.sha256()
    for first in range(0, len(view), HASHED_BYTES):
        if first:
            yield
        found.update(view[first : first + HASHED_BYTES])
    return found.hexdigest()


def _stored(data: bytes, name: Callable[[str], str]) -> StoredObject:
    """Return bytes with the name that they are stored under."""
    sha256 = hashlib.sha256(data).hexdigest()
    return StoredObject(name(sha256), sha256, data)


def _remembered(requests: RequestMemory) -> tuple[RememberedRequest, ...]:
    """Return the remembered requests in their stored form."""
    return tuple(
        RememberedRequest(
            request_id=request_id,
            digest=entry.digest,
            position=entry.outcome.position,
            enrolled_count=entry.outcome.enrolled_count,
            unchanged_count=entry.outcome.unchanged_count,
            erased_count=entry.outcome.erased_count,
        )
        for request_id, entry in requests
    )
