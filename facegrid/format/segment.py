"""Segments: immutable sets of rows of one shard, with what the index made of them.

An object is these frames: SEGMENT_HEADER, SEGMENT_IDS, SEGMENT_SUBJECT_ROWS, SEGMENT_CODES and,
where a codebook was in use, SEGMENT_LISTS and SEGMENT_PQ_CODES. Arrays are stored as they are in
memory, little-endian and row-major, so that reading them costs a checksum and no copy.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from facegrid import limits
from facegrid.api.storage.v1 import storage_pb2
from facegrid.format.checks import (
    ArrayValue,
    Buffer,
    array_bytes,
    array_from,
    parse,
    require,
    serialized,
    sha256_problem,
)
from facegrid.format.frame import Compression, Frame, Kind, check_kinds, decode_frames, framing
from facegrid.ids import ShardId
from facegrid.steps import Steps, finished
from facegrid.vectors import Int8

Int32 = npt.NDArray[np.int32]
UInt8 = npt.NDArray[np.uint8]

_WHAT = "segment"
_PLAIN = [
    Kind.SEGMENT_HEADER,
    Kind.SEGMENT_IDS,
    Kind.SEGMENT_SUBJECT_ROWS,
    Kind.SEGMENT_CODES,
]
_INDEXED = [*_PLAIN, Kind.SEGMENT_LISTS, Kind.SEGMENT_PQ_CODES]


@dataclass(frozen=True, slots=True, eq=False)
class Segment(ArrayValue):
    """Rows of one shard, in the order enrolled.

    Attributes:
        dim: components of a row.
        template_ids: one per row.
        subject_ids: distinct subjects, in the order first met.
        subject_rows: int32 [n], the index of each row's subject in subject_ids.
        codes: int8 [n, dim], the stored rows.
        codebook: sha256 in hex of the codebook that lists and pq_codes belong to; empty: none.
        lists: int32 [n], the IVF list of each row; None without a codebook.
        pq_codes: uint8 [n, b], the PQ code of each row; None without a codebook.
        generation: of the primary that wrote it; makes its hash unique to that generation.
        position: how far the log had come; makes its hash unique within the generation.
        load_id: of the bulk load that wrote it, instead of the two before; empty: a primary did.
    """

    shard_id: ShardId
    dim: int
    template_ids: list[str]
    subject_ids: list[str]
    subject_rows: Int32
    codes: Int8
    codebook: str = ""
    lists: Int32 | None = None
    pq_codes: UInt8 | None = None
    generation: int = 0
    position: int = 0
    load_id: str = ""


def segment_prefix(shard_id: str) -> str:
    """Return what the names of all segments of a shard begin with."""
    return f"shards/{shard_id}/segments/"


def segment_name(shard_id: str, sha256: str) -> str:
    """Return the name of the segment whose object has this sha256 in hex."""
    return f"{segment_prefix(shard_id)}{sha256}"


def segment_rows_max(dim: int) -> int:
    """Return how many rows of this dimension fit into one segment."""
    return limits.FRAME_BYTES_MAX // dim


def encode_segment(segment: Segment) -> bytes:
    """Return a segment as the bytes of its object. For a thread; it holds up no other one.

    Raises:
        InvalidError: more rows than `segment_rows_max` (FRAME_TOO_LARGE).
    """
    return finished(encoding(segment))


def encoding(segment: Segment) -> Steps[bytes]:
    """Do what `encode_segment` does in steps; a small segment takes one."""
    large = len(segment.template_ids) > limits.FLUSH_STEP_ROWS
    problem = segment_problem(segment)
    assert not problem, problem
    if large:
        yield
    header = storage_pb2.SegmentHeader(
        shard_id=segment.shard_id,
        dim=segment.dim,
        rows_count=len(segment.template_ids),
        codebook=segment.codebook,
        pq_code_bytes=0 if segment.pq_codes is None else segment.pq_codes.shape[1],
        generation=segment.generation,
        position=segment.position,
        load_id=segment.load_id,
    )
    ids = storage_pb2.SegmentIds(
        template_ids=segment.template_ids, subject_ids=segment.subject_ids
    )
    pieces: list[tuple[Kind, Buffer, Compression]] = [
        (Kind.SEGMENT_HEADER, serialized(header), "none"),
        (Kind.SEGMENT_IDS, serialized(ids), "lz4"),
        (Kind.SEGMENT_SUBJECT_ROWS, array_bytes(segment.subject_rows, "<i4"), "none"),
        (Kind.SEGMENT_CODES, array_bytes(segment.codes, "i1"), "none"),
    ]
    if segment.lists is not None and segment.pq_codes is not None:
        pieces += [
            (Kind.SEGMENT_LISTS, array_bytes(segment.lists, "<i4"), "none"),
            (Kind.SEGMENT_PQ_CODES, array_bytes(segment.pq_codes, "u1"), "none"),
        ]
    parts: list[bytes] = []
    for kind, payload, compress in pieces:
        parts += yield from framing(kind, payload, compress=compress)
        if large:
            yield
    return b"".join(parts)


def decode_segment(data: Buffer) -> Segment:
    """Return a segment. Its arrays are read-only views of the object's bytes.

    Raises:
        CorruptError: damaged, or made by a version that writes what this one cannot read.
    """
    frames = decode_frames(data)
    require(bool(frames) and frames[0].kind == Kind.SEGMENT_HEADER, _WHAT, "no header")
    header = parse(storage_pb2.SegmentHeader(), frames[0].payload, what=_WHAT)
    check_kinds(frames, _INDEXED if header.codebook else _PLAIN, what=_WHAT)
    require(1 <= header.dim <= limits.DIM_MAX, _WHAT, f"dim={header.dim}")
    require(header.rows_count >= 0, _WHAT, f"rows_count={header.rows_count}")
    ids = parse(storage_pb2.SegmentIds(), frames[1].payload, what=_WHAT)
    rows = header.rows_count
    lists, pq_codes = _indexed_arrays(header, frames)
    segment = Segment(
        shard_id=ShardId(header.shard_id),
        dim=header.dim,
        template_ids=list(ids.template_ids),
        subject_ids=list(ids.subject_ids),
        subject_rows=array_from(frames[2].payload, "<i4", (rows,), what=_WHAT),
        codes=array_from(frames[3].payload, "i1", (rows, header.dim), what=_WHAT),
        codebook=header.codebook,
        lists=lists,
        pq_codes=pq_codes,
        generation=header.generation,
        position=header.position,
        load_id=header.load_id,
    )
    problem = segment_problem(segment)
    require(not problem, _WHAT, problem)
    return segment


def segment_problem(segment: Segment) -> str:
    """Say what is wrong with a segment; empty when nothing is.

    The invariant: every row has a template id, a subject among the distinct ones, a stored row
    and, with a codebook, a list and a code. Else a search could name somebody else.
    """
    rows = len(segment.template_ids)
    subjects = len(segment.subject_ids)
    if not segment.shard_id or segment.generation < 0 or segment.position < 0:
        return "no shard id, or a negative generation or position"
    if segment.codes.shape != (rows, segment.dim) or segment.subject_rows.shape != (rows,):
        return "shapes of arrays disagree with the number of rows"
    if len(set(segment.subject_ids)) != subjects:
        return "a subject stands twice"
    if rows and not 0 <= segment.subject_rows.min() <= segment.subject_rows.max() < subjects:
        return "a row's subject does not exist"
    return _index_problem(segment, rows)


def _index_problem(segment: Segment, rows: int) -> str:
    """Say what is wrong with lists and PQ codes."""
    lists, pq_codes = segment.lists, segment.pq_codes
    if lists is None or pq_codes is None:
        together = lists is None and pq_codes is None and not segment.codebook
        return "" if together else "codebook, lists and codes go together"
    if lists.shape != (rows,) or pq_codes.ndim != 2 or len(pq_codes) != rows:
        return "shapes of lists and codes disagree with the number of rows"
    if rows and lists.min() < 0:
        return "a list number is negative"
    return sha256_problem(segment.codebook)


def _indexed_arrays(
    header: storage_pb2.SegmentHeader, frames: list[Frame]
) -> tuple[Int32 | None, UInt8 | None]:
    if not header.codebook:
        return None, None
    lists = array_from(frames[4].payload, "<i4", (header.rows_count,), what=_WHAT)
    shape = (header.rows_count, header.pq_code_bytes)
    return lists, array_from(frames[5].payload, "u1", shape, what=_WHAT)
