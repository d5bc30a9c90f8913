"""Proves at start-up that this build of faiss keeps erased rows away.

Some builds accept a selector of rows and ignore it, silently. Erased templates would come back, so
a node that cannot prove the opposite does not start.
"""

import numpy as np

from facegrid import vectors
from facegrid.errors import FacegridError
from indexd.ann.codebook import Codebook
from indexd.ann.index import ShardIndex

DIM = 8
ROWS = 64


def self_test() -> None:
    """Erase a row of a small trained index and search for it.

    Raises:
        FacegridError: the row was found (SELECTOR_IGNORED).
    """
    rng = np.random.default_rng(1)
    codes = vectors.quantize(rng.normal(size=(ROWS, DIM)).astype(np.float32))
    codebook = Codebook(
        dim=DIM,
        nlist=1,
        pq_m=DIM // 4,
        pq_bits=4,
        nprobe=1,
        rescore_factor=1,
        centroids=np.zeros((1, DIM), np.float32),
        pq=rng.normal(size=(DIM // 4, 16, 4)).astype(np.float32),
        sample_count=ROWS,
        seed=1,
    )
    index = ShardIndex(DIM)
    index.append(codes, np.arange(ROWS, dtype=np.int32))
    index.swap(index.rebuilt(codebook))
    index.erase(np.array([7], np.int64))
    probes = vectors.prepare_probes(vectors.dequantize(codes[7:8]))
    found = index.search(probes, ROWS, -2.0).rows
    if 7 in found or len(found) != ROWS - 1:
        raise FacegridError(
            "this build of faiss ignores which rows are erased; the node does not start",
            reason="SELECTOR_IGNORED",
        )
