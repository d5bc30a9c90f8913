"""Whatever state a shard's index is in, wherever it is searched, it answers as brute force does.

The codebooks here rescore every row, so that answers must agree in full: same rows, same bits.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pytest

from facegrid import vectors
from facegrid.vectors import Float32, Int8, Int64, Probes
from indexd.ann.codebook import Codebook
from indexd.ann.gpu.engine import GpuEngine
from indexd.ann.index import ShardIndex
from indexd.ann.looking import Wanted
from indexd.ann.rescore import Hits
from indexd.ann.together import Asked
from indexd.ann.train import train
from tests.fakes.device_units import (
    LOGGER,
    gpu_unit,
    played_unit,
    settle,
    small_sizes,
    torch_arrays,
)

DIM = 64
ROWS = 1500
ALL = -2.0


class Rows(NamedTuple):
    """Stored rows, int8 [n, DIM], and whose they are; `bits` of a component."""

    codes: Int8
    subjects: Int64
    bits: int


@dataclass(frozen=True)
class Case:
    """An index in some state, what is in it, and which rows are erased."""

    index: ShardIndex
    subjects: Int64
    erased: Int64


def unit_rows(count: int, seed: int) -> Float32:
    x = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture(scope="module", params=[8, 4])
def rows(request: pytest.FixtureRequest) -> Rows:
    x = unit_rows(ROWS, 1)
    # Exact duplicates, so that equal scores occur, within a subject and between two.
    x[7], x[900], x[1400] = x[3], x[3], x[20]
    subjects = np.random.default_rng(2).integers(0, ROWS * 3 // 4, ROWS)
    subjects[900] = subjects[3]
    return Rows(vectors.quantize(x, request.param), subjects, request.param)


@pytest.fixture(scope="module")
def codebook(rows: Rows) -> Codebook:
    return replace(train(rows[0], seed=3, threads=1), rescore_factor=ROWS)


@pytest.fixture(scope="module")
def pruned(codebook: Codebook) -> Codebook:
    """Looks into one list of eight at first."""
    centroids = unit_rows(8, 4)
    return replace(codebook, nlist=8, nprobe=8, centroids=centroids)


Search = Callable[[ShardIndex, Probes, int, float], Hits]


@pytest.fixture(
    scope="module",
    params=["processor", "played device", pytest.param("gpu", marks=pytest.mark.gpu)],
)
def search(request: pytest.FixtureRequest) -> Iterator[Search]:
    """Searches one shard; a device has brought all of it over before, and coded what it codes."""
    if request.param == "processor":
        yield ShardIndex.search
        return
    units = {
        "played device": played_unit,
        "torch": lambda: played_unit(torch_arrays()),
        "gpu": gpu_unit,
    }
    engine = GpuEngine([units[request.param]()], LOGGER)

    def on_device(index: ShardIndex, probes: Probes, k: int, threshold: float) -> Hits:
        unit = engine.units[0]
        if not unit.holds(index):
            assert unit.admit(index)
        settle(engine)
        assert (unit.coded_count(index) > 0) == (index.codebook is not None)
        before = unit.counts.searches
        hits = engine.search([Asked(index)], Wanted(probes, k, threshold))[0]
        assert unit.counts.searches == before + 1, "the processor searched"
        return hits

    with small_sizes():
        yield on_device
    engine.close()


def filled(rows: Rows) -> ShardIndex:
    index = ShardIndex(DIM, rows.bits)
    for begin in range(0, ROWS, 400):
        part = slice(begin, begin + 400)
        index.append(rows[0][part], rows[1][part].astype(np.int32))
    return index


def exact(rows: Rows, _: Codebook) -> Case:
    return Case(filled(rows), rows[1], np.empty(0, np.int64))


def trained(rows: Rows, codebook: Codebook) -> Case:
    index = filled(rows)
    index.swap(index.rebuilt(codebook))
    assert index.indexed_count == ROWS
    return Case(index, rows[1], np.empty(0, np.int64))


def half_absorbed(rows: Rows, codebook: Codebook) -> Case:
    index = ShardIndex(DIM, rows.bits)
    subjects = rows[1].astype(np.int32)
    index.append(rows[0][:300], subjects[:300])
    index.swap(index.rebuilt(codebook))
    index.append(rows[0][300:], subjects[300:])
    assert index.absorb(rows_max=500) == 500
    assert (index.indexed_count, index.rows_count) == (800, ROWS)
    return Case(index, rows[1], np.empty(0, np.int64))


def erased(rows: Rows, codebook: Codebook) -> Case:
    case = half_absorbed(rows, codebook)
    gone = np.flatnonzero(np.random.default_rng(6).random(ROWS) < 0.3)
    case.index.erase(gone[::2])
    case.index.absorb()
    case.index.erase(gone[1::2])
    return replace(case, erased=gone)


def loaded(rows: Rows, codebook: Codebook) -> Case:
    """As from segments: rows coded elsewhere come with their codes."""
    origin = trained(rows, codebook).index
    index = ShardIndex(DIM, rows.bits)
    index.swap(index.rebuilt(codebook))
    for first, last in [(0, 77), (77, 1000), (1000, 1000), (1000, ROWS)]:
        encoded = origin.encoded(first, last)
        assert encoded is not None
        index.append_encoded(rows[0][first:last], rows[1][first:last].astype(np.int32), encoded)
    assert index.indexed_count == ROWS
    return Case(index, rows[1], np.empty(0, np.int64))


STATES = [exact, trained, half_absorbed, erased, loaded]
State = Callable[[Rows, Codebook], Case]


def truth(case: Case, probe: Probes, k: int, threshold: float) -> list[tuple[int, float]]:
    """Every live row scored, one after another."""
    rows = np.setdiff1d(np.arange(case.index.rows_count), case.erased)
    scores = case.index.compare(probe, rows).tolist()
    best: dict[int, tuple[int, float]] = {}
    for row, score in sorted(
        zip(rows.tolist(), scores, strict=True), key=lambda pair: (-pair[1], pair[0])
    ):
        if score >= threshold:
            best.setdefault(int(case.subjects[row]), (row, score))
    return list(best.values())[:k]


def lists(hits: Hits) -> list[list[tuple[int, float]]]:
    pairs = list(zip(hits.rows.tolist(), hits.scores.tolist(), strict=True))
    ends = np.cumsum(hits.counts).tolist()
    return [pairs[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(("k", "threshold"), [(1, ALL), (10, ALL), (10, 0.25), (2048, ALL)])
def test_answers_as_brute_force_does(
    state: State, k: int, threshold: float, rows: Rows, codebook: Codebook, search: Search
) -> None:
    case = state(rows, codebook)
    probes = vectors.prepare_probes(
        np.concatenate([unit_rows(4, 9), vectors.dequantize(rows[0][[3, 20, 1499]])])
    )

    found = lists(search(case.index, probes, k, threshold))

    expected = [truth(case, probes.part(slice(i, i + 1)), k, threshold) for i in range(7)]
    assert found == expected


@pytest.mark.parametrize("state", STATES)
def test_one_probe_alone_gets_the_bits_it_gets_among_others(
    state: State, rows: Rows, codebook: Codebook, search: Search
) -> None:
    index = state(rows, codebook).index
    probes = vectors.prepare_probes(unit_rows(64, 10))

    together = lists(search(index, probes, 5, ALL))

    alone = [lists(search(index, probes.part(slice(i, i + 1)), 5, ALL))[0] for i in range(64)]
    assert together == alone


def test_all_states_give_the_same_answers(rows: Rows, codebook: Codebook, search: Search) -> None:
    probes = vectors.prepare_probes(unit_rows(20, 11))

    answers = [
        lists(search(state(rows, codebook).index, probes, 10, ALL))
        for state in [exact, trained, half_absorbed, loaded]
    ]

    assert answers[1:] == answers[:-1]


def test_coded_rows_come_back_as_they_were_loaded(rows: Rows, codebook: Codebook) -> None:
    origin, copy = trained(rows, codebook).index, loaded(rows, codebook).index
    first, second = origin.encoded(100, 1333), copy.encoded(100, 1333)

    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first.lists, second.lists)
    np.testing.assert_array_equal(first.codes, second.codes)


def test_skipping_lists_ends_when_k_subjects_are_not_found_in_them(
    rows: Rows, pruned: Codebook, search: Search
) -> None:
    case = trained(rows, replace(pruned, nprobe=1))
    probes = vectors.prepare_probes(unit_rows(3, 12))

    found = lists(search(case.index, probes, 2048, ALL))

    assert found == [truth(case, probes.part(slice(i, i + 1)), 2048, ALL) for i in range(3)]


def test_a_subject_with_most_rows_does_not_crowd_out_the_others(
    rows: Rows, codebook: Codebook, search: Search
) -> None:
    subjects = np.zeros(ROWS, np.int64)
    subjects[-5:] = np.arange(1, 6)
    case = trained(rows._replace(subjects=subjects), replace(codebook, rescore_factor=1))
    probes = vectors.prepare_probes(unit_rows(3, 13))

    hits = search(case.index, probes, 6, ALL)

    assert hits.counts.tolist() == [6, 6, 6]


def test_rows_that_arrive_while_a_codebook_is_brought_in_are_searched_exactly(
    rows: Rows, codebook: Codebook, search: Search
) -> None:
    """1. half is coded aside; 2. more is appended and some erased; 3. swap; 4. absorb."""
    subjects = rows[1].astype(np.int32)
    index = ShardIndex(DIM, rows.bits)
    index.append(rows[0][:700], subjects[:700])
    aside = index.rebuilt(codebook)
    index.append(rows[0][700:], subjects[700:])
    index.erase(np.arange(600, 800))
    probes = vectors.prepare_probes(unit_rows(5, 15))
    before = lists(search(index, probes, 10, ALL))

    index.swap(aside)
    swapped = lists(search(index, probes, 10, ALL))
    absorbed_count = index.absorb()

    assert absorbed_count == ROWS - 700
    assert before == swapped == lists(search(index, probes, 10, ALL))


def test_erasing_everything_leaves_nothing(rows: Rows, codebook: Codebook, search: Search) -> None:
    index = trained(rows, codebook).index
    index.erase(np.arange(ROWS))

    hits = search(index, vectors.prepare_probes(unit_rows(2, 14)), 10, ALL)

    assert hits.counts.tolist() == [0, 0]
