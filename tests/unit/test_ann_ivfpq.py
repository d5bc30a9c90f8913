"""The coded part: rows added in any portions lie as faiss itself would lay them."""

from dataclasses import replace

import numpy as np
import pytest

from facegrid import vectors
from indexd.ann import self_test
from indexd.ann.ivfpq import EncodedRows, IvfPq

DIM = 32
ROWS = 2000


@pytest.mark.parametrize("nlist", [1, 3, 150])
@pytest.mark.parametrize("sizes", [[128], [1900, 100], [0, 1, 31, 32, 33, 64, 127, 128, 500]])
def test_portions_do_not_matter(sizes: list[int], nlist: int) -> None:
    """Portions of 128 too: BlockInvertedLists.add_entries wrote past its memory after those."""
    rng = np.random.default_rng(1)
    codebook = self_test._made_up_codebook(rng)
    centroids = rng.standard_normal((nlist, DIM), dtype=np.float32)
    codebook = replace(codebook, nlist=nlist, nprobe=nlist, centroids=centroids)
    x = rng.standard_normal((ROWS, DIM), dtype=np.float32)
    ours, theirs = IvfPq(codebook), IvfPq(codebook)
    theirs.add_through_faiss(x)
    encoded = ours.encode(x)
    while ours.count < ROWS:
        part = slice(ours.count, ours.count + int(rng.choice(sizes)))
        ours.add(EncodedRows(encoded.lists[part], encoded.codes[part]))
    stored = ours.encoded(0, ROWS)
    some = ours.encoded(701, 801)
    probes = vectors.prepare_probes(x[:40])

    np.testing.assert_array_equal(stored.lists, encoded.lists)
    np.testing.assert_array_equal(stored.codes, encoded.codes)
    np.testing.assert_array_equal(some.lists, encoded.lists[701:801])
    np.testing.assert_array_equal(some.codes, encoded.codes[701:801])
    np.testing.assert_array_equal(
        ours.search(probes, 50, nprobe=nlist, live=None),
        theirs.search(probes, 50, nprobe=nlist, live=None),
    )
