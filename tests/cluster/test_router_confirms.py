"""A router's view against three real members of etcd, of which the majority goes away."""

import asyncio
from pathlib import Path

import pytest

from facegrid.clock import SystemClock
from facegrid.coord.etcd import EtcdCoordinator
from facegrid.telemetry.log import get_logger
from fgctl.local.etcd import start_etcd
from router.topology.watcher import Watcher
from tests.fakes.waiting import until

pytestmark = pytest.mark.cluster

CLOCK = SystemClock()


async def test_a_view_is_confirmed_by_a_majority_and_by_nothing_less(tmp_path: Path) -> None:
    """1. three members. 2. one alone is left, and is asked. 3. two again."""
    etcd = await start_etcd(tmp_path, 3, clock=CLOCK)
    coordinator = EtcdCoordinator(etcd.endpoints, clock=CLOCK)
    watcher = Watcher(coordinator, CLOCK, get_logger("watcher"), state_dir=None)
    try:
        async with asyncio.TaskGroup() as group:
            running = group.create_task(watcher.run())
            await until(lambda: watcher.confirmed)
            etcd.pause("etcd2", "etcd3")
            await until(lambda: not watcher.confirmed)
            etcd.resume("etcd3")
            await until(lambda: watcher.confirmed)
            running.cancel()
    finally:
        await coordinator.aclose()
        etcd.resume()
        etcd.kill()
