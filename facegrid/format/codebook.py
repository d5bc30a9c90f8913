"""Codebooks: trained coarse centroids and PQ tables, shared by all shards of a gallery.

An object is three frames: CODEBOOK_HEADER, CODEBOOK_CENTROIDS, CODEBOOK_PQ. It is named by its
sha256.
"""

from dataclasses import dataclass

import numpy as np

from facegrid import limits
from facegrid.api.storage.v1 import storage_pb2
from facegrid.format.checks import (
    ArrayValue,
    Buffer,
    array_bytes,
    array_from,
    parse,
    require,
    serialized,
)
from facegrid.format.frame import Kind, expect_frames, frame_parts
from facegrid.vectors import Float32

_WHAT = "codebook"
_PQ_BITS_MAX = 8


@dataclass(frozen=True, slots=True, eq=False)
class CodebookArrays(ArrayValue):
    """A codebook as plain arrays.

    Attributes:
        dim: components of a vector.
        nlist: number of IVF lists.
        pq_m: number of PQ sub-quantizers; divides dim.
        pq_bits: bits of each of their codes, 1 to 8.
        nprobe: lists to probe, as measured when it was trained; 1 to nlist.
        rescore_factor: rows to rescore per wanted candidate, at least 1.
        centroids: float32 [nlist, dim], finite.
        pq: float32 [pq_m, 2**pq_bits, dim / pq_m], finite.
        sample_count: rows it was trained on.
        seed: of the training.
        coding_error: mean of 1 - cosine between rows of the sample and what their codes say; 0:
            not measured.
    """

    dim: int
    nlist: int
    pq_m: int
    pq_bits: int
    nprobe: int
    rescore_factor: int
    centroids: Float32
    pq: Float32
    sample_count: int
    seed: int
    coding_error: float = 0.0


def codebook_prefix(gallery_uid: str) -> str:
    """Return what the names of all codebooks of a gallery begin with."""
    return f"codebooks/{gallery_uid}/"


def codebook_name(gallery_uid: str, sha256: str) -> str:
    """Return the name of a gallery's codebook whose object has this sha256 in hex."""
    return f"{codebook_prefix(gallery_uid)}{sha256}"


def encode_codebook(codebook: CodebookArrays) -> bytes:
    """Return a codebook as the bytes of its object."""
    header = storage_pb2.CodebookHeader(
        dim=codebook.dim,
        nlist=codebook.nlist,
        pq_m=codebook.pq_m,
        pq_bits=codebook.pq_bits,
        nprobe=codebook.nprobe,
        rescore_factor=codebook.rescore_factor,
        sample_count=codebook.sample_count,
        seed=codebook.seed,
        coding_error=codebook.coding_error,
    )
    problem = _header_problem(header) or _arrays_problem(codebook)
    assert not problem, problem
    centroids = array_bytes(codebook.centroids, "<f4")
    tables = array_bytes(codebook.pq, "<f4")
    return b"".join(
        [
            *frame_parts(Kind.CODEBOOK_HEADER, serialized(header), compress="none"),
            *frame_parts(Kind.CODEBOOK_CENTROIDS, centroids, compress="none"),
            *frame_parts(Kind.CODEBOOK_PQ, tables, compress="none"),
        ]
    )


def decode_codebook(data: Buffer) -> CodebookArrays:
    """Return a codebook. Its arrays are read-only views of the object's bytes.

    Raises:
        CorruptError: damaged, or made by a version that writes what this one cannot read.
    """
    kinds = [Kind.CODEBOOK_HEADER, Kind.CODEBOOK_CENTROIDS, Kind.CODEBOOK_PQ]
    head, centroids, tables = expect_frames(data, kinds, what=_WHAT)
    header = parse(storage_pb2.CodebookHeader(), head, what=_WHAT)
    problem = _header_problem(header)
    require(not problem, _WHAT, problem)
    pq_shape = (header.pq_m, 2**header.pq_bits, header.dim // header.pq_m)
    codebook = CodebookArrays(
        dim=header.dim,
        nlist=header.nlist,
        pq_m=header.pq_m,
        pq_bits=header.pq_bits,
        nprobe=header.nprobe,
        rescore_factor=header.rescore_factor,
        centroids=array_from(centroids, "<f4", (header.nlist, header.dim), what=_WHAT),
        pq=array_from(tables, "<f4", pq_shape, what=_WHAT),
        sample_count=header.sample_count,
        seed=header.seed,
        coding_error=header.coding_error,
    )
    problem = _arrays_problem(codebook)
    require(not problem, _WHAT, problem)
    return codebook


def _header_problem(header: storage_pb2.CodebookHeader) -> str:
    """Say what is wrong with the numbers; empty when nothing is."""
    if not 1 <= header.dim <= limits.DIM_MAX:
        return f"dim={header.dim}"
    if not 1 <= header.nprobe <= header.nlist:
        return f"nprobe={header.nprobe} nlist={header.nlist}"
    if header.pq_m < 1 or header.dim % header.pq_m:
        return f"pq_m={header.pq_m} does not divide dim={header.dim}"
    if not 1 <= header.pq_bits <= _PQ_BITS_MAX:
        return f"pq_bits={header.pq_bits}"
    return _measures_problem(header)


def _measures_problem(header: storage_pb2.CodebookHeader) -> str:
    """Say what is wrong with what was measured at training."""
    if header.rescore_factor < 1 or header.sample_count < 0:
        return f"rescore_factor={header.rescore_factor} sample_count={header.sample_count}"
    # Not a number is not in between either.
    return "" if 0 <= header.coding_error <= 2 else f"coding_error={header.coding_error}"


def _arrays_problem(codebook: CodebookArrays) -> str:
    """Say what is wrong with the arrays; empty when nothing is."""
    if codebook.centroids.shape != (codebook.nlist, codebook.dim):
        return f"centroids have another shape shape={codebook.centroids.shape}"
    pq_shape = (codebook.pq_m, 2**codebook.pq_bits, codebook.dim // codebook.pq_m)
    if codebook.pq.shape != pq_shape:
        return f"tables have another shape shape={codebook.pq.shape}"
    if not (np.isfinite(codebook.centroids).all() and np.isfinite(codebook.pq).all()):
        return "a component is not finite"
    return ""
