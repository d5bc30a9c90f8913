"""The rows of one shard replica: stored vectors, their norms, their subjects, which are erased.

Rows are numbered 0..n-1 in the order enrolled and never move. One writer appends and erases under
a lock; readers take no lock. They stay right because

- a row is written before the count that covers it grows,
- chunks never move once made, and side arrays that outgrow their space are copied whole before
  they take the old one's place, so that a reader still holding the old one sees a valid prefix.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from facegrid.vectors import (
    BITS_DEFAULT,
    BITS_PACKED,
    COMPONENT_BITS_KNOWN,
    Float64,
    Int8,
    Int64,
    UInt8,
)
from indexd.ann import memory, packing
from indexd.ann.native.library import RowArrays, RowsAt

Int32 = npt.NDArray[np.int32]
Bool = npt.NDArray[np.bool_]
Scalar = TypeVar("Scalar", np.int32, np.bool_, np.uint8)

CHUNK_ROWS = 1 << 22
"""Rows of one allocation. Memory that no row has touched costs nothing until it is, and rows are
gathered half as fast again from one chunk as from several.
"""
SIDE_ROWS_MIN = 1 << 10
VIEWED_ROWS = 1 << 10
"""Rows from which it is worth looking whether they are consecutive."""
NORMS_ROWS = 1 << 12
"""Rows that are widened at a time, so that they stay in the cache."""


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows as views, nothing copied.

    Attributes:
        first: number of the first row.
        kept: int8 [n, bytes of a row], as they lie in memory.
        squares: int32 [n], squared norms.
        erased: bool [n].
        packed: whether `kept` is packed.
    """

    first: int
    kept: Int8
    squares: Int32
    erased: Bool
    packed: bool

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.kept)

    @property
    def codes(self) -> Int8:
        """The rows, int8 [n, dim]; where they are packed, unpacked each time."""
        return packing.unpack(self.kept) if self.packed else self.kept


