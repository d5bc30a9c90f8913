"""TCP proxies of our own, to hurt the links to nodes: held back, slowed down, cut."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Literal, Self, TypeVar

from facegrid.clock import SystemClock
from fgctl.local.etcd import HOST

CHUNK_BYTES = 65_536
START_S = 10.0
STOP_S = 2.0

T = TypeVar("T")

Way = Literal["there", "back"]
"""From who connects to whom it connects to, or the answers to that."""


class Link:
    """Connections to one address. Its methods run in the proxies' loop."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._passing: dict[Way, asyncio.Event] = {
            "there": asyncio.Event(),
            "back": asyncio.Event(),
        }
        self._refusing = False
        self._delay_s = 0.0
        self._clock = SystemClock()
        self._writers: set[asyncio.StreamWriter] = set()
        self.heal()

    def hold(self, *ways: Way) -> None:
        """Be a black hole, in one direction or both: nothing passes, nobody is told."""
        for way in ways or self._passing:
            self._passing[way].clear()

    def slow(self, delay_s: float) -> None:
        """Delay whatever passes."""
        self._delay_s = delay_s

    def cut(self) -> None:
        """Reset every connection and refuse new ones."""
        self._refusing = True
        self.drop()

    def heal(self) -> None:
        """Let everything pass; what was held back comes now."""
        for passing in self._passing.values():
            passing.set()
        self._refusing = False
        self._delay_s = 0.0

    def drop(self) -> None:
        """Reset every connection."""
        for writer in self._writers:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection until either end closes it."""
        host, _, port = self._upstream.rpartition(":")
        if self._refusing:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, far_writer}
        self._writers |= ends
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._carry("there", reader, far_writer, source=writer))
                tasks.create_task(self._carry("back", far_reader, writer, source=far_writer))
        finally:
            self._writers -= ends

    async def _carry(
        self,
        way: Way,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        source: asyncio.StreamWriter,
    ) -> None:
        passing = self._passing[way]
        try:
            while data := await reader.read(CHUNK_BYTES):
                await self._clock.sleep(self._delay_s)
                await passing.wait()
                writer.write(data)
                await writer.drain()
            await passing.wait()
        except OSError:
            pass
        finally:
            # gRPC never closes one direction alone.
            writer.close()
            source.close()


class Proxies:
    """Links, in an event loop in a thread of its own. Use in a `with` statement."""

    def __init__(self) -> None:
        self._links: dict[str, Link] = {}
        self._servers: list[asyncio.Server] = []
        self._ready = threading.Event()
        self._end = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait(START_S)
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(2 * STOP_S)

    @property
    def names(self) -> list[str]:
        """The links that there are."""
        return list(self._links)

    def open(self, name: str, upstream: str) -> str:
        """Begin to serve a link; return where it is reached."""
        return self._run(self._open(name, upstream))

    def change(self, name: str, action: Callable[[Link], None]) -> None:
        """Do something to a link, and return when it is done."""

        async def act() -> None:
            action(self._links[name])

        self._run(act())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(START_S)

    async def _open(self, name: str, upstream: str) -> str:
        link = self._links[name] = Link(upstream)
        server = await asyncio.start_server(link.serve, HOST, 0)
        self._servers.append(server)
        return f"{HOST}:{server.sockets[0].getsockname()[1]}"

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ready.set()
        await self._end.wait()
        for server in self._servers:
            server.close()
        for link in self._links.values():
            link.heal()
            link.cut()
        carrying = asyncio.all_tasks() - {asyncio.current_task()}
        if carrying:
            await asyncio.wait(carrying, timeout=STOP_S)
