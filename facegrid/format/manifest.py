"""Manifests: what a shard consists of at one position. One frame of kind MANIFEST.

A manifest names the segments, says which of their rows are erased, where in the log replay
begins, and which requests are remembered. It is named by its sha256; manifest/<shard> in etcd
says which one rules.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from facegrid import limits
from facegrid.api.storage.v1 import storage_pb2
from facegrid.format.bitmap import Bool, pack_bits, unpack_bits
from facegrid.format.checks import (
    DIGEST_BYTES,
    ArrayValue,
    Buffer,
    parse,
    require,
    serialized,
    sha256_problem,
)
from facegrid.format.erasures import (
    JournalRef,
    journal_ref_from_message,
    journal_ref_to_message,
)
from facegrid.format.frame import Kind, encode_frame, expect_frames
from facegrid.format.log import LogRef, ref_from_message, ref_to_message
from facegrid.format.sources import (
    InheritedRequest,
    SourcePosition,
    features,
    inherited_from_message,
    inherited_to_message,
    source_from_message,
    source_to_message,
    sources_problem,
)
from facegrid.ids import ShardId
from facegrid.model import HashRange

MANIFEST_RAW_BYTES_MAX: Final = 512 * limits.MIB
"""Room for the bitmaps of a billion rows and all remembered requests."""

_WHAT = "manifest"


@dataclass(frozen=True, slots=True, eq=False)
class ManifestSegment(ArrayValue):
    """One segment of a shard.

    Attributes:
        sha256: of the segment object, 64 hex digits.
        rows_count: rows in it, erased ones too.
        erased: bool [rows_count], which of them are erased.
    """

    sha256: str
    rows_count: int
    erased: Bool


@dataclass(frozen=True, slots=True)
class RememberedRequest:
    """What a request did, for a retry to hear the same. `digest` is that of the request."""

    request_id: str
    digest: bytes
    position: int
    enrolled_count: int = 0
    unchanged_count: int = 0
    erased_count: int = 0


@dataclass(frozen=True, slots=True)
class Manifest:
    """A shard at one position.

    Attributes:
        range: the keys that the shard holds.
        position: number of the last record that the segments hold; 0: none.
        generation: of the primary that made it.
        log: the log object that ends at `position`; None before the first record.
        segments: in the order of their rows.
        requests: oldest first.
        digest: order-independent digest of the rows not erased, 16 bytes.
        templates_count: rows not erased.
        journal: the end of the erasure journal up to `position`; None: nothing was ever erased.
        sources: how far other shards have been brought in, up to `position`; sorted.
        inherited: what other shards carried out on keys that are here now, oldest first.
    """

    shard_id: ShardId
    range: HashRange
    dim: int
    position: int
    generation: int
    log: LogRef | None
    segments: tuple[ManifestSegment, ...]
    requests: tuple[RememberedRequest, ...]
    digest: bytes
    templates_count: int
    journal: JournalRef | None = None
    sources: tuple[SourcePosition, ...] = ()
    inherited: tuple[InheritedRequest, ...] = ()


def manifest_prefix(shard_id: str) -> str:
    """Return what the names of all manifests of a shard begin with."""
    return f"shards/{shard_id}/manifests/"


def manifest_name(shard_id: str, sha256: str) -> str:
    """Return the name of the manifest whose object has this sha256 in hex."""
    return f"{manifest_prefix(shard_id)}{sha256}"


def encode_manifest(manifest: Manifest) -> bytes:
    """Return a manifest as the bytes of its object."""
    problem = manifest_problem(manifest)
    assert not problem, problem
    message = storage_pb2.Manifest(
        required_features=features(sources=bool(manifest.sources or manifest.inherited)),
        shard_id=manifest.shard_id,
        first=manifest.range.first,
        last=manifest.range.last,
        dim=manifest.dim,
        position=manifest.position,
        generation=manifest.generation,
        log=None if manifest.log is None else ref_to_message(manifest.log),
        segments=[_segment_to_message(segment) for segment in manifest.segments],
        requests=[_request_to_message(request) for request in manifest.requests],
        digest=manifest.digest,
        templates_count=manifest.templates_count,
        journal=None if manifest.journal is None else journal_ref_to_message(manifest.journal),
        sources=[source_to_message(source) for source in manifest.sources],
        inherited=[inherited_to_message(one) for one in manifest.inherited],
    )
    return encode_frame(Kind.MANIFEST, serialized(message), compress="lz4")


def decode_manifest(data: Buffer) -> Manifest:
    """Return a manifest.

    Raises:
        CorruptError: damaged, or made by a version that writes what this one cannot read.
    """
    (payload,) = expect_frames(
        data, [Kind.MANIFEST], what=_WHAT, raw_bytes_max=MANIFEST_RAW_BYTES_MAX
    )
    message = parse(storage_pb2.Manifest(), payload, what=_WHAT)
    require(message.first <= message.last, _WHAT, "range is empty")
    manifest = Manifest(
        shard_id=ShardId(message.shard_id),
        range=HashRange(message.first, message.last),
        dim=message.dim,
        position=message.position,
        generation=message.generation,
        log=ref_from_message(message.log) if message.HasField("log") else None,
        segments=tuple(_segment_from_message(segment) for segment in message.segments),
        requests=tuple(_request_from_message(request) for request in message.requests),
        digest=message.digest,
        templates_count=message.templates_count,
        journal=(
            journal_ref_from_message(message.journal) if message.HasField("journal") else None
        ),
        sources=tuple(source_from_message(one, _WHAT) for one in message.sources),
        inherited=tuple(inherited_from_message(one, _WHAT) for one in message.inherited),
    )
    problem = manifest_problem(manifest)
    require(not problem, _WHAT, problem)
    return manifest


def manifest_problem(manifest: Manifest) -> str:
    """Say what is wrong with a manifest; empty when nothing is.

    The invariant: the log reference ends where the segments do, and the live rows add up. Else
    replay could skip or repeat records, or rows be missing without anybody noticing.
    """
    if not manifest.shard_id or not 1 <= manifest.dim <= limits.DIM_MAX:
        return f"no shard id, or dim={manifest.dim}"
    if manifest.generation < 1:
        return f"generation={manifest.generation}"
    ends_at = 0 if manifest.log is None else manifest.log.last_position
    if manifest.position != ends_at:
        return f"the log does not end at its position position={manifest.position} log={ends_at}"
    journal_at = 0 if manifest.journal is None else manifest.journal.last_position
    if len(manifest.digest) != DIGEST_BYTES or journal_at > manifest.position:
        return f"digest has another length, or the journal is ahead of it last={journal_at}"
    live = sum(int(np.count_nonzero(~segment.erased)) for segment in manifest.segments)
    if manifest.templates_count != live:
        return f"rows do not add up templates_count={manifest.templates_count} live={live}"
    return sources_problem(manifest.sources)


def _segment_to_message(segment: ManifestSegment) -> storage_pb2.Manifest.Segment:
    assert segment.erased.shape == (segment.rows_count,)
    return storage_pb2.Manifest.Segment(
        sha256=bytes.fromhex(segment.sha256),
        rows_count=segment.rows_count,
        erased=pack_bits(segment.erased),
        erased_count=int(np.count_nonzero(segment.erased)),
    )


def _segment_from_message(message: storage_pb2.Manifest.Segment) -> ManifestSegment:
    sha256 = message.sha256.hex()
    problem = sha256_problem(sha256)
    require(not problem, _WHAT, problem)
    rows = message.rows_count
    erased = unpack_bits(message.erased, rows, what=f"{_WHAT} segment={sha256}")
    counted = int(np.count_nonzero(erased)) == message.erased_count
    require(counted, _WHAT, f"bitmap disagrees with its count segment={sha256}")
    return ManifestSegment(sha256=sha256, rows_count=rows, erased=erased)


def _request_to_message(request: RememberedRequest) -> storage_pb2.Manifest.Request:
    assert len(request.digest) == DIGEST_BYTES
    return storage_pb2.Manifest.Request(
        request_id=request.request_id,
        digest=request.digest,
        position=request.position,
        enrolled_count=request.enrolled_count,
        unchanged_count=request.unchanged_count,
        erased_count=request.erased_count,
    )


def _request_from_message(message: storage_pb2.Manifest.Request) -> RememberedRequest:
    require(len(message.digest) == DIGEST_BYTES, _WHAT, "request digest has another length")
    return RememberedRequest(
        request_id=message.request_id,
        digest=message.digest,
        position=message.position,
        enrolled_count=message.enrolled_count,
        unchanged_count=message.unchanged_count,
        erased_count=message.erased_count,
    )
