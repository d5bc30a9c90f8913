"""The command facegrid-router: how it starts, stops, and says why it cannot."""

import asyncio
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from facegrid.rpc.channel import open_channel

pytestmark = pytest.mark.cluster


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


async def start(*flags: str) -> Process:
    command = [sys.executable, "-m", "router", "--log-format", "json", *flags]
    return await asyncio.create_subprocess_exec(*command, stderr=PIPE)


async def last_words(process: Process) -> tuple[int | None, str]:
    _, stderr = await process.communicate()
    return process.returncode, stderr.decode().strip().splitlines()[-1]


async def test_a_router_serves_until_sigterm_and_exits_with_0(etcd: Any) -> None:
    address = f"127.0.0.1:{free_port()}"
    process = await start(
        "--listen", address, "--etcd", etcd.endpoint, "--etcd-prefix", etcd.root, "--dev"
    )
    async with open_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="facegrid.api.v1.GalleryService")
        answer = await health.Check(request, timeout=20, wait_for_ready=True)
    process.send_signal(signal.SIGTERM)
    code, _ = await last_words(process)

    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert code == 0


async def test_without_etcd_and_without_a_saved_map_it_says_so_and_exits_with_1() -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    process = await start("--listen", "127.0.0.1:0", "--etcd", endpoint, "--etcd-timeout-s", "0.5")

    code, words = await last_words(process)

    assert code == 1
    assert "etcd cannot be reached" in words
    assert endpoint in words


async def test_a_port_that_is_taken_is_named(etcd: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        process = await start("--listen", address, "--etcd", etcd.endpoint)

        code, words = await last_words(process)

    assert code == 1
    assert address in words


async def test_a_setting_that_does_not_exist_stops_the_start_with_2() -> None:
    code, words = await last_words(await start("--etcd", "127.0.0.1:1", "--lisen", "x"))

    assert code == 2
    assert "--lisen" in words
