"""When a search may stop: how many lists suffice, given what has been found (RFC 11).

Every stop on the way costs: the tables of the codes are made again, and what was found is ranked
once more, for each probe as much as the scan of some ten thousand rows. Many steps that spare
little made a search of 25,000 rows a shard twice as slow. So only those count that can spare much.
"""

from typing import Final

import numpy as np

from facegrid.tuning import Effort, Step
from facegrid.vectors import Float32, Float64, Int64

SPARED_ROWS_MIN: Final = 32_768
"""Of a shard: a step that would spare fewer is left out."""
SPARED_FACTOR: Final = 2
"""And so is one that spares less than half of the lists."""


class Steps:
    """The steps of an effort, as arrays.

    Args:
        effort: the steps tell for scores how many lists suffice.
        nlist: lists that there are.
        rows_count: rows that they hold.
    """

    def __init__(self, effort: Effort, nlist: int, rows_count: int) -> None:
        self.most = min(effort.nprobe, nlist)
        """Lists to look into where nothing ends the search."""
        # By rising score; a lower score never needs fewer lists than a higher one.
        steps = sorted(
            (
                step
                for step in effort.steps
                if SPARED_FACTOR * step.nprobe <= self.most
                and (self.most - step.nprobe) * rows_count >= SPARED_ROWS_MIN * nlist
            ),
            key=lambda step: step.score,
        )
        self._scores: Float64 = np.empty(0)
        self._lists: Int64 = np.array([self.most])
        if steps:
            self._take(steps)
        self.first = int(self._lists[-1])
        """Lists to look into before anything is known."""

    def _take(self, steps: list[Step]) -> None:
        lists = np.maximum.accumulate([step.nprobe for step in reversed(steps)])
        self._scores = np.array([step.score for step in steps], np.float64)
        self._lists = np.append(self.most, np.minimum(lists[::-1], self.most))

    def needed(self, scores: Float32) -> Int64:
        """Return how many lists suffice to find whatever scores more than `scores`, int64 [m]."""
        needed: Int64 = self._lists[np.searchsorted(self._scores, scores, side="right")]
        return needed

    def next(self, looked: Int64, needed: Int64) -> Int64:
        """Return how far to go on, int64 [m]: at most to twice the lists, then judge again.

        A mate found there saves the rest; a probe without one comes to its need in few turns.
        """
        steps = self._lists[::-1]
        place = np.searchsorted(steps, 2 * looked).clip(max=len(steps) - 1)
        until: Int64 = np.minimum(needed, steps[place])
        return until
