"""Drift: rows enrolled of late that the codebook was not trained for."""

import numpy as np
import pytest

from facegrid import vectors
from indexd.ann.coding import coding_error
from indexd.replica.drift import RATIO_MAX, RECENT_ROWS
from tests.fakes.canary_world import CODEBOOK, DIM, NAME, CanaryWorld, enrol, people, shard_state


def others(count: int) -> vectors.Float32:
    """Return people of another kind: a quarter of the components carries nearly all."""
    x = people(count, 21) * np.where(np.arange(DIM) < DIM // 4, 1.0, 0.1).astype(np.float32)
    unit: vectors.Float32 = x / np.linalg.norm(x, axis=1, keepdims=True)
    return unit


def test_the_error_is_what_the_cosine_of_row_and_code_lacks() -> None:
    rows = vectors.quantize(people(50, 3))
    index = shard_state(people(50, 3)).index
    encoded = index.encoded(0, 50)
    assert encoded is not None
    nibbles = np.stack([encoded.codes & 15, encoded.codes >> 4], axis=2).reshape(50, -1)
    tables = CODEBOOK.codebook.pq
    decoded = np.concatenate([tables[m][nibbles[:, m]] for m in range(len(tables))], axis=1)
    decoded /= np.linalg.norm(decoded, axis=1, keepdims=True)
    cosines = np.sum(vectors.dequantize(rows) * decoded, axis=1)

    expected = float(1 - cosines.mean())
    assert coding_error(CODEBOOK.codebook, rows) == pytest.approx(expected, abs=1e-6)
    assert CODEBOOK.codebook.coding_error > 0.01


async def test_more_of_the_same_people_is_no_drift() -> None:
    world = CanaryWorld()
    enrol(world.state, people(RECENT_ROWS, 20))
    drift = await world.ports.drifts.measure(NAME)

    assert drift is not None
    assert (drift.codebook, drift.is_great) == (CODEBOOK.sha256, False)
    assert drift.ratio == pytest.approx(1, abs=0.05)


async def test_other_people_are_and_only_the_last_rows_count() -> None:
    world = CanaryWorld()
    enrol(world.state, others(RECENT_ROWS))
    drift = await world.ports.drifts.measure(NAME)
    assert drift is not None
    assert drift.ratio > RATIO_MAX

    world.state.erase_rows(np.arange(600, 600 + RECENT_ROWS))
    assert await world.ports.drifts.measure(NAME) is None, "nobody is left of those"
    enrol(world.state, people(RECENT_ROWS, 20))
    drift = await world.ports.drifts.measure(NAME)
    assert drift is not None
    assert not drift.is_great


async def test_without_a_codebook_there_is_nothing_to_go_by() -> None:
    world = CanaryWorld()
    world.copy.state = shard_state(book=None)
    assert await world.ports.drifts.measure(NAME) is None

    world.copies.clear()
    assert await world.ports.drifts.measure(NAME) is None


async def test_the_time_that_it_takes_is_counted_and_what_is_gone_forgotten() -> None:
    world = CanaryWorld()
    await world.ports.drifts.measure(NAME)
    assert set(world.canaries.drifts()) == {NAME}

    world.ports.drifts.forget(set())
    assert not world.canaries.drifts()
