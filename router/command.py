"""A router process: settings, logging, signals, exit codes."""

import asyncio
import gc
import secrets
import signal
import sys
from collections.abc import Callable

import uvloop

from facegrid.clock import Clock, SystemClock
from facegrid.coord.port import Coordinator
from facegrid.errors import FacegridError, InvalidError
from facegrid.failpoint import FailingCoordinator, Failpoints, ShiftedClock
from facegrid.settings import EXIT_INVALID, effective, load
from facegrid.telemetry.log import configure, get_logger
from router.parent import Parent
from router.server import RouterServer
from router.settings import RouterSettings

PROG = "facegrid-router"

Watch = Callable[[asyncio.AbstractEventLoop, asyncio.Event], None]


def main(watch: Watch | None = None) -> int:
    """Run a router until SIGTERM or SIGINT; return the exit code.

    Args:
        watch: sees to it that a child ends with its parent; None: this is no child, and where
            several processes are wanted it is their parent.
    """
    settings = load(
        RouterSettings,
        sys.argv[1:],
        prog=PROG,
        description="Takes calls, fans them out to the nodes and merges the answers.",
    )
    configure(PROG, fmt=settings.log_format, level=settings.log_level)
    get_logger("router").info("effective settings", **effective(settings))
    try:
        if settings.processes > 1 and watch is None:
            parent = Parent(settings, sys.argv[1:], SystemClock(), get_logger("router"))
            return asyncio.run(parent.run())
        # Modules stay, and are many: going through them holds searches up for tens of
        # milliseconds.
        gc.freeze()
        uvloop.run(_run(settings, watch))
    except FacegridError as error:
        sys.stderr.write(f"{PROG}: {error.message}\n")
        return EXIT_INVALID if isinstance(error, InvalidError) else 1
    return 0


async def _run(settings: RouterSettings, watch: Watch | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    if watch is not None:
        watch(loop, stop)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    clock: Clock = SystemClock()
    coordinator: Coordinator = settings.coordinator(clock)
    if settings.failpoints is not None:
        coordinator = FailingCoordinator(coordinator, Failpoints(settings.failpoints / PROG))
        clock = ShiftedClock(clock, settings.failpoints / f"{PROG}.wall")
    try:
        server = RouterServer(
            settings,
            coordinator,
            clock,
            new_uid=lambda: secrets.token_hex(4),
            logger=get_logger("router"),
        )
        await server.run(stop=stop)
    finally:
        await coordinator.aclose()
