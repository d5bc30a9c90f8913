"""Brute force over rows: what finds rows that no codebook covers yet.

Blocks of stored rows become float32 and meet all probes in one matrix product. The values are
cosines up to rounding in the seventh digit, good for choosing which rows to rescore.
"""

from collections.abc import Iterator

import numpy as np

from facegrid.vectors import Float32, Int64, Probes
from indexd.ann.rows import Block, Rows

BLOCK_ROWS = 8192
"""16 MiB of float32 at 512 dimensions: stays in the last-level cache."""
FIRST_ROWS = 512
"""The first blocks are short and soon tell what later rows must exceed to be looked at."""
NOTHING = np.float32(-np.inf)
NO_ROW = -1


def scan(rows: Rows, first: int, last: int, *, probes: Probes, wanted: int) -> Int64:
    """Return for each probe the `wanted` best of rows first to last - 1 that are not erased.

    int64 [m, c] with c at most `wanted`, in no order; -1 where a probe has fewer.
    """
    best = np.full((len(probes), 0), NOTHING, np.float32)
    found = np.full((len(probes), 0), NO_ROW, np.int64)
    floor = np.full((len(probes), 1), NOTHING, np.float32)
    space = np.empty((min(BLOCK_ROWS, max(last - first, 1)), rows.dim), np.float32)
    for block in _blocks(rows, first, last):
        wide = space[: len(block)]
        np.copyto(wide, block.codes)
        cosines = probes.unit @ wide.T
        cosines *= np.float32(1.0) / np.sqrt(block.squares.astype(np.float32))
        if block.erased.any():
            cosines[:, block.erased] = NOTHING
        values, numbers = _above(cosines, floor, block.first)
        best, found = _merge((best, values), (found, numbers), wanted)
        if best.shape[1] == wanted:
            floor = best.min(axis=1, keepdims=True)
    return found


def _blocks(rows: Rows, first: int, last: int) -> Iterator[Block]:
    """Yield the rows in blocks that grow from FIRST_ROWS to BLOCK_ROWS."""
    rows_max = FIRST_ROWS
    while first < last:
        block = next(rows.blocks(first, last, rows_max=rows_max))
        yield block
        first += len(block)
        rows_max = min(2 * rows_max, BLOCK_ROWS)


def _above(cosines: Float32, floor: Float32, first: int) -> tuple[Float32, Int64]:
    """Return what exceeds each probe's floor, packed to the left: values and row numbers."""
    # Three times as fast as nonzero on the matrix.
    probe, column = np.divmod(np.flatnonzero(cosines > floor), cosines.shape[1])
    counts = np.bincount(probe, minlength=len(cosines))
    width = int(counts.max(initial=0))
    place = np.arange(len(probe)) - np.repeat(np.cumsum(counts) - counts, counts)
    values = np.full((len(cosines), width), NOTHING, np.float32)
    numbers = np.full((len(cosines), width), NO_ROW, np.int64)
    values[probe, place] = cosines[probe, column]
    numbers[probe, place] = column + first
    return values, numbers


def _merge(
    values: tuple[Float32, Float32], numbers: tuple[Int64, Int64], wanted: int
) -> tuple[Float32, Int64]:
    """Return the best `wanted` of two sets of candidates."""
    value = np.concatenate(values, axis=1)
    number = np.concatenate(numbers, axis=1)
    if value.shape[1] <= wanted:
        return value, number
    kept = np.argpartition(value, value.shape[1] - wanted, axis=1)[:, -wanted:]
    return np.take_along_axis(value, kept, axis=1), np.take_along_axis(number, kept, axis=1)
