"""Whether the rows enrolled of late are still such as the codebook was trained for."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

import numpy as np

from facegrid.clock import Clock
from facegrid.ids import GalleryName, ShardId
from facegrid.vectors import Int64
from indexd.ann.coding import coding_error
from indexd.engine.budget import Budget
from indexd.engine.state import ShardState
from indexd.replica.shard_copy import Phase, ShardCopy

RECENT_ROWS: Final = 2048
"""The last rows of each shard stand for what is enrolled of late."""
RATIO_MAX: Final = 1.1
"""The mean error of recent rows may be so much greater than that of the rows trained on. Two
samples of the same people differ by 1 or 2 %."""


@dataclass(frozen=True, slots=True)
class Drift:
    """How well recent rows of a gallery are coded.

    Attributes:
        codebook: sha256 of what codes them.
        ratio: their mean error through that of the rows trained on.
    """

    codebook: str
    ratio: float

    @property
    def is_great(self) -> bool:
        """Whether the codebook was trained for other rows."""
        return self.ratio > RATIO_MAX


class Drifts:
    """Measures drift on the shards of this node.

    Args:
        copies: the shards.
        thread: where to compute.
        clock: for the time that this takes.
        budget: on whose account.
    """

    def __init__(
        self, copies: Mapping[ShardId, ShardCopy], thread: Executor, clock: Clock, budget: Budget
    ) -> None:
        self._copies = copies
        self._thread = thread
        self._clock = clock
        self._budget = budget
        self.latest: dict[GalleryName, Drift] = {}
        """What was measured last of each gallery."""

    async def measure(self, gallery: GalleryName) -> Drift | None:
        """Measure a gallery. None where there is nothing to go by: no codebook, one of a version
        that did not measure, no rows.
        """
        states = [
            copy.state
            for copy in self._copies.values()
            if copy.gallery.name == gallery and copy.phase is Phase.SERVING
        ]
        books = {state.codebook: state.index.codebook for state in states}
        if len(books) != 1:
            # None here, or amid a change of codebooks.
            return None
        sha256, codebook = next(iter(books.items()))
        if codebook is None or not codebook.coding_error:
            return None
        recent = [(state, _recent(state)) for state in states]
        if not any(len(rows) for _, rows in recent):
            return None

        def work() -> tuple[float, float]:
            began_s = self._clock.now_s()
            rows = np.concatenate([state.index.codes(numbers) for state, numbers in recent])
            error = coding_error(codebook, rows)
            return error, self._clock.now_s() - began_s

        error, spent_s = await asyncio.get_running_loop().run_in_executor(self._thread, work)
        self._budget.spend(spent_s)
        drift = Drift(sha256, error / codebook.coding_error)
        self.latest[gallery] = drift
        return drift

    def forget(self, living: set[GalleryName]) -> None:
        """Forget galleries that are not here any more."""
        self.latest = {name: one for name, one in self.latest.items() if name in living}


def _recent(state: ShardState) -> Int64:
    """Return the last rows of a shard, without erased ones."""
    rows = np.arange(max(0, state.rows_count - RECENT_ROWS), state.rows_count, dtype=np.int64)
    return rows[~state.erased_mask(rows)]
