"""What a node tries on itself before it serves: does this build of faiss keep its promises?

An engine that ignores the mask would bring erased templates back, and a change of the code layout
would answer nonsense, both without any error. So each is tried once, on rows made up here.
"""

import numpy as np

from facegrid import vectors
from facegrid.errors import FacegridError
from indexd.ann.codebook import PQ_BITS, PQ_STEP, Codebook
from indexd.ann.index import ShardIndex
from indexd.ann.ivfpq import EncodedRows, IvfPq

_DIM = 32
_ROWS = 300
_NLIST = 3
_SEED = 7
_ALL = -2.0


def self_test() -> None:
    """Try the engine on a few rows.

    Raises:
        FacegridError: rows do not come back as coded (ENGINE_UNFIT), or come back though erased
            (SELECTOR_IGNORED).
    """
    rng = np.random.default_rng(_SEED)
    x = rng.standard_normal((_ROWS, _DIM), dtype=np.float32)
    codebook = _made_up_codebook(rng)
    index = ShardIndex(_DIM)
    index.append(vectors.quantize(x), np.arange(_ROWS, dtype=np.int32))
    index.swap(index.rebuilt(codebook))
    probes = vectors.prepare_probes(x)
    _expect_same_layout(codebook, probes.unit)
    own = np.arange(_ROWS)
    if not (index.search(probes, 1, _ALL).rows == own).all():
        raise FacegridError("faiss does not find rows that are there", reason="ENGINE_UNFIT")
    erased = own[::3]
    index.erase(erased)
    # Straight from faiss, without the mask that is applied again afterwards.
    expect_masked(index, probes, erased)


def expect_masked(index: ShardIndex, probes: vectors.Probes, erased: vectors.Int64) -> None:
    """Raise FacegridError (SELECTOR_IGNORED) unless the scan finds all rows but the erased."""
    found = index.scanned(probes, wanted=index.rows_count)
    counts = np.count_nonzero(found >= 0, axis=1)
    if np.isin(found, erased).any() or (counts != index.rows_count - len(erased)).any():
        raise FacegridError(
            "this build of faiss ignores which rows are erased", reason="SELECTOR_IGNORED"
        )


def _made_up_codebook(rng: np.random.Generator) -> Codebook:
    """Return a codebook that nobody trained; good enough to tell rows apart."""
    pq_m = _DIM // PQ_STEP
    return Codebook(
        dim=_DIM,
        nlist=_NLIST,
        pq_m=pq_m,
        pq_bits=PQ_BITS,
        nprobe=_NLIST,
        rescore_factor=_ROWS,
        centroids=rng.standard_normal((_NLIST, _DIM), dtype=np.float32),
        pq=rng.standard_normal((pq_m, 1 << PQ_BITS, PQ_STEP), dtype=np.float32),
        sample_count=0,
        seed=_SEED,
    )


def _expect_same_layout(codebook: Codebook, x: vectors.Float32) -> None:
    """Raise FacegridError (ENGINE_UNFIT) unless our packing of codes is faiss's own."""
    ours, theirs = IvfPq(codebook), IvfPq(codebook)
    encoded = ours.encode(x)
    # In unequal steps, so that blocks of 32 rows are filled up across them.
    for part in (slice(0, 101), slice(101, len(x))):
        ours.add(EncodedRows(encoded.lists[part], encoded.codes[part]))
    theirs.add_through_faiss(x)
    a, b = ours.encoded(0, len(x)), theirs.encoded(0, len(x))
    same = (a.lists == b.lists).all() and (a.codes == b.codes).all()
    if not same or not (a.codes == encoded.codes).all():
        raise FacegridError("faiss lays out codes in another way", reason="ENGINE_UNFIT")
