"""Brings a shard back: manifest, segments, then the log up to the committed tip.

Nothing is used before its hash matched what names it, and the result must have the digest that the
manifest states. Anything else raises CorruptError, and the shard is not served.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol, TypeVar

import numpy as np

from facegrid.blob.port import BlobStore
from facegrid.errors import CorruptError, InvalidError, NotFoundError
from facegrid.format.log import (
    EnrolRecord,
    LoadRecord,
    LogGroup,
    LogRecord,
    LogRef,
    decode_log,
    log_name,
)
from facegrid.format.manifest import Manifest, ManifestSegment, decode_manifest, manifest_name
from facegrid.format.records import ManifestPointer
from facegrid.format.segment import Segment, decode_segment, segment_name
from facegrid.ids import ShardId
from indexd.ann.ivfpq import EncodedRows
from indexd.engine import staging
from indexd.engine.coded import NamedCodebook
from indexd.engine.columns import Int32
from indexd.engine.flush import Persisted, StoredSegment
from indexd.engine.loading import ShardShape, check_hash, prepare_recorded
from indexd.engine.requests import Outcome, Remembered
from indexd.engine.state import ShardState

T = TypeVar("T")

Committed = tuple[LogGroup, LogRef]
"""A committed log object, and what names it."""
ASIDE_BYTES: Final = 64 * 1024
"""Size from which an object is decoded in a thread: less takes about as long as getting there."""
ASIDE_SIZE: Final = 256
"""Records and rows, in all, from which a log is applied in a thread where that may be."""


class RunInThread(Protocol):
    """Runs long work in a thread."""

    def __call__(self, work: Callable[[], T]) -> Awaitable[T]:
        """Return what the work returns."""
        ...


@dataclass(frozen=True, slots=True)
class Loads:
    """Where segments come from, and where they are made ready."""

    store: BlobStore
    run: RunInThread

    async def stage(self, state: ShardState, record: LoadRecord) -> None:
        """Fetch what a committed record loads, and stage it: then it can be applied.

        Raises:
            CorruptError: a segment is missing, or is not what was committed.
        """
        shape = state.shape
        segments = []
        for one in record.segments:
            if staging.brings_rows(one):
                data = await fetch_unchecked(self.store, segment_name(shape.shard_id, one.sha256))
                segments.append(await self.run(partial(prepare_recorded, data, one, shape)))
        await self.run(partial(staging.stage, state, record.request_id, record.segments, segments))


async def load_manifest(
    store: BlobStore, shard_id: ShardId, pointer: ManifestPointer | None
) -> Manifest | None:
    """Return the manifest that the pointer names, or None where there is none yet."""
    if pointer is None:
        return None
    name = manifest_name(shard_id, pointer.sha256)
    manifest = decoded(name, decode_manifest, await fetch(store, name, pointer.sha256))
    if manifest.shard_id != shard_id:
        raise CorruptError(
            f"manifest belongs to another shard shard={shard_id} found={manifest.shard_id}",
            reason="OBJECT_SWAPPED",
            shard=shard_id,
        )
    return manifest


async def load_segments(
    loads: Loads, shape: ShardShape, manifest: Manifest | None, codebook: NamedCodebook | None
) -> tuple[ShardState, Persisted]:
    """Return the state that the manifest describes, and what of it is persisted.

    Nobody else knows the state yet, so it is filled in a thread: the other shards go on.
    """
    state = ShardState(shape)
    if codebook is not None:
        state.use_codebook(codebook)
    if manifest is None:
        return state, Persisted()
    stored: list[StoredSegment] = []
    for entry in manifest.segments:
        data = await fetch_unchecked(loads.store, segment_name(shape.shard_id, entry.sha256))
        stored.append(await loads.run(partial(_add_segment, state, data, entry)))
    for request in manifest.requests:
        outcome = Outcome(
            request.position,
            enrolled_count=request.enrolled_count,
            unchanged_count=request.unchanged_count,
            erased_count=request.erased_count,
        )
        state.requests.remember(request.request_id, Remembered(request.digest, outcome))
    state.sources = {source.shard_id: source.position for source in manifest.sources}
    state.inherited.note(manifest.inherited)
    state.position = manifest.position
    state.log = manifest.log
    state.verify_digest(manifest.digest)
    persisted = Persisted(tuple(stored), state.rows_count, manifest.position, manifest.journal)
    return state, persisted


def _add_segment(state: ShardState, data: bytes, entry: ManifestSegment) -> StoredSegment:
    """Add a segment's rows, then erase those that the manifest says are erased."""
    name = segment_name(state.shard_id, entry.sha256)
    check_hash(data, entry.sha256, name)
    segment = decoded(name, decode_segment, data)
    if segment.shard_id != state.shard_id or len(segment.codes) != entry.rows_count:
        raise CorruptError(
            f"segment does not belong here shard={state.shard_id} found={segment.shard_id}",
            reason="OBJECT_SWAPPED",
            shard=state.shard_id,
        )
    first = state.rows_count
    numbers = state.register_many(
        segment.template_ids, segment.subject_ids, segment.subject_rows, segment.codes
    )
    try:
        _append(state, segment, numbers)
    except InvalidError as error:
        # The state is given up with it.
        raise CorruptError(
            f"segment holds what is no row of its gallery: {error.message} object={name}",
            reason="SEGMENT_MISMATCH",
            shard=state.shard_id,
        ) from error
    rows = np.arange(first, state.rows_count, dtype=np.int64)
    state.erase_rows(rows[entry.erased])
    return StoredSegment(entry.sha256, rows)


