"""Erased rows stay away from every answer of a device, while rows come and go."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from facegrid import vectors
from indexd.ann.gpu.engine import GpuEngine
from indexd.ann.index import ShardIndex
from indexd.ann.looking import Wanted
from indexd.ann.together import Asked
from indexd.ann.train import train
from tests.fakes.device_units import LOGGER, gpu_unit, played_unit, settle, small_sizes

DIM = 64
BATCH = 256
ALL = -2.0


@pytest.fixture(params=["played device", pytest.param("gpu", marks=pytest.mark.gpu)])
def sized(request: pytest.FixtureRequest) -> Iterator[tuple[GpuEngine, int, int]]:
    """Yield an engine, the rows of its shard, and how many answers to look at."""
    if request.param == "gpu":
        engine, rows_count, answers_count = GpuEngine([gpu_unit()], LOGGER), 200_000, 1_000_000
    else:
        engine, rows_count, answers_count = GpuEngine([played_unit()], LOGGER), 3_000, 8_192
    with small_sizes():
        yield engine, rows_count, answers_count
    engine.close()


@pytest.mark.timeout(600)
def test_nobody_erased_is_in_any_answer(sized: tuple[GpuEngine, int, int]) -> None:
    """Before each batch some of the rows that its probes are nearest to are erased, and others
    come.
    """
    engine, rows_count, answers_count = sized
    rng = np.random.default_rng(1)
    codes = vectors.quantize(rng.standard_normal((rows_count, DIM), dtype=np.float32))
    index = ShardIndex(DIM)
    index.append(codes, np.arange(rows_count, dtype=np.int32))
    codebook = train(codes[:3000], seed=1, threads=1)
    index.swap(index.rebuilt(replace(codebook, nprobe=codebook.nlist)))
    asked = [Asked(index)]
    engine.search(asked, Wanted(vectors.prepare_probes(vectors.dequantize(codes[:1])), 1, ALL))
    settle(engine)
    answered = 0
    while answered < answers_count:
        live = np.flatnonzero(~index.is_erased(np.arange(index.rows_count)))
        own = rng.choice(live, BATCH)
        index.erase(own[: BATCH // 8])
        index.append(codes[own % rows_count][: BATCH // 8], np.arange(BATCH // 8, dtype=np.int32))
        probes = vectors.prepare_probes(vectors.dequantize(index.codes(own)))

        hits = engine.search(asked, Wanted(probes, 5, ALL))[0]

        assert not index.is_erased(hits.rows).any()
        assert hits.counts.min() > 0
        answered += int(hits.counts.sum())
    unit = engine.units[0]
    assert unit.counts.searches * BATCH * 5 >= answers_count - BATCH * 5
    assert unit.counts.failures == 0
