"""A node's registration, by the test's clock."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from facegrid.coord import keys
from facegrid.coord.lease import Registration
from facegrid.coord.port import KeyValue
from facegrid.format.records import encode_node
from facegrid.ids import NodeId
from facegrid.model import NodeInfo
from facegrid.telemetry.log import get_logger
from facegrid.testing.manual_clock import ManualClock
from facegrid.testing.memory_coord import MemoryCoordinator

NODE = NodeInfo(NodeId("n1"), "boot1", "127.0.0.1:7500", "0.1.0", "rack-a")
KEY = "nodes/n1/boot1"
TTL_S = 9


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def coordinator(clock: ManualClock) -> MemoryCoordinator:
    return MemoryCoordinator(clock)


@asynccontextmanager
async def running(coordinator: MemoryCoordinator, clock: ManualClock) -> AsyncIterator[None]:
    """Keep a registration running."""
    registration = Registration(coordinator, NODE, TTL_S, clock, get_logger("test"))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(registration.run())
        await clock.settle()
        yield
        task.cancel()


async def test_the_key_says_where_the_node_is_and_hangs_on_a_lease(
    coordinator: MemoryCoordinator, clock: ManualClock
) -> None:
    async with running(coordinator, clock):
        item = await coordinator.get(KEY)

    assert item == KeyValue(KEY, encode_node(NODE), 2, lease_id=1)


async def test_it_is_renewed_for_as_long_as_it_runs(
    coordinator: MemoryCoordinator, clock: ManualClock
) -> None:
    async with running(coordinator, clock):
        await clock.advance(10.0 * TTL_S)
        item = await coordinator.get(KEY)

    assert item == KeyValue(KEY, encode_node(NODE), 2, lease_id=1)


async def test_it_leaves_at_once_when_it_ends(
    coordinator: MemoryCoordinator, clock: ManualClock
) -> None:
    async with running(coordinator, clock):
        assert await coordinator.get(KEY) is not None

    assert (await coordinator.list(keys.NODES)).items == ()


async def test_it_registers_again_when_the_lease_has_ended(
    coordinator: MemoryCoordinator, clock: ManualClock
) -> None:
    async with running(coordinator, clock):
        await coordinator.revoke_lease(1)
        await clock.advance(TTL_S / 3 + 0.5)
        item = await coordinator.get(KEY)

    assert item == KeyValue(KEY, encode_node(NODE), 4, lease_id=2)


async def test_it_goes_on_after_an_outage(
    coordinator: MemoryCoordinator, clock: ManualClock
) -> None:
    async with running(coordinator, clock):
        coordinator.stop()
        await clock.advance(10.0 * TTL_S)
        coordinator.start()
        await clock.advance(10.0 * TTL_S)
        item = await coordinator.get(KEY)

    assert item == KeyValue(KEY, encode_node(NODE), 2, lease_id=1)


async def test_it_registers_as_soon_as_the_coordinator_can_be_reached(
    coordinator: MemoryCoordinator, clock: ManualClock
) -> None:
    coordinator.stop()
    async with running(coordinator, clock):
        await clock.advance(60.0)
        coordinator.start()
        await clock.advance(0.5)
        item = await coordinator.get(KEY)

    assert item == KeyValue(KEY, encode_node(NODE), 2, lease_id=1)


async def test_it_ends_quietly_when_it_cannot_say_goodbye(
    coordinator: MemoryCoordinator, clock: ManualClock
) -> None:
    async with running(coordinator, clock):
        coordinator.stop()
    coordinator.start()

    assert (await coordinator.get(KEY)) is not None
    await clock.advance(TTL_S)
    assert (await coordinator.get(KEY)) is None
