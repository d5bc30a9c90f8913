"""What a search consists of, on one shard of 26,000 templates unless said."""

from dataclasses import dataclass

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from facegrid import vectors
from facegrid.ids import KEY_LAST, ShardId, subject_key
from facegrid.model import HashRange
from facegrid.testing.synthetic import SyntheticGallery
from indexd.ann import rescore
from indexd.ann.index import ShardIndex
from indexd.ann.threads import set_threads
from indexd.ann.train import train
from indexd.engine.loading import ShardShape
from indexd.engine.search import Wish, search
from indexd.engine.state import ShardState
from router.plan import merge

DIM = 512
TEMPLATES = 26_000
PROBES = 64
K = 10
DEPTH = 64
SHARDS = 4
ALL = -2.0


@dataclass(frozen=True)
class Shard:
    """An index, its rows as vectors, and probes."""

    index: ShardIndex
    x: vectors.Float32
    probes: vectors.Float32
    prepared: vectors.Probes


@pytest.fixture(scope="module")
def shard() -> Shard:
    """Return a trained shard."""
    set_threads(1)
    gallery = SyntheticGallery(DIM, templates_count=TEMPLATES, seed=1)
    x = np.concatenate([block.vectors for block in gallery.blocks(8192)])
    codes = vectors.quantize(x)
    index = ShardIndex(DIM)
    index.append(codes, np.arange(TEMPLATES, dtype=np.int32))
    index.swap(index.rebuilt(train(codes[:8192], seed=1, threads=1)))
    probes = gallery.probes(PROBES).vectors
    return Shard(index, x, probes, vectors.prepare_probes(probes))


def test_quantize(benchmark: BenchmarkFixture, shard: Shard) -> None:
    """A batch of 1,024 vectors as stored rows."""
    assert benchmark(vectors.quantize, shard.x[:1024]).shape == (1024, DIM)


def test_prepare_probes(benchmark: BenchmarkFixture, shard: Shard) -> None:
    """64 probes."""
    assert len(benchmark(vectors.prepare_probes, shard.probes)) == PROBES


def test_nearest_lists(benchmark: BenchmarkFixture, shard: Shard) -> None:
    """The lists nearest to 64 probes."""
    coded = shard.index.coded
    assert coded is not None
    assert benchmark(coded.coarse.nearest, shard.prepared, 2).shape == (PROBES, 2)


def test_scan(benchmark: BenchmarkFixture, shard: Shard) -> None:
    """All codes of the shard, for 64 probes."""
    assert benchmark(shard.index.scanned, shard.prepared, DEPTH).shape == (PROBES, DEPTH)


def test_rescore(benchmark: BenchmarkFixture, shard: Shard) -> None:
    """64 rows from anywhere for each of 64 probes."""
    rows = shard.index._rows  # noqa: SLF001 - the part itself is measured
    candidates = np.random.default_rng(1).integers(0, TEMPLATES, (PROBES, DEPTH))
    assert benchmark(rescore.rank, rows, shard.prepared, candidates).rows.shape == candidates.shape


def test_search_of_one_shard(benchmark: BenchmarkFixture, shard: Shard) -> None:
    """All of it, for 64 probes."""
    hits = benchmark(shard.index.search, shard.prepared, K, ALL)
    assert (hits.counts == K).all()


def test_merge_in_the_node(benchmark: BenchmarkFixture) -> None:
    """Four shards of 500 rows: ids and order, and little to scan."""
    gallery = SyntheticGallery(DIM, templates_count=2000, seed=2)
    width = (KEY_LAST + 1) // SHARDS
    states = [
        ShardState(
            ShardShape(
                ShardId(f"s{number}"), HashRange(number * width, number * width + width - 1), DIM
            )
        )
        for number in range(SHARDS)
    ]
    (block,) = gallery.blocks(2600)
    codes = vectors.quantize(block.vectors)
    for state in states:
        keys = [subject_key(name) for name in block.subject_ids]
        own = [row for row, key in enumerate(keys) if state.range.contains(key)]
        names = [block.template_ids[row] for row in own]
        subjects = [block.subject_ids[row] for row in own]
        state.add_rows(names, subjects, codes[own])
    probes = vectors.prepare_probes(gallery.probes(PROBES).vectors)
    assert benchmark(search, states, probes, Wish(K, ALL)).counts.sum() == PROBES * K


def test_merge_in_the_router(benchmark: BenchmarkFixture) -> None:
    """Answers of four nodes, ten candidates for each of 64 probes."""
    rng = np.random.default_rng(3)
    parts = [
        merge.Part(
            counts=np.full(PROBES, K),
            scores=-np.sort(-rng.random((PROBES, K), np.float32), axis=1).reshape(-1),
            subject_ids=[f"s-{node}-{number}" for number in range(PROBES * K)],
            template_ids=[f"t-{node}-{number}" for number in range(PROBES * K)],
        )
        for node in range(SHARDS)
    ]
    merged = benchmark(merge.merge, parts, probes_count=PROBES, k=K, threshold=ALL)
    assert len(merged.scores) == PROBES * K
