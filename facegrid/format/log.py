"""Log objects: groups of records, each naming the object before it.

One object is one frame of kind LOG holding a `LogObject` message. Positions number the records of
a shard from 1, without gaps; the objects of a shard form a chain by the sha256 of the predecessor.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from facegrid import limits
from facegrid.api.storage.v1 import storage_pb2
from facegrid.errors import CorruptError
from facegrid.format.bitmap import Bool, pack_bits, unpack_bits
from facegrid.format.checks import (
    DIGEST_BYTES,
    ArrayValue,
    Buffer,
    array_bytes,
    array_from,
    parse,
    require,
    serialized,
    sha256_hex,
    sha256_problem,
)
from facegrid.format.frame import Kind, encode_frame, expect_frames
from facegrid.format.sources import (
    InheritedRequest,
    SourcePosition,
    features,
    inherited_from_message,
    inherited_to_message,
    source_from_message,
    source_to_message,
)
from facegrid.ids import ShardId, subject_key
from facegrid.model import HashRange
from facegrid.vectors import Int8

LOG_RAW_BYTES_MAX: Final = 2 * (limits.LOG_GROUP_BYTES_MAX + limits.MESSAGE_BYTES_MAX)
"""A full group may be longer than its limit by one request; twice that is generous."""

_UUID = re.compile(r"[0-9A-Za-z-]{1,64}")
_NAME = re.compile(r"shards/([^/]+)/log/(\d{10})-(\d{19})-([0-9A-Za-z-]{1,64})")
_WHAT = "log object"


@dataclass(frozen=True, slots=True)
class LogRef:
    """Names one log object.

    Attributes:
        generation: generation of the primary that wrote it.
        first_position: number of its first record, 1 or more.
        last_position: number of its last record.
        uuid: makes the name unique: letters, digits and dashes.
        sha256: of the whole object, 64 hex digits.
    """

    generation: int
    first_position: int
    last_position: int
    uuid: str
    sha256: str


@dataclass(frozen=True, slots=True, eq=False)
class EnrolRecord(ArrayValue):
    """Rows to add. Those that were there already are not in it, only counted.

    Attributes:
        request_digest: blake2b-128 of what was asked, 16 bytes.
        codes: int8 [n, dim].
        unchanged_count: rows of the request that were there already.
        source: the record was brought in from another shard, which has come so far here.
        inherited: requests that other shards carried out on keys that are here now.
    """

    position: int
    request_id: str
    request_digest: bytes
    written_unix_ms: int
    template_ids: Sequence[str]
    subject_ids: Sequence[str]
    codes: Int8
    unchanged_count: int = 0
    source: SourcePosition | None = None
    inherited: Sequence[InheritedRequest] = ()


@dataclass(frozen=True, slots=True)
class EraseRecord:
    """Templates to erase wherever they are, and subjects to erase with all their templates.

    Attributes:
        source, inherited: see EnrolRecord.
        within: only subjects whose keys lie in this range; None: all.
    """

    position: int
    request_id: str
    request_digest: bytes
    written_unix_ms: int
    template_ids: Sequence[str]
    subject_ids: Sequence[str]
    source: SourcePosition | None = None
    within: HashRange | None = None
    inherited: Sequence[InheritedRequest] = ()

    def reaches(self, subject_id: str) -> bool:
        """Tell whether it may erase rows of a subject."""
        return self.within is None or self.within.contains(subject_key(subject_id))


@dataclass(frozen=True, slots=True, eq=False)
class LoadedSegment(ArrayValue):
    """One segment of a bulk load.

    Attributes:
        sha256: of the segment object, 64 hex digits.
        rows_count: rows in it, 1 or more.
        unchanged: bool [rows_count], rows that were there already, which count as erased from the
            beginning; None: no row was.
    """

    sha256: str
    rows_count: int
    unchanged: Bool | None = None

    @property
    def unchanged_count(self) -> int:
        """Rows that were there already."""
        return 0 if self.unchanged is None else int(np.count_nonzero(self.unchanged))

    @property
    def erased(self) -> Bool:
        """Rows that count as erased, bool [rows_count]."""
        return np.zeros(self.rows_count, np.bool_) if self.unchanged is None else self.unchanged


@dataclass(frozen=True, slots=True)
class LoadRecord:
    """Segments of a bulk load, whose rows are added in this order, all at once."""

    position: int
    request_id: str
    request_digest: bytes
    written_unix_ms: int
    segments: Sequence[LoadedSegment]
    source: SourcePosition | None = None
    inherited: Sequence[InheritedRequest] = ()


LogRecord = EnrolRecord | EraseRecord | LoadRecord


@dataclass(frozen=True, slots=True)
class LogGroup:
    """What one log object holds. `predecessor` is None in the first object of a shard."""

    shard_id: ShardId
    generation: int
    predecessor: LogRef | None
    records: Sequence[LogRecord]

    @property
    def first_position(self) -> int:
        """The number of the first record."""
        return self.records[0].position

    @property
    def last_position(self) -> int:
        """The number of the last record."""
        return self.records[-1].position


def log_prefix(shard_id: str) -> str:
    """Return what the names of all log objects of a shard begin with."""
    return f"shards/{shard_id}/log/"


def log_name(shard_id: str, ref: LogRef) -> str:
    """Return an object's name. Sorted, the names of a shard are in the order written."""
    return f"{log_prefix(shard_id)}{ref.generation:010d}-{ref.first_position:019d}-{ref.uuid}"


