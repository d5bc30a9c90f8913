"""Turns the log into segments: what a flush captures, and the bytes it makes of it.

Capture happens in one step of the event loop, so that everything in it belongs to one position.
Building the bytes takes long and happens in a thread: it reads only rows that the capture names,
and those never change.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from facegrid.format import digest as digests
from facegrid.format.log import LogRef
from facegrid.format.manifest import (
    Manifest,
    ManifestSegment,
    RememberedRequest,
    encode_manifest,
    manifest_name,
)
from facegrid.format.segment import Segment, encode_segment, segment_name, segment_rows_max
from indexd.ann.ivfpq import EncodedRows
from indexd.engine.requests import RequestMemory
from indexd.engine.state import Int64, ShardState


@dataclass(frozen=True, slots=True, eq=False)
class StoredSegment:
    """A segment in the store: which rows of this replica's memory it holds, in its own order."""

    sha256: str
    rows: Int64


@dataclass(frozen=True, slots=True, eq=False)
class Persisted:
    """What the manifest says: its segments, and the rows and records that they cover."""

    segments: tuple[StoredSegment, ...] = ()
    rows_count: int = 0
    position: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Capture:
    """A shard at one position, enough to write a manifest of it.

    `new_rows` are those of the last `span` rows that are not erased.
    """

    state: ShardState
    generation: int
    position: int
    log: LogRef | None
    digest: int
    templates_count: int
    rows_count: int
    span: int
    new_rows: Int64
    kept: tuple[tuple[StoredSegment, npt.NDArray[np.bool_]], ...]
    requests: tuple[RememberedRequest, ...]


@dataclass(frozen=True, slots=True, eq=False)
class CodedRows:
    """Rows as a codebook codes them, and the codebook's sha256."""

    codebook: str
    rows: EncodedRows

    def part(self, part: slice) -> "CodedRows":
        """Return some of the rows."""
        return CodedRows(self.codebook, EncodedRows(self.rows.lists[part], self.rows.codes[part]))


@dataclass(frozen=True, slots=True)
class StoredObject:
    """Bytes to be stored under the name that their hash gives."""

    name: str
    sha256: str
    data: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Flush:
    """The objects of a flush, and what will be persisted once its manifest is committed."""

    segments: tuple[StoredObject, ...]
    manifest: StoredObject
    persisted: Persisted
    capture: Capture


def capture(state: ShardState, persisted: Persisted, generation: int) -> Capture:
    """Fix what a flush will write. Rows erased by now are not written at all.

    Segments of which every row is erased are left out; their objects go with the next sweep.
    """
    everything = np.arange(persisted.rows_count, state.rows_count, dtype=np.int64)
    kept = tuple((segment, state.erased_mask(segment.rows)) for segment in persisted.segments)
    return Capture(
        state=state,
        generation=generation,
        position=state.position,
        log=state.log,
        digest=state.digest,
        templates_count=state.templates_count,
        rows_count=state.rows_count,
        span=state.rows_count - persisted.rows_count,
        new_rows=everything[~state.erased_mask(everything)],
        kept=tuple((segment, erased) for segment, erased in kept if not erased.all()),
        requests=_remembered(state.requests),
    )


def build(captured: Capture, coded: CodedRows | None) -> Flush:
    """Return the objects of a flush. For a thread: it encodes and hashes all new rows."""
    state = captured.state
    stored = [held for held, _ in captured.kept]
    entries = [
        ManifestSegment(sha256=held.sha256, rows_count=len(held.rows), erased=erased)
        for held, erased in captured.kept
    ]
    segments: list[StoredObject] = []
    step = segment_rows_max(state.dim)
    for begin in range(0, len(captured.new_rows), step):
        part = slice(begin, begin + step)
        rows = captured.new_rows[part]
        segment = _stored(
            encode_segment(_segment(state, rows, None if coded is None else coded.part(part))),
            lambda sha256: segment_name(state.shard_id, sha256),
        )
        segments.append(segment)
        stored.append(StoredSegment(segment.sha256, rows))
        entries.append(
            ManifestSegment(
                sha256=segment.sha256, rows_count=len(rows), erased=np.zeros(len(rows), np.bool_)
            )
        )
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
    )
    return Flush(
        segments=tuple(segments),
        manifest=_stored(
            encode_manifest(manifest), lambda sha256: manifest_name(state.shard_id, sha256)
        ),
        persisted=Persisted(tuple(stored), captured.rows_count, captured.position),
        capture=captured,
    )


def coded_rows(captured: Capture) -> CodedRows | None:
    """Return the new rows as the codebook codes them, if all are coded. For the owner thread."""
    state = captured.state
    first = captured.rows_count - captured.span
    encoded = state.index.encoded(first, captured.rows_count) if state.codebook else None
    if encoded is None:
        return None
    at = captured.new_rows - first
    return CodedRows(state.codebook, EncodedRows(encoded.lists[at], encoded.codes[at]))


def _segment(state: ShardState, rows: Int64, coded: CodedRows | None) -> Segment:
    """Return rows of a state as a segment, with their codes where they have some."""
    numbers: dict[str, int] = {}
    subject_rows = np.empty(len(rows), np.int32)
    for at, row in enumerate(rows.tolist()):
        name = state.subjects.name_of_row(row)
        subject_rows[at] = numbers.setdefault(name, len(numbers))
    return Segment(
        shard_id=state.shard_id,
        dim=state.dim,
        template_ids=[state.templates[row] for row in rows.tolist()],
        subject_ids=list(numbers),
        subject_rows=subject_rows,
        codes=state.index.codes(rows),
        codebook="" if coded is None else coded.codebook,
        lists=None if coded is None else coded.rows.lists,
        pq_codes=None if coded is None else coded.rows.codes,
    )


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
