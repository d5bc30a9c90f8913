"""A share of time: how much of it work in the background may take, and when it may go on."""

from typing import Final

from facegrid.clock import Clock

SAVED_S_MAX: Final = 0.25
"""What was not spent counts for so much later; more would only be felt as a burst."""


class Budget:
    """Work is measured after it was done, so it may overdraw; then it waits until that is made up.

    Args:
        share: seconds of work in each second, above 0.
        clock: for how much time has passed.
    """

    def __init__(self, share: float, clock: Clock) -> None:
        assert share > 0, f"without a share nothing would ever be done: {share}"
        self._share = share
        self._clock = clock
        self._level_s = SAVED_S_MAX
        self._filled_s = clock.now_s()
        self.spent_s = 0.0
        """Time spent since the start."""

    def spend(self, duration_s: float) -> None:
        """Take note of work that took so long."""
        self._fill()
        self._level_s -= duration_s
        self.spent_s += duration_s

    def wait_s(self) -> float:
        """Return after how many seconds work may go on; 0: now."""
        self._fill()
        return max(0.0, -self._level_s / self._share)

    def _fill(self) -> None:
        now_s = self._clock.now_s()
        earned_s = (now_s - self._filled_s) * self._share
        self._level_s = min(SAVED_S_MAX, self._level_s + earned_s)
        self._filled_s = now_s
