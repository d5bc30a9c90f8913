"""Several routers on one port: starts them, starts one that dies again, and ends them together.

The parent serves nothing. It holds the port, bound but not listened at, so that nothing else gets
it; the kernel deals connections out among the children, which listen there side by side. Children
are started as programs of their own, never forked, since gRPC does not survive a fork.
"""

import asyncio
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final

from facegrid.clock import Clock
from facegrid.errors import UnavailableError
from facegrid.settings import EXIT_INVALID
from facegrid.telemetry.log import Logger
from router.settings import RouterSettings

CALM_S: Final = 30.0
"""A child that ran that long before it died was sound."""
FAILURES_MAX: Final = 5
"""After so many deaths in a row without calm the parent gives up."""
BACKOFF_S: Final = 0.2
BACKOFF_S_MAX: Final = 5.0
KILL_AFTER_S: Final = 5.0
"""How much longer than its calls a child may take to end."""


@dataclass(slots=True)
class Deaths:
    """How often a child has died lately, and so what is to be done."""

    in_a_row: int = 0

    def pause_s(self, lived_s: float) -> float | None:
        """Return how long to wait before a child that lived so long is started again; None: it
        dies again and again, give up.
        """
        self.in_a_row = 1 if lived_s >= CALM_S else self.in_a_row + 1
        if self.in_a_row > FAILURES_MAX:
            return None
        return float(min(BACKOFF_S * 2 ** (self.in_a_row - 1), BACKOFF_S_MAX))


@dataclass(slots=True)
class Parent:
    """Looks after the processes of one router address.

    Args:
        settings: of the parent; children have the same but for what must differ.
        argv: its command line, which children get as well.
        clock: for pauses.
        logger: told of deaths.
    """

    settings: RouterSettings
    argv: Sequence[str]
    clock: Clock
    logger: Logger
    _code: int = 0
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> int:
        """Run until SIGTERM or SIGINT, or until a child cannot be kept alive; return the code.

        Raises:
            UnavailableError: the address cannot be had (LISTEN_FAILED).
        """
        for signum in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(signum, self._stop.set)
        with ExitStack() as stack:
            address = held(self.settings.listen, stack)
            async with asyncio.TaskGroup() as group:
                for number in range(self.settings.processes):
                    group.create_task(self._keep(number, address))
        return self._code

    async def _keep(self, number: int, address: str) -> None:
        """Keep one child alive."""
        deaths = Deaths()
        while not self._stop.is_set():
            started_s = self.clock.now_s()
            code = await self._child(child_argv(self.settings, self.argv, number, address))
            if self._stop.is_set():
                return
            self.logger.warning("router process ended", number=number, code=code)
            pause_s = deaths.pause_s(self.clock.now_s() - started_s)
            if code == EXIT_INVALID or pause_s is None:
                self._code = code if code > 0 else 1
                self._stop.set()
                return
            await self._stopped_within(pause_s)

    async def _child(self, argv: Sequence[str]) -> int:
        """Run a child to its end, and end it when this is to stop; return its exit code."""
        # It ends by itself when the pipe is closed: when the parent has died.
        child = await asyncio.create_subprocess_exec(*argv, stdin=asyncio.subprocess.PIPE)
        async with asyncio.TaskGroup() as group:
            ended = group.create_task(child.wait())
            told = group.create_task(self._stop.wait())
            await asyncio.wait({ended, told}, return_when=asyncio.FIRST_COMPLETED)
            told.cancel()
            if not ended.done():
                child.send_signal(signal.SIGTERM)
                grace_s = self.settings.grace_s + KILL_AFTER_S
                await asyncio.wait({ended}, timeout=grace_s)
                if not ended.done():
                    child.kill()
        return ended.result()

    async def _stopped_within(self, duration_s: float) -> None:
        async with asyncio.TaskGroup() as group:
            told = group.create_task(self._stop.wait())
            pause = group.create_task(self.clock.sleep(duration_s))
            await asyncio.wait({told, pause}, return_when=asyncio.FIRST_COMPLETED)
            told.cancel()
            pause.cancel()


def held(listen: str, stack: ExitStack) -> str:
    """Return the address to listen at, with a port; nobody but children gets it from now on.

    Raises:
        UnavailableError: it cannot be had (LISTEN_FAILED).
    """
    host, _, port = listen.rpartition(":")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as trial:
            # Without SO_REUSEPORT: a port that anybody has is refused, one shared by others too.
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
            address = trial.getsockname()
        holder = stack.enter_context(socket.socket(family, kind, protocol))
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(address)
    except OSError as error:
        raise UnavailableError(
            f"cannot listen: the address is taken or not of this machine address={listen}",
            reason="LISTEN_FAILED",
            address=listen,
        ) from error
    return f"{host}:{address[1]}"


def child_argv(
    settings: RouterSettings, argv: Sequence[str], number: int, address: str
) -> list[str]:
    """Return the command line of one child: the parent's, and what is this child's own."""
    own = [f"--listen={address}"]
    if settings.metrics is not None:
        host, _, port = settings.metrics.rpartition(":")
        own.append(f"--metrics={host}:{int(port) + number if int(port) else 0}")
    if settings.state_dir is not None:
        own.append(f"--state-dir={settings.state_dir / str(number)}")
    return [sys.executable, "-P", "-m", "router.child", *argv, *own]
