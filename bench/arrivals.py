"""Searches that come when they come: open loop, the latency counted from when each was due.

A client that waits for its answer before it asks again slows down with the cluster, and hides how
long others would have waited. Here moments are drawn before; a search that is sent late, because
the ones before it took their time, counts from its moment.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from bench.report import Json, percentile
from facegrid.clock import Clock

Search = Callable[[int], Awaitable[object]]
"""Asks the call of that number."""

IN_FLIGHT_MAX: Final = 4096
"""Calls that may wait at once; a load that piles up more is above what there is."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of a load.

    Attributes:
        offered_per_s: calls due in a second.
        took_s: from when it was due until its answer, of every call that was due.
        elapsed_s: from the first moment until the last answer.
        overloaded: so many calls waited that the rest was not sent.
    """

    offered_per_s: float
    took_s: Sequence[float]
    elapsed_s: float
    overloaded: bool = False

    @property
    def per_s(self) -> float:
        """Calls answered in a second."""
        return len(self.took_s) / self.elapsed_s

    def ms(self, share: float) -> float:
        """Return the milliseconds that this share of the calls did not exceed."""
        return 1000 * percentile(self.took_s, share)

    def as_json(self) -> dict[str, Json]:
        """Return it as JSON."""
        return {
            "offered_per_s": self.offered_per_s,
            "answered_per_s": self.per_s,
            "calls": len(self.took_s),
            "p50_ms": self.ms(0.5),
            "p90_ms": self.ms(0.9),
            "p99_ms": self.ms(0.99),
            "overloaded": self.overloaded,
        }


def moments(per_s: float, count: int, *, seed: int) -> list[float]:
    """Return when calls are due, seconds from the start, at random as independent callers come."""
    gaps = np.random.default_rng([seed, 7]).exponential(1 / per_s, count)
    due: list[float] = np.cumsum(gaps).tolist()
    return due


async def play(search: Search, due_s: Sequence[float], *, per_s: float, clock: Clock) -> Answered:
    """Ask at those moments, whatever became of earlier calls."""
    took_s: list[float] = []
    overloaded = False
    waiting = 0
    start_s = clock.now_s()

    async def ask(number: int, moment_s: float) -> None:
        nonlocal waiting
        await search(number)
        took_s.append(clock.now_s() - moment_s)
        waiting -= 1

    async with asyncio.TaskGroup() as tasks:
        for number, after_s in enumerate(due_s):
            moment_s = start_s + after_s
            early_s = moment_s - clock.now_s()
            if early_s > 0:
                await clock.sleep(early_s)
            if waiting >= IN_FLIGHT_MAX:
                overloaded = True
                break
            waiting += 1
            tasks.create_task(ask(number, moment_s))
    return Answered(per_s, took_s, clock.now_s() - start_s, overloaded)


async def fastest_per_s(search: Search, *, at_once: int, duration_s: float, clock: Clock) -> float:
    """Return the calls a second of so many callers that ask again as soon as they are answered."""
    answered = 0
    numbers = itertools.count()
    start_s = clock.now_s()

    async def repeat() -> None:
        nonlocal answered
        while clock.now_s() < start_s + duration_s:
            await search(next(numbers))
            answered += 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(at_once):
            tasks.create_task(repeat())
    return answered / (clock.now_s() - start_s)
