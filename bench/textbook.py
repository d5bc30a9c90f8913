"""What one would take from the textbook: inverted lists with 8-bit PQ codes, or whole vectors.

No codes made for FastScan and nothing rescored. As many lists as is usual for the size: four
times its square root.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import faiss
import numpy as np

from facegrid.vectors import Float32, Int64

PQ_M: Final = 64
PQ_BITS: Final = 8
LEARNT_ROWS_MAX: Final = 65_536
ITERATIONS: Final = 10
"""As facegrid's own training."""


class Textbook:
    """A trained and filled index of faiss.

    Args:
        index: of the kind wanted, untrained, with inverted lists.
        x: unit vectors, float32 [n, dim].
        seed: of what is learnt.
    """

    def __init__(self, index: Any, x: Float32, seed: int) -> None:
        self._index = index
        rng = np.random.default_rng(seed)
        index.cp.niter = ITERATIONS
        index.train(x[rng.permutation(len(x))[:LEARNT_ROWS_MAX]])
        index.add(x)

    @property
    def nlist(self) -> int:
        """Lists that there are."""
        return int(self._index.nlist)

    def search(self, probes: Float32, k: int, nprobe: int) -> Int64:
        """Return the best rows found in the nearest lists, int64 [m, k]; -1 for none."""
        parameters = faiss.SearchParametersIVF()
        parameters.nprobe = nprobe
        found: Int64 = self._index.search(probes, k, params=parameters)[1]
        return found


def nlist_of(rows_count: int) -> int:
    """Return how many lists are usual for so many rows."""
    return max(1, 4 * math.isqrt(rows_count))


def ivf_pq(x: Float32, seed: int) -> Textbook:
    """Return IVFx,PQ64."""
    dim, metric = x.shape[1], faiss.METRIC_INNER_PRODUCT
    coarse = faiss.IndexFlatIP(dim)
    index = faiss.IndexIVFPQ(coarse, dim, nlist_of(len(x)), PQ_M, PQ_BITS, metric)
    return Textbook(index, x, seed)


def ivf_flat(x: Float32, seed: int) -> Textbook:
    """Return IVFx,Flat."""
    dim = x.shape[1]
    coarse = faiss.IndexFlatIP(dim)
    index = faiss.IndexIVFFlat(coarse, dim, nlist_of(len(x)), faiss.METRIC_INNER_PRODUCT)
    return Textbook(index, x, seed)


@dataclass(frozen=True, slots=True)
class Setting:
    """How many lists a peer looks into, what it misses then, and whether that is as little as was
    demanded of it. Where it is not, all lists were not enough.
    """

    nprobe: int
    extra_fnir: float
    reached: bool


def least(nlist: int, extra_fnir: Callable[[int], float], *, extra_fnir_max: float) -> Setting:
    """Return the fewest lists, by powers of two, that miss no more than allowed."""
    nprobe = 1
    while True:
        missed = extra_fnir(nprobe)
        if missed <= extra_fnir_max or nprobe == nlist:
            return Setting(nprobe, missed, missed <= extra_fnir_max)
        nprobe = min(2 * nprobe, nlist)
