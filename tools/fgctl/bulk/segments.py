"""Rows of one shard as a segment of a bulk load. Pure."""

import hashlib
from dataclasses import dataclass

import numpy as np

from facegrid.format.segment import Segment, encode_segment
from facegrid.ids import ShardId
from fgctl.bulk.rows import ShardRows


@dataclass(frozen=True, slots=True)
class StoredSegment:
    """Names a segment that was built. `sha256` has 64 hex digits."""

    shard_id: ShardId
    sha256: str
    rows_count: int


@dataclass(frozen=True, slots=True)
class BuiltSegment:
    """A segment and its bytes."""

    named: StoredSegment
    data: bytes


def build_segment(rows: ShardRows, load_id: str) -> BuiltSegment:
    """Return rows, at least one, as a segment of a load. The same rows give the same bytes.

    Raises:
        InvalidError: more rows than fit, see facegrid.format.segment (FRAME_TOO_LARGE).
    """
    assert len(rows), "a segment has rows"
    numbers: dict[str, int] = {}
    subject_rows = np.fromiter(
        (numbers.setdefault(one, len(numbers)) for one in rows.subject_ids), np.int32, len(rows)
    )
    data = encode_segment(
        Segment(
            shard_id=rows.shard_id,
            dim=rows.codes.shape[1],
            template_ids=rows.template_ids,
            subject_ids=list(numbers),
            subject_rows=subject_rows,
            codes=rows.codes,
            codebook=rows.codebook,
            lists=rows.lists,
            pq_codes=rows.pq_codes,
            load_id=load_id,
        )
    )
    named = StoredSegment(rows.shard_id, hashlib.sha256(data).hexdigest(), len(rows))
    return BuiltSegment(named, data)