def parse_log_name(name: str) -> tuple[int, int, str] | None:
    """Return generation, first position and uuid of a log object's name; None for other names."""
    found = _NAME.fullmatch(name)
    return (int(found[2]), int(found[3]), found[4]) if found else None


def log_ref(group: LogGroup, uuid: str, data: bytes) -> LogRef:
    """Return the reference to an encoded group."""
    return LogRef(
        generation=group.generation,
        first_position=group.first_position,
        last_position=group.last_position,
        uuid=uuid,
        sha256=sha256_hex(data),
    )


def encode_log(group: LogGroup) -> bytes:
    """Return a group as the bytes of its object."""
    problem = group_problem(group)
    assert not problem, problem
    message = storage_pb2.LogObject(
        required_features=features(sources=any(map(_is_mirrored, group.records))),
        shard_id=group.shard_id,
        generation=group.generation,
        predecessor=None if group.predecessor is None else ref_to_message(group.predecessor),
        records=[_record_to_message(record) for record in group.records],
    )
    return encode_frame(Kind.LOG, serialized(message), compress="lz4")


def decode_log(data: Buffer) -> LogGroup:
    """Return what a log object holds. Arrays are read-only.

    Raises:
        CorruptError: damaged, or made by a version that writes what this one cannot read.
    """
    (payload,) = expect_frames(data, [Kind.LOG], what=_WHAT, raw_bytes_max=LOG_RAW_BYTES_MAX)
    message = parse(storage_pb2.LogObject(), payload, what=_WHAT)
    group = LogGroup(
        shard_id=ShardId(message.shard_id),
        generation=message.generation,
        predecessor=(
            ref_from_message(message.predecessor) if message.HasField("predecessor") else None
        ),
        records=[_record_from_message(record) for record in message.records],
    )
    problem = group_problem(group)
    require(not problem, _WHAT, problem)
    return group


def group_problem(group: LogGroup) -> str:
    """Say what is wrong with a group; empty when nothing is.

    The invariant: records are numbered without gaps, from where the predecessor ended, and
    generations never go back. Else a replay could skip or repeat a record without noticing.
    """
    if not group.shard_id or not group.records:
        return "no shard id, or no records"
    first, before = group.first_position, group.predecessor
    if group.generation < 1 or first < 1:
        return f"generation={group.generation} position={first}"
    if before is not None and before.last_position + 1 != first:
        return f"it does not follow its predecessor first={first} last={before.last_position}"
    if before is not None and before.generation > group.generation:
        return f"generations go back generation={group.generation} before={before.generation}"
    for expected, record in enumerate(group.records, first):
        if record.position != expected:
            return f"a position is missing position={record.position} expected={expected}"
    return ""


def ref_problem(ref: LogRef) -> str:
    """Say what is wrong with a reference; empty when nothing is."""
    if ref.generation < 1:
        return f"generation={ref.generation}"
    if not 1 <= ref.first_position <= ref.last_position:
        return f"positions first={ref.first_position} last={ref.last_position}"
    if _UUID.fullmatch(ref.uuid) is None:
        return f"uuid={ref.uuid[:80]!r}"
    return sha256_problem(ref.sha256)


def ref_to_message(ref: LogRef) -> storage_pb2.LogRef:
    """Return a reference as it is stored."""
    problem = ref_problem(ref)
    assert not problem, problem
    return storage_pb2.LogRef(
        generation=ref.generation,
        first_position=ref.first_position,
        last_position=ref.last_position,
        uuid=ref.uuid,
        sha256=bytes.fromhex(ref.sha256),
    )


def ref_from_message(message: storage_pb2.LogRef) -> LogRef:
    """Return a stored reference; CorruptError if it cannot be one."""
    ref = LogRef(
        generation=message.generation,
        first_position=message.first_position,
        last_position=message.last_position,
        uuid=message.uuid,
        sha256=message.sha256.hex(),
    )
    problem = ref_problem(ref)
    require(not problem, "log reference", problem)
    return ref


def _is_mirrored(record: LogRecord) -> bool:
    """Tell whether a record says what only readers of mirrored records understand."""
    return bool(record.source is not None or record.inherited) or (
        isinstance(record, EraseRecord) and record.within is not None
    )


def encode_record(record: LogRecord) -> bytes:
    """Return one record by itself, as one node sends it to another."""
    return serialized(_record_to_message(record))


