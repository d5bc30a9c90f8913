"""The digest of a shard: one number for the set of its live rows, whatever their order.

The sum, modulo 2**128, of a 128-bit hash of each row. Adding a row adds its hash and erasing one
subtracts it, so the digest costs nothing to keep; two replicas with equal digests hold the same
rows. It finds mistakes and damage; it is not made to withstand somebody who chooses rows freely.
"""

import hashlib

DIGEST_BYTES = 16
_MODULUS = 2**128


def row_digest(subject_id: str, template_id: str, codes: bytes) -> int:
    """Return the hash of one row as a number below 2**128."""
    subject, template = subject_id.encode(), template_id.encode()
    lengths = len(subject).to_bytes(2, "little") + len(template).to_bytes(2, "little")
    data = hashlib.blake2b(lengths + subject + template + codes, digest_size=DIGEST_BYTES)
    return int.from_bytes(data.digest(), "little")


def add(digest: int, row: int) -> int:
    """Return the digest with a row more."""
    return (digest + row) % _MODULUS


def subtract(digest: int, row: int) -> int:
    """Return the digest with a row less."""
    return (digest - row) % _MODULUS


def to_bytes(digest: int) -> bytes:
    """Return the 16 bytes of a digest."""
    return digest.to_bytes(DIGEST_BYTES, "little")
