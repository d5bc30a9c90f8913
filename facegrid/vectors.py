"""Vectors: from the caller's bytes to the stored rows, and the one definition of a score.

A stored row is int8: round(v * 127 / max|v|), elementwise, so that the same vector gives the same
row on every machine. A gallery may keep rows of 4 bits: then v * 7 / max|v| is rounded to a level,
-7 to 7, and the row holds round(level * 127 / 7), so that half as many bytes of memory do. However
it was rounded, a row is int8, and everything below holds. A probe is kept finer, as 15-bit
integers: round(p * 16256 / max|p|). The score is the cosine of the two integer vectors:

    score = (p . q) / (|p| |q|)

Dot product and squared norms are integers, computed exactly whatever the order of summation, the
batch or the processor; only the last division rounds. So a score is bit-identical on every node,
every engine and before and after every restart. The rounding of the stored row moves the cosine by
about 3e-4 at 512 dimensions. That to 4 bits moves it by about 5e-3 either way, and makes it a
hundredth smaller.

To stay exact in float32, where matrix products are fast, the probe is split as
p = 128 * high + low with |high| <= 127 and |low| <= 64: a product of int8 numbers summed over at
most 1,024 components stays below 2**24 (asserted in facegrid.limits).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from facegrid import limits
from facegrid.errors import InvalidError
from facegrid.model import COMPONENT_BITS_DEFAULT

Float32 = npt.NDArray[np.float32]
Int8 = npt.NDArray[np.int8]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
UInt8 = npt.NDArray[np.uint8]

CODE_MAX: Final = 127
BITS_DEFAULT: Final = COMPONENT_BITS_DEFAULT
BITS_PACKED: Final = 4
COMPONENT_BITS_KNOWN: Final = (BITS_PACKED, BITS_DEFAULT)
"""What a gallery may round its templates' components to."""
LEVEL_MAX: Final = 7
"""Of a component of 4 bits."""
LEVELS_ROWS: Final = 1024
"""Rows looked at at a time: what looks up bytes keeps the interpreter from all other threads."""
PROBE_MAX: Final = 127 * 128
PROBE_STEP: Final = 128


