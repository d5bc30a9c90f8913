"""Segments of a bulk load, made ready to be added to a shard: everything that takes long.

`prepare` looks at one segment by itself and runs in a thread. `indexd.engine.staging`
puts the rows into a shard's memory, unseen, and `ShardState.apply` makes them seen.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from facegrid import vectors
from facegrid.errors import CorruptError, InvalidError
from facegrid.format import digest as digests
from facegrid.format.log import LoadedSegment
from facegrid.format.segment import Segment, decode_segment, segment_name
from facegrid.ids import ShardId, first_bad_id, id_problem, subject_keys
from facegrid.model import HashRange
from indexd.ann.ivfpq import EncodedRows
from indexd.engine.columns import Int32, Int64, Links, PackedTexts

Bool = npt.NDArray[np.bool_]

_MIX = np.uint64(0x9E3779B97F4A7C15)
"""An odd number without pattern (2**64 / golden ratio), so that two hashes mix well."""


@dataclass(frozen=True, slots=True)
class ShardShape:
    """What a shard is before anything is loaded."""

    shard_id: ShardId
    range: HashRange
    dim: int
    component_bits: int = vectors.BITS_DEFAULT


@dataclass(frozen=True, slots=True, eq=False)
class PreparedSegment:
    """A segment whose rows are known to be sound.

    Attributes:
        sha256: names it.
        subject_ids: distinct.
        subject_rows: int32 [n], each row's place in subject_ids.
        templates: id of each row.
        template_hashes: int64 [n], `hash` of each of them.
        pair_hashes: uint64 [n], of subject and template together.
        codes: int8 [n, dim].
        digests: uint32 [n, 4], see facegrid.format.digest.
        codebook: what `encoded` belongs to; empty: none.
        encoded: lists and PQ codes, None without a codebook.
    """

    sha256: str
    subject_ids: list[str]
    subject_rows: Int32
    templates: PackedTexts
    template_hashes: Int64
    pair_hashes: npt.NDArray[np.uint64]
    codes: vectors.Int8
    digests: digests.UInt32
    codebook: str
    encoded: EncodedRows | None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.codes)

    def pair(self, row: int) -> tuple[str, str]:
        """Return subject id and template id of a row."""
        return self.subject_ids[self.subject_rows[row]], self.templates[row]


@dataclass(frozen=True, slots=True, eq=False)
class Staged:
    """Rows of a bulk load that lie in a shard's memory, unseen, until its record is applied.

    Attributes:
        request_id: of the load.
        recorded: what the record says of each segment.
        segments: those that bring rows, in order; the others are not even fetched.
        erased: bool [rows] of these, those that were there already.
        links: their subjects.
        digest: of the rows that are new.
    """

    request_id: str
    recorded: tuple[LoadedSegment, ...]
    segments: tuple[PreparedSegment, ...]
    erased: Bool
    links: Links
    digest: int


@dataclass(frozen=True, slots=True)
class LoadedRows:
    """Rows first to last - 1 of a shard lie in a segment of a bulk load, in its order.

    `repacked` has their numbers where repacking has left some out, as StoredSegment has them.
    """

    sha256: str
    first: int
    last: int
    repacked: Int64 | None = None

    def numbers(self) -> Int64:
        """Return the number of each row of the segment."""
        if self.repacked is not None:
            return self.repacked
        return np.arange(self.first, self.last, dtype=np.int64)


def prepare(data: bytes, sha256: str, shape: ShardShape) -> PreparedSegment:
    """Return a segment ready to be staged. For a thread.

    Args:
        data: the object, whose hash has been checked.
        sha256: that names it.
        shape: of the shard that it must belong to.

    Raises:
        CorruptError: it is damaged.
        InvalidError: it does not belong to the shard, or holds what enrolment would refuse
            (LOAD_REFUSED, SUBJECT_ELSEWHERE, ID_MALFORMED, CODES_MALFORMED; row).
    """
    segment = decode_segment(data)
    if segment.shard_id != shape.shard_id or segment.dim != shape.dim or not len(segment.codes):
        raise InvalidError(
            f"segment is not the shard's, or empty shard={segment.shard_id} dim={segment.dim}"
            f" rows={len(segment.codes)} expected_shard={shape.shard_id}"
            f" expected_dim={shape.dim}",
            reason="LOAD_REFUSED",
            shard=shape.shard_id,
        )
    if not segment.load_id:
        # Its name states what made it, and only names of loads never come again.
        raise InvalidError("segment was not written by a bulk load", reason="LOAD_REFUSED")
    vectors.check_codes(segment.codes, shape.component_bits)
    subjects = [one.encode() for one in segment.subject_ids]
    templates = [one.encode() for one in segment.template_ids]
    _check_ids(segment, subjects, templates)
    _check_range(segment, subjects, shape)
    rows = segment.subject_rows.tolist()
    hashes = np.fromiter(map(hash, segment.template_ids), np.int64, len(templates))
    subject_hashes = np.fromiter(map(hash, segment.subject_ids), np.int64, len(subjects))
    mixed = subject_hashes.astype(np.uint64)[segment.subject_rows] * _MIX
    encoded = None
    if segment.lists is not None and segment.pq_codes is not None:
        encoded = EncodedRows(segment.lists, segment.pq_codes)
    return PreparedSegment(
        sha256=sha256,
        subject_ids=segment.subject_ids,
        subject_rows=segment.subject_rows,
        templates=PackedTexts.of(templates),
        template_hashes=hashes,
        pair_hashes=mixed ^ hashes.astype(np.uint64),
        codes=segment.codes,
        digests=digests.row_digests([subjects[row] for row in rows], templates, segment.codes),
        codebook=segment.codebook,
        encoded=encoded,
    )


def _check_ids(segment: Segment, subjects: list[bytes], templates: list[bytes]) -> None:
    for field, texts, encoded in (
        ("subject_id", segment.subject_ids, subjects),
        ("template_id", segment.template_ids, templates),
    ):
        place = first_bad_id(texts, encoded)
        if place is None:
            continue
        row = place
        if field == "subject_id":
            row = int(np.argmax(segment.subject_rows == place))
        raise InvalidError(
            f"{field} is malformed: {id_problem(texts[place])} row={row}",
            reason="ID_MALFORMED",
            row=row,
            field=field,
        )


def _check_range(segment: Segment, subjects: list[bytes], shape: ShardShape) -> None:
    keys = subject_keys(subjects)
    inside = (keys >= np.uint64(shape.range.first)) & (keys <= np.uint64(shape.range.last))
    if inside.all():
        return
    row = int(np.argmax(~inside[segment.subject_rows]))
    raise InvalidError(
        f"subject does not belong to this shard row={row} shard={shape.shard_id}",
        reason="SUBJECT_ELSEWHERE",
        row=row,
        shard=shape.shard_id,
    )


def check_repeats(segments: Sequence[PreparedSegment]) -> None:
    """Raise InvalidError (DUPLICATE_ROW; segment, row) where a template stands twice."""
    if not segments:
        return
    hashes = np.concatenate([one.pair_hashes for one in segments])
    order = np.argsort(hashes, kind="stable")
    again = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    ends = np.cumsum([len(one) for one in segments])
    # Hashes may collide; the ids themselves decide.
    seen: set[tuple[str, str]] = set()
    for place in np.unique(np.concatenate([order[again], order[again + 1]])).tolist():
        number = int(np.searchsorted(ends, place, side="right"))
        row = place - int(ends[number]) + len(segments[number])
        pair = segments[number].pair(row)
        if pair in seen:
            raise InvalidError(
                f"the same template stands twice segment={number} row={row}",
                reason="DUPLICATE_ROW",
                segment=number,
                row=row,
                field="template_ids",
            )
        seen.add(pair)


def prepare_recorded(data: bytes, recorded: LoadedSegment, shape: ShardShape) -> PreparedSegment:
    """Return a segment that a committed record names, ready to be staged. For a thread.

    Raises:
        CorruptError: it is not what was committed.
    """
    name = segment_name(shape.shard_id, recorded.sha256)
    check_hash(data, recorded.sha256, name)
    try:
        prepared = prepare(data, recorded.sha256, shape)
    except InvalidError as error:
        raise CorruptError(
            f"segment is not fit to be loaded, yet was: {error.message} name={name}",
            reason="SEGMENT_MISMATCH",
            name=name,
        ) from error
    if len(prepared) != recorded.rows_count:
        raise CorruptError(
            f"segment has another number of rows name={name} rows={len(prepared)}"
            f" expected={recorded.rows_count}",
            reason="SEGMENT_MISMATCH",
            name=name,
        )
    return prepared


def check_hash(data: bytes, sha256: str, name: str) -> None:
    """Raise CorruptError (OBJECT_DAMAGED) unless an object has the hash that names it."""
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CorruptError(
            f"object does not match its hash name={name}", reason="OBJECT_DAMAGED", name=name
        )
