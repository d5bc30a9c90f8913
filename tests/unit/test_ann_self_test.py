"""The start-up test passes here, and would notice an engine that forgets the mask."""

import numpy as np
import pytest

from facegrid import vectors
from facegrid.errors import FacegridError, InvalidError
from indexd.ann import fastscan, self_test
from indexd.ann.index import ShardIndex
from indexd.ann.ivfpq import EncodedRows


def test_this_machine_passes() -> None:
    self_test.self_test()


def test_an_engine_that_returns_erased_rows_is_noticed() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(64, 32)).astype(np.float32)
    index = ShardIndex(32)
    index.append(vectors.quantize(x), np.arange(64, dtype=np.int32))
    index.swap(index.rebuilt(self_test._made_up_codebook(rng)))
    probes = vectors.prepare_probes(x)

    # Nothing was erased, so the scan returns these rows as an engine without a mask would.
    with pytest.raises(FacegridError, match="ignores which rows are erased"):
        self_test.expect_masked(index, probes, np.array([5]))


@pytest.mark.parametrize("count", [1, 31, 32, 33, 100])
def test_packing_is_undone_by_unpacking(count: int) -> None:
    codes = np.random.default_rng(count).integers(0, 256, (count, 6)).astype(np.uint8)

    blocks = fastscan.pack(codes)

    assert blocks.shape == (-(-count // 32), 6, 32)
    np.testing.assert_array_equal(fastscan.unpack(blocks)[:count], codes)


@pytest.mark.parametrize("broken", ["list", "width", "length"])
def test_coded_rows_that_do_not_fit_are_refused_and_nothing_is_added(broken: str) -> None:
    rng = np.random.default_rng(2)
    index = ShardIndex(32)
    index.swap(index.rebuilt(self_test._made_up_codebook(rng)))
    codes = vectors.quantize(rng.normal(size=(4, 32)).astype(np.float32))
    lists, coded = np.zeros(4, np.int32), np.zeros((4, 4), np.uint8)
    if broken == "list":
        lists[2] = 3
    if broken == "width":
        coded = coded[:, :3]
    if broken == "length":
        lists, coded = lists[:3], coded[:3]

    with pytest.raises(InvalidError) as caught:
        index.append_encoded(codes, np.zeros(4, np.int32), EncodedRows(lists, coded))

    assert caught.value.reason == "CODES_MISFIT"
    assert (index.rows_count, index.indexed_count) == (0, 0)
