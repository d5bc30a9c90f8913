"""How faiss lays out 4-bit codes, so that stored codes are searchable without coding them again.

FastScan keeps the codes of 32 rows together: of each code byte the low halves of all 32 rows, then
the high halves, two rows to a byte, in the order that the shuffle instruction wants. faiss has the
packing in C++ only; here it is in NumPy, with its inverse. `indexd.ann.self_test` compares them
with faiss at start-up.
"""

import numpy as np

from facegrid.vectors import UInt8

BLOCK_ROWS = 32
"""Rows that FastScan keeps together."""
_HALF = 16
_ORDER = np.array([0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15])
"""Which row each byte of a half block holds, as in faiss pq4_fast_scan.cpp."""


def pack(codes: UInt8) -> UInt8:
    """Return plain codes, uint8 [n, b], in blocks, uint8 [ceil(n / 32), b, 32]."""
    rows_count, code_bytes = codes.shape
    blocks_count = -(-rows_count // BLOCK_ROWS)
    padded = np.zeros((blocks_count * BLOCK_ROWS, code_bytes), np.uint8)
    padded[:rows_count] = codes
    columns = padded.reshape(blocks_count, BLOCK_ROWS, code_bytes).transpose(0, 2, 1)
    near, far = columns[..., _ORDER], columns[..., _ORDER + _HALF]
    blocks = np.empty((blocks_count, code_bytes, BLOCK_ROWS), np.uint8)
    blocks[..., :_HALF] = (near & 0x0F) | (far << 4)
    blocks[..., _HALF:] = (near >> 4) | (far & 0xF0)
    return blocks


def unpack(blocks: UInt8) -> UInt8:
    """Return blocks, uint8 [c, b, 32], as plain codes, uint8 [32 * c, b]."""
    low, high = blocks[..., :_HALF], blocks[..., _HALF:]
    columns = np.empty_like(blocks)
    columns[..., _ORDER] = (low & 0x0F) | (high << 4)
    columns[..., _ORDER + _HALF] = (low >> 4) | (high & 0xF0)
    rows: UInt8 = columns.transpose(0, 2, 1).reshape(-1, blocks.shape[1])
    return rows
