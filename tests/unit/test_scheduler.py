"""Searches of several callers in one batch: each gets what it would have got alone, in time."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor, Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typing_extensions import override

from facegrid import vectors
from facegrid.api.shard.v1 import shard_service_pb2 as pb
from facegrid.errors import DeadlineError, OverloadedError
from facegrid.ids import ShardId
from facegrid.model import HashRange
from facegrid.testing.manual_clock import ManualClock
from facegrid.vectors import Float32, Probes
from indexd.engine.batches import BatchLimits
from indexd.engine.loading import ShardShape
from indexd.engine.search import Found, Wish, search
from indexd.engine.state import ShardState
from indexd.service import scheduler as scheduling
from indexd.service.device import Device, Gate
from indexd.service.metrics import SEARCH_METRICS, SearchMetrics
from indexd.service.scheduler import Here, Scheduler
from indexd.service.shard_service import ServicePorts, ShardService

DIM = 32
WISH = Wish(3, -2.0)


@dataclass
class FakeExecutor(Executor):
    """Runs what it was given when the test says."""

    given: list[tuple[Callable[[], Any], Future[Any]]] = field(default_factory=list)

    @override
    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.given.append((lambda: fn(*args, **kwargs), future))
        return future

    def run(self) -> None:
        """Run the first."""
        work, future = self.given.pop(0)
        try:
            future.set_result(work())
        except ValueError as error:
            future.set_exception(error)


def unit_rows(count: int, seed: int) -> Float32:
    x = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def state_of(name: str, seed: int, rows: int = 200) -> ShardState:
    """Return a shard in which some subjects have two templates."""
    state = ShardState(ShardShape(ShardId(name), HashRange(0, 2**64 - 1), DIM))
    codes = vectors.quantize(unit_rows(rows, seed))
    templates = [f"{name}-t{row}" for row in range(rows)]
    state.add_rows(templates, [f"{name}-s{row * 3 // 4}" for row in range(rows)], codes)
    return state


@dataclass
class Bench:
    """A scheduler whose thread is the test's."""

    clock: ManualClock
    executor: FakeExecutor
    scheduler: Scheduler
    group: asyncio.TaskGroup
    batches: list[int]

    def ask(
        self,
        states: list[ShardState],
        x: Float32,
        wish: Wish = WISH,
        *,
        gallery: str = "g",
        left_s: float = 60.0,
    ) -> "asyncio.Task[Any]":
        """Start a caller; its task returns what it gets, an error too."""

        async def caller() -> Found | Exception:
            deadline_s = self.clock.now_s() + left_s
            try:
                return await self.scheduler.search(gallery, states, x, wish, deadline_s=deadline_s)
            except (DeadlineError, ValueError) as error:
                return error

        return self.group.create_task(caller())

    async def run(self) -> None:
        """Let a thread do what waits longest for one."""
        self.executor.run()
        await turn()


async def turn() -> None:
    """Let everybody run until they wait."""
    for _ in range(10):
        await asyncio.wait([asyncio.get_running_loop().create_future()], timeout=0)


@asynccontextmanager
async def bench(here: Here | None = None, **limits: float) -> AsyncIterator[Bench]:
    clock, executor, batches = ManualClock(), FakeExecutor(), []

    def noted(states: Sequence[ShardState], probes: Probes, wish: Wish) -> Found:
        batches.append(len(probes))
        return search(states, probes, wish)

    scheduler = Scheduler(executor, clock, BatchLimits(**limits), search=noted, here=here)
    async with asyncio.TaskGroup() as group:
        yield Bench(clock, executor, scheduler, group, batches)


def columns(found: Found) -> tuple[object, ...]:
    return (
        found.counts.tolist(),
        found.scores.tobytes(),
        found.subject_ids,
        found.template_ids,
        found.places,
    )


@pytest.fixture(scope="module")
def states() -> list[ShardState]:
    return [state_of("a", 1), state_of("b", 2)]


async def test_each_caller_of_a_batch_gets_what_it_would_have_got_alone(
    states: list[ShardState],
) -> None:
    sizes = [1, 3, 1, 7, 2]
    asked = [unit_rows(size, 10 + number) for number, size in enumerate(sizes)]
    async with bench() as b:
        tasks = [b.ask(states, x) for x in asked]
        await turn()
        await b.run()
        await b.run()
        answers = [await task for task in tasks]

    alone = [search(states, vectors.prepare_probes(x), WISH) for x in asked]
    assert b.batches == [1, 13]
    assert list(map(columns, answers)) == list(map(columns, alone))


async def test_other_shards_k_thresholds_or_galleries_share_no_batch(
    states: list[ShardState],
) -> None:
    x = unit_rows(1, 3)
    async with bench() as b:
        tasks = [
            b.ask(states, x),
            b.ask(states, x),
            b.ask(states[:1], x),
            b.ask(states, x, Wish(4, -2.0)),
            b.ask(states, x, Wish(3, 0.1)),
            b.ask(states, x),
        ]
        await turn()
        for _ in range(5):
            await b.run()
        for task in tasks:
            await task

    assert sorted(b.batches) == [1, 1, 1, 1, 2]


