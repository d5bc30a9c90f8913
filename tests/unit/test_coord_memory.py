"""The coordinator in memory: leases by the test's clock, outages and compaction."""

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from facegrid.coord.port import Changed, KeyValue, Listing, Progress, Put, Snapshot
from facegrid.errors import NotFoundError, UnavailableError
from facegrid.testing.manual_clock import ManualClock
from facegrid.testing.memory_coord import MemoryCoordinator


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def coordinator(clock: ManualClock) -> MemoryCoordinator:
    return MemoryCoordinator(clock)


def opened(coordinator: MemoryCoordinator) -> Any:
    """Return a watch on everything, closed at the end of a with block."""
    return aclosing(coordinator.watch(""))


async def test_a_lease_ends_when_its_time_is_over_and_not_before(
    clock: ManualClock, coordinator: MemoryCoordinator
) -> None:
    lease_id = await coordinator.grant_lease(10)
    await coordinator.txn([], [Put("nodes/a", b"1", lease_id)])
    await clock.advance(9.0)
    await coordinator.renew_lease(lease_id)
    await clock.advance(9.5)
    assert await coordinator.get("nodes/a") == KeyValue("nodes/a", b"1", 2, lease_id)

    await clock.advance(0.5)

    assert await coordinator.get("nodes/a") is None
    with pytest.raises(NotFoundError):
        await coordinator.renew_lease(lease_id)


async def test_an_outage_fails_calls_and_loses_nothing(coordinator: MemoryCoordinator) -> None:
    """(1) a watch has listed (2) outage (3) it ends; the next write is seen as one change."""
    async with opened(coordinator) as watch:
        assert await anext(watch) == Listing(Snapshot(1, ()))
        coordinator.stop()
        for call in (
            coordinator.get("a"),
            coordinator.list(""),
            coordinator.txn([], []),
            coordinator.grant_lease(5),
            coordinator.renew_lease(1),
            coordinator.revoke_lease(1),
        ):
            with pytest.raises(UnavailableError):
                await call
        coordinator.start()
        await coordinator.txn([], [Put("a", b"1")])

        assert await anext(watch) == Changed("put", "a", KeyValue("a", b"1", 2), 2)


async def test_leases_survive_an_outage_that_is_longer_than_they_are(
    clock: ManualClock, coordinator: MemoryCoordinator
) -> None:
    lease_id = await coordinator.grant_lease(10)
    coordinator.stop()
    await clock.advance(60.0)
    coordinator.start()

    assert await coordinator.renew_lease(lease_id) == 10


async def test_a_watch_that_compaction_left_behind_lists_again(
    coordinator: MemoryCoordinator,
) -> None:
    async with opened(coordinator) as watch:
        await anext(watch)
        await coordinator.txn([], [Put("a", b"1")])
        coordinator.compact()

        assert await anext(watch) == Listing(Snapshot(2, (KeyValue("a", b"1", 2),)))


async def test_a_watch_that_is_not_behind_does_not_notice_compaction(
    coordinator: MemoryCoordinator,
) -> None:
    async with opened(coordinator) as watch:
        await anext(watch)
        coordinator.compact()
        await coordinator.txn([], [Put("a", b"1")])

        assert await anext(watch) == Changed("put", "a", KeyValue("a", b"1", 2), 2)


async def test_a_quiet_watch_reports_progress_by_the_clock(
    clock: ManualClock, coordinator: MemoryCoordinator
) -> None:
    async with opened(coordinator) as watch, asyncio.TaskGroup() as group:
        await anext(watch)
        event = group.create_task(anext(watch))
        await clock.advance(0.9)
        assert not event.done()
        await clock.advance(0.1)

    assert event.result() == Progress(1)
