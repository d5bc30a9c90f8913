"""The digest of a shard: one number for the set of its live rows, whatever their order.

The sum, modulo 2**128, of a 128-bit hash of each row. Adding a row adds its hash and erasing one
subtracts it, so the digest costs nothing to keep; two replicas with equal digests hold the same
rows. It finds mistakes and damage; it is not made to withstand somebody who chooses rows freely.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from facegrid.format.checks import require
from facegrid.ids import ID_BYTES_MAX
from facegrid.vectors import Int8

UInt32 = npt.NDArray[np.uint32]

DIGEST_BYTES = 16
BLOCK_ROWS = 4096
"""Rows hashed of one copy: 2 MiB of codes at 512 dimensions."""
SUMMED_ROWS = 32
"""Rows from which on NumPy sums hashes sooner than the interpreter."""
_MODULUS = 2**128
_LENGTHS = [number.to_bytes(2, "little") for number in range(ID_BYTES_MAX + 1)]
"""As they stand before ids; longer ones than facegrid takes are hashed all the same."""


def row_digest(subject_id: str, template_id: str, codes: bytes) -> int:
    """Return the hash of one row as a number below 2**128."""
    subject, template = subject_id.encode(), template_id.encode()
    lengths = len(subject).to_bytes(2, "little") + len(template).to_bytes(2, "little")
    data = hashlib.blake2b(lengths + subject + template + codes, digest_size=DIGEST_BYTES)
    return int.from_bytes(data.digest(), "little")


def row_digests(subjects: Sequence[bytes], templates: Sequence[bytes], codes: Int8) -> UInt32:
    """Return `row_digest` of many rows as uint32 [n, 4], for `total`.

    Args:
        subjects: id of each row in UTF-8, at most 65,535 bytes.
        templates: likewise.
        codes: int8 [n, dim].
    """
    hashed = bytearray()
    for one in _hashes(subjects, templates, codes):
        hashed += one
    return np.frombuffer(hashed, "<u4").reshape(-1, 4)


def of_rows(subjects: Sequence[bytes], templates: Sequence[bytes], codes: Int8) -> int:
    """Return the digest of rows, given as `row_digests` takes them."""
    if len(codes) >= SUMMED_ROWS:
        return total(row_digests(subjects, templates, codes))
    return (
        sum(int.from_bytes(hashed, "little") for hashed in _hashes(subjects, templates, codes))
        % _MODULUS
    )


def _hashes(subjects: Sequence[bytes], templates: Sequence[bytes], codes: Int8) -> Iterator[bytes]:
    assert len(subjects) == len(templates) == len(codes), "one of each for a row"
    longest = max(max(map(len, ids), default=0) for ids in (subjects, templates))
    lengths = _LENGTHS
    if longest >= len(lengths):
        lengths = [number.to_bytes(2, "little") for number in range(longest + 1)]
    # A copy costs a third less than an object made anew.
    fresh = hashlib.blake2b(digest_size=DIGEST_BYTES)
    dim = codes.shape[1]
    # In blocks: all rows at once would be in memory twice.
    for first in range(0, len(codes), BLOCK_ROWS):
        block = slice(first, first + BLOCK_ROWS)
        data = codes[block].tobytes()
        places = range(0, len(data), dim)
        for subject, template, at in zip(subjects[block], templates[block], places, strict=True):
            one = fresh.copy()
            head = lengths[len(subject)] + lengths[len(template)]
            one.update(head + subject + template + data[at : at + dim])
            yield one.digest()


def total(rows: UInt32) -> int:
    """Return the digest of rows, uint32 [n, 4] as `row_digests` gives them."""
    columns = rows.sum(axis=0, dtype=np.uint64).tolist()
    return sum(int(column) << (32 * place) for place, column in enumerate(columns)) % _MODULUS


def add(digest: int, row: int) -> int:
    """Return the digest with a row more."""
    return (digest + row) % _MODULUS


def subtract(digest: int, row: int) -> int:
    """Return the digest with a row less."""
    return (digest - row) % _MODULUS


def of_disjoint(digests: Iterable[str]) -> str:
    """Return the digest of several sets of rows together, of which no two share a row.

    Args:
        digests: of each of them, 32 hex digits as nodes tell it.

    Raises:
        CorruptError: one is no digest.
    """
    together = 0
    for digest in digests:
        try:
            data = bytes.fromhex(digest)
        except ValueError:
            data = b""
        require(len(data) == DIGEST_BYTES, "digest", f"it is none digest={digest[:40]!r}")
        together = add(together, int.from_bytes(data, "little"))
    return to_bytes(together).hex()


def to_bytes(digest: int) -> bytes:
    """Return the 16 bytes of a digest."""
    return digest.to_bytes(DIGEST_BYTES, "little")
