"""Asks a second copy where the first is slow or silent, and takes whichever answers first."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final, Generic, TypeVar

from facegrid.clock import Clock
from facegrid.errors import UnavailableError
from facegrid.ids import NodeId
from router.plan import hedge
from router.topology.pool import NodePool
from router.topology.watcher import Watcher

T = TypeVar("T")

KINDS_MAX: Final = 1024
"""Kinds of calls of which the recent times are remembered."""


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A call to one node, and what may be done instead. What comes of it is a value, errors too.

    Attributes:
        node_id: who is asked.
        kind: calls of one kind take about the same time, for instance searches of one gallery.
        may_wait: the node may wait for a position that it was not seen to have; so it is never
            slow, only silent.
        ask: asks the node.
        elsewhere: asks other copies; None where there are none left.
        give_up: what to take for the answer of a silent node; None: wait for it to the end.
        whole: whether an outcome leaves nothing to wish for.
        joined: the best of two outcomes that both do.
    """

    node_id: NodeId
    kind: str
    may_wait: bool
    ask: Callable[[], Coroutine[Any, Any, T]]
    elsewhere: Callable[[], Coroutine[Any, Any, T]] | None
    give_up: Callable[[], T] | None
    whole: Callable[[T], bool]
    joined: Callable[[T, T], T]


class _Due(Enum):
    """What became of waiting for a call."""

    ENDED = auto()
    SLOW = auto()
    SILENT = auto()


class Hedger:
    """Makes calls, each with a second one where that helps.

    Args:
        pool: tells whether nodes live.
        watcher: holds the topology.
        clock: for how long calls take.
    """

    def __init__(self, pool: NodePool, watcher: Watcher, clock: Clock) -> None:
        self._pool = pool
        self._watcher = watcher
        self._clock = clock
        self.slow_count = 0
        """Second copies asked since a first one was slow."""
        self.silent_count = 0
        """Calls whose node was found to be silent."""
        self._budget = hedge.Budget()
        self._recent_s: OrderedDict[str, deque[float]] = OrderedDict()

    async def first_of(self, call: Call[T]) -> T:
        """Return what comes of a call, or of asking elsewhere, whichever is whole first."""
        self._budget = self._budget.earned()
        if call.elsewhere is None and call.give_up is None:
            return await self._timed(call)
        async with asyncio.TaskGroup() as group:
            first = group.create_task(self._timed(call))
            due = await self._due(first, call, self._slow_s(call))
            if due is _Due.ENDED:
                return first.result()
            if call.elsewhere is None:
                return await self._left(first, call, due)
            second = group.create_task(call.elsewhere())
            await asyncio.wait({first, second}, return_when=asyncio.FIRST_COMPLETED)
            for one, other in ((first, second), (second, first)):
                if one.done() and call.whole(one.result()):
                    other.cancel()
                    return one.result()
            rest = await second
            return call.joined(await self._left(first, call, due), rest)

    async def _left(self, first: asyncio.Task[T], call: Call[T], due: _Due) -> T:
        """Return what comes of a call at last, when nobody else can be asked any more."""
        if call.give_up is None:
            return await first
        if due is _Due.SLOW:
            due = await self._due(first, call, None)
        if first.done():
            return first.result()
        first.cancel()
        return call.give_up()

    def _slow_s(self, call: Call[T]) -> float | None:
        """Return when a call is slow; None: never, or not known, or it would be no use."""
        if call.may_wait or call.elsewhere is None:
            return None
        return hedge.slow_after_s(tuple(self._recent_s.get(call.kind, ())))

    async def _timed(self, call: Call[T]) -> T:
        started_s = self._clock.now_s()
        outcome = await call.ask()
        if not call.may_wait and call.whole(outcome):
            recent_s = self._recent_s.setdefault(call.kind, deque(maxlen=hedge.RECENT_MAX))
            recent_s.append(self._clock.now_s() - started_s)
            self._recent_s.move_to_end(call.kind)
            if len(self._recent_s) > KINDS_MAX:
                self._recent_s.popitem(last=False)
        return outcome

    async def _due(self, first: asyncio.Task[T], call: Call[T], slow_s: float | None) -> _Due:
        """Wait until a call ended, or is slow and there is a budget, or its node is silent."""
        started_s = self._clock.now_s()
        waited_s = 0.0
        while not await _ended(first, hedge.next_look_s(waited_s, slow_s)):
            waited_s = self._clock.now_s() - started_s
            if slow_s is not None and waited_s >= slow_s:
                spent = self._budget.spent()
                if spent is not None:
                    self._budget = spent
                    self.slow_count += 1
                    return _Due.SLOW
            if waited_s >= hedge.QUIET_S and await self._is_silent(first, call.node_id):
                self.silent_count += 1
                return _Due.SILENT
        return _Due.ENDED

    async def _is_silent(self, first: asyncio.Task[T], node_id: NodeId) -> bool:
        """Tell whether a node answers neither the call nor a health check."""
        if self._pool.silent(node_id):
            return True
        async with asyncio.TaskGroup() as group:
            check = group.create_task(self._pool.lives(self._watcher.topology, node_id))
            await asyncio.wait({first, check}, return_when=asyncio.FIRST_COMPLETED)
            if first.done():
                check.cancel()
                return False
        return not check.result()


def given_up(node_id: NodeId) -> UnavailableError:
    """Return the error for a call to a node that is silent."""
    return UnavailableError(
        f"node is silent: it answers neither the call nor a health check node={node_id}",
        reason="NODE_SILENT",
        node=node_id,
    )


async def _ended(task: asyncio.Task[T], timeout_s: float) -> bool:
    await asyncio.wait({task}, timeout=timeout_s)
    return task.done()