def codes_of(levels: Int8) -> Int8:
    """Return round(level * 127 / 7) of each, in whole numbers."""
    codes = levels * np.int8(CODE_MAX // LEVEL_MAX)
    codes += levels > LEVEL_MAX // 2
    codes -= levels < -(LEVEL_MAX // 2)
    return codes


def _levels_of_codes() -> bytes:
    levels = np.zeros(256, np.uint8)
    levels[CODE_OF_LEVEL.view(np.uint8)] = np.arange(1, 2 * LEVEL_MAX + 2)
    return levels.tobytes()


CODE_OF_LEVEL: Final = codes_of(np.arange(-LEVEL_MAX, LEVEL_MAX + 1, dtype=np.int8))
"""int8 [15]: what a component of each level is stored as, from the lowest on."""
_LEVEL_OF_CODE: Final = _levels_of_codes()
"""The level of a component, counted from -8, by its byte; 0: it has none."""

Dtype = Literal["float32", "float16"]


@dataclass(frozen=True, slots=True)
class Probes:
    """Probes ready to be compared.

    Attributes:
        unit: float32 [m, dim], norm 1, for index structures.
        high: float32 [m, dim], integers -127 to 127.
        low: float32 [m, dim], integers -64 to 64.
        norm: float64 [m], norm of 128 * high + low.
    """

    unit: Float32
    high: Float32
    low: Float32
    norm: Float64

    def __len__(self) -> int:
        """Return the number of probes."""
        return len(self.unit)

    def part(self, which: slice | Int64) -> "Probes":
        """Return some of the probes."""
        return Probes(self.unit[which], self.high[which], self.low[which], self.norm[which])


def decode(data: bytes, *, dim: int, dtype: Dtype) -> Float32:
    """Return the matrix held in little-endian bytes as float32 [rows, dim].

    Raises:
        InvalidError: the length is no multiple of a row (VECTOR_LENGTH).
    """
    kind = np.dtype("<f4") if dtype == "float32" else np.dtype("<f2")
    row_bytes = dim * kind.itemsize
    if row_bytes == 0 or len(data) % row_bytes:
        raise InvalidError(
            f"vector bytes are no multiple of a row bytes={len(data)} row_bytes={row_bytes}",
            reason="VECTOR_LENGTH",
            field="data",
        )
    return np.frombuffer(data, kind).reshape(-1, dim).astype(np.float32, copy=False)


def check_rows(x: Float32) -> None:
    """Raise InvalidError naming the first row not finite or with a norm out of bounds."""
    # A sum of squares is finite exactly when all components are and none is absurdly large.
    squares = np.einsum("ij,ij->i", x, x, dtype=np.float64)
    good = (squares >= limits.NORM_MIN**2) & (squares <= limits.NORM_MAX**2)
    if good.all():
        return
    row = int(np.argmin(good))
    if not np.isfinite(x[row]).all():
        raise InvalidError(
            f"vector has a component that is not finite row={row}",
            reason="VECTOR_NOT_FINITE",
            row=row,
            field="vectors",
        )
    raise InvalidError(
        f"vector norm must be between {limits.NORM_MIN} and {limits.NORM_MAX}"
        f" row={row} norm={float(np.sqrt(squares[row])):.6g}",
        reason="VECTOR_NORM",
        row=row,
        field="vectors",
    )


def quantize(x: Float32, bits: int = BITS_DEFAULT) -> Int8:
    """Return stored rows, int8 [n, dim], of checked vectors, float32 [n, dim].

    Args:
        x: the vectors.
        bits: of a component, 8 or 4; int8 in both cases.
    """
    assert bits in COMPONENT_BITS_KNOWN, f"bits: {bits}"
    largest = CODE_MAX if bits == BITS_DEFAULT else LEVEL_MAX
    scaled = x * (np.float32(largest) / np.abs(x).max(axis=1, keepdims=True))
    codes: Int8 = np.rint(scaled).astype(np.int8)
    return codes if bits == BITS_DEFAULT else codes_of(codes)


def check_codes(codes: Int8, bits: int = BITS_DEFAULT) -> None:
    """Raise InvalidError naming the first row that no vector rounds to with so many bits."""
    assert bits in COMPONENT_BITS_KNOWN, f"bits: {bits}"
    good = np.maximum(codes.max(axis=1), -codes.min(axis=1).astype(np.int16)) == CODE_MAX
    if not good.all():
        row = int(np.argmin(good))
        raise InvalidError(
            f"stored row is malformed: its largest magnitude must be {CODE_MAX} row={row}",
            reason="CODES_MALFORMED",
            row=row,
            field="codes",
        )
    if bits == BITS_PACKED:
        for _ in levels_of(codes):
            pass


def levels_of(codes: Int8) -> Iterator[UInt8]:
    """Yield the levels of stored rows of 4 bits, counted from -8: uint8 [m, dim], 1 to 15, some
    rows after the other.

    Raises:
        InvalidError: a row was rounded otherwise; names it.
    """
    for first in range(0, len(codes), LEVELS_ROWS):
        part = np.ascontiguousarray(codes[first : first + LEVELS_ROWS])
        # Several times as fast as indexing an array by bytes.
        levels = np.frombuffer(part.tobytes().translate(_LEVEL_OF_CODE), np.uint8)
        levels = levels.reshape(part.shape)
        if not levels.all():
            row = first + int(np.argmin(levels.all(axis=1)))
            raise InvalidError(
                f"stored row is malformed: its components are not of {BITS_PACKED} bits row={row}",
                reason="CODES_MALFORMED",
                row=row,
                field="codes",
            )
        yield levels


def code_norms(codes: Int8) -> Float64:
    """Return the exact norms, float64 [n], of stored rows, int8 [n, dim]."""
    wide = codes.astype(np.float32)
    norms: Float64 = np.sqrt(np.einsum("ij,ij->i", wide, wide).astype(np.float64))
    return norms


def dequantize(codes: Int8) -> Float32:
    """Return stored rows as float32 [n, dim] of norm 1."""
    return (codes / code_norms(codes)[:, None]).astype(np.float32)


def prepare_probes(x: Float32) -> Probes:
    """Return checked vectors, float32 [m, dim], as probes."""
    whole = np.rint(x * (np.float32(PROBE_MAX) / np.abs(x).max(axis=1, keepdims=True)))
    high = np.rint(whole / np.float32(PROBE_STEP))
    low = whole - high * np.float32(PROBE_STEP)
    # int64 arithmetic: the squares of 15-bit numbers do not stay exact in float32.
    wide = whole.astype(np.int64)
    norm = np.sqrt(np.einsum("ij,ij->i", wide, wide).astype(np.float64))
    unit = (whole / norm[:, None]).astype(np.float32)
    return Probes(unit=unit, high=high, low=low, norm=norm)


def scores(probes: Probes, codes: Int8, norms: Float64) -> Float32:
    """Return float32 [m, r]: the score of each probe with each of its own r rows.

    Args:
        probes: m probes.
        codes: int8 [m, r, dim], stored rows, r of them for each probe.
        norms: float64 [m, r], their norms as `code_norms` gives them.
    """
    rows = codes.astype(np.float32)
    pair = np.stack([probes.high, probes.low], axis=1)
    dots = np.matmul(pair, rows.transpose(0, 2, 1)).astype(np.float64)
    return scores_of(dots[:, 0] * PROBE_STEP + dots[:, 1], probes, norms)


def scores_of(dots: Float64, probes: Probes, norms: Float64) -> Float32:
    """Return float32 [m, r]: the scores that belong to exact products.

    Args:
        dots: float64 [m, r], whole numbers: each probe, as 128 * high + low, times its rows.
        probes: m probes.
        norms: float64 [m, r], of the rows.
    """
    cosine = dots / (probes.norm[:, None] * norms)
    rounded: Float32 = np.clip(cosine, -1.0, 1.0).astype(np.float32)
    return rounded
