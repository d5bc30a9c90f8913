"""Brings a shard back: manifest, segments, then the log up to the committed tip.

Nothing is used before its hash matched what names it, and the result must have the digest that the
manifest states. Anything else raises CorruptError, and the shard is not served.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from facegrid.blob.port import BlobStore
from facegrid.errors import CorruptError, NotFoundError
from facegrid.format.log import LogGroup, LogRef, decode_log, log_name
from facegrid.format.manifest import Manifest, ManifestSegment, decode_manifest, manifest_name
from facegrid.format.records import ManifestPointer
from facegrid.format.segment import Segment, decode_segment, segment_name
from facegrid.ids import ShardId
from facegrid.model import HashRange
from indexd.ann.ivfpq import EncodedRows
from indexd.engine.coded import NamedCodebook
from indexd.engine.flush import Persisted, StoredSegment
from indexd.engine.requests import Outcome, Remembered
from indexd.engine.state import ShardState


@dataclass(frozen=True, slots=True)
class ShardShape:
    """What a shard is before anything is loaded."""

    shard_id: ShardId
    range: HashRange
    dim: int


async def load_manifest(
    store: BlobStore, shard_id: ShardId, pointer: ManifestPointer | None
) -> Manifest | None:
    """Return the manifest that the pointer names, or None where there is none yet."""
    if pointer is None:
        return None
    data = await fetch(store, manifest_name(shard_id, pointer.sha256), pointer.sha256)
    manifest = decode_manifest(data)
    if manifest.shard_id != shard_id:
        raise CorruptError(
            f"manifest belongs to another shard shard={shard_id} found={manifest.shard_id}",
            reason="OBJECT_SWAPPED",
            shard=shard_id,
        )
    return manifest


async def load_segments(
    store: BlobStore, shape: ShardShape, manifest: Manifest | None, codebook: NamedCodebook | None
) -> tuple[ShardState, Persisted]:
    """Return the state that the manifest describes, and what of it is persisted."""
    state = ShardState(shape.shard_id, shape.range, shape.dim)
    if codebook is not None:
        state.use_codebook(codebook)
    if manifest is None:
        return state, Persisted()
    stored: list[StoredSegment] = []
    for entry in manifest.segments:
        name = segment_name(shape.shard_id, entry.sha256)
        segment = decode_segment(await fetch(store, name, entry.sha256))
        stored.append(_add_segment(state, segment, entry))
    for request in manifest.requests:
        outcome = Outcome(
            request.position,
            enrolled_count=request.enrolled_count,
            unchanged_count=request.unchanged_count,
            erased_count=request.erased_count,
        )
        state.requests.remember(request.request_id, Remembered(request.digest, outcome))
    state.position = manifest.position
    state.log = manifest.log
    state.verify_digest(manifest.digest)
    return state, Persisted(tuple(stored), state.rows_count, manifest.position)


def _add_segment(state: ShardState, segment: Segment, entry: ManifestSegment) -> StoredSegment:
    """Add a segment's rows, then erase those that the manifest says are erased."""
    if segment.shard_id != state.shard_id or len(segment.codes) != entry.rows_count:
        raise CorruptError(
            f"segment does not belong here shard={state.shard_id} found={segment.shard_id}",
            reason="OBJECT_SWAPPED",
            shard=state.shard_id,
        )
    first = state.rows_count
    subject_ids = [segment.subject_ids[number] for number in segment.subject_rows.tolist()]
    if segment.codebook and segment.codebook == state.codebook:
        assert segment.lists is not None, "a segment with a codebook has codes"
        assert segment.pq_codes is not None, "a segment with a codebook has codes"
        numbers = state.register(segment.template_ids, subject_ids, segment.codes)
        encoded = EncodedRows(segment.lists, segment.pq_codes)
        state.index.append_encoded(segment.codes, numbers, encoded)
    else:
        state.add_rows(segment.template_ids, subject_ids, segment.codes)
    rows = np.arange(first, state.rows_count, dtype=np.int64)
    state.erase_rows(rows[entry.erased])
    return StoredSegment(entry.sha256, rows)


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
        data = await fetch(store, log_name(shard_id, ref), ref.sha256)
        group = decode_log(data)
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


def replay(state: ShardState, chain: list[tuple[LogGroup, LogRef]]) -> None:
    """Apply committed log objects in order."""
    for group, ref in chain:
        for record in group.records:
            if record.position != state.position + 1:
                raise CorruptError(
                    f"log has a gap shard={state.shard_id} expected={state.position + 1}"
                    f" found={record.position}",
                    reason="LOG_BROKEN",
                    shard=state.shard_id,
                )
            state.apply(record, ref)


async def fetch(store: BlobStore, name: str, sha256: str) -> bytes:
    """Return an object whose bytes have this hash, 64 hex digits.

    Raises:
        CorruptError: it is missing (OBJECT_MISSING) or its bytes changed (OBJECT_DAMAGED).
    """
    try:
        data = await store.get(name)
    except NotFoundError as error:
        raise CorruptError(
            f"object is missing name={name}", reason="OBJECT_MISSING", name=name
        ) from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CorruptError(
            f"object does not match its hash name={name}", reason="OBJECT_DAMAGED", name=name
        )
    return data
