"""Runs measurements of shards in a thread of their own, behind everything else."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from facegrid.errors import InvalidError
from indexd.ann.measure import (
    BLOCK_PROBES,
    Measured,
    Measurement,
    StoppedError,
    Trials,
    choose_trials,
)
from indexd.ann.threads import be_last
from indexd.engine.state import ShardState


@dataclass(frozen=True, slots=True)
class MeasuredBlock:
    """Some probes measured, and of which kind and against what."""

    measured: Measured
    pseudo: bool
    rows_count: int
    nlist: int
    codebook: str


def measuring_thread() -> ThreadPoolExecutor:
    """Return the one thread that measures."""
    return ThreadPoolExecutor(1, "measure", be_last)


async def measure(
    state: ShardState, mates_count_max: int, seed: int, thread: ThreadPoolExecutor
) -> AsyncIterator[MeasuredBlock]:
    """Measure a shard as it is now, in blocks; whoever leaves off ends it within moments.

    Raises:
        InvalidError: it is searched exactly (NOT_TRAINED).
    """
    codebook, sha256 = state.index.codebook, state.codebook
    if codebook is None:
        raise InvalidError(
            f"the shard is searched exactly shard={state.shard_id}", reason="NOT_TRAINED"
        )
    rows, count = state.index.rows, state.index.rows_count
    measurement = Measurement(rows, count, codebook)
    rng = np.random.default_rng(seed)
    loop = asyncio.get_running_loop()
    stop = threading.Event()
    live_count = state.templates_count

    def one(trials: Trials) -> Measured:
        return measurement.run(trials, measurement.probes(trials, rng), stop.is_set)

    try:
        trials = await loop.run_in_executor(
            thread, lambda: choose_trials(rows, count, mates_count_max, seed=seed)
        )
        for part in trials.parts(BLOCK_PROBES):
            try:
                measured = await loop.run_in_executor(thread, one, part)
            except StoppedError:
                return
            yield MeasuredBlock(
                measured, bool(part.own[0] < 0), live_count, codebook.nlist, sha256
            )
    finally:
        stop.set()
