"""One shard's index: what is enrolled is found, what is erased is not."""

import numpy as np
import pytest

from facegrid import vectors
from indexd.ann.index import ShardIndex
from indexd.ann.rescore import Hits

DIM = 32
ALL = -2.0


def unit_rows(count: int, seed: int) -> vectors.Float32:
    x = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def truth(
    index: ShardIndex, subjects: vectors.Int64, probe: vectors.Probes, k: int, threshold: float
) -> list[tuple[int, float]]:
    """Every row scored, in a Python loop."""
    rows = np.arange(index.rows_count)
    rows = rows[~index.is_erased(rows)]
    scores = index.compare(probe, rows)
    best: dict[int, tuple[float, int]] = {}
    for row, score in sorted(
        zip(rows.tolist(), scores.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0])
    ):
        if score >= threshold:
            best.setdefault(int(subjects[row]), (row, score))
    return [(row, score) for row, score in list(best.values())[:k]]


def lists(hits: Hits) -> list[list[tuple[int, float]]]:
    ends = np.cumsum(hits.counts)
    pairs = list(zip(hits.rows.tolist(), hits.scores.tolist(), strict=True))
    return [pairs[end - count : end] for end, count in zip(ends, hits.counts, strict=True)]


@pytest.mark.parametrize("k", [1, 7, 300, 2048])
@pytest.mark.parametrize("threshold", [ALL, 0.2])
def test_returns_the_best_row_of_each_subject(k: int, threshold: float) -> None:
    index = ShardIndex(DIM)
    subjects = np.random.default_rng(5).integers(0, 250, 400).astype(np.int32)
    index.append(vectors.quantize(unit_rows(400, 1)), subjects)
    index.erase(np.arange(0, 400, 9))
    probes = vectors.prepare_probes(unit_rows(5, 2))

    found = lists(index.search(probes, k, threshold))

    assert found == [
        truth(index, subjects, probes.part(np.array([i])), k, threshold) for i in range(5)
    ]


def test_one_subject_with_many_rows_does_not_crowd_out_the_others() -> None:
    index = ShardIndex(DIM)
    near = unit_rows(1, 3) + 0.01 * unit_rows(500, 4)
    index.append(vectors.quantize(near.astype(np.float32)), np.zeros(500, np.int32))
    index.append(vectors.quantize(unit_rows(5, 5)), np.arange(1, 6, dtype=np.int32))

    hits = index.search(vectors.prepare_probes(unit_rows(1, 3)), 4, ALL)

    assert hits.counts.tolist() == [4]
    assert hits.rows[0] < 500
    assert (hits.rows[1:] >= 500).all()


def test_empty_and_fully_erased_indexes_answer_nothing() -> None:
    index = ShardIndex(DIM)
    probes = vectors.prepare_probes(unit_rows(3, 1))
    assert lists(index.search(probes, 5, ALL)) == [[], [], []]

    index.append(vectors.quantize(unit_rows(10, 2)), np.arange(10, dtype=np.int32))
    index.erase(np.arange(10))

    assert lists(index.search(probes, 5, ALL)) == [[], [], []]