async def test_who_is_late_when_the_thread_gets_to_it_is_not_searched(
    states: list[ShardState],
) -> None:
    """1 one search runs; 2 two wait, one of them impatient; 3 their batch is handed to a thread
    that is busy; 4 the time of one is over; 5 the thread begins.
    """
    async with bench() as b:
        first = b.ask(states, unit_rows(1, 1))
        patient = b.ask(states, unit_rows(2, 2))
        hasty = b.ask(states, unit_rows(3, 3), left_s=5.0)
        await turn()
        await b.run()
        await b.clock.advance(6.0)
        await b.run()
        found = [await first, await patient]
        late = await hasty

    assert isinstance(late, DeadlineError)
    assert [len(one.counts) for one in found] == [1, 2]
    assert b.batches == [1, 2]
    assert (b.scheduler.counts.late, b.scheduler.counts.calls) == (1, 2)


async def test_who_leaves_is_not_searched_and_harms_nobody(states: list[ShardState]) -> None:
    async with bench() as b:
        first, leaves, stays, waits = (b.ask(states, unit_rows(n, n)) for n in (1, 2, 3, 4))
        await turn()
        waits.cancel()
        await turn()
        await b.run()
        leaves.cancel()
        await turn()
        await b.run()
        found = [await first, await stays]

    assert [len(one.counts) for one in found] == [1, 3]
    assert (b.batches, b.executor.given) == ([1, 3], [])


async def test_a_search_that_nobody_waits_for_any_more_is_not_run(
    states: list[ShardState],
) -> None:
    async with bench() as b:
        only = b.ask(states, unit_rows(1, 1))
        await turn()
        only.cancel()
        await turn()
        await b.run()
        again = b.ask(states, unit_rows(2, 2))
        await turn()
        await b.run()
        await again

    assert b.batches == [2]


async def test_what_breaks_a_search_is_told_to_all_of_its_callers_and_to_no_other(
    states: list[ShardState],
) -> None:
    broken = ValueError("a bug")

    def breaks(_states: Sequence[ShardState], probes: Probes, _wish: Wish) -> Found:
        if len(probes) > 1:
            raise broken
        return search(states, probes, WISH)

    async with bench() as b:
        b.scheduler._search = breaks
        tasks = [b.ask(states, unit_rows(1, number)) for number in range(3)]
        await turn()
        await b.run()
        await b.run()
        outcomes = [await task for task in tasks]
        again = b.ask(states, unit_rows(1, 9))
        await turn()
        await b.run()
        await again

    assert [type(one) for one in outcomes] == [Found, ValueError, ValueError]


async def test_what_is_erased_while_a_batch_runs_is_in_no_answer_of_it() -> None:
    """1 two callers are searched in one batch, and their best rows found; 2 the best of one is
    erased; 3 the batch is handed out; 4 that caller is searched for again, the other is not.
    """
    state = state_of("a", 1)
    best = [state.index.codes(np.array([row]))[0].astype(np.float32) for row in (10, 50)]
    x = np.stack([one / np.linalg.norm(one) for one in best])
    clock, executor, loop = ManualClock(), FakeExecutor(), asyncio.get_running_loop()
    nothing: Any = None
    view = SimpleNamespace(gallery=lambda _name: None)
    node: Any = SimpleNamespace(view=view)
    service = ShardService(
        ServicePorts(nothing, clock, executor, nothing, streams=nothing), node, nothing
    )
    copy: Any = SimpleNamespace(state=state, check_serving=lambda: None)
    request = pb.SearchRequest(gallery="g", k=2, threshold=-2.0)
    tasks = [
        loop.create_task(
            service._search(
                request.gallery,
                [copy],
                probes,
                service._wish(request),
                deadline_s=clock.now_s() + 60,
            )
        )
        for probes in (x[:1], x[:1], x[1:])
    ]
    await turn()
    executor.run()
    await turn()
    executor.run()
    state.erase_rows(np.array([10]))
    await turn()
    again = len(executor.given)
    executor.run()
    await turn()
    found = [await task for task in tasks]

    assert found[2].places[0] == (0, 50)
    assert (0, 10) not in found[1].places
    assert again == 1
    assert service.scheduler.counts.batches == 3


async def test_beyond_the_bound_callers_are_told_to_slow_down(states: list[ShardState]) -> None:
    async with bench(probes_max=4, waiting_probes_max=4) as b:
        tasks = [b.ask(states, unit_rows(1, 1)), b.ask(states, unit_rows(4, 2))]
        await turn()
        with pytest.raises(OverloadedError):
            await b.scheduler.search(
                "g", states, unit_rows(1, 3), WISH, deadline_s=b.clock.now_s() + 9
            )
        waiting_count = b.scheduler.waiting_count
        await b.run()
        await b.run()
        for task in tasks:
            await task

    assert (waiting_count, b.scheduler.waiting_count) == (4, 0)
    assert b.scheduler.counts.refused == 1


