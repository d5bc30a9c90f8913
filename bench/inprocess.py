"""The engine's index against faiss alone, in one process: G2 of TARGETS.md.

Both have the same codebook on the same rows and rescore as many; both have one thread, since an
index is searched by one at a time. They take turns.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from bench import report, target
from bench.raw import RawFaiss
from bench.report import Json, Spread
from facegrid import vectors
from facegrid.clock import Clock
from facegrid.format.codebook import CodebookArrays
from facegrid.vectors import Float32, Int8
from indexd.ann.index import ShardIndex

ROUNDS: Final = 5
ROUND_S: Final = 0.3
BATCHES: Final[Mapping[int, float]] = {64: 0.90, 256: 0.95}
"""Rows of a batch, and the share of faiss's throughput that is needed."""
K: Final = 10
LOWEST: Final = -2.0


@dataclass(frozen=True, slots=True)
class Results:
    """The ratios of the engine's speed to that of faiss, by rows of a batch, round by round."""

    ratios: Mapping[int, Spread] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return what to print."""
        return [
            target.against(
                "G2",
                ratio.median,
                "at least",
                BATCHES[rows],
                part=f"batch_{rows}",
                low=f"{ratio.low:.2f}",
                high=f"{ratio.high:.2f}",
            ).line
            for rows, ratio in self.ratios.items()
        ]

    def as_json(self) -> dict[str, Json]:
        """Return it as JSON."""
        return {str(rows): ratio.as_json() for rows, ratio in self.ratios.items()}


def filled(codebook: CodebookArrays, codes: Int8) -> ShardIndex:
    """Return the engine's index of stored rows, int8 [n, dim], all of them coded."""
    index = ShardIndex(codebook.dim)
    index.append(codes, np.arange(len(codes), dtype=np.int32))
    index.swap(index.rebuilt(codebook))
    return index


def measure(index: ShardIndex, raw: RawFaiss, probes: Float32, *, clock: Clock) -> Results:
    """Measure in the calling thread, which has one thread of faiss."""
    ratios: dict[int, Spread] = {}
    for rows in BATCHES:
        batches = [probes[at : at + rows] for at in range(0, len(probes) - rows + 1, rows)]

        def engine(batch: Float32) -> object:
            return index.search(vectors.prepare_probes(batch), K, LOWEST)

        def alone(batch: Float32) -> object:
            return raw.search(batch, K)

        turns = [
            _per_s(engine, batches, clock) / _per_s(alone, batches, clock)
            for _ in range(ROUNDS + 1)
        ]
        # The first round warms caches.
        ratios[rows] = report.spread(turns[1:])
    return Results(ratios)


def _per_s(search: Callable[[Float32], object], batches: list[Float32], clock: Clock) -> float:
    """Return batches a second."""
    started_s, done = clock.now_s(), 0
    while clock.now_s() < started_s + ROUND_S:
        search(batches[done % len(batches)])
        done += 1
    return done / (clock.now_s() - started_s)
