"""Exact search is exact, whatever the blocks."""

import numpy as np
import pytest

from bench.truth import ExactSearch, Ranking
from facegrid.testing.synthetic import SyntheticGallery


def test_best_template_of_each_subject_counts_once() -> None:
    probe = np.array([[1, 0, 0]], np.float32)
    templates = np.array([[0.6, 0.8, 0], [0, 1, 0], [0.8, 0, 0.6], [0.5, 0, 0.866]], np.float32)

    search = ExactSearch(probe, k=2)
    search.add(templates, ["ann", "bob", "ann", "cem"])

    assert search.rankings() == [Ranking(("ann", "cem"), (pytest.approx(0.8), 0.5))]


def test_equal_scores_come_in_the_order_of_subject_ids() -> None:
    search = ExactSearch(np.array([[1, 0]], np.float32), k=3)

    search.add(np.array([[0.6, 0.8], [0.6, -0.8]], np.float32), ["zoe", "ann"])

    assert search.rankings()[0].subject_ids == ("ann", "zoe")


def test_fewer_subjects_than_k_and_none_at_all() -> None:
    search = ExactSearch(np.array([[1, 0]], np.float32), k=3)
    assert search.rankings() == [Ranking((), ())]

    search.add(np.array([[1, 0]], np.float32), ["ann"])
    assert search.rankings() == [Ranking(("ann",), (1.0,))]


@pytest.mark.parametrize("rows", [1, 97, 3000])
def test_blocks_of_any_size_agree_with_the_whole_matrix(rows: int) -> None:
    gallery = SyntheticGallery(32, templates_count=3000, seed=4)
    probes = gallery.probes(40)
    search = ExactSearch(probes.vectors, k=10)

    for block in gallery.blocks(rows):
        search.add(block.vectors, block.subject_ids)

    whole = next(gallery.blocks(3000))
    best: list[dict[str, float]] = [{} for _ in range(40)]
    for probe, row in np.ndindex(40, 3000):
        score = float(probes.vectors[probe] @ whole.vectors[row])
        subject = whole.subject_ids[row]
        best[probe][subject] = max(score, best[probe].get(subject, -1))
    expected = [tuple(sorted(held, key=held.__getitem__, reverse=True)[:10]) for held in best]
    assert [ranking.subject_ids for ranking in search.rankings()] == expected
