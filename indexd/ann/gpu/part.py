"""The coded rows of one shard on a device. See `indexd.ann.looking.Part`."""

from typing import Any, Final

import numpy as np

from facegrid.vectors import Float32, Int64, Probes, UInt8
from indexd.ann.gpu.arrays import Arrays
from indexd.ann.gpu.scanner import WANTED_MAX, Scanners, Tables
from indexd.ann.ivfpq import Scanned
from indexd.ann.looking import Kernels

SPARE: Final = 16
"""Rows asked for beyond what erased ones are expected to take."""
LOWEST: Final = np.float32(np.finfo(np.float32).min)


class DevicePart:
    """Rows 0 to count - 1, coded.

    Args:
        arrays: of the device.
        scanners: make what searches codes.
        tables: what rows are coded with.
        kernels: look at the rows themselves, where more are wanted than codes can be searched for.
    """

    def __init__(
        self, arrays: Arrays, scanners: Scanners, tables: Tables, kernels: Kernels
    ) -> None:
        self._arrays = arrays
        self.scanner = scanners.scanner(tables)
        self._centroids = arrays.put(tables.centroids)
        self._kernels = kernels
        self.codebook = tables
        self.count = 0
        self.erased_count = 0
        """How many of them are erased, at most: so many more are fetched, in proportion."""
        self.sizes: Int64 = np.zeros(tables.nlist, np.int64)

    @property
    def nlist(self) -> int:
        """Lists."""
        return self.codebook.nlist

    @property
    def coarse(self) -> "DevicePart":
        """What tells the lists nearest to a probe."""
        return self

    def add(self, units: Any) -> None:
        """Code and add the next rows: unit vectors of the device, float32 [n, dim]."""
        lists = self._arrays.get(self._arrays.top(units @ self._centroids.T, 1)[1])
        self.scanner.add(units)
        self.sizes = self.sizes + np.bincount(lists.reshape(-1), minlength=self.nlist)
        self.count += len(units)

    def nearest(self, probes: Probes, nprobe: int) -> Int64:
        """Return the lists nearest to each probe, int64 [m, nprobe], to count their rows: faiss
        chooses by the same products, and takes nobody else's choice (cuVS has no such search).
        """
        if nprobe == self.nlist:
            return np.broadcast_to(np.arange(nprobe), (len(probes), nprobe))
        likeness = self._arrays.put(probes.unit) @ self._centroids.T
        lists: Int64 = self._arrays.get(self._arrays.top(likeness, nprobe)[1])
        return lists

    def rows_in(self, lists: Int64) -> Int64:
        """Return how many rows the lists of each probe hold, int64 [m]."""
        counts: Int64 = self.sizes[lists].sum(axis=1)
        return counts

    def scan(self, probes: Probes, lists: Int64, wanted: int, *, live: UInt8 | None) -> Scanned:
        """Return the rows of as many lists as there are columns that look best, erased ones left
        out: more are fetched until enough of them live, or there are no others.
        """
        wanted = min(wanted, self.count)
        fetched = wanted
        if live is not None:
            living = max(1, self.count - self.erased_count)
            fetched += wanted * self.erased_count // living + SPARE
        while True:
            fetched = min(fetched, self.count)
            if fetched > WANTED_MAX:
                return self._exactly(probes, wanted)
            rows, likeness = self.scanner.search(probes.unit, fetched, lists.shape[1])
            # Whatever a build puts where it found too few is no row.
            rows = np.where((rows >= 0) & (rows < self.count), rows, -1)
            ended = (rows < 0).any(axis=1) | (fetched == self.count)
            if live is not None:
                places = np.maximum(rows, 0)
                rows = np.where((live[places >> 3] >> (places & 7)) & 1, rows, -1)
            enough = np.count_nonzero(rows >= 0, axis=1) >= wanted
            if (enough | ended).all():
                return _first(rows, likeness, wanted)
            fetched *= 2

    def _exactly(self, probes: Probes, wanted: int) -> Scanned:
        """Return what looking at all rows finds: as good as any list can be, and as long."""
        rows = self._kernels.scan(0, self.count, probes=probes, wanted=wanted)
        return Scanned(rows, np.where(rows < 0, LOWEST, np.float32(0)))


def _first(rows: Int64, likeness: Float32, wanted: int) -> Scanned:
    """Return the first `wanted` rows of each probe, -1 behind them; they come best first."""
    order = np.argsort(rows < 0, axis=1, kind="stable")[:, :wanted]
    rows = np.take_along_axis(rows, order, axis=1)
    likeness = np.take_along_axis(likeness, order, axis=1)
    return Scanned(rows, np.where(rows < 0, LOWEST, likeness))
