"""How long searches of the last half minute took, as this router's callers saw it."""

from collections import deque
from typing import Final

from facegrid.clock import Clock

WINDOW_S: Final = 30.0
"""How far back searches count."""
SEARCHES_MAX: Final = 20_000
"""Searches that are remembered; of more than so many within the window the newest count."""
SEARCHES_MIN: Final = 20
"""Fewer say nothing about the slowest hundredth."""


class Latencies:
    """Remembers durations for a while.

    Args:
        clock: says how old they are.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._took: deque[tuple[float, float]] = deque(maxlen=SEARCHES_MAX)

    def note(self, took_s: float) -> None:
        """Remember how long a search took that has just ended."""
        self._took.append((self._clock.now_s(), took_s))

    def p99_ms(self) -> float:
        """Return the 99th percentile of the window; 0 where there were too few searches."""
        oldest_s = self._clock.now_s() - WINDOW_S
        while self._took and self._took[0][0] < oldest_s:
            self._took.popleft()
        if len(self._took) < SEARCHES_MIN:
            return 0.0
        ordered = sorted(took_s for _, took_s in self._took)
        return 1000 * ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
