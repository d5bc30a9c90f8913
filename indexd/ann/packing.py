"""Rows of 4 bits in memory: two components in a byte.

The low halves of a row's bytes hold the first half of its components, the high halves the second:
so both are loops over consecutive bytes. A half byte is a level counted from -8, 1 to 15; see
`facegrid.vectors`.
"""

import numpy as np

from facegrid.vectors import CODE_OF_LEVEL, Int8, UInt8, levels_of
from indexd.ann.native.library import Library, load

NATIVE, _ = load()


def pack(codes: Int8) -> Int8:
    """Return stored rows of 4 bits, int8 [n, dim], packed: int8 [n, dim / 2].

    Raises:
        InvalidError: a row is not of 4 bits (CODES_MALFORMED; row).
    """
    levels = levels_of(codes)
    half = levels.shape[1] // 2
    packed: UInt8 = levels[:, :half] | levels[:, half:] << np.uint8(4)
    return packed.view(np.int8)


def unpack(packed: Int8, *, native: Library | None = NATIVE) -> Int8:
    """Return packed rows, int8 [n, dim / 2], as they are stored: int8 [n, dim]."""
    if native is not None:
        return native.unpack(packed)
    half = packed.shape[1]
    codes = np.empty((len(packed), 2 * half), np.int8)
    data = np.ascontiguousarray(packed).tobytes()
    for columns, table in ((slice(half), _LOW), (slice(half, None), _HIGH)):
        found = np.frombuffer(data.translate(table), np.int8)
        codes[:, columns] = found.reshape(packed.shape)
    return codes


def _code_by_level() -> Int8:
    """Return int8 [16]: what a level counted from -8 is stored as; 0 stands for none."""
    return np.concatenate([np.zeros(1, np.int8), CODE_OF_LEVEL])


_BYTES = np.arange(256)
_LOW = _code_by_level()[_BYTES & 15].tobytes()
_HIGH = _code_by_level()[_BYTES >> 4].tobytes()
