"""Which lists of a codebook are nearest to a probe, once for all shards that share it.

The order is computed from integers, like scores (RFC 1): a probe's components have 15 bits, a
centroid's are rounded to 24, and float64 holds every sum of their products. In float32 the last
bits of a likeness depend on how many probes are multiplied at once: a probe could be looked for in
other lists alone than in company, and get another answer.
"""

from typing import Final

import numpy as np

from facegrid import limits
from facegrid.vectors import PROBE_MAX, PROBE_STEP, Float32, Float64, Int64, Probes

CENTROID_MAX: Final = 1 << 23
LIST_BITS: Final = 15
LISTS_MAX: Final = 1 << LIST_BITS
_LIST_MASK: Final = LISTS_MAX - 1

assert PROBE_MAX * CENTROID_MAX * limits.DIM_MAX << LIST_BITS < 1 << 63, "likeness and list fit"


class Coarse:
    """The centroids of a codebook, float32 [nlist, dim].

    Args:
        centroids: at least one, not all of them zero.
    """

    def __init__(self, centroids: Float32) -> None:
        assert len(centroids) <= LISTS_MAX, f"too many lists: {len(centroids)}"
        self.nlist = len(centroids)
        scale = CENTROID_MAX / float(np.abs(centroids).max())
        whole: Float64 = np.rint(centroids.astype(np.float64) * scale)
        self._columns = np.ascontiguousarray(whole.T)

    def nearest(self, probes: Probes, nprobe: int) -> Int64:
        """Return the `nprobe` lists most alike to each probe, int64 [m, nprobe], nearest first.

        Of equally alike lists the one with the lower number comes first.
        """
        assert 1 <= nprobe <= self.nlist, f"lists: {nprobe} of {self.nlist}"
        lists = np.arange(self.nlist)
        whole = probes.high.astype(np.float64) * PROBE_STEP + probes.low
        keys: Int64 = ((whole @ self._columns).astype(np.int64) * -LISTS_MAX) | lists
        if 2 * nprobe < self.nlist:
            keys = np.partition(keys, nprobe - 1, axis=1)[:, :nprobe]
        keys.sort(axis=1)
        nearest: Int64 = keys[:, :nprobe] & _LIST_MASK
        return nearest

    def every(self, probes_count: int) -> Int64:
        """Return all lists by number for so many probes, int64 [m, nlist]: for searches that look
        into all of them, whichever come first.
        """
        return np.broadcast_to(np.arange(self.nlist), (probes_count, self.nlist))