class Rows:
    """Append-only rows of `dim` components, kept in 8 bits each, or packed in 4.

    Rows come and go as int8, however they are kept: `facegrid.vectors` says which can be packed.
    """

    def __init__(self, dim: int, bits: int = BITS_DEFAULT) -> None:
        self.dim = dim
        assert bits in COMPONENT_BITS_KNOWN, f"bits: {bits}"
        self._packed = bits == BITS_PACKED
        self._row_bytes = dim * bits // 8
        self.count = 0
        self.erased_count = 0
        self._chunks: list[Int8] = []
        self._squares: Int32 = np.zeros(SIDE_ROWS_MIN, np.int32)
        self._subjects: Int32 = np.zeros(SIDE_ROWS_MIN, np.int32)
        self._erased: Bool = np.zeros(SIDE_ROWS_MIN, np.bool_)
        self._live: UInt8 = np.full(SIDE_ROWS_MIN // 8, 0xFF, np.uint8)
        self._writing = threading.Lock()
        self._placed: RowsAt | None = None

    @property
    def memory_bytes(self) -> int:
        """Bytes that the rows take, without space set aside for later ones."""
        return self.count * (self._row_bytes + 4 + 4 + 1) + self.count // 8

    def append(self, codes: Int8, subjects: Int32) -> int:
        """Add rows, int8 [n, dim], of subjects, int32 [n]; return the first one's number.

        Raises:
            InvalidError: they are to be packed, and one is not of 4 bits (CODES_MALFORMED; row).
        """
        assert codes.dtype == np.int8, f"codes must be int8: {codes.dtype}"
        assert codes.shape == (len(subjects), self.dim), f"shape: {codes.shape}"
        kept = self._kept(codes)
        with self._writing:
            first = self.count
            last = first + len(codes)
            self._reserve(last)
            for chunk, within, taken in self._spans(first, last):
                chunk[within] = kept[taken]
            self._squares[first:last] = squared_norms(codes)
            self._subjects[first:last] = subjects
            self.count = last
            return first

    def stage(self, at: int, codes: Int8, subjects: Int32, erased: Bool) -> None:
        """Write rows where they will be, at rows behind the last, unseen until `publish`.

        May run in another thread as long as nobody appends. What is not published is written over.
        """
        kept = self._kept(codes)
        last = self.count + at + len(codes)
        with self._writing:
            first = self.count + at
            self._reserve(last)
            for chunk, within, taken in self._spans(first, last):
                chunk[within] = kept[taken]
                self._squares[first:last][taken] = squared_norms(codes[taken])
            self._subjects[first:last] = subjects
            self._mark(np.flatnonzero(erased) + first)

    def publish(self, count: int) -> None:
        """Make staged rows seen, `count` of them."""
        with self._writing:
            self.count += count
            self.erased_count = int(np.count_nonzero(self._erased[: self.count]))

    def unstage(self) -> None:
        """Forget what was staged."""
        with self._writing:
            self._erased[self.count :] = False
            self._live[-(-self.count // 8) :] = 0xFF
            if self.count % 8:
                self._live[self.count // 8] |= np.uint8(0xFF << self.count % 8 & 0xFF)

    def _mark(self, rows: Int64) -> None:
        """Mark rows erased, whether they are seen or not."""
        self._erased[rows] = True
        np.bitwise_and.at(self._live, rows >> 3, ~(np.uint8(1) << (rows & 7).astype(np.uint8)))

    def erase(self, rows: Int64) -> None:
        """Mark rows erased; erasing twice is harmless."""
        with self._writing:
            assert not len(rows) or (rows.min() >= 0 and rows.max() < self.count), "no such row"
            self._mark(rows)
            self.erased_count = int(np.count_nonzero(self._erased[: self.count]))

    def codes(self, rows: Int64) -> Int8:
        """Return stored rows by number: int8, the shape of `rows` plus [dim].

        Not to be written to: many consecutive ones are not copied.
        """
        if not self._packed:
            return self._gathered(rows)
        found = self._gathered(rows)
        return packing.unpack(found.reshape(-1, self._row_bytes)).reshape(*rows.shape, self.dim)

    def _kept(self, codes: Int8) -> Int8:
        """Return rows, int8 [n, dim], as they are kept."""
        return packing.pack(codes) if self._packed else codes

    def _gathered(self, rows: Int64) -> Int8:
        """Return rows by number, as they are kept."""
        chunks = self._chunks
        if rows.ndim == 1 and len(rows) > VIEWED_ROWS and _consecutive(rows):
            first, last = int(rows[0]), int(rows[-1]) + 1
            at = first // CHUNK_ROWS
            if last <= (at + 1) * CHUNK_ROWS:
                return chunks[at][first - at * CHUNK_ROWS : last - at * CHUNK_ROWS]
        if len(chunks) == 1:
            return chunks[0].take(rows, axis=0)
        number, within = np.divmod(rows.reshape(-1), CHUNK_ROWS)
        gathered: Int8 = np.empty((rows.size, self._row_bytes), np.int8)
        for used in np.unique(number):
            where = np.flatnonzero(number == used)
            gathered[where] = chunks[used].take(within[where], axis=0)
        return gathered.reshape(*rows.shape, self._row_bytes)

    def norms(self, rows: Int64) -> Float64:
        """Return the exact norms of rows, as facegrid.vectors.code_norms gives them."""
        norms: Float64 = np.sqrt(self._squares.take(rows).astype(np.float64))
        return norms

    def subjects(self, rows: Int64) -> Int32:
        """Return the subject number of rows."""
        return self._subjects.take(rows)

    def erased(self, rows: Int64) -> Bool:
        """Tell which of the rows are erased by now."""
        return self._erased.take(rows)

    @property
    def placed(self) -> RowsAt:
        """Where the rows lie that there are now. Later erasures may show in it or not."""
        # Chunks and arrays only ever make way for longer ones, the mask of the erased last: who
        # reads that first finds the others at least as long.
        erased, placed = self._erased, self._placed
        chunks_count = 0 if placed is None else len(placed.kept.chunks)
        if placed is None or placed.kept.erased is not erased or chunks_count < len(self._chunks):
            arrays = RowArrays(erased, self._subjects, self._squares, tuple(self._chunks))
            placed = self._placed = RowsAt(arrays, self.dim, packed=self._packed)
        return placed

    def live_bits(self) -> UInt8:
        """Return a bitmap that follows later erasures: bit i % 8 of byte i / 8 is set if i lives.

        It covers at least the rows that there are now.
        """
        return self._live

    def blocks(self, first: int, last: int, *, rows_max: int) -> Iterator[Block]:
        """Yield rows first to last - 1 in blocks of at most `rows_max` rows."""
        while first < last:
            number, within = divmod(first, CHUNK_ROWS)
            end = min(last, first + rows_max, (number + 1) * CHUNK_ROWS)
            kept = self._chunks[number][within : within + end - first]
            yield Block(
                first=first,
                kept=kept,
                squares=self._squares[first:end],
                erased=self._erased[first:end],
                packed=self._packed,
            )
            first = end

    def _reserve(self, count: int) -> None:
        """Make room for `count` rows in all."""
        while len(self._chunks) * CHUNK_ROWS < count:
            small_bytes = 0 if self._chunks else memory.SMALL_BYTES
            self._chunks.append(memory.chunk(CHUNK_ROWS, self._row_bytes, small_bytes=small_bytes))
        if count > len(self._squares):
            capacity = -(-max(count, 2 * len(self._squares)) // 8) * 8
            self._squares = _grown(self._squares, capacity, 0)
            self._subjects = _grown(self._subjects, capacity, 0)
            self._erased = _grown(self._erased, capacity, 0)
            self._live = _grown(self._live, capacity // 8, 0xFF)

    def _spans(self, first: int, last: int) -> Iterator[tuple[Int8, slice, slice]]:
        """Yield chunk, rows within it, and rows of the batch that go there."""
        begin = first
        while begin < last:
            number, within = divmod(begin, CHUNK_ROWS)
            end = min(last, (number + 1) * CHUNK_ROWS)
            span = slice(within, within + end - begin)
            yield self._chunks[number], span, slice(begin - first, end - first)
            begin = end


def squared_norms(codes: Int8) -> Int32:
    """Return the squared norms of stored rows: exact, since they stay below 2**24."""
    squares = np.empty(len(codes), np.int32)
    for first in range(0, len(codes), NORMS_ROWS):
        wide = codes[first : first + NORMS_ROWS].astype(np.float32)
        squares[first : first + NORMS_ROWS] = np.einsum("ij,ij->i", wide, wide)
    return squares


def _grown(array: npt.NDArray[Scalar], capacity: int, filler: int) -> npt.NDArray[Scalar]:
    """Return a longer copy, filled up at the end."""
    longer = np.full(capacity, filler, array.dtype)
    longer[: len(array)] = array
    return longer


def _consecutive(rows: Int64) -> bool:
    return int(rows[-1]) - int(rows[0]) + 1 == len(rows) and bool((np.diff(rows) == 1).all())
