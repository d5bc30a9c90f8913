"""What canaries show: how many mates an index misses of late, and whether that is too many.

An alarm is raised when what was seen can hardly be chance, and ends when too many misses would
hardly have been overlooked. In between it stays as it is: nothing flickers. Both limits are exact
ones of a Poisson mean, like those by which efforts are chosen (RFC 0011). Looking again after
every few probes makes chance more likely than a single look does: hence MISSES_MIN.
"""

import enum
import math
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from facegrid.tuning import Tuning
from indexd.ann.miss_rate import miss_rate_bound, miss_rate_min

MISSES_MIN: Final = 3
"""Fewer misses raise no alarm, however few mates were seen."""
WINDOW_MISSES: Final = 10
"""What is older than the mates among which so many misses are allowed is forgotten."""
BLOCKS: Final = 64
"""Parts of the window; the oldest one is forgotten as a whole."""


@dataclass(frozen=True, slots=True)
class TuningId:
    """Which tuning a search was made by.

    Attributes:
        codebook: sha256 of the codebook that it holds for.
        tuned_unix_ms: when it was made.
    """

    codebook: str
    tuned_unix_ms: int

    @staticmethod
    def of(tuning: Tuning) -> "TuningId":
        """Return what tells a tuning from all others of its gallery."""
        return TuningId(tuning.codebook, tuning.tuned_unix_ms)


class Change(enum.Enum):
    """What new evidence does to an alarm."""

    RAISED = enum.auto()
    CLEARED = enum.auto()


@dataclass(slots=True)
class Window:
    """The last mates that were compared, and how many of them were missed.

    Attributes:
        mates_max: about how many are remembered.
        mates: how many are.
        misses: of these.
    """

    mates_max: int
    mates: int = 0
    misses: int = 0
    _blocks: deque[list[int]] = field(default_factory=deque)

    def add(self, mates: int, misses: int) -> None:
        """Take in more, and forget what is too old."""
        assert 0 <= misses <= mates, f"no more misses than mates: {misses} {mates}"
        if not self._blocks or self._blocks[-1][0] * BLOCKS >= self.mates_max:
            self._blocks.append([0, 0])
        last = self._blocks[-1]
        last[0] += mates
        last[1] += misses
        self.mates += mates
        self.misses += misses
        while self.mates - self._blocks[0][0] >= self.mates_max:
            old_mates, old_misses = self._blocks.popleft()
            self.mates -= old_mates
            self.misses -= old_misses


@dataclass(slots=True)
class Counts:
    """Counts that only grow.

    Attributes:
        probes: compared.
        mates: of these, exact search accepts somebody at rank 1.
        misses: of those, the answer lacked that subject.
    """

    probes: int = 0
    mates: int = 0
    misses: int = 0


class Watch:
    """Watches one profile of a gallery.

    Args:
        allowed: the share of mates that it may miss.
        tuning: by which it searches. Another one makes what was seen before worthless; an alarm
            stays until there is evidence for the new one.
    """

    def __init__(self, allowed: float, tuning: TuningId) -> None:
        self.counts = Counts()
        self.is_raised = False
        self.proven = False
        """Whether what was seen of this very tuning raises an alarm."""
        self._begin(allowed, tuning)

    def _begin(self, allowed: float, tuning: TuningId) -> None:
        self.allowed, self.tuning = allowed, tuning
        self.window = Window(math.ceil(WINDOW_MISSES / allowed))
        self.proven = False

    def take(self, allowed: float, tuning: TuningId) -> None:
        """Go by this tuning from now on."""
        if (allowed, tuning) != (self.allowed, self.tuning):
            self._begin(allowed, tuning)

    def add(self, mates: int, misses: int) -> Change | None:
        """Take in what was compared; return what that changes."""
        self.window.add(mates, misses)
        seen = self.window
        high = seen.misses >= MISSES_MIN and miss_rate_min(seen.misses, seen.mates) > self.allowed
        raised_before = self.is_raised
        if high:
            self.is_raised = self.proven = True
            return None if raised_before else Change.RAISED
        # The bound takes a while for many misses, and cannot be below the rate itself.
        if seen.misses > self.allowed * seen.mates:
            return None
        if raised_before and miss_rate_bound(seen.misses, seen.mates) < self.allowed:
            return self.clear()
        return None

    def clear(self) -> Change | None:
        """End the alarm, if there is one."""
        raised_before, self.is_raised, self.proven = self.is_raised, False, False
        return Change.CLEARED if raised_before else None
