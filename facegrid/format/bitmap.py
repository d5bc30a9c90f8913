"""Bitmaps of rows: bit i % 8 of byte i / 8, unused bits 0."""

import numpy as np
import numpy.typing as npt

from facegrid.format.checks import require

Bool = npt.NDArray[np.bool_]


def pack_bits(mask: Bool) -> bytes:
    """Return bool [n] as a bitmap."""
    return np.packbits(mask, bitorder="little").tobytes()


def unpack_bits(data: bytes, rows: int, *, what: str) -> Bool:
    """Return a bitmap as bool [rows].

    Raises:
        CorruptError: it has another length, or bits beyond its rows.
    """
    whole_bytes = rows >= 0 and len(data) == (rows + 7) // 8
    require(whole_bytes, what, "bitmap has another length")
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    require(not bits[rows:].any(), what, "bitmap goes beyond its rows")
    return bits[:rows].astype(np.bool_)
