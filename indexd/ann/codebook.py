"""What training yields: coarse centroids, PQ tables and the measured search settings."""

from dataclasses import dataclass

from facegrid.vectors import Float32


@dataclass(frozen=True, slots=True, eq=False)
class Codebook:
    """How rows are coded and searched; shared by all shards of a gallery.

    Attributes:
        dim: components of a vector.
        nlist: inverted lists.
        pq_m: sub-quantizers, of `pq_bits` bits each.
        pq_bits: always 4, what FastScan needs.
        nprobe: lists probed, as measured when it was trained.
        rescore_factor: rows rescored per wanted candidate, as measured.
        centroids: float32 [nlist, dim].
        pq: float32 [pq_m, 16, dim / pq_m].
        sample_count: rows it was trained on.
        seed: of the training.
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
