"""A clock that stands still until a test moves it."""

import asyncio
import heapq
from itertools import count
from typing import Final

SETTLE_TURNS: Final = 100
"""Turns of the event loop after each wake-up: enough for a chain of that many awaits to run."""


class ManualClock:
    """Time as the test says: sleepers wake when `advance` passes them, in the order they are due.

    Args:
        now_s: what the clock shows at first.
        unix_ms: the wall clock at that moment.
    """

    def __init__(self, *, now_s: float = 1000.0, unix_ms: int = 1_700_000_000_000) -> None:
        self._now_s = now_s
        self._unix_offset_ms = unix_ms - round(now_s * 1000)
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = count()

    def now_s(self) -> float:
        """Return what the clock shows."""
        return self._now_s

    def unix_ms(self) -> int:
        """Return the wall clock, which moves alike."""
        return self._unix_offset_ms + round(self._now_s * 1000)

    async def sleep(self, duration_s: float) -> None:
        """Wait until the test has advanced the clock that far; no time at all is one turn."""
        if duration_s <= 0:
            await _turns(1)
            return
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now_s + duration_s, next(self._order), future))
        await future

    async def advance(self, duration_s: float) -> None:
        """Move the clock; everything that is due runs until it waits again."""
        await self.settle()
        end_s = self._now_s + duration_s
        while self._sleepers and self._sleepers[0][0] <= end_s:
            due_s, _, future = heapq.heappop(self._sleepers)
            if not future.done():
                self._now_s = max(self._now_s, due_s)
                future.set_result(None)
                await self.settle()
        self._now_s = end_s

    async def settle(self) -> None:
        """Let every task run until it waits for something."""
        await _turns(SETTLE_TURNS)


async def _turns(turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)  # noqa: TID251 - gives way to other tasks, takes no time
