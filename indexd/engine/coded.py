"""A codebook with the hash that names it, and its stored form."""

import hashlib
from dataclasses import dataclass

from facegrid.format.codebook import CodebookArrays, decode_codebook, encode_codebook
from indexd.ann.codebook import Codebook


@dataclass(frozen=True, slots=True, eq=False)
class NamedCodebook:
    """A codebook and the sha256, in hex, of its object."""

    sha256: str
    codebook: Codebook


def decode(data: bytes, sha256: str) -> NamedCodebook:
    """Return the codebook of an object whose hash has been checked."""
    arrays = decode_codebook(data)
    codebook = Codebook(
        dim=arrays.dim,
        nlist=arrays.nlist,
        pq_m=arrays.pq_m,
        pq_bits=arrays.pq_bits,
        nprobe=arrays.nprobe,
        rescore_factor=arrays.rescore_factor,
        centroids=arrays.centroids,
        pq=arrays.pq,
        sample_count=arrays.sample_count,
        seed=arrays.seed,
    )
    return NamedCodebook(sha256, codebook)


def encode(codebook: Codebook) -> tuple[bytes, str]:
    """Return a codebook's object and its sha256 in hex."""
    arrays = CodebookArrays(
        dim=codebook.dim,
        nlist=codebook.nlist,
        pq_m=codebook.pq_m,
        pq_bits=codebook.pq_bits,
        nprobe=codebook.nprobe,
        rescore_factor=codebook.rescore_factor,
        centroids=codebook.centroids,
        pq=codebook.pq,
        sample_count=codebook.sample_count,
        seed=codebook.seed,
    )
    data = encode_codebook(arrays)
    return data, hashlib.sha256(data).hexdigest()