async def test_the_wait_for_a_search_is_measured(states: list[ShardState]) -> None:
    async with bench() as b:
        first = b.ask(states, unit_rows(1, 1))
        await turn()
        second = b.ask(states, unit_rows(2, 2))
        await turn()
        await b.clock.advance(2.0)
        await b.run()
        await b.clock.advance(3.0)
        await b.run()
        await first
        await second
        told = {
            sample.name: sample.value
            for family in SearchMetrics(b.scheduler)()
            for sample in family.samples
            if not sample.labels
        }

    prefix = "facegrid_node_search"
    assert told == {
        f"{prefix}_waiting_probes": 0,
        f"{prefix}_batches_total": 2,
        f"{prefix}_calls_total": 2,
        f"{prefix}_probes_total": 3,
        f"{prefix}_wait_seconds_total": 2.0 + 5.0,
    }
    assert {*told, f"{prefix}_unsearched_total"} == {spec.name for spec in SEARCH_METRICS}


async def test_small_searches_are_made_at_once(states: list[ShardState]) -> None:
    """1 three callers come; 2 each is searched for, and no thread hears of it."""
    device = Device(1, lambda: None)
    asked = [unit_rows(1, 10 + number) for number in range(3)]
    try:
        async with bench(device.search_here) as b:
            tasks = [b.ask(states, x) for x in asked]
            await turn()
            answers = [await task for task in tasks]
    finally:
        device.shutdown()

    assert (b.batches, len(b.executor.given), b.scheduler.counts.calls) == ([1, 1, 1], 0, 3)
    for x, answer in zip(asked, answers, strict=True):
        assert columns(answer) == columns(search(states, vectors.prepare_probes(x), WISH))


async def test_large_searches_are_left_to_a_thread(
    states: list[ShardState], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduling, "SMALL_US", 2 * scheduling.SHARD_US + 14)
    device = Device(1, lambda: None)
    try:
        async with bench(device.search_here) as b:
            large = b.ask(states, unit_rows(3, 1))
            await turn()
            left = len(b.executor.given)
            small = b.ask(states, unit_rows(2, 2))
            await turn()
            waiting = b.scheduler.waiting_count
            await b.run()
            await b.run()
            done = large.done(), small.done()
    finally:
        device.shutdown()

    assert (left, waiting, done) == (1, 2, (True, True))
    assert (b.batches, b.executor.given) == ([3, 2], [])


async def test_small_searches_do_not_wait_on_the_event_loop_for_a_device_at_work(
    states: list[ShardState],
) -> None:
    """1 the device's thread changes an index; 2 a search comes; 3 it is left to the threads."""
    device = Device(1, lambda: None)
    begun, over = threading.Event(), threading.Event()
    try:
        at_work = device.owning.submit(lambda: (begun.set(), over.wait(60)))
        assert begun.wait(60)
        async with bench(device.search_here) as b:
            task = b.ask(states, unit_rows(1, 1))
            await turn()
            left = len(b.executor.given)
            over.set()
            at_work.result()
            await b.run()
            await task
    finally:
        over.set()
        device.shutdown()

    assert left == 1


async def test_what_breaks_a_search_made_at_once_is_told_to_its_callers(
    states: list[ShardState],
) -> None:
    def broken(_work: Any) -> Any:
        raise ValueError("broken")

    async with bench(broken) as b:
        tasks = [b.ask(states, unit_rows(1, 1)) for _ in range(2)]
        answers = [await task for task in tasks]
        waiting = b.scheduler.waiting_count

    assert [str(answer) for answer in answers] == ["broken", "broken"]
    assert waiting == 0


def test_whoever_changes_an_index_is_alone_and_comes_before_newcomers() -> None:
    """1 a search is inside; 2 a change wants in; 3 another search comes; 4 the first leaves."""
    gate, device = Gate(), Device(2, lambda: None)
    order: list[str] = []

    def change() -> None:
        with gate.alone():
            order.append("change")

    def newcomer() -> None:
        with gate.together():
            order.append("newcomer")

    try:
        with gate.together():
            changed = device.searching.submit(change)
            with gate._changed:
                gate._changed.wait_for(lambda: gate._wanting)
            came = device.owning.submit(newcomer)
            order.append("first")
        changed.result()
        came.result()
    finally:
        device.shutdown()

    assert order == ["first", "change", "newcomer"]


@pytest.mark.parametrize("alone", [False, True])
def test_who_does_not_wait_enters_a_gate_only_where_it_is_free(*, alone: bool) -> None:
    gate = Gate()

    with gate.at_once(alone=alone) as entered, gate.at_once(alone=alone) as second:
        assert (entered, second) == (True, not alone)
    with gate.alone(), gate.at_once(alone=alone) as beside:
        assert not beside
    with gate.together(), gate.at_once(alone=alone) as joined:
        assert joined is not alone
    with gate.at_once(alone=True) as again:
        assert again


def test_one_thread_that_searches_owns_the_indexes_too() -> None:
    device = Device(1, lambda: None)
    device.shutdown()

    assert device.searching is device.owning
