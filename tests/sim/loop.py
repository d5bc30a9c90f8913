"""An event loop without time, threads or I/O: one seed decides every step.

Each simulated process is an actor with a queue of its own. Within a process callbacks run in the
order in which they became ready, as asyncio promises; between processes the seed picks whose turn
it is. When nobody can run, time jumps to the next timer. An actor can be paused, which holds its
callbacks back, and killed, which drops them: what ran then never goes on, not even its `finally`.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from random import Random  # noqa: TID251 - seeded
from typing import Any, TypeVar

from typing_extensions import override

from facegrid.errors import FacegridError

T = TypeVar("T")

STEPS_MAX = 400_000
"""A run that takes more has a live-lock."""


class Actor:
    """What runs, is paused and dies together: one process, or the world around them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ready: deque[asyncio.Handle] = deque()
        self.paused = False
        self.dead = False
        self.queued = False
        self.fuse = 0
        """Callbacks that it may still run before `on_fuse` is called; 0: no limit."""
        self.on_fuse: Callable[[], None] = lambda: None


ACTOR: ContextVar[Actor] = ContextVar("ACTOR")


class SimTask(asyncio.Task[Any]):
    """A task with a place in sets that does not depend on its address."""

    def __init__(self, coro: Any, number: int, **rest: Any) -> None:
        self._number = number
        super().__init__(coro, **rest)

    @override
    def __hash__(self) -> int:
        return self._number


class SimLoop(asyncio.AbstractEventLoop):
    """Runs actors under one seed."""

    def __init__(self, rng: Random) -> None:
        self.now_s = 0.0
        self.steps = 0
        self.world = Actor("world")
        self.world_context = copy_context()
        self.world_context.run(ACTOR.set, self.world)
        self._rng = rng
        self._runnable: list[Actor] = []
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = 0
        self._tasks: list[SimTask] = []
        self._threads: dict[int, float] = {}

    # What asyncio asks of a loop

    @override
    def time(self) -> float:
        return self.now_s

    @override
    def get_debug(self) -> bool:
        return False

    @override
    def is_running(self) -> bool:
        return True

    @override
    def is_closed(self) -> bool:
        return False

    @override
    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Do nothing: tasks of killed processes end like this."""

    @override
    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self)

    @override
    def create_task(
        self,
        coro: Any,
        *,
        name: str | None = None,
        context: Context | None = None,
        **_rest: Any,
    ) -> SimTask:
        self._numbers += 1
        task = SimTask(coro, self._numbers, loop=self, name=name or "t", context=context)
        self._tasks.append(task)
        return task

    @override
    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._enqueue(handle)
        return handle

    @override
    def call_later(
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now_s + delay, callback, *args, context=context)

    @override
    def call_at(
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._numbers += 1
        heapq.heappush(self._timers, (when, self._numbers, handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Leave it in the heap; it does nothing when its time comes."""

    @override
    def run_in_executor(  # type: ignore[override]  # any callable, as at run time
        self, executor: object, func: Callable[..., T], *args: Any
    ) -> "asyncio.Future[T]":
        """Run work after a while, one piece after the other for each executor, in no thread."""
        future: asyncio.Future[T] = self.create_future()

        def work() -> None:
            if future.cancelled():
                return
            try:
                result = func(*args)
            except FacegridError as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        begin_s = max(self.now_s, self._threads.get(id(executor), 0.0) if executor else 0.0)
        end_s = begin_s + self._rng.random() * 0.004
        if executor:
            self._threads[id(executor)] = end_s
        self.call_at(end_s, work)
        return future

    # What the simulation asks

    def in_world(self, delay_s: float, callback: Callable[..., object], *args: Any) -> None:
        """Call back after a delay, whatever becomes of the process that asked."""
        self.call_at(self.now_s + delay_s, callback, *args, context=self.world_context)

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run until the main coroutine, part of the world, has ended."""
        asyncio._set_running_loop(self)
        try:
            task = self.create_task(main, context=self.world_context)
            while not task.done():
                self._step()
                self.steps += 1
                assert self.steps < STEPS_MAX, "live-lock"
            result: T = task.result()
            return result
        finally:
            self._bury()
            asyncio._set_running_loop(None)

    def pause(self, actor: Actor) -> None:
        """Hold an actor's callbacks back."""
        actor.paused = True

    def resume(self, actor: Actor) -> None:
        """Let a paused actor go on."""
        actor.paused = False
        self._offer(actor)

    def kill(self, actor: Actor) -> None:
        """End an actor where it stands."""
        actor.dead = True
        actor.ready.clear()

    def _enqueue(self, handle: asyncio.Handle) -> None:
        actor = handle._context.get(ACTOR, self.world)  # type: ignore[attr-defined]  # private
        if not actor.dead:
            actor.ready.append(handle)
            if not actor.queued:
                self._offer(actor)

    def _offer(self, actor: Actor) -> None:
        if actor.ready and not actor.queued and not actor.paused and not actor.dead:
            actor.queued = True
            self._runnable.append(actor)

    def _step(self) -> None:
        """Run one callback of one actor."""
        runnable = self._runnable
        while not runnable:
            self._advance()
        at = int(self._rng.random() * len(runnable)) if len(runnable) > 1 else 0
        actor = runnable[at]
        if actor.ready and not actor.paused:
            handle: Any = actor.ready.popleft()
            if not handle._cancelled:
                handle._context.run(handle._callback, *handle._args)
                if actor.fuse:
                    actor.fuse -= 1
                    if actor.fuse == 0:
                        actor.on_fuse()
        if not actor.ready or actor.paused:
            actor.queued = False
            runnable[at] = runnable[-1]
            runnable.pop()

    def _advance(self) -> None:
        """Let time jump to the next timer, and make everything ready that is due then."""
        timers = self._timers
        assert timers, "everybody waits and no timer runs"
        self.now_s = max(self.now_s, timers[0][0])
        while timers and timers[0][0] <= self.now_s:
            handle = heapq.heappop(timers)[2]
            if not handle.cancelled():
                self._enqueue(handle)

    def _bury(self) -> None:
        """Close what never came to its end, so that nothing of it runs later."""
        for task in self._tasks:
            coroutine: Any = task.get_coro()
            for _ in range(5):
                try:
                    coroutine.close()
                except (RuntimeError, ValueError, BaseExceptionGroup):
                    continue
                break
        for _, _, timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._tasks.clear()
