"""The lists nearest to a probe: the same in any company, and those that faiss would choose."""

from dataclasses import replace

import faiss
import numpy as np
import pytest

from facegrid import vectors
from indexd.ann import self_test
from indexd.ann.coarse import Coarse
from indexd.ann.ivfpq import IvfPq

DIM = 32
NLIST = 40


def unit_rows(count: int, seed: int) -> vectors.Float32:
    x = np.random.default_rng(seed).standard_normal((count, DIM), dtype=np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("nprobe", [1, 7, 19, 20, 39, 40])
def test_the_most_alike_come_first(nprobe: int) -> None:
    probes, centroids = vectors.prepare_probes(unit_rows(50, 1)), unit_rows(NLIST, 2)

    nearest = Coarse(centroids).nearest(probes, nprobe)

    likeness = probes.unit.astype(np.float64) @ centroids.astype(np.float64).T
    expected = np.argsort(-likeness, axis=1, kind="stable")[:, :nprobe]
    np.testing.assert_array_equal(nearest, expected)


def test_of_equal_lists_the_lower_number_comes_first_for_every_batch() -> None:
    centroids = np.repeat(unit_rows(4, 3), 5, axis=0)
    probes = vectors.prepare_probes(unit_rows(64, 4))
    coarse = Coarse(centroids)

    together = coarse.nearest(probes, 7)

    alone = [coarse.nearest(probes.part(slice(i, i + 1)), 7)[0] for i in range(64)]
    np.testing.assert_array_equal(together, np.stack(alone))
    assert (np.diff(together[:, :5], axis=1) == 1).all()


def test_every_list_comes_by_number() -> None:
    assert Coarse(unit_rows(NLIST, 6)).every(3).tolist() == [[*range(NLIST)]] * 3


@pytest.mark.parametrize("wanted", [1, 10, 64])
@pytest.mark.parametrize("nprobe", [1, 5, NLIST])
def test_lists_chosen_before_give_what_faiss_finds_by_itself(wanted: int, nprobe: int) -> None:
    book = self_test._made_up_codebook(np.random.default_rng(1))
    coded = IvfPq(replace(book, nlist=NLIST, nprobe=1, centroids=unit_rows(NLIST, 7)))
    coded.add(coded.encode(unit_rows(3000, 8)))
    probes = vectors.prepare_probes(unit_rows(30, 9))
    live = np.packbits(np.random.default_rng(2).random(3000) < 0.5, bitorder="little")
    selector = faiss.IDSelectorBitmap(len(live), faiss.swig_ptr(live))
    parameters = faiss.SearchParametersIVF(nprobe=nprobe, sel=selector)

    found = coded.search(probes, wanted, nprobe=nprobe, live=live)

    own = coded._index.search(probes.unit, wanted, params=parameters)[1]
    np.testing.assert_array_equal(found, own)


def test_rows_of_lists_are_counted_and_no_list_holds_none() -> None:
    book = self_test._made_up_codebook(np.random.default_rng(1))
    coded = IvfPq(replace(book, nlist=NLIST, nprobe=1, centroids=unit_rows(NLIST, 7)))
    encoded = coded.encode(unit_rows(500, 8))
    coded.add(encoded)
    sizes = np.bincount(encoded.lists, minlength=NLIST)

    counts = coded.rows_in(np.array([[3, 4, -1], [-1, -1, -1], [0, 1, 2]]))

    assert counts.tolist() == [sizes[3] + sizes[4], 0, sizes[:3].sum()]
    assert coded.sizes.sum() == 500