def _append(state: ShardState, segment: Segment, numbers: Int32) -> None:
    """Add a segment's rows to the index, with their codes if they are by the codebook in use.

    Raises:
        InvalidError: they are to be packed, and one is not of 4 bits (CODES_MALFORMED).
    """
    if segment.codebook and segment.codebook == state.codebook:
        assert segment.lists is not None, "a segment with a codebook has codes"
        assert segment.pq_codes is not None, "a segment with a codebook has codes"
        encoded = EncodedRows(segment.lists, segment.pq_codes)
        state.index.append_encoded(segment.codes, numbers, encoded)
    elif len(numbers):
        state.index.append(segment.codes, numbers)


async def read_chain(
    store: BlobStore, shard_id: ShardId, *, after: LogRef | None, tip: LogRef | None
) -> list[tuple[LogGroup, LogRef]]:
    """Return the committed log objects behind `after`, up to and with `tip`, oldest first.

    Walked backwards, since every object names its predecessor and its hash: an object that nobody
    committed is never reached.
    """
    chain: list[tuple[LogGroup, LogRef]] = []
    ref = tip
    while ref is not None and ref != after:
        if after is not None and ref.last_position <= after.last_position:
            raise CorruptError(
                f"log does not lead back to the manifest shard={shard_id}"
                f" position={ref.last_position}",
                reason="LOG_BROKEN",
                shard=shard_id,
            )
        name = log_name(shard_id, ref)
        data = await fetch_unchecked(store, name)
        verify = partial(verified_log, name, data, ref.sha256)
        group = verify() if len(data) < ASIDE_BYTES else await asyncio.to_thread(verify)
        if group.shard_id != shard_id:
            raise CorruptError(
                f"log object belongs to another shard shard={shard_id} found={group.shard_id}",
                reason="OBJECT_SWAPPED",
                shard=shard_id,
            )
        chain.append((group, ref))
        ref = group.predecessor
    if ref is None and after is not None:
        raise CorruptError(
            f"log does not lead back to the manifest shard={shard_id}",
            reason="LOG_BROKEN",
            shard=shard_id,
        )
    return chain[::-1]


async def replay(state: ShardState, chain: Sequence[Committed], loads: Loads) -> None:
    """Apply committed log objects in order, with the segments that they load.

    Raises:
        CorruptError: a record is missing (LOG_BROKEN), or whole and not to be carried out here
            (RECORD_MISPLACED); records before it have been applied.
    """
    for group, ref in chain:
        for record in group.records:
            _check_record(state, record, ref)
            if isinstance(record, LoadRecord):
                await loads.stage(state, record)
            state.apply(record, ref)


async def replay_unseen(state: ShardState, chain: Sequence[Committed], loads: Loads) -> None:
    """Do as `replay` with a state that nobody else knows yet: what is long is done in a thread, so
    that the searches of other shards need not wait for all of it.

    Raises:
        CorruptError: as `replay`.
    """
    parts = itertools.groupby(chain, key=_loads_segments)
    for has_loads, part in [(has_loads, list(part)) for has_loads, part in parts]:
        if has_loads or sum(_size(group) for group, _ in part) < ASIDE_SIZE:
            await replay(state, part, loads)
        else:
            # Not in the thread that builds: what is done there may take minutes.
            await asyncio.to_thread(_apply_all, state, part)


def _loads_segments(committed: Committed) -> bool:
    return any(isinstance(record, LoadRecord) for record in committed[0].records)


def _size(group: LogGroup) -> int:
    """Return the records of an object and their rows, in all."""
    rows = [len(one.template_ids) for one in group.records if isinstance(one, EnrolRecord)]
    return len(group.records) + sum(rows)


def _apply_all(state: ShardState, chain: Sequence[Committed]) -> None:
    """Apply log objects that load no segments. For a thread."""
    for group, ref in chain:
        for record in group.records:
            _check_record(state, record, ref)
            state.apply(record, ref)


def _check_record(state: ShardState, record: LogRecord, ref: LogRef) -> None:
    """Raise unless a record is the next one, and can be carried out."""
    if record.position != state.position + 1:
        raise CorruptError(
            f"log has a gap shard={state.shard_id} expected={state.position + 1}"
            f" found={record.position}",
            reason="LOG_BROKEN",
            shard=state.shard_id,
        )
    problem = state.record_problem(record)
    if problem:
        raise CorruptError(
            f"a record of the log cannot be applied: {problem} shard={state.shard_id}"
            f" position={record.position} object={log_name(state.shard_id, ref)}",
            reason="RECORD_MISPLACED",
            shard=state.shard_id,
            position=record.position,
        )


def verified_log(name: str, data: bytes, sha256: str) -> LogGroup:
    """Return what a log object holds whose bytes have this hash. Large ones are for a thread.

    Raises:
        CorruptError: its bytes changed.
    """
    check_hash(data, sha256, name)
    return decoded(name, decode_log, data)


def decoded(name: str, decode: Callable[[bytes], T], data: bytes) -> T:
    """Return what an object holds; what is wrong with it is told with the object's name."""
    try:
        return decode(data)
    except CorruptError as error:
        raise CorruptError(
            f"{error.message} name={name}", reason=error.reason, **{**error.facts, "name": name}
        ) from error


async def fetch(store: BlobStore, name: str, sha256: str) -> bytes:
    """Return an object whose bytes have this hash, 64 hex digits.

    Raises:
        CorruptError: it is missing (OBJECT_MISSING) or its bytes changed (OBJECT_DAMAGED).
    """
    data = await fetch_unchecked(store, name)
    check_hash(data, sha256, name)
    return data


async def fetch_unchecked(store: BlobStore, name: str) -> bytes:
    """Return an object whose hash the caller checks; CorruptError if it is missing."""
    try:
        return await store.get(name)
    except NotFoundError as error:
        raise CorruptError(
            f"object is missing name={name}", reason="OBJECT_MISSING", name=name
        ) from error
