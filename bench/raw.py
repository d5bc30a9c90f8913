"""The yardstick: faiss alone, in one process, with the same codebook on the same rows.

No ids, no erasures, no best template per subject, no network: what is left of a search when
everything that makes it a service is taken away.
"""

from typing import Any

import faiss
import numpy as np

from facegrid import vectors
from facegrid.format.codebook import CodebookArrays
from facegrid.vectors import Float32, Int8, Int64
from indexd.ann.codebook import WANTED_TYPICAL
from indexd.ann.effort import rows_to_rescore


class RawFaiss:
    """IndexIVFPQFastScan with the gallery's own tables, and int8 rescoring by faiss.

    Args:
        codebook: what the gallery was trained to.
        codes: int8 [n, dim], the stored rows.
    """

    def __init__(self, codebook: CodebookArrays, codes: Int8) -> None:
        self._codebook = codebook
        x = vectors.dequantize(codes)
        # faiss has no types worth the name: Any at its edge.
        self._coarse: Any = faiss.IndexFlatIP(codebook.dim)
        self._coarse.add(np.ascontiguousarray(codebook.centroids))
        self._scan: Any = faiss.IndexIVFPQFastScan(
            self._coarse,
            codebook.dim,
            codebook.nlist,
            codebook.pq_m,
            codebook.pq_bits,
            faiss.METRIC_INNER_PRODUCT,
        )
        self._scan.by_residual = False
        faiss.copy_array_to_vector(codebook.pq.reshape(-1), self._scan.pq.centroids)
        self._scan.is_trained = True
        self._scan.nprobe = codebook.nprobe
        self._scan.add(x)
        self._rows: Any = faiss.IndexScalarQuantizer(
            codebook.dim, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
        )
        self._rows.train(x)
        self._rows.add(x)
        self._rescored: Any = faiss.IndexRefine(self._scan, self._rows)

    def _depth(self, k: int) -> int:
        return rows_to_rescore(self._codebook.rescore_factor * WANTED_TYPICAL, k)

    def scan(self, probes: Float32, k: int) -> Int64:
        """Return rows best by their codes, as many as a rescored search of k looks at."""
        found: Int64 = self._scan.search(probes, self._depth(k))[1]
        return found

    def search(self, probes: Float32, k: int) -> Int64:
        """Return the best rows after rescoring, int64 [m, k]."""
        self._rescored.k_factor = self._depth(k) / k
        found: Int64 = self._rescored.search(probes, k)[1]
        return found


class Kernel:
    """FastScan over the same codes as one list: as fast as its instructions allow.

    Args:
        codebook: what the gallery was trained to.
        codes: int8 [n, dim], the stored rows.
    """

    def __init__(self, codebook: CodebookArrays, codes: Int8) -> None:
        self._depth = codebook.rescore_factor * WANTED_TYPICAL
        self._index: Any = faiss.IndexPQFastScan(
            codebook.dim, codebook.pq_m, codebook.pq_bits, faiss.METRIC_INNER_PRODUCT
        )
        faiss.copy_array_to_vector(codebook.pq.reshape(-1), self._index.pq.centroids)
        self._index.is_trained = True
        self._index.add(vectors.dequantize(codes))

    def search(self, probes: Float32, k: int) -> Int64:
        """Return as many rows as a rescored search of k looks at, best by their codes."""
        found: Int64 = self._index.search(probes, rows_to_rescore(self._depth, k))[1]
        return found


def use_threads(count: int) -> None:
    """Let faiss use that many threads for calls from this one."""
    faiss.omp_set_num_threads(count)
