"""The compiled part of rescoring answers what NumPy answers, to the last bit."""

import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facegrid import vectors
from indexd.ann import rescore
from indexd.ann.native.library import PROBES_KEPT_MAX, Library, Limits
from indexd.ann.rows import CHUNK_ROWS, Rows

pytestmark = pytest.mark.skipif(
    rescore.NATIVE is None, reason="not compiled: there was no C compiler at installation"
)


def native() -> Library:
    assert rescore.NATIVE is not None
    return rescore.NATIVE


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Rows, vectors.Probes, np.ndarray[Any, Any], Limits]:
    """Few rows of few subjects that look much alike, so that scores tie and subjects crowd."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dim = draw(st.sampled_from((8, 12, 64, 100, 512, 1024)))
    count = draw(st.integers(1, 60))
    kinds = rng.standard_normal((draw(st.integers(1, 6)), dim), dtype=np.float32)
    x = kinds[rng.integers(0, len(kinds), count)]
    x[rng.random(count) < 0.5] *= -1
    if draw(st.booleans()):
        x = x + rng.standard_normal(x.shape, dtype=np.float32) * np.float32(0.2)
    bits = draw(st.sampled_from(vectors.COMPONENT_BITS_KNOWN))
    rows = Rows(dim, bits)
    subjects = rng.integers(0, draw(st.integers(1, 40)), count).astype(np.int32)
    rows.append(vectors.quantize(x, bits), subjects)
    rows.erase(np.flatnonzero(rng.random(count) < draw(st.sampled_from((0.0, 0.3, 1.0)))))
    probes_count = draw(st.integers(1, 5))
    picked = kinds[rng.integers(0, len(kinds), probes_count)]
    probes = vectors.prepare_probes(picked + rng.standard_normal(picked.shape, dtype=np.float32))
    width = draw(st.integers(0, count))
    candidates = np.stack([rng.permutation(count)[:width] for _ in range(probes_count)])
    candidates[rng.random(candidates.shape) < 0.2] = -1
    limits = Limits(
        k=draw(st.integers(1, 12)),
        threshold=draw(st.sampled_from((-2.0, 0.0, 0.3, 2.0))),
        tail_first=draw(st.integers(0, count)),
        whole=rng.random((2, probes_count)) < 0.5,
    )
    return rows, probes, candidates.astype(np.int64), limits


@given(worlds())
def test_keys_are_the_same(
    world: tuple[Rows, vectors.Probes, np.ndarray[Any, Any], Limits],
) -> None:
    rows, probes, candidates, _ = world
    ours = rescore.keys_of(rows, probes, candidates, native=native())
    assert (ours == rescore.keys_of(rows, probes, candidates, native=None)).all()


@given(worlds())
def test_the_best_are_the_same(
    world: tuple[Rows, vectors.Probes, np.ndarray[Any, Any], Limits],
) -> None:
    rows, probes, candidates, limits = world
    ours = rescore.best(rows, probes, candidates, limits, native=native())
    numpys = rescore.best(rows, probes, candidates, limits, native=None)
    entries = np.arange(limits.k) < numpys.counts[:, None]
    assert (ours.counts == numpys.counts).all()
    assert (ours.done == numpys.done).all()
    assert (ours.rows[entries] == numpys.rows[entries]).all()
    assert (ours.scores[entries].view(np.int32) == numpys.scores[entries].view(np.int32)).all()


@pytest.mark.parametrize("bits", vectors.COMPONENT_BITS_KNOWN)
def test_the_largest_products_do_not_overflow(bits: int) -> None:
    dim = 1024
    rows = Rows(dim, bits)
    rows.append(np.full((2, dim), 127, np.int8) * np.array([[1], [-1]], np.int8), np.arange(2))
    probes = vectors.prepare_probes(np.ones((1, dim), np.float32))
    candidates = np.array([[0, 1]])
    limits = Limits(2, -2.0, 2, np.ones((2, 1), np.bool_))
    best = rescore.best(rows, probes, candidates, limits, native=native())
    assert best.scores.tolist() == [[1.0, -1.0]]


@pytest.mark.parametrize("bits", vectors.COMPONENT_BITS_KNOWN)
def test_rows_of_several_chunks_are_found(bits: int) -> None:
    rows = Rows(8, bits)
    rng = np.random.default_rng(5)
    codes = vectors.quantize(rng.standard_normal((1000, 8), dtype=np.float32), bits)
    # Space that nothing touches costs nothing: rows on both sides of a chunk's end.
    rows.stage(CHUNK_ROWS - 500, codes, np.arange(1000, dtype=np.int32), np.zeros(1000, np.bool_))
    rows.publish(CHUNK_ROWS + 500)
    candidates = np.arange(CHUNK_ROWS - 500, CHUNK_ROWS + 500)[None, :]
    probes = vectors.prepare_probes(rng.standard_normal((1, 8), dtype=np.float32))
    ours = rescore.keys_of(rows, probes, candidates, native=native())
    assert (ours == rescore.keys_of(rows, probes, candidates, native=None)).all()


@pytest.mark.parametrize("more", [0, 1])
def test_many_probes_are_let_go_of_with_their_search(more: int) -> None:
    count = PROBES_KEPT_MAX + more
    rng = np.random.default_rng(6)
    rows = Rows(8)
    rows.append(vectors.quantize(rng.standard_normal((4, 8), dtype=np.float32)), np.arange(4))
    probes = vectors.prepare_probes(rng.standard_normal((count, 8), dtype=np.float32))
    held_until_gone = weakref.ref(probes.high)

    rescore.keys_of(rows, probes, np.zeros((count, 1), np.int64), native=native())
    del probes

    assert (held_until_gone() is None) == bool(more)
