"""What of a shard goes into another that is filled from it: its rows, and each later record.

Pure functions; those that say so take long, and are for a thread.
docs/rfcs/0009-resharding.md tells the whole of it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from facegrid.format.log import EnrolRecord, EraseRecord, LoadedSegment, LoadRecord, LogGroup
from facegrid.format.segment import (
    Segment,
    decode_segment,
    encoding,
    segment_name,
    segment_rows_max,
)
from facegrid.format.sources import InheritedRequest, SourcePosition
from facegrid.ids import ShardId, subject_keys
from facegrid.model import HashRange
from facegrid.steps import Steps
from indexd.engine.columns import in_order_met
from indexd.engine.flush import CodedRows, StoredObject, hashing, segment_of, texts
from indexd.engine.loading import Bool
from indexd.engine.state import Int64, ShardState

PIECE_ROWS = 65_536
"""Rows of the source that become one segment: 32 MiB of vectors at 512 dimensions."""


@dataclass(frozen=True, slots=True)
class Target:
    """The shard that rows are for, and what makes its segments' names unique."""

    shard_id: ShardId
    range: HashRange
    load_id: str


@dataclass(frozen=True, slots=True, eq=False)
class Base:
    """The live rows of a shard at one position, rising. Rows never change, nor move.

    `carried_out` are the requests that it remembers, its own and those of others before it.
    """

    state: ShardState
    position: int
    rows: Int64
    carried_out: tuple[InheritedRequest, ...]

    def pieces(self) -> Iterator[Int64]:
        """Yield the rows in parts that one segment each can hold."""
        step = min(PIECE_ROWS, segment_rows_max(self.state.dim))
        for first in range(0, len(self.rows), step):
            yield self.rows[first : first + step]


@dataclass(frozen=True, slots=True)
class BuiltSegment:
    """A segment to be stored, and how many rows it has."""

    stored: StoredObject
    rows_count: int


def base_of(state: ShardState) -> Base:
    """Return what a shard is now. For the event loop."""
    rows = np.arange(state.rows_count, dtype=np.int64)
    own = [InheritedRequest(request_id, state.range) for request_id, _ in state.requests]
    carried_out = (*state.inherited, *own)
    return Base(state, state.position, rows[~state.erased_mask(rows)], carried_out)


def base_segment(
    state: ShardState, rows: Int64, coded: CodedRows | None, target: Target
) -> Steps[BuiltSegment | None]:
    """Return those of some rows that belong into another shard; None: none does. For a thread."""
    subjects, places = in_order_met(state.subjects.numbers_of(rows))
    found = yield from texts(state.subjects.names, subjects)
    names = [name.encode() for name in found]
    inside = _inside(target.range, names)[places]
    if coded is not None:
        lists, codes = coded.rows.lists[inside], coded.rows.codes[inside]
        coded = replace(coded, rows=replace(coded.rows, lists=lists, codes=codes))
    segment = yield from segment_of(state, rows[inside], coded)
    return (yield from _built(segment, target))


def loaded_segment(
    data: bytes, loaded: LoadedSegment, target: Target
) -> Steps[BuiltSegment | None]:
    """Return those rows of a bulk load's segment that were new, and belong into another shard;
    None: none does. For a thread.

    Args:
        data: the segment object, whose hash has been checked.
        loaded: what the record of the load says of it.
        target: the other shard.

    Raises:
        CorruptError: it is damaged.
    """
    segment = decode_segment(data)
    inside = _inside(target.range, [one.encode() for one in segment.subject_ids])
    kept = inside[segment.subject_rows] & ~loaded.erased
    return (yield from _built(_part(segment, kept), target))


def carried(
    group: LogGroup, after: int, *, of: HashRange, into: HashRange
) -> list[EnrolRecord | EraseRecord | LoadRecord]:
    """Return what of a log object behind a position goes into another shard, with its source.

    Of enrolments the rows in the range, of erasures all ids, for subjects of the source's range
    alone. Loads are returned as they are: their segments are filtered by `loaded_segment`.

    Args:
        group: what the log object holds.
        after: the position.
        of: the range of the source.
        into: that of the other shard.
    """
    found: list[EnrolRecord | EraseRecord | LoadRecord] = []
    for record in group.records:
        source = SourcePosition(group.shard_id, record.position)
        done = (*record.inherited, InheritedRequest(record.request_id, of))
        if record.position <= after:
            continue
        if isinstance(record, LoadRecord):
            # A load names segments of one shard: nobody sends it to another.
            found.append(replace(record, source=source))
            continue
        if isinstance(record, EraseRecord):
            # One that this shard had from another is narrower already.
            within = record.within or of
            found.append(replace(record, source=source, within=within, inherited=done))
            continue
        inside = _inside(into, [one.encode() for one in record.subject_ids])
        if inside.any() or record.unchanged_count:
            # Of rows that were there already only the number is known, not where they belong.
            rows = np.flatnonzero(inside).tolist()
            found.append(
                replace(
                    record,
                    template_ids=[record.template_ids[row] for row in rows],
                    subject_ids=[record.subject_ids[row] for row in rows],
                    codes=record.codes[inside],
                    source=source,
                    inherited=done,
                )
            )
    return found


def _inside(key_range: HashRange, subjects: Sequence[bytes]) -> Bool:
    """Tell of subjects, given in UTF-8, which lie in a range."""
    keys = subject_keys(subjects)
    inside: Bool = (keys >= np.uint64(key_range.first)) & (keys <= np.uint64(key_range.last))
    return inside


def _part(segment: Segment, kept: Bool) -> Segment:
    """Return some rows of a segment, with the subjects that they have, in the order first met."""
    used, places = in_order_met(segment.subject_rows[kept])
    return replace(
        segment,
        template_ids=[segment.template_ids[row] for row in np.flatnonzero(kept).tolist()],
        subject_ids=[segment.subject_ids[number] for number in used.tolist()],
        subject_rows=places,
        codes=segment.codes[kept],
        lists=None if segment.lists is None else segment.lists[kept],
        pq_codes=None if segment.pq_codes is None else segment.pq_codes[kept],
    )


def _built(segment: Segment, target: Target) -> Steps[BuiltSegment | None]:
    rows = len(segment.template_ids)
    if not rows:
        return None
    own = replace(
        segment, shard_id=target.shard_id, load_id=target.load_id, generation=0, position=0
    )
    data = yield from encoding(own)
    sha256 = yield from hashing(data)
    return BuiltSegment(StoredObject(segment_name(target.shard_id, sha256), sha256, data), rows)
