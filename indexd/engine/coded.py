"""A codebook with the hash that names it, and its stored form."""

import hashlib
from dataclasses import dataclass

from facegrid.format.codebook import decode_codebook, encode_codebook
from indexd.ann.codebook import Codebook


@dataclass(frozen=True, slots=True, eq=False)
class NamedCodebook:
    """A codebook and the sha256, in hex, of its object."""

    sha256: str
    codebook: Codebook


def decode(data: bytes, sha256: str) -> NamedCodebook:
    """Return the codebook of an object whose hash has been checked."""
    return NamedCodebook(sha256, decode_codebook(data))


def encode(codebook: Codebook) -> tuple[bytes, str]:
    """Return a codebook's object and its sha256 in hex."""
    data = encode_codebook(codebook)
    return data, hashlib.sha256(data).hexdigest()
