"""Rows are coded in a thread of their own; the one that searches only adds them."""

import numpy as np
import pytest

from facegrid import vectors
from indexd.ann.codebook import Codebook
from indexd.ann.index import ShardIndex
from indexd.ann.ivfpq import EncodedRows
from indexd.ann.train import train

DIM = 64
ROWS = 500


def rows(count: int, seed: int) -> vectors.Int8:
    x = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    return vectors.quantize(x / np.linalg.norm(x, axis=1, keepdims=True))


@pytest.fixture(scope="module")
def codebooks() -> tuple[Codebook, Codebook]:
    sample = rows(1200, 1)
    return train(sample, seed=1, threads=1), train(sample, seed=2, threads=1)


def filled(codebook: Codebook) -> ShardIndex:
    index = ShardIndex(DIM)
    index.swap(index.rebuilt(codebook))
    append(index, ROWS, 3)
    return index


def append(index: ShardIndex, count: int, seed: int) -> None:
    index.append(rows(count, seed), np.arange(count, dtype=np.int32))


def coded(index: ShardIndex) -> EncodedRows:
    found = index.encoded(0, index.indexed_count)
    assert found is not None
    return found


def assert_same(one: EncodedRows, other: EncodedRows) -> None:
    np.testing.assert_array_equal(one.lists, other.lists)
    np.testing.assert_array_equal(one.codes, other.codes)


def add(index: ShardIndex, rows_max: int) -> int:
    """Code ahead and add; return the rows added."""
    before = index.indexed_count
    index.add_coded(index.coded_ahead(rows_max), rows_max)
    return index.indexed_count - before


def test_rows_coded_ahead_are_those_that_absorbing_codes(
    codebooks: tuple[Codebook, Codebook],
) -> None:
    plain, index = filled(codebooks[0]), filled(codebooks[0])
    plain.absorb()

    assert [add(index, 200) for _ in range(4)] == [200, 200, 100, 0]
    assert_same(coded(index), coded(plain))


def test_rows_that_came_meanwhile_are_left_for_the_next_time(
    codebooks: tuple[Codebook, Codebook],
) -> None:
    index = filled(codebooks[0])
    ahead = index.coded_ahead(2 * ROWS)
    append(index, ROWS, 4)

    index.add_coded(ahead, 2 * ROWS)
    assert index.indexed_count == ROWS
    assert add(index, 2 * ROWS) == ROWS
    plain = filled(codebooks[0])
    append(plain, ROWS, 4)
    plain.absorb()
    assert_same(coded(index), coded(plain))


def test_codes_of_a_codebook_that_was_replaced_are_not_added(
    codebooks: tuple[Codebook, Codebook],
) -> None:
    index = filled(codebooks[0])
    ahead = index.coded_ahead(ROWS)
    index.swap(ShardIndex(DIM).rebuilt(codebooks[1]))

    index.add_coded(ahead, ROWS)
    assert index.indexed_count == 0
    assert add(index, ROWS) == ROWS

    plain = filled(codebooks[1])
    plain.absorb()
    assert_same(coded(index), coded(plain))


def test_rows_that_were_absorbed_meanwhile_are_not_added_twice(
    codebooks: tuple[Codebook, Codebook],
) -> None:
    index = filled(codebooks[0])
    ahead = index.coded_ahead(200)
    index.absorb(100)

    index.add_coded(ahead, 200)
    assert index.indexed_count == 200
    index.add_coded(ahead, 200)
    assert index.indexed_count == 200
    assert add(index, ROWS) == 300

    plain = filled(codebooks[0])
    plain.absorb()
    assert_same(coded(index), coded(plain))


def test_rows_whose_codes_are_known_are_not_coded_and_their_codes_forgotten(
    codebooks: tuple[Codebook, Codebook],
) -> None:
    plain, index = filled(codebooks[0]), filled(codebooks[0])
    plain.absorb()
    known = coded(plain)
    index.know(100, EncodedRows(known.lists[100:300], known.codes[100:300]))

    first = index.coded_ahead(ROWS)
    assert first is not None
    assert (first.first, first.last) == (0, 100)
    index.add_coded(first, ROWS)
    assert index.coded_ahead(ROWS) is None
    assert [add(index, 150) for _ in range(2)] == [150, 50]
    assert not index._known
    last = index.coded_ahead(ROWS)
    assert last is not None
    assert (last.first, last.last) == (300, ROWS)
    index.add_coded(last, ROWS)
    assert_same(coded(index), coded(plain))


def test_there_is_nothing_to_code_without_a_codebook() -> None:
    index = ShardIndex(DIM)
    append(index, ROWS, 3)

    assert index.coded_ahead(ROWS) is None
    index.add_coded(None, ROWS)
    assert (index.indexed_count, index.absorb(ROWS)) == (0, 0)
