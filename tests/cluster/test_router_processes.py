"""Several routers on one port: one may die without a failed read, and all end together."""

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import numpy as np
import psutil
import pytest

import facegrid
from facegrid.clock import SystemClock
from facegrid.coord.etcd import EtcdCoordinator
from facegrid.testing.fake_shard import FakeNode
from tests.cluster.test_router_process import free_port, last_words
from tests.fakes.router_cluster import DIM, faces

pytestmark = pytest.mark.cluster

CLIENTS = 8
READS_MIN = 10


@asynccontextmanager
async def parent(etcd: Any, *flags: str) -> AsyncIterator[tuple[Process, str]]:
    """Start a router of two processes."""
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "router", "--processes=2", f"--listen={address}"]
    command += [f"--etcd={etcd.endpoint}", f"--etcd-prefix={etcd.root}", *flags]
    process = await asyncio.create_subprocess_exec(*command, stderr=PIPE)
    try:
        yield process, address
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


def children(process: Process) -> list[psutil.Process]:
    return psutil.Process(process.pid).children()


async def test_one_of_several_dies_without_a_failed_read_and_sigterm_ends_all(etcd: Any) -> None:
    """1 clients read through both; 2 one process is killed; 3 all read on, and another process
    takes its place; 4 SIGTERM ends all of them.
    """
    clock = SystemClock()
    x = faces(20)
    async with AsyncExitStack() as stack:
        coord = EtcdCoordinator(etcd.endpoints, root=etcd.root, clock=clock)
        stack.push_async_callback(coord.aclose)
        await stack.enter_async_context(FakeNode("n1", coord, clock))
        process, address = await stack.enter_async_context(parent(etcd))
        clients = [
            await stack.enter_async_context(facegrid.AsyncClient(address, timeout_s=30.0))
            for _ in range(CLIENTS)
        ]
        await clients[0].create_gallery("staff", dim=DIM, extractor="e@1")
        names = [f"s{row}" for row in range(len(x))]
        token = await clients[0].enrol("staff", template_ids=names, subject_ids=names, vectors=x)
        before = children(process)
        reads = [0] * CLIENTS

        async def read(number: int, until: asyncio.Event) -> None:
            while not until.is_set():
                row = reads[number] % len(x)
                (answer,) = await clients[number].identify(
                    "staff", x[row : row + 1], k=1, after=token
                )
                assert answer.candidates[0].subject_id == names[row]
                reads[number] += 1

        async def all_read_on() -> None:
            wanted = [count + READS_MIN for count in reads]
            while any(np.less(reads, wanted)):
                await clock.sleep(0.01)

        enough = asyncio.Event()
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(read(number, enough))
            await all_read_on()
            before[0].kill()
            await all_read_on()
            while len(alive := children(process)) < 2 or before[0] in alive:
                await clock.sleep(0.01)
            enough.set()
        process.send_signal(signal.SIGTERM)
        code, _ = await last_words(process)
        gone, left = psutil.wait_procs([*before, *alive], timeout=10)

    assert code == 0
    assert (len(gone), left) == (3, [])


async def test_the_processes_end_when_their_parent_is_killed(etcd: Any) -> None:
    async with parent(etcd) as (process, address):
        async with facegrid.AsyncClient(address, timeout_s=30.0) as client:
            await client.list_galleries()
        started = children(process)
        process.kill()
        await process.communicate()
        _, left = psutil.wait_procs(started, timeout=20)

    assert (len(started), left) == (2, [])


async def test_a_port_that_is_taken_is_told_before_anything_starts(etcd: Any) -> None:
    async with parent(etcd) as (first, address):
        async with facegrid.AsyncClient(address, timeout_s=30.0) as client:
            await client.list_galleries()
        async with parent(etcd, f"--listen={address}") as (second, _):
            code, words = await last_words(second)
        first.send_signal(signal.SIGTERM)
        await last_words(first)

    assert (code, address in words) == (1, True)