def decode_record(data: Buffer) -> LogRecord:
    """Return a record that was sent by itself; CorruptError if it is none."""
    return _record_from_message(parse(storage_pb2.LogRecord(), data, what="log record"))


def _record_to_message(record: LogRecord) -> storage_pb2.LogRecord:
    assert len(record.request_digest) == DIGEST_BYTES
    message = storage_pb2.LogRecord(
        position=record.position,
        request_id=record.request_id,
        request_digest=record.request_digest,
        written_unix_ms=record.written_unix_ms,
        source=None if record.source is None else source_to_message(record.source),
        inherited=[inherited_to_message(one) for one in record.inherited],
    )
    match record:
        case EnrolRecord():
            rows, dim = record.codes.shape
            assert len(record.template_ids) == len(record.subject_ids) == rows
            message.enrol.CopyFrom(
                storage_pb2.LogRecord.Enrol(
                    template_ids=record.template_ids,
                    subject_ids=record.subject_ids,
                    codes=bytes(array_bytes(record.codes, "i1")),
                    unchanged_count=record.unchanged_count,
                    dim=dim,
                )
            )
        case EraseRecord():
            message.erase.CopyFrom(
                storage_pb2.LogRecord.Erase(
                    template_ids=record.template_ids,
                    subject_ids=record.subject_ids,
                    bounded=record.within is not None,
                    first=0 if record.within is None else record.within.first,
                    last=0 if record.within is None else record.within.last,
                )
            )
        case LoadRecord():
            message.load.CopyFrom(
                storage_pb2.LogRecord.Load(
                    segments=[_loaded_to_message(segment) for segment in record.segments]
                )
            )
    return message


def _record_from_message(message: storage_pb2.LogRecord) -> LogRecord:
    what = f"log record position={message.position}"
    require(len(message.request_digest) == DIGEST_BYTES, what, "request digest has another length")
    source = source_from_message(message.source, what) if message.HasField("source") else None
    inherited = tuple(inherited_from_message(one, what) for one in message.inherited)
    match message.WhichOneof("kind"):
        case "enrol":
            return replace(_enrol_from_message(message, what, source), inherited=inherited)
        case "erase":
            erase = message.erase
            require(erase.first <= erase.last, what, "range is empty")
            return EraseRecord(
                position=message.position,
                request_id=message.request_id,
                request_digest=message.request_digest,
                written_unix_ms=message.written_unix_ms,
                template_ids=list(erase.template_ids),
                subject_ids=list(erase.subject_ids),
                source=source,
                within=HashRange(erase.first, erase.last) if erase.bounded else None,
                inherited=inherited,
            )
        case "load":
            return LoadRecord(
                position=message.position,
                request_id=message.request_id,
                request_digest=message.request_digest,
                written_unix_ms=message.written_unix_ms,
                segments=[_loaded_from_message(one, what) for one in message.load.segments],
                source=source,
                inherited=inherited,
            )
        case None:
            raise CorruptError(
                f"{what} is of an unknown kind", reason="FEATURE_UNKNOWN", what=what
            )


def _enrol_from_message(
    message: storage_pb2.LogRecord, what: str, source: SourcePosition | None
) -> EnrolRecord:
    enrol = message.enrol
    rows = len(enrol.template_ids)
    require(len(enrol.subject_ids) == rows, what, "numbers of ids disagree")
    require(1 <= enrol.dim <= limits.DIM_MAX, what, f"dim={enrol.dim}")
    require(enrol.unchanged_count >= 0, what, f"unchanged_count={enrol.unchanged_count}")
    codes: Int8 = array_from(enrol.codes, "i1", (rows, enrol.dim), what=what)
    assert codes.dtype == np.int8
    return EnrolRecord(
        position=message.position,
        request_id=message.request_id,
        request_digest=message.request_digest,
        written_unix_ms=message.written_unix_ms,
        template_ids=list(enrol.template_ids),
        subject_ids=list(enrol.subject_ids),
        codes=codes,
        unchanged_count=enrol.unchanged_count,
        source=source,
    )


def _loaded_to_message(segment: LoadedSegment) -> storage_pb2.LogRecord.Load.Segment:
    return storage_pb2.LogRecord.Load.Segment(
        sha256=bytes.fromhex(segment.sha256),
        rows_count=segment.rows_count,
        unchanged=b"" if segment.unchanged is None else pack_bits(segment.unchanged),
        unchanged_count=segment.unchanged_count,
    )


def _loaded_from_message(message: storage_pb2.LogRecord.Load.Segment, what: str) -> LoadedSegment:
    sha256, rows = message.sha256.hex(), message.rows_count
    problem = sha256_problem(sha256)
    require(not problem, what, problem)
    require(rows > 0, what, f"rows_count={rows}")
    unchanged = unpack_bits(message.unchanged, rows, what=what) if message.unchanged else None
    segment = LoadedSegment(sha256, rows, unchanged)
    counted = segment.unchanged_count == message.unchanged_count
    require(counted, what, f"bitmap disagrees with its count segment={sha256}")
    return segment
