"""Runs the searches of one device: the shell around `indexd.engine.batches`.

A batch is searched by a thread of the device; each caller gets its own part, which is what it
would have got alone. A caller who is late when the search begins is not searched, and neither is
one who has left. A search that takes no longer than waking threads does is made on the spot.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Final

import numpy as np

from facegrid import vectors
from facegrid.clock import Clock
from facegrid.errors import DeadlineError, OverloadedError
from facegrid.vectors import Float32, Probes
from indexd.ann.codebook import RESCORED_MIN
from indexd.engine.batches import NOTHING, Asked, Batches, BatchLimits
from indexd.engine.search import Found, Wish, search
from indexd.engine.state import ShardState

Search = Callable[[Sequence[ShardState], Probes, Wish], Found]

Here = Callable[[Callable[[], "_Searched"]], "tuple[_Searched] | None"]
"""Runs a search in the thread that calls, if the device has nothing else to do."""

DEFAULT: Final = BatchLimits()
SMALL_US: Final = 800.0
"""Searches estimated to take no longer are made on the event loop. What follows was measured on
one core, and only roughly: a search that takes a little longer than thought harms nobody.
"""
SHARD_US: Final = 150.0
CODED_ROW_US: Final = 0.0026
EXACT_ROW_US: Final = 0.12
RESCORED_ROW_US: Final = 0.3
DIM_MEASURED: Final = 512


@dataclass(slots=True, eq=False)
class _Caller:
    """What one caller wants, and where its answer goes. Threads read `answer.done()` alone."""

    states: list[ShardState]
    x: Float32
    wish: Wish
    answer: asyncio.Future[Found]


@dataclass(slots=True)
class SearchCounts:
    """What a device has done so far.

    Attributes:
        batches: searches run.
        calls: callers who had a part in them.
        probes: probes searched.
        late: callers whose time was over before their search began.
        refused: callers who were told to slow down.
        waited_s: time from the coming of those callers to the beginning of their search, summed.
    """

    batches: int = 0
    calls: int = 0
    probes: int = 0
    late: int = 0
    refused: int = 0
    waited_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Searched:
    """A batch as the thread leaves it: when it began, who was in time, and what was found for all
    of these.
    """

    began_s: float
    callers: list[Asked[_Caller]] = field(default_factory=list)
    found: Found | None = None


class Scheduler:
    """Batches the searches of one device.

    Args:
        executor: the threads of the device, at least `limits.searches_max`.
        clock: for deadlines and waits.
        limits: how far to go.
        search: what a thread does with a batch; tests have their own.
        here: makes small searches on the event loop; None: the device's threads make all.
    """

    def __init__(
        self,
        executor: Executor,
        clock: Clock,
        limits: BatchLimits = DEFAULT,
        *,
        search: Search = search,
        here: Here | None = None,
    ) -> None:
        self._executor = executor
        self._clock = clock
        self._search = search
        self._here = here
        self._batches: Batches[_Caller] = Batches(limits)
        self._running_count = 0
        self._alarm: asyncio.TimerHandle | None = None
        self.counts = SearchCounts()

    @property
    def waiting_count(self) -> int:
        """Probes that wait for their search to begin."""
        return self._batches.probes_count

    async def search(
        self,
        gallery: str,
        states: list[ShardState],
        x: Float32,
        wish: Wish,
        *,
        deadline_s: float,
    ) -> Found:
        """Return what was found in all of these states, as a search for `x` alone returns it.

        Args:
            gallery: whose states they are.
            states: of the shards to search.
            x: checked probes, float32 [m, dim].
            wish: what is wanted.
            deadline_s: a search that has not begun by then does not begin.

        Raises:
            DeadlineError: the time given was over before the search began.
            OverloadedError: too many probes wait (QUEUE_FULL).
        """
        answer: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        asked = Asked(
            gallery=gallery,
            # By identity: the callers hold what is named here for as long as the lane is there.
            lane=(*map(id, states), wish.k, wish.threshold, wish.profile, id(wish.tuning)),
            probes_count=len(x),
            k=wish.k,
            deadline_s=deadline_s,
            came_s=self._clock.now_s(),
            item=_Caller(states, x, wish, answer),
        )
        done = self._done_here(asked)
        if done is not None:
            self._hand_out([asked], done)
            return answer.result()
        try:
            self._batches.join(asked)
        except OverloadedError:
            self.counts.refused += 1
            raise
        self._pump()
        try:
            return await answer
        finally:
            self._batches.leave(asked)

    def _done_here(self, asked: Asked[_Caller]) -> _Searched | None:
        """Search at once, in this thread: a small search that finds nobody and the device free.

        Not later in this thread: while rows are enrolled, other work of the event loop would come
        first, and a thread of the device begins meanwhile.
        """
        busy = self._running_count or self._batches.probes_count
        if self._here is None or busy or _cost_us(asked) > SMALL_US:
            return None
        done = self._here(partial(self._searched, [asked]))
        return None if done is None else done[0]

    def _pump(self) -> None:
        """Begin what is due."""
        while batch := self._batches.take(self._clock.now_s(), self._running_count):
            self._running_count += 1
            running = asyncio.get_running_loop().run_in_executor(
                self._executor, self._searched, batch
            )
            running.add_done_callback(partial(self._ended, batch))
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        due_s = self._batches.due_s(self._running_count)
        if due_s < NOTHING:
            self._alarm = asyncio.get_running_loop().call_later(
                max(0.0, due_s - self._clock.now_s()), self._pump
            )

    def _searched(self, batch: list[Asked[_Caller]]) -> _Searched:
        """Search for those who still wait and are not late. In a thread of the device."""
        now_s = self._clock.now_s()
        callers = [
            asked for asked in batch if asked.deadline_s >= now_s and not asked.item.answer.done()
        ]
        if not callers:
            return _Searched(now_s)
        first = callers[0].item
        x = first.x if len(callers) == 1 else np.concatenate([one.item.x for one in callers])
        found = self._search(first.states, vectors.prepare_probes(x), first.wish)
        return _Searched(now_s, callers, found)

    def _ended(self, batch: list[Asked[_Caller]], running: "asyncio.Future[_Searched]") -> None:
        """Hand out what a batch found, and begin what waits."""
        self._running_count -= 1
        error = asyncio.CancelledError() if running.cancelled() else running.exception()
        if error is None:
            self._hand_out(batch, running.result())
        else:
            for asked in batch:
                _fail(asked.item.answer, error)
        self._pump()

    def _hand_out(self, batch: list[Asked[_Caller]], searched: _Searched) -> None:
        counts = self.counts
        if searched.found is not None:
            firsts = list(
                accumulate((asked.probes_count for asked in searched.callers), initial=0)
            )
            counts.batches += 1
            counts.calls += len(searched.callers)
            counts.probes += firsts[-1]
            counts.waited_s += sum(searched.began_s - asked.came_s for asked in searched.callers)
            parts = searched.found.parts(firsts)
            for asked, part in zip(searched.callers, parts, strict=True):
                if not asked.item.answer.done():
                    asked.item.answer.set_result(part)
        for asked in batch:
            if not asked.item.answer.done():
                counts.late += 1
                late = DeadlineError("the time given was over before the search began")
                asked.item.answer.set_exception(late)


def _cost_us(asked: Asked[_Caller]) -> float:
    """Return about how long a search takes, in microseconds."""
    caller, each_us = asked.item, 0.0
    for state in caller.states:
        rows_count, coded_count = state.index.rows_count, state.index.indexed_count
        each_us += CODED_ROW_US * coded_count + EXACT_ROW_US * (rows_count - coded_count)
        each_us += RESCORED_ROW_US * min(rows_count, RESCORED_MIN + asked.k)
    wider = int(caller.x.shape[1]) / DIM_MEASURED
    return SHARD_US * len(caller.states) + asked.probes_count * wider * each_us


def _fail(answer: "asyncio.Future[Found]", error: BaseException) -> None:
    if answer.done():
        return
    if isinstance(error, asyncio.CancelledError):
        answer.cancel()
    else:
        answer.set_exception(error)
