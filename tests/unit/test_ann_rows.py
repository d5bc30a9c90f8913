"""Rows: numbered as enrolled, never moved, and safe to read while more are added."""

import threading

import numpy as np
import pytest

from facegrid import vectors
from facegrid.errors import InvalidError
from indexd.ann import packing
from indexd.ann import rows as rows_module
from indexd.ann.index import ShardIndex
from indexd.ann.rows import Rows

DIM = 16


def some_codes(count: int, seed: int, bits: int = 8) -> vectors.Int8:
    x = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    return vectors.quantize(x, bits)


@pytest.fixture
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "CHUNK_ROWS", 100)


@pytest.mark.parametrize("bits", vectors.COMPONENT_BITS_KNOWN)
@pytest.mark.usefixtures("_small_chunks")
def test_rows_come_back_across_chunks(bits: int) -> None:
    codes, subjects = some_codes(1730, 1, bits), np.arange(1730, dtype=np.int32) % 7
    rows = Rows(DIM, bits)
    firsts = [
        rows.append(codes[a:b], subjects[a:b])
        for a, b in [(0, 1), (1, 250), (250, 250), (250, 1730)]
    ]
    wanted = np.array([[0, 99, 100], [1729, 730, 1]])

    assert firsts == [0, 1, 250, 250]
    np.testing.assert_array_equal(rows.codes(wanted), codes[wanted])
    np.testing.assert_array_equal(rows.norms(wanted), vectors.code_norms(codes)[wanted])
    np.testing.assert_array_equal(rows.subjects(wanted), subjects[wanted])
    blocks = list(rows.blocks(50, 1730, rows_max=64))
    np.testing.assert_array_equal(np.concatenate([b.codes for b in blocks]), codes[50:])
    assert [b.first for b in blocks[:3]] == [50, 100, 164]


def test_mask_and_bitmap_tell_the_same_after_growth() -> None:
    rows = Rows(DIM)
    rows.append(some_codes(900, 2), np.zeros(900, np.int32))
    rows.erase(np.array([0, 7, 8, 899]))
    rows.append(some_codes(3000, 3), np.zeros(3000, np.int32))
    rows.erase(np.array([8, 3899]))

    live = np.unpackbits(rows.live_bits(), bitorder="little")[:3900]

    assert np.flatnonzero(live == 0).tolist() == [0, 7, 8, 899, 3899]
    assert np.flatnonzero(rows.erased(np.arange(3900))).tolist() == [0, 7, 8, 899, 3899]
    assert rows.erased_count == 5


@pytest.mark.usefixtures("_small_chunks")
def test_appending_while_another_thread_searches_never_shows_half_a_row() -> None:
    """1. one thread appends 4,000 rows; 2. meanwhile searches score each hit anew: all agree."""
    codes = some_codes(4000, 4)
    index = ShardIndex(DIM)
    done = threading.Event()

    def append() -> None:
        for first in range(0, 4000, 37):
            part = codes[first : first + 37]
            index.append(part, np.arange(first, first + len(part), dtype=np.int32))
        done.set()

    writer = threading.Thread(target=append)
    probes = vectors.prepare_probes(
        np.random.default_rng(5).normal(size=(2, DIM)).astype(np.float32)
    )
    writer.start()
    searches = 0
    while not done.is_set() or searches == 0:
        hits = index.search(probes, 5, -2.0)
        searches += 1
        owner = np.repeat([0, 1], hits.counts)
        for i in (0, 1):
            rows = hits.rows[owner == i]
            again = index.compare(probes.part(slice(i, i + 1)), rows)
            np.testing.assert_array_equal(again, hits.scores[owner == i])
            np.testing.assert_array_equal(index.codes(rows), codes[rows])
    writer.join()

    assert index.rows_count == 4000


def test_rows_of_four_bits_take_half_the_memory() -> None:
    packed, plain = Rows(DIM, 4), Rows(DIM)
    for rows in (packed, plain):
        rows.append(some_codes(1000, 4, 4), np.zeros(1000, np.int32))

    assert plain.memory_bytes - packed.memory_bytes == 1000 * DIM // 2


def test_a_row_that_cannot_be_packed_is_refused_and_nothing_is_added() -> None:
    rows = Rows(DIM, 4)
    codes = some_codes(3, 5, 4)
    codes[1] = some_codes(1, 6)[0]

    with pytest.raises(InvalidError) as caught:
        rows.append(codes, np.zeros(3, np.int32))

    assert (caught.value.reason, caught.value.row, rows.count) == ("CODES_MALFORMED", 1, 0)


@pytest.mark.parametrize("bits", vectors.COMPONENT_BITS_KNOWN)
def test_staged_rows_are_the_rows_once_they_are_seen(bits: int) -> None:
    codes = some_codes(50, 7, bits)
    rows = Rows(DIM, bits)
    rows.append(codes[:10], np.zeros(10, np.int32))

    rows.stage(0, codes[10:30], np.ones(20, np.int32), np.zeros(20, np.bool_))
    rows.stage(20, codes[30:], np.ones(20, np.int32), np.zeros(20, np.bool_))
    rows.publish(40)

    np.testing.assert_array_equal(rows.codes(np.arange(50)), codes)


def test_rows_are_unpacked_alike_with_and_without_what_is_compiled() -> None:
    codes = some_codes(500, 8, 4)

    packed = packing.pack(codes)

    assert packed.shape == (500, DIM // 2)
    np.testing.assert_array_equal(packing.unpack(packed, native=None), codes)
    np.testing.assert_array_equal(packing.unpack(packed), codes)
    # What lies apart in memory, too.
    np.testing.assert_array_equal(packing.unpack(packed[::7]), codes[::7])
