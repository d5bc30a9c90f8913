"""Proves at start-up that this build of faiss keeps erased rows away.

Some builds accept a selector of rows and ignore it, silently. Erased templates would come back, so
a node that cannot prove the opposite does not start.
"""

import numpy as np

from facegrid import vectors
from facegrid.errors import FacegridError
from indexd.ann.codebook import Codebook
from indexd.ann.ivfpq import IvfPq

DIM = 8
ROWS = 64
ERASED = 7


def self_test() -> None:
    """Search a small trained index for a row that is masked.

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
    coded = IvfPq(codebook)
    coded.add(coded.encode(vectors.dequantize(codes)))
    live = np.packbits(np.arange(ROWS) != ERASED, bitorder="little")
    probes = vectors.prepare_probes(vectors.dequantize(codes[ERASED : ERASED + 1]))
    found = coded.search(probes, ROWS, nprobe=1, live=live)
    found = found[found >= 0]
    if ERASED in found or len(found) != ROWS - 1:
        raise FacegridError(
            "this build of faiss ignores which rows are erased; the node does not start",
            reason="SELECTOR_IGNORED",
        )
