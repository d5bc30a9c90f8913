"""Waits in tests: for what somebody does, never for a time."""

import asyncio
from collections.abc import Callable
from typing import Final

from facegrid.clock import SystemClock

PATIENCE_S: Final = 60.0
"""For what a quiet machine does in a second: a test fails by it only when something hangs."""
LOOK_S: Final = 0.001


async def until(
    condition: Callable[[], bool], timeout_s: float = PATIENCE_S, look_s: float = LOOK_S
) -> None:
    """Let everybody else run until something is so; fail once the time is over."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await SystemClock().sleep(look_s)
