"""Training a codebook, and measuring how it must be searched.

How many lists to look into and how many rows to rescore are not constants: both follow from what
share of mates a search would miss. Training has no mated pairs, so it makes pseudo-mates: a
held-out row of the sample plus noise of the sample's own covariance, at the cosines that mates
really have. A miss counts when the row would have been at rank 1 by its exact score.

Faces are hard for IVF: vectors of different people are nearly orthogonal, so a mate often lies in
none of the nearest lists. Then a codebook gets few long lists, all of which are searched.
"""

from dataclasses import dataclass, replace
from typing import Any, Final

import faiss
import numpy as np

from facegrid import limits, vectors
from facegrid.errors import InvalidError
from facegrid.tuning import FAST_FACTOR
from facegrid.vectors import Float32, Int8, Int64
from indexd.ann import rescore
from indexd.ann.codebook import PQ_BITS, PQ_STEP, WANTED_TYPICAL, Codebook
from indexd.ann.coding import coding_error
from indexd.ann.ivfpq import IvfPq, add_rows
from indexd.ann.miss_rate import miss_rate_bound
from indexd.ann.pseudo import NOISE_ROWS, mated_cosines, pseudo_probes
from indexd.ann.rows import Bool, Rows
from indexd.ann.threads import set_threads

MISS_RATE_MAX: Final = 1e-3
"""Share of mates that the index may miss."""
LEARNT_ROWS_MAX: Final = 65_536
"""Rows that centroids and PQ tables are learnt from; more changed nothing measurable."""
TRIAL_ROWS_MAX: Final = 131_072
"""Rows of the index that the settings are measured on."""
PROBES_COUNT_MAX: Final = 8192
"""Pseudo-mates: 0 to 3 misses among so many allow the claim."""
RIVALS: Final = 32
"""Rows best by their codes whose exact scores tell whether a mate is at rank 1."""

FULL_NLIST: Final = 4
"""Lists when all are searched: one probe's scan is spread over threads by list."""
LIST_ROWS_MIN: Final = 4096
"""Rows per list of a shard when lists are skipped: FastScan is slow on short ones."""
PRUNED_NLIST_MIN: Final = 16
PRUNED_SHARE_MAX: Final = 0.5
"""Skipping lists must save the fast profile at least half. Else there are few: long lists cost a
search nothing, but each costs every row that is coded a comparison.
"""
LEARNT_ROWS_PER_LIST_MIN: Final = 32
"""A centroid learnt from fewer rows says little."""
LIST_ROWS_GROWTH: Final = 64
"""Lists so many times longer than need be, in all shards together, are worth training anew."""
DEPTH_DEFAULT: Final = 128
"""Rows to rescore when there are too few rows to measure."""
DEPTHS: Final = (16, 32, 64, 128, 256, 512, 1024)
NEVER: Final = 1 << 30
"""Lists to look into when no number of them proves the miss rate."""
GROWTH: Final = 8
"""A gallery may grow so much beyond the trial before its depth should be measured again: the rows
ahead of a mate by their codes grow with the gallery."""
ITERATIONS: Final = 10


