"""What a node tries on itself before it serves: does this build of faiss keep its promises?

An engine that ignores the mask would bring erased templates back, and a change of the code layout
would answer nonsense, both without any error. So each is tried once, on rows made up here.
"""

import numpy as np

from facegrid import vectors
from facegrid.errors import FacegridError
from facegrid.vectors import Float32
from indexd.ann import rescore
from indexd.ann.codebook import PQ_BITS, PQ_STEP, Codebook
from indexd.ann.index import ShardIndex
from indexd.ann.ivfpq import EncodedRows, IvfPq
from indexd.ann.native.library import Limits

_DIM = 32
_ROWS = 300
_NLIST = 3
_SEED = 7
_ALL = -2.0
_CANDIDATES = 20
_K = 5


def self_test() -> None:
    """Try the engine on a few rows.

    Raises:
        FacegridError: rows do not come back as coded, or what is compiled scores otherwise
            (ENGINE_UNFIT), or rows come back though erased (SELECTOR_IGNORED).
    """
    rng = np.random.default_rng(_SEED)
    x = rng.standard_normal((_ROWS, _DIM), dtype=np.float32)
    codebook = _made_up_codebook(rng)
    probes = vectors.prepare_probes(x)
    _expect_same_layout(codebook, probes.unit)
    for bits in vectors.COMPONENT_BITS_KNOWN:
        _try(x, probes, codebook, bits)


def _try(x: Float32, probes: vectors.Probes, codebook: Codebook, bits: int) -> None:
    index = ShardIndex(_DIM, bits)
    index.append(vectors.quantize(x, bits), np.arange(_ROWS, dtype=np.int32))
    index.swap(index.rebuilt(codebook))
    own = np.arange(_ROWS)
    if not (index.search(probes, 1, _ALL).rows == own).all():
        raise FacegridError("faiss does not find rows that are there", reason="ENGINE_UNFIT")
    erased = own[::3]
    index.erase(erased)
    # Straight from faiss, without the mask that is applied again afterwards.
    expect_masked(index, probes, erased)
    _expect_same_answers(index, probes)


def expect_masked(index: ShardIndex, probes: vectors.Probes, erased: vectors.Int64) -> None:
    """Raise FacegridError (SELECTOR_IGNORED) unless the scan finds all rows but the erased."""
    found = index.scanned(probes, wanted=index.rows_count)
    counts = np.count_nonzero(found >= 0, axis=1)
    if np.isin(found, erased).any() or (counts != index.rows_count - len(erased)).any():
        raise FacegridError(
            "this build of faiss ignores which rows are erased", reason="SELECTOR_IGNORED"
        )


def _expect_same_answers(index: ShardIndex, probes: vectors.Probes) -> None:
    """Raise FacegridError (ENGINE_UNFIT) unless what is compiled answers as NumPy does."""
    if rescore.NATIVE is None:
        return
    rng = np.random.default_rng(_SEED)
    candidates = rng.integers(-1, _ROWS, (len(probes), _CANDIDATES))
    whole = np.ones((2, len(probes)), np.bool_)
    limits = Limits(k=_K, threshold=0.0, tail_first=_ROWS, whole=whole)
    ours = rescore.best(index.rows, probes, candidates, limits)
    numpys = rescore.best(index.rows, probes, candidates, limits, native=None)
    entries = np.arange(_K) < numpys.counts[:, None]
    same = (ours.counts == numpys.counts).all() and (
        ours.rows[entries] == numpys.rows[entries]
    ).all()
    if not same or not (ours.scores[entries] == numpys.scores[entries]).all():
        raise FacegridError("what was compiled scores in another way", reason="ENGINE_UNFIT")


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
