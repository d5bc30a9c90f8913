"""Rows: numbered as enrolled, never moved, and safe to read while more are added."""

import threading

import numpy as np
import pytest

from facegrid import vectors
from indexd.ann import rows as rows_module
from indexd.ann.index import ShardIndex
from indexd.ann.rows import Rows

DIM = 16


def some_codes(count: int, seed: int) -> vectors.Int8:
    x = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    return vectors.quantize(x)


@pytest.fixture
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "CHUNK_ROWS", 100)


@pytest.mark.usefixtures("_small_chunks")
def test_rows_come_back_across_chunks() -> None:
    codes, subjects = some_codes(1730, 1), np.arange(1730, dtype=np.int32) % 7
    rows = Rows(DIM)
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