@dataclass(frozen=True, slots=True)
class Mates:
    """Pseudo-mates.

    Attributes:
        probes: the probes.
        rows: int64 [m], the row of the trial that each one belongs to.
    """

    probes: vectors.Probes
    rows: Int64


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the rows of pseudo-mates stand among all rows of the trial.

    Attributes:
        places: int64 [m], rows ahead of the mate's by their codes; DEPTHS[-1] stands for many.
        outranked: bool [m], another row has a higher exact score: exact search misses it as well.
    """

    places: Int64
    outranked: Bool

    def misses(self, depth: int) -> Bool:
        """Tell, bool [m], which mates rescoring `depth` rows would miss."""
        missed: Bool = (self.places * GROWTH >= depth) & ~self.outranked
        return missed


def train(sample: Int8, *, seed: int, threads: int, shard_rows: int = 0) -> Codebook:
    """Return a codebook learnt from stored rows, int8 [n, dim]. The same input gives the same.

    Args:
        sample: rows of the whole gallery.
        seed: of the choice of rows and of k-means.
        threads: for k-means.
        shard_rows: rows of the gallery's largest shard, which the number of lists follows; 0: as
            many as the sample has.

    Raises:
        InvalidError: there are too few rows (TRAIN_ROWS).
    """
    if len(sample) < limits.TRAIN_ROWS_MIN:
        raise InvalidError(
            f"too few rows to train on rows={len(sample)} rows_min={limits.TRAIN_ROWS_MIN}",
            reason="TRAIN_ROWS",
            limit=limits.TRAIN_ROWS_MIN,
        )
    set_threads(threads)
    rng = np.random.default_rng(seed)
    shuffled = sample[rng.permutation(len(sample))[:TRIAL_ROWS_MAX]]
    # Held-out rows come first and are not learnt from, but are in the trial like any other row.
    held_count = min(len(shuffled) // 2, PROBES_COUNT_MAX)
    learnt = vectors.dequantize(shuffled[held_count:][:LEARNT_ROWS_MAX])
    full = replace(_learn(learnt, nlist=FULL_NLIST, seed=seed), sample_count=len(sample))
    # Rows that it was learnt from are coded better than others, the more so the fewer they are.
    full = replace(full, coding_error=coding_error(full, shuffled[:held_count]))
    mates = _pseudo_mates(shuffled, held_count, rng)
    standing = _standing(full, shuffled, mates)
    depth = _depth(standing)
    full = replace(full, rescore_factor=-(-depth // WANTED_TYPICAL))
    nlist = pruned_nlist(shard_rows or len(shuffled), learnt_count=len(learnt))
    if not nlist:
        return full
    centroids = _centroids(learnt, nlist, seed)
    missed = standing.misses(depth)
    places = _list_places(centroids, mates, shuffled)
    fast = _nprobe(places, missed, standing.outranked, allowed=FAST_FACTOR * MISS_RATE_MAX)
    if fast > PRUNED_SHARE_MAX * nlist:
        return full
    nprobe = _nprobe(places, missed, standing.outranked, allowed=MISS_RATE_MAX)
    return replace(full, nlist=nlist, nprobe=min(nprobe, nlist), centroids=centroids)


def pruned_nlist(shard_rows: int, *, learnt_count: int) -> int:
    """Return the number of lists for a shard of so many rows, if lists are to be skipped.

    The greatest power of two that leaves the lists long enough and that the sample can teach; 0
    where that is too few to be worth it.
    """
    most = min(shard_rows // LIST_ROWS_MIN, learnt_count // LEARNT_ROWS_PER_LIST_MIN)
    nlist = (1 << most.bit_length()) // 2
    return nlist if nlist >= PRUNED_NLIST_MIN else 0


def lists_fit(nlist: int, templates_count: int) -> bool:
    """Tell whether so many lists still suit a gallery of that size, whatever its shards."""
    return templates_count <= LIST_ROWS_GROWTH * LIST_ROWS_MIN * max(nlist, PRUNED_NLIST_MIN)


def _proven(misses: int, trials: int, allowed: float = MISS_RATE_MAX) -> bool:
    """Tell whether the miss rate is no more than allowed."""
    # Most often it plainly is not, and the bound takes a while for many misses.
    return misses <= allowed * trials and miss_rate_bound(misses, trials) <= allowed


def _learn(x: Float32, *, nlist: int, seed: int) -> Codebook:
    """Return centroids and PQ tables of unit vectors, float32 [n, dim]; settings still open."""
    dim = x.shape[1]
    pq_m = dim // PQ_STEP
    pq = faiss.ProductQuantizer(dim, pq_m, PQ_BITS)
    pq.cp.seed = seed % 2**31
    pq.cp.niter = ITERATIONS
    pq.cp.max_points_per_centroid = 1024
    # Hundreds of small problems: threads would wait for each other most of the time, and for
    # seconds where other processes want the cores.
    threads = faiss.omp_get_max_threads()
    set_threads(1)
    pq.train(x)
    set_threads(threads)
    tables = faiss.vector_to_array(pq.centroids).reshape(pq_m, 1 << PQ_BITS, PQ_STEP)
    return Codebook(
        dim=dim,
        nlist=nlist,
        pq_m=pq_m,
        pq_bits=PQ_BITS,
        nprobe=nlist,
        rescore_factor=-(-DEPTH_DEFAULT // WANTED_TYPICAL),
        centroids=_centroids(x, nlist, seed),
        pq=tables.copy(),
        sample_count=len(x),
        seed=seed,
    )


def _centroids(x: Float32, nlist: int, seed: int) -> Float32:
    """Return centroids on the unit sphere, float32 [nlist, dim]."""
    kmeans: Any = faiss.Kmeans(
        x.shape[1], nlist, niter=ITERATIONS, seed=seed % 2**31, spherical=True, gpu=False
    )
    kmeans.cp.max_points_per_centroid = max(256, 16_384 // nlist)
    kmeans.train(x)
    centroids: Float32 = kmeans.centroids
    return centroids


def _pseudo_mates(trial: Int8, count: int, rng: np.random.Generator) -> Mates:
    """Return probes made from rows 0 to count - 1 of the trial."""
    picked = rng.choice(len(trial), min(NOISE_ROWS, len(trial)), replace=False)
    cosines = mated_cosines(count, rng)
    return Mates(pseudo_probes(trial[:count], trial[picked], cosines, rng), np.arange(count))


def _standing(codebook: Codebook, trial: Int8, mates: Mates) -> Standing:
    """Return where pseudo-mates' rows stand when all of the trial is scanned."""
    rows = Rows(codebook.dim)
    rows.append(trial, np.zeros(len(trial), np.int32))
    coded = IvfPq(codebook)
    add_rows(coded, rows, len(trial))
    # Further down the trial, a mate would be out of reach in the grown gallery anyway.
    wanted = min(DEPTHS[-1] // GROWTH, len(trial))
    found = coded.search(mates.probes, wanted, nprobe=codebook.nlist, live=None)
    own = found == mates.rows[:, None]
    places = np.where(own.any(axis=1), own.argmax(axis=1), DEPTHS[-1])
    rivals = np.concatenate([found[:, :RIVALS], mates.rows[:, None]], axis=1)
    ranked = rescore.rank(rows, mates.probes, rivals)
    return Standing(places=places, outranked=ranked.rows[:, 0] != mates.rows)


def _depth(standing: Standing) -> int:
    """Return the least depth whose miss rate is proven; with too few probes, a safe one."""
    for depth in DEPTHS:
        misses = int(np.count_nonzero(standing.misses(depth)))
        if _proven(misses, len(standing.places)) or (misses == 0 and depth >= DEPTH_DEFAULT):
            return depth
    return DEPTHS[-1]


def _list_places(centroids: Float32, mates: Mates, trial: Int8) -> Int64:
    """Return how many lists come before the one that holds the mate, int64 [m]."""
    own = np.argmax(vectors.dequantize(trial[mates.rows]) @ centroids.T, axis=1)
    likeness = mates.probes.unit @ centroids.T
    places: Int64 = np.count_nonzero(likeness > likeness[np.arange(len(own)), own, None], axis=1)
    return places


def _nprobe(places: Int64, missed: Bool, outranked: Bool, *, allowed: float) -> int:
    """Return the least number of lists whose miss rate, with the other misses, is proven.

    More than there are when none is.
    """
    for nprobe in range(1, int(places.max()) + 2):
        misses = int(np.count_nonzero(missed | ((places >= nprobe) & ~outranked)))
        if _proven(misses, len(places), allowed):
            return nprobe
    return NEVER
