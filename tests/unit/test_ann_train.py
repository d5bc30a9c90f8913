"""Training: settings that are measured, and not claimed beyond what was measured."""

import numpy as np
import pytest

from facegrid import limits, vectors
from facegrid.errors import InvalidError
from facegrid.vectors import Float32, Int8
from indexd.ann import pseudo
from indexd.ann import train as training
from indexd.ann.codebook import WANTED_TYPICAL, Codebook
from indexd.ann.effort import rows_to_rescore
from indexd.ann.miss_rate import miss_rate_bound
from indexd.ann.train import train

DIM = 32


def spread_rows(count: int, seed: int) -> Int8:
    """In all directions alike, as faces nearly are."""
    x: Float32 = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    return vectors.quantize(x)


def arrays_of(codebook: Codebook) -> list[Float32]:
    return [codebook.centroids, codebook.pq]


def test_the_same_sample_and_seed_give_the_same_codebook() -> None:
    sample = spread_rows(2000, 1)

    first, second = train(sample, seed=5, threads=1), train(sample, seed=5, threads=2)

    for a, b in zip(arrays_of(first), arrays_of(second), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (first.nprobe, first.rescore_factor) == (second.nprobe, second.rescore_factor)


def test_a_codebook_describes_itself() -> None:
    codebook = train(spread_rows(1500, 2), seed=9, threads=1)

    assert (codebook.dim, codebook.pq_m, codebook.pq_bits) == (DIM, DIM // 4, 4)
    assert codebook.centroids.shape == (codebook.nlist, DIM)
    assert codebook.pq.shape == (DIM // 4, 16, 4)
    assert (codebook.sample_count, codebook.seed) == (1500, 9)
    assert all(a.dtype == np.float32 and np.isfinite(a).all() for a in arrays_of(codebook))


def test_a_small_sample_searches_all_lists_and_rescores_deep() -> None:
    """With 512 probes nothing near one miss in a thousand can be proven."""
    codebook = train(spread_rows(limits.TRAIN_ROWS_MIN, 3), seed=1, threads=1)

    assert codebook.nprobe == codebook.nlist
    assert rows_to_rescore(codebook.rescore_factor * WANTED_TYPICAL, 1) >= training.DEPTH_DEFAULT


def test_lists_are_skipped_where_rows_lie_in_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters far apart in the first components; rows differ in the others."""
    monkeypatch.setattr(training, "LIST_ROWS_MIN", 256)
    monkeypatch.setattr(pseudo, "MATED_MEAN", 0.9)
    monkeypatch.setattr(pseudo, "MATED_SD", 0.01)
    rng = np.random.default_rng(7)
    near = rng.normal(size=(8192, 128)) + np.repeat(rng.normal(size=(32, 128)), 256, axis=0)

    clustered = train(vectors.quantize(near.astype(np.float32)), seed=2, threads=1)
    spread = train(spread_rows(8192, 8), seed=2, threads=1)

    assert (clustered.nlist, clustered.centroids.shape) == (32, (32, 128))
    assert clustered.nprobe <= 16
    assert clustered.nprobe < spread.nprobe


def test_rows_in_all_directions_alike_get_few_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skipping would save nothing, and each list costs every row that is coded a comparison."""
    monkeypatch.setattr(training, "LIST_ROWS_MIN", 256)

    codebook = train(spread_rows(8192, 8), seed=2, threads=1)

    assert codebook.nprobe == codebook.nlist == training.FULL_NLIST


@pytest.mark.parametrize(
    ("shard_rows", "learnt_count", "nlist"),
    [(60_000, 65_536, 0), (70_000, 65_536, 16), (12_000_000, 65_536, 2048), (70_000, 500, 0)],
)
def test_the_number_of_lists_follows_the_largest_shard(
    shard_rows: int, learnt_count: int, nlist: int
) -> None:
    assert training.pruned_nlist(shard_rows, learnt_count=learnt_count) == nlist


def test_a_gallery_outgrows_its_lists() -> None:
    assert training.lists_fit(16, 4_000_000)
    assert not training.lists_fit(16, 5_000_000)
    assert training.lists_fit(1024, 100_000_000)


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(InvalidError) as caught:
        train(spread_rows(limits.TRAIN_ROWS_MIN - 1, 4), seed=1, threads=1)
    assert caught.value.reason == "TRAIN_ROWS"


@pytest.mark.parametrize(
    ("misses", "trials", "bound"),
    # Upper 95 % limits of a Poisson mean, from tables: 2.996, 4.744, 7.754, 43.77 (30 seen).
    [(0, 3000, 2.996 / 3000), (1, 1000, 4.744e-3), (3, 8192, 7.754 / 8192), (30, 100, 0.4069)],
)
def test_what_was_seen_bounds_the_miss_rate(misses: int, trials: int, bound: float) -> None:
    assert miss_rate_bound(misses, trials) == pytest.approx(bound, rel=1e-3)


def test_no_trials_prove_nothing() -> None:
    assert miss_rate_bound(0, 0) == 1.0


def test_rescored_rows_grow_with_the_wanted_ones() -> None:
    codebook = train(spread_rows(1024, 6), seed=1, threads=1)

    counts = [
        rows_to_rescore(codebook.rescore_factor * WANTED_TYPICAL, wanted)
        for wanted in (1, 10, 100, 1000, 2048)
    ]

    assert counts == sorted(counts)
    assert all(n >= wanted for n, wanted in zip(counts, (1, 10, 100, 1000, 2048), strict=True))
