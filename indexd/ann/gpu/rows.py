"""The rows of one shard in a device's memory: compared exactly, by products of matrices.

A probe's components are whole numbers of 15 bits, in two parts, a row's of 8 (RFC 1). In float32
the product of each part with a row is exact, on tensor cores too; in float64 so is their sum.
Roots and quotients, which libraries round in their own ways, are left to the processor: so a row
scores here bit for bit what it scores there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from facegrid import vectors
from facegrid.vectors import PROBE_STEP, Float32, Int64, Probes
from indexd.ann import rescore
from indexd.ann.gpu.arrays import Arrays
from indexd.ann.native.library import Limits
from indexd.ann.rescore import Best
from indexd.ann.rows import Block, Bool, Rows

CHUNK_ROWS_MIN: Final = 1 << 14
CHUNK_ROWS_MAX: Final = 1 << 20
SCAN_ROWS: Final = 1 << 16
"""Rows that meet all probes in one product: 128 MiB of float32 at 512 dimensions."""
SCORED_ROWS: Final = 1 << 15
"""Rows scored at a time: 128 MiB of float64 at 512 dimensions."""
MERGE_FACTOR: Final = 8
"""Candidates are cut to those wanted whenever there are so many times as many."""
NOTHING: Final = np.float32(-np.inf)


@dataclass(slots=True)
class _Chunk:
    """Consecutive rows.

    Attributes:
        first: number of the first.
        codes: int8 [room, dim].
        squares: int32 [room], squared norms.
        penalty: float32 [room], 0 for rows that live and -inf for those that do not.
    """

    first: int
    codes: Any
    squares: Any
    penalty: Any

    @property
    def last(self) -> int:
        """The number behind the last row that there is room for."""
        return self.first + len(self.codes)


class DeviceRows:
    """Rows 0 to count - 1.

    Args:
        arrays: of the device.
        source: the rows as the processor has them; as many as there are now come at first, more
            may follow.
    """

    def __init__(self, arrays: Arrays, source: Rows) -> None:
        self._arrays = arrays
        self._source = source
        self._dim = source.dim
        self.count = 0
        self._chunks: list[_Chunk] = []
        self._masked: Bool = np.zeros(0, np.bool_)
        self._wanted = source.count

    @property
    def memory_bytes(self) -> int:
        """Bytes set aside on the device."""
        return sum(len(chunk.codes) for chunk in self._chunks) * row_bytes(self._dim)

    def append(self, block: Block) -> None:
        """Add the next rows."""
        assert block.first == self.count, f"rows: {block.first} after {self.count}"
        done = 0
        while done < len(block):
            chunk = self._room()
            at = self.count - chunk.first
            taken = slice(done, done + min(len(block) - done, len(chunk.codes) - at))
            count = taken.stop - taken.start
            chunk.codes[at : at + count] = self._arrays.put(block.codes[taken])
            chunk.squares[at : at + count] = self._arrays.put(block.squares[taken])
            self.count += count
            done = taken.stop

    def mask(self, first: int, erased: Bool) -> None:
        """Leave out rows from `first` on that are erased, bool [n], and count all others in."""
        if len(self._masked) < self.count:
            more = np.zeros(self.count - len(self._masked), np.bool_)
            self._masked = np.concatenate([self._masked, more])
        changed = np.flatnonzero(self._masked[first : first + len(erased)] != erased) + first
        for chunk in self._chunks:
            inside = changed[(changed >= chunk.first) & (changed < chunk.last)]
            if len(inside):
                gone = erased[inside - first]
                values = np.where(gone, NOTHING, np.float32(0))
                chunk.penalty[self._arrays.put(inside - chunk.first)] = self._arrays.put(values)
        self._masked[changed] = erased[changed - first]

    def units(self, first: int, last: int) -> Any:
        """Return rows first to last - 1 with norm 1, float32 [n, dim], on the device."""
        parts = [
            self._unit(chunk.codes[begin:end], chunk.squares[begin:end])
            for chunk, begin, end in self._spans(first, last, rows_max=last - first)
        ]
        if len(parts) == 1:
            return parts[0]
        whole = self._arrays.zeros((last - first, self._dim), "float32")
        at = 0
        for part in parts:
            whole[at : at + len(part)] = part
            at += len(part)
        return whole

    def sample(self, rows: Int64) -> Any:
        """Return rows by number, int64 [n], with norm 1, float32 [n, dim], on the device."""
        return self._unit(*self._gathered(rows))

    def _unit(self, codes: Any, squares: Any) -> Any:
        norms = self._arrays.root(self._arrays.widen(squares, "float32"))
        return self._arrays.widen(codes, "float32") / norms[:, None]

    def scan(self, first: int, last: int, *, probes: Probes, wanted: int) -> Int64:
        """See `indexd.ann.looking.Kernels`."""
        arrays = self._arrays
        high, low = arrays.put(probes.high), arrays.put(probes.low)
        best: list[Any] = []
        found: list[Any] = []
        for chunk, begin, end in self._spans(first, last, rows_max=SCAN_ROWS):
            rows = arrays.widen(chunk.codes[begin:end], "float32").T
            norms = arrays.root(arrays.widen(chunk.squares[begin:end], "float32"))
            likeness = ((high @ rows) * PROBE_STEP + low @ rows) / norms[None, :]
            values, places = arrays.top(likeness + chunk.penalty[begin:end][None, :], wanted)
            best.append(values)
            found.append(places + (chunk.first + begin))
            if sum(one.shape[1] for one in best) > MERGE_FACTOR * wanted:
                best, found = self._merged(best, found, wanted)
        if not best:
            return np.empty((len(probes), 0), np.int64)
        best, found = self._merged(best, found, wanted)
        numbers: Int64 = np.where(arrays.get(best[0]) > NOTHING, arrays.get(found[0]), -1)
        return numbers

    def keys_of(self, probes: Probes, candidates: Int64) -> Int64:
        """See `indexd.ann.looking.Kernels`."""
        scores = np.empty(candidates.shape, np.float32)
        step = max(1, SCORED_ROWS // max(1, candidates.shape[1]))
        for begin in range(0, len(probes), step):
            part = slice(begin, begin + step)
            scores[part] = self.scores(probes.part(part), np.maximum(candidates[part], 0))
        return rescore.sort_keys(scores, candidates)

    def best(self, probes: Probes, candidates: Int64, limits: Limits) -> Best:
        """See `indexd.ann.looking.Kernels`."""
        keys = self.keys_of(probes, candidates)
        keys.sort(axis=1)
        return rescore.best_of(self._source, keys, limits)

    def scores(self, probes: Probes, rows: Int64) -> Float32:
        """Return the exact scores of each probe with its rows, float32 [m, c]."""
        arrays = self._arrays
        if not rows.size:
            return np.empty(rows.shape, np.float32)
        whole = probes.high.astype(np.float64) * PROBE_STEP + probes.low
        codes, _ = self._gathered(rows.reshape(-1))
        wide = arrays.widen(codes, "float64").reshape(*rows.shape, self._dim)
        dots = arrays.get(wide @ arrays.put(whole)[:, :, None]).reshape(rows.shape)
        return vectors.scores_of(dots, probes, self._source.norms(rows))

    def _gathered(self, rows: Int64) -> tuple[Any, Any]:
        """Return codes and squares of rows by number, int64 [n]."""
        arrays = self._arrays
        if len(self._chunks) == 1:
            where = arrays.put(rows)
            chunk = self._chunks[0]
            return arrays.take(chunk.codes, where), arrays.take(chunk.squares, where)
        codes = arrays.zeros((len(rows), self._dim), "int8")
        squares = arrays.zeros((len(rows),), "int32")
        number = np.searchsorted([chunk.last for chunk in self._chunks], rows, side="right")
        for used in np.unique(number):
            chunk = self._chunks[used]
            places = np.flatnonzero(number == used)
            into, within = arrays.put(places), arrays.put(rows[places] - chunk.first)
            codes[into] = arrays.take(chunk.codes, within)
            squares[into] = arrays.take(chunk.squares, within)
        return codes, squares

    def _merged(
        self, best: list[Any], found: list[Any], wanted: int
    ) -> tuple[list[Any], list[Any]]:
        values, places = self._arrays.top(self._arrays.joined(best), wanted)
        return [values], [self._arrays.pick(self._arrays.joined(found), places)]

    def _room(self) -> _Chunk:
        """Return the last chunk, a new one where it is full."""
        if self._chunks and self._chunks[-1].last > self.count:
            return self._chunks[-1]
        wanted = max(self._wanted - self.count, self.count // 2)
        room = min(CHUNK_ROWS_MAX, max(CHUNK_ROWS_MIN, wanted))
        arrays = self._arrays
        chunk = _Chunk(
            first=self.count,
            codes=arrays.zeros((room, self._dim), "int8"),
            squares=arrays.zeros((room,), "int32"),
            penalty=arrays.zeros((room,), "float32"),
        )
        self._chunks.append(chunk)
        return chunk

    def _spans(self, first: int, last: int, *, rows_max: int) -> Iterator[tuple[_Chunk, int, int]]:
        """Yield chunks with where rows first to last - 1 are in them, at most `rows_max` each."""
        for chunk in self._chunks:
            begin, end = max(first, chunk.first), min(last, chunk.last)
            while begin < end:
                until = min(end, begin + rows_max)
                yield chunk, begin - chunk.first, until - chunk.first
                begin = until


def row_bytes(dim: int) -> int:
    """Return the bytes that one row takes on a device."""
    return dim + 4 + 4
