"""How well a codebook's codes stand for rows: what drift is measured by."""

from typing import Any

import faiss
import numpy as np

from facegrid import vectors
from facegrid.vectors import Int8
from indexd.ann.codebook import Codebook


def coding_error(codebook: Codebook, rows: Int8) -> float:
    """Return the mean of 1 - cosine between stored rows, int8 [n, dim], and what their codes say.

    At least one row. Lists do not matter: codes are of whole rows, not of what is left after a
    centroid is taken off.
    """
    assert len(rows), "no rows have no mean"
    # faiss has no types worth the name: Any at its edge.
    pq: Any = faiss.ProductQuantizer(codebook.dim, codebook.pq_m, codebook.pq_bits)
    faiss.copy_array_to_vector(codebook.pq.reshape(-1), pq.centroids)
    x = vectors.dequantize(rows)
    decoded = pq.decode(pq.compute_codes(x))
    norms = np.linalg.norm(decoded, axis=1)
    cosines = np.einsum("ij,ij->i", x, decoded) / np.maximum(norms, np.finfo(np.float32).tiny)
    return float(np.mean(1.0 - cosines.astype(np.float64)))
