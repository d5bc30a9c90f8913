"""A clock whose wall time jumps on demand, to show that nothing depends on it."""

from pathlib import Path

from facegrid.clock import Clock


class ShiftedClock:
    """Another clock with its wall time moved by what a file says, in milliseconds.

    Intervals stay as they are: they come from the boot clock, which nobody sets.
    """

    def __init__(self, clock: Clock, path: Path) -> None:
        self._clock = clock
        self._path = path

    def now_s(self) -> float:
        """Return seconds since boot."""
        return self._clock.now_s()

    def unix_ms(self) -> int:
        """Return the wall clock in milliseconds, moved."""
        try:
            shift_ms = int(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            shift_ms = 0
        return self._clock.unix_ms() + shift_ms

    async def sleep(self, duration_s: float) -> None:
        """Wait."""
        await self._clock.sleep(duration_s)
