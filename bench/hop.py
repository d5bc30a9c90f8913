"""What one call from process to process costs, whatever is in it: `python -m bench.hop`.

A search passes client, router and nodes, each a call of gRPC. This takes facegrid out and leaves
the call: gRPC's asynchronous server and its synchronous one, a call of its own for each message
and one stream that carries them all, in turns. It is what notes on missed targets refer to;
nothing is asserted.
"""

import argparse
import asyncio
import multiprocessing
import sys
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
import psutil
import uvloop

from bench import report
from facegrid.clock import Clock, SystemClock

SERVICE: Final = "bench.Hop"
REQUEST: Final = bytes(2100)
"""About one probe of 512 dimensions."""
RESPONSE: Final = bytes(600)
"""About its ten candidates."""
SERVERS: Final = ("aio", "sync")
WAYS: Final = ("call", "stream")
AT_ONCE: Final = (1, 16)
THREADS: Final = 16
ROUNDS: Final = 5
MESSAGES: Final = 2000
WARM: Final = 50
TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Measured:
    """One way of one server, with so many messages under way: a round's medians over all rounds.

    Attributes:
        p50_ms: of a message and its answer.
        client_us: processor time of a message in the client.
        server_us: likewise in the server.
    """

    server: str
    way: str
    at_once: int
    p50_ms: float
    client_us: float
    server_us: float

    @property
    def text(self) -> str:
        """Show it."""
        return (
            f"{self.server:<5} {self.way:<7} {self.at_once:>3} at once: p50 {self.p50_ms:.3f} ms;"
            f" processor time: client {self.client_us:.0f} us, server {self.server_us:.0f} us"
        )


def _handlers(call: Callable[..., Any], stream: Callable[..., Any]) -> grpc.GenericRpcHandler:
    found: grpc.GenericRpcHandler = grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "call": grpc.unary_unary_rpc_method_handler(call),
            "stream": grpc.stream_stream_rpc_method_handler(stream),
        },
    )
    return found


async def _call(_request: bytes, _context: object) -> bytes:
    return RESPONSE


async def _stream(requests: AsyncIterable[bytes], _context: object) -> AsyncIterator[bytes]:
    async for _ in requests:
        yield RESPONSE


def _stream_sync(requests: Iterable[bytes], _context: object) -> Iterator[bytes]:
    for _ in requests:
        yield RESPONSE


def serve(kind: str, ready: Connection) -> None:
    """Serve until ended; tell the port."""
    if kind == "sync":
        server = grpc.server(ThreadPoolExecutor(THREADS))
        server.add_generic_rpc_handlers((_handlers(lambda *_: RESPONSE, _stream_sync),))
        ready.send(server.add_insecure_port("127.0.0.1:0"))
        server.start()
        server.wait_for_termination()
        return

    async def main() -> None:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((_handlers(_call, _stream),))
        ready.send(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        await server.wait_for_termination()

    uvloop.run(main())


@contextmanager
def served(kind: str) -> Iterator[tuple[str, psutil.Process]]:
    """Run a server in a process of its own; return its address and the process."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=serve, args=(kind, theirs), daemon=True)
    process.start()
    try:
        assert process.pid is not None, "started"
        yield f"127.0.0.1:{ours.recv()}", psutil.Process(process.pid)
    finally:
        process.kill()
        process.join()


def _cpu_s(process: psutil.Process) -> float:
    used = process.cpu_times()
    return float(used.user + used.system)


class Caller:
    """Asks one server.

    Args:
        channel: to it.
        server: its process.
        clock: for times.
    """

    def __init__(self, channel: grpc.aio.Channel, server: psutil.Process, clock: Clock) -> None:
        self._call: Any = channel.unary_unary(f"/{SERVICE}/call")
        self._stream: Any = channel.stream_stream(f"/{SERVICE}/stream")
        self._server = server
        self._own = psutil.Process()
        self._clock = clock

    async def round(self, way: str, at_once: int, messages: int) -> tuple[float, float, float]:
        """Return the median time of a message in s, and the processor time of one in client and
        server.
        """
        each = max(1, messages // at_once)
        times_s: list[float] = []
        one = self._by_calls if way == "call" else self._by_stream
        before = _cpu_s(self._own), _cpu_s(self._server)
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(one(each, times_s))
        after = _cpu_s(self._own), _cpu_s(self._server)
        client_s, server_s = ((b - a) / len(times_s) for a, b in zip(before, after, strict=True))
        return report.percentile(times_s, 0.5), client_s, server_s

    async def _by_calls(self, count: int, times_s: list[float]) -> None:
        for _ in range(count):
            began_s = self._clock.now_s()
            await self._call(REQUEST, timeout=TIMEOUT_S)
            times_s.append(self._clock.now_s() - began_s)

    async def _by_stream(self, count: int, times_s: list[float]) -> None:
        stream = self._stream(timeout=TIMEOUT_S)
        for _ in range(count):
            began_s = self._clock.now_s()
            await stream.write(REQUEST)
            await stream.read()
            times_s.append(self._clock.now_s() - began_s)
        await stream.done_writing()


async def measure(
    addresses: dict[str, tuple[str, psutil.Process]], *, messages: int, clock: Clock
) -> list[Measured]:
    """Measure all in turns."""
    channels = {kind: grpc.aio.insecure_channel(at) for kind, (at, _) in addresses.items()}
    found: dict[tuple[str, str, int], list[tuple[float, float, float]]] = {}
    try:
        for number in range(ROUNDS + 1):
            for kind, channel in channels.items():
                caller = Caller(channel, addresses[kind][1], clock)
                for way in WAYS:
                    for at_once in AT_ONCE:
                        # The first round warms what there is to warm.
                        count = messages if number else WARM
                        taken = await caller.round(way, at_once, count)
                        if number:
                            found.setdefault((kind, way, at_once), []).append(taken)
    finally:
        for channel in channels.values():
            await channel.close()
    medians = {
        key: [report.spread(values).median for values in zip(*rounds, strict=True)]
        for key, rounds in found.items()
    }
    return [
        Measured(*key, p50_ms=p50_s * 1e3, client_us=client_s * 1e6, server_us=server_s * 1e6)
        for key, (p50_s, client_s, server_s) in medians.items()
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the results down."""
    parser = argparse.ArgumentParser(prog="bench.hop", description="What a call costs.")
    parser.add_argument("--messages", type=int, default=MESSAGES, help="of each round")
    parser.add_argument("--results", type=Path, default=report.RESULTS, help="folder for the JSON")
    given = parser.parse_args(argv)
    clock = SystemClock()
    with served(SERVERS[0]) as first, served(SERVERS[1]) as second:
        addresses = dict(zip(SERVERS, (first, second), strict=True))
        found = uvloop.run(measure(addresses, messages=given.messages, clock=clock))
    for one in found:
        print(one.text)
    command = ["python", "-m", "bench.hop", *report.without_folders(argv or sys.argv[1:])]
    path = report.write(
        "hop",
        command,
        unix_ms=clock.unix_ms(),
        results={"rounds": ROUNDS, "hops": [asdict(one) for one in found], "targets": []},
        folder=given.results,
    )
    print(f"written: bench/results/{path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
