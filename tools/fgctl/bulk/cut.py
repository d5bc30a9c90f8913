"""Cuts rows of an input into segments, one for each shard that they fall into. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from facegrid.errors import InvalidError
from facegrid.ids import subject_keys
from facegrid.vectors import Int8, Int64
from fgctl.bulk.journal import Parameters, Shard
from fgctl.bulk.rows import ShardRows
from fgctl.bulk.segments import BuiltSegment, build_segment

CHUNK_BYTES_MAX = 256 * 1024 * 1024
"""Stored rows of one chunk, whose segments are in memory together."""
CHUNK_ROWS_MIN = 131_072
SEGMENT_ROWS = 32_768
"""What a segment should have on average: fewer would soon be joined with others and rewritten."""


@dataclass(frozen=True, slots=True)
class Ids:
    """Ids of some rows, well-formed; `subjects` are the subject ids in UTF-8."""

    template_ids: list[str]
    subject_ids: list[str]
    subjects: list[bytes]


class Chunk(Protocol):
    """Consecutive rows of an input. The methods take long, and may run in a thread."""

    @property
    def first(self) -> int:
        """The number of its first row."""
        ...

    def ids(self) -> Ids:
        """Return the ids.

        Raises:
            InvalidError: one is malformed (ID_MALFORMED; row of the input).
        """
        ...

    def codes(self, places: Int64, component_bits: int) -> Int8:
        """Return the rows as they are stored, int8 [rows, dim], each at its place.

        Raises:
            InvalidError: one is no vector (row of the input).
        """
        ...


class ChunkSource(Protocol):
    """An input, in the same order each time it is read."""

    @property
    def rows_count(self) -> int:
        """How many rows there are."""
        ...

    @property
    def dim(self) -> int:
        """Components per vector."""
        ...

    def chunks(self, rows: int) -> Iterator[Chunk]:
        """Read all of them, `rows` at a time; what takes long is left to the chunks."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """The segments of a chunk, in the order of the shards, and a hash for each row's pair."""

    segments: list[BuiltSegment]
    hashes: Int64


def chunk_rows(dim: int, shards_count: int) -> int:
    """Return how many rows to take at a time: the more shards, the more, within bounds."""
    wanted = max(CHUNK_ROWS_MIN, SEGMENT_ROWS * shards_count)
    return min(wanted, CHUNK_BYTES_MAX // dim)


def cut(chunk: Chunk, parameters: Parameters, load_id: str) -> Cut:
    """Return the segments of a chunk.

    Raises:
        InvalidError: a row is not fit (row of the input).
    """
    ids = chunk.ids()
    parts = split(ids, parameters.shards)
    order = np.concatenate([rows for _, rows in parts])
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    # Written in the order of the shards at once: a copy less.
    codes = chunk.codes(places, parameters.component_bits)
    segments = []
    first = 0
    for shard, rows in parts:
        last = first + len(rows)
        part = ShardRows(
            shard_id=shard.shard_id,
            template_ids=[ids.template_ids[row] for row in rows.tolist()],
            subject_ids=[ids.subject_ids[row] for row in rows.tolist()],
            codes=codes[first:last],
        )
        segments.append(build_segment(part, load_id))
        first = last
    return Cut(segments, pair_hashes(ids))


def split(ids: Ids, shards: Sequence[Shard]) -> list[tuple[Shard, Int64]]:
    """Return the shards that rows fall into, in order, each with its rows, rising."""
    keys = subject_keys(ids.subjects)
    firsts = np.array([shard.first for shard in shards], np.uint64)
    places = np.searchsorted(firsts, keys, side="right") - 1
    order = np.argsort(places, kind="stable")
    bounds = np.searchsorted(places[order], np.arange(len(shards) + 1))
    return [
        (shard, order[begin:end])
        for shard, begin, end in zip(shards, bounds[:-1], bounds[1:], strict=True)
        if begin < end
    ]


def pair_hashes(ids: Ids) -> Int64:
    """Return a hash of subject and template for each row; equal only in this process."""
    pairs = zip(ids.subject_ids, ids.template_ids, strict=True)
    return np.fromiter(map(hash, pairs), np.int64, len(ids.subject_ids))


def suspects(hashes: Sequence[Int64]) -> npt.NDArray[np.int64]:
    """Return hashes that occur more than once; almost surely templates that stand twice."""
    ordered = np.sort(np.concatenate([np.empty(0, np.int64), *hashes]))
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


class Repeats:
    """Looks at rows whose hashes occur more than once: the ids decide."""

    def __init__(self, suspected: npt.NDArray[np.int64]) -> None:
        self._suspected = suspected
        self._first: dict[tuple[str, str], int] = {}

    def look(self, chunk: Chunk) -> None:
        """Raise InvalidError (DUPLICATE_ROW; row, first) where a template stands twice."""
        ids = chunk.ids()
        for place in np.flatnonzero(np.isin(pair_hashes(ids), self._suspected)).tolist():
            pair = (ids.subject_ids[place], ids.template_ids[place])
            row = chunk.first + place
            before = self._first.setdefault(pair, row)
            if before != row:
                raise InvalidError(
                    f"the same template stands twice row={row} first={before}",
                    reason="DUPLICATE_ROW",
                    row=row,
                    first=before,
                    field="template_ids",
                )
