"""Time as an argument: components take a Clock, so that tests own it."""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """What components may know of time."""

    def now_s(self) -> float:
        """Return seconds of a clock that never goes back, for intervals and deadlines."""
        ...

    def unix_ms(self) -> int:
        """Return milliseconds since the Unix epoch, for records that people read."""
        ...

    async def sleep(self, duration_s: float) -> None:
        """Wait."""
        ...


class SystemClock:
    """The machine's clock. Intervals come from the boot clock, which goes on while suspended."""

    def now_s(self) -> float:
        """Return seconds since boot."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def unix_ms(self) -> int:
        """Return the wall clock in milliseconds."""
        return time.time_ns() // 1_000_000

    async def sleep(self, duration_s: float) -> None:
        """Wait on the event loop."""
        await asyncio.sleep(duration_s)  # noqa: TID251 - the one place that waits
