"""A second copy is asked when the first is slow, within a budget, or silent, at any cost."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from facegrid.clock import SystemClock
from facegrid.ids import NodeId
from facegrid.telemetry.log import get_logger
from facegrid.testing.memory_coord import MemoryCoordinator
from router.dispatch.hedge import Call, Hedger
from router.plan.hedge import CALLS_PER_HEDGE, HEALTH_S, QUIET_S, SLOW_S_MIN
from router.topology.pool import NodePool
from router.topology.snapshot import Topology
from router.topology.watcher import Watcher

pytestmark = pytest.mark.alone

N1 = NodeId("n1")


@dataclass
class Nodes:
    """Stands for the pool: who lives, and how often that was asked."""

    dead: bool = False
    checks: int = 0
    marked: bool = False

    def silent(self, node_id: NodeId) -> bool:
        assert node_id == N1
        return self.marked

    async def lives(self, _topology: Topology, node_id: NodeId) -> bool:
        assert node_id == N1
        self.checks += 1
        if self.dead:
            await asyncio.wait([asyncio.get_running_loop().create_future()], timeout=HEALTH_S)
            self.marked = True
        return not self.dead


@dataclass
class Bench:
    """A hedger, and calls of which the first copy answers when the test says."""

    hedger: Hedger
    nodes: Nodes
    free: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: list[str] = field(default_factory=list)

    async def quick(self) -> str:
        return "first"

    async def held(self) -> str:
        try:
            await self.free.wait()
        except asyncio.CancelledError:
            self.cancelled.append("first")
            raise
        return "first"

    async def other(self) -> str:
        return "second"

    async def refusing(self) -> str:
        return "no"

    async def call(
        self,
        ask: Callable[[], Coroutine[Any, Any, str]],
        elsewhere: Callable[[], Coroutine[Any, Any, str]] | None = None,
        *,
        may_wait: bool = False,
        patient: bool = False,
    ) -> str:
        return await self.hedger.first_of(
            Call(
                N1,
                kind="search",
                may_wait=may_wait,
                ask=ask,
                elsewhere=elsewhere,
                give_up=None if patient else (lambda: "given up"),
                whole=lambda outcome: outcome != "no",
                joined=lambda one, other: f"{one}+{other}",
            )
        )


@asynccontextmanager
async def bench(*, calls: int = 0, dead: bool = False) -> AsyncIterator[Bench]:
    """Run a hedger that has seen a number of quick calls."""
    nodes, clock = Nodes(dead=dead), SystemClock()
    watcher = Watcher(MemoryCoordinator(clock), clock, get_logger("w"), state_dir=None)
    b = Bench(Hedger(cast("NodePool", nodes), watcher, clock), nodes)
    for _ in range(calls):
        assert await b.call(b.quick, b.other) == "first"
    yield b


async def outcomes_after(tasks: list[asyncio.Task[str]], wait_s: float) -> list[str]:
    """Return what has ended after some time."""
    await asyncio.wait(tasks, timeout=wait_s, return_when=asyncio.ALL_COMPLETED)
    return [task.result() for task in tasks if task.done()]


async def test_slow_calls_are_hedged_as_far_as_the_budget_goes() -> None:
    async with bench(calls=2 * CALLS_PER_HEDGE) as b, asyncio.TaskGroup() as group:
        tasks = [group.create_task(b.call(b.held, b.other)) for _ in range(10)]
        hedged = await outcomes_after(tasks, (SLOW_S_MIN + QUIET_S) / 2)
        b.free.set()

    assert hedged == ["second"] * 2
    assert b.cancelled == ["first"] * 2
    assert sorted(task.result() for task in tasks) == ["first"] * 8 + ["second"] * 2


async def test_nothing_counts_as_slow_before_it_is_known_what_is_usual() -> None:
    async with bench() as b, asyncio.TaskGroup() as group:
        tasks = [group.create_task(b.call(b.held, b.other)) for _ in range(3)]
        hedged = await outcomes_after(tasks, 4 * SLOW_S_MIN)
        b.free.set()

    assert hedged == []


async def test_a_call_that_may_wait_for_a_position_is_never_slow() -> None:
    async with bench(calls=200) as b, asyncio.TaskGroup() as group:
        task = group.create_task(b.call(b.held, b.other, may_wait=True))
        hedged = await outcomes_after([task], 2 * (QUIET_S + HEALTH_S))
        checks = b.nodes.checks
        b.free.set()

    assert hedged == []
    assert checks >= 1
    assert task.result() == "first"


async def test_silence_is_hedged_without_a_budget_and_however_long_the_call_may_wait() -> None:
    async with bench(dead=True) as b, asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(b.call(b.held, b.other, may_wait=may_wait))
            for may_wait in (False, True) * 4
        ]

    assert [task.result() for task in tasks] == ["second"] * 8
    assert b.cancelled == ["first"] * 8


async def test_a_node_known_to_be_silent_is_not_asked_for_its_health_again() -> None:
    async with bench(dead=True) as b:
        b.nodes.marked = True
        outcome = await b.call(b.held, b.other)

    assert (outcome, b.nodes.checks) == ("second", 0)


async def test_a_silent_node_is_given_up_where_others_lack_something() -> None:
    async with bench(dead=True) as b:
        assert await b.call(b.held, b.refusing) == "given up+no"
        assert await b.call(b.held) == "given up"


async def test_a_silent_node_is_waited_for_where_nothing_else_is_left_to_try() -> None:
    async with bench(dead=True) as b, asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(b.call(b.held, patient=True)),
            group.create_task(b.call(b.held, b.refusing, patient=True)),
        ]
        ended = await outcomes_after(tasks, 2 * (QUIET_S + HEALTH_S))
        b.free.set()

    assert ended == []
    assert [task.result() for task in tasks] == ["first", "first+no"]


async def test_a_slow_node_that_turns_out_silent_is_given_up() -> None:
    async with bench(calls=CALLS_PER_HEDGE, dead=True) as b:
        assert await b.call(b.held, b.refusing) == "given up+no"


async def test_a_health_check_ends_with_the_call_it_is_about() -> None:
    async with bench(dead=True) as b, asyncio.TaskGroup() as group:
        task = group.create_task(b.call(b.held, b.other))
        await asyncio.wait([task], timeout=QUIET_S + HEALTH_S / 4)
        checks = b.nodes.checks
        b.free.set()

    assert (task.result(), checks, b.nodes.marked) == ("first", 1, False)
