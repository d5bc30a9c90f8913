"""Rows of 4 bits in memory: two components in a byte.

The low halves of a row's bytes hold the first half of its components, the high halves the second:
so both are loops over consecutive bytes. A half byte is a level counted from -8, 1 to 15; see
`facegrid.vectors`.
"""

import numpy as np

from facegrid.vectors import Int8, UInt8, codes_of, levels_of
from indexd.ann.native.library import Library, load

NATIVE, _ = load()


def pack(codes: Int8) -> Int8:
    """Return stored rows of 4 bits, int8 [n, dim], packed: int8 [n, dim / 2].

    Raises:
        InvalidError: a row is not of 4 bits (CODES_MALFORMED; row).
    """
    half = codes.shape[1] // 2
    packed: UInt8 = np.empty((len(codes), half), np.uint8)
    first = 0
    for levels in levels_of(codes):
        part = packed[first : first + len(levels)]
        np.left_shift(levels[:, half:], np.uint8(4), out=part)
        part |= levels[:, :half]
        first += len(levels)
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


_BYTES = np.arange(256)
# Level 0 stands for no code; what it becomes is what the compiled part makes of it.
_CODE_BY_LEVEL = codes_of(np.arange(-8, 8, dtype=np.int8))
_LOW = _CODE_BY_LEVEL[_BYTES & 15].tobytes()
_HIGH = _CODE_BY_LEVEL[_BYTES >> 4].tobytes()
