"""The command `facegrid-router`."""

import asyncio
import secrets
import signal
import sys

from facegrid.clock import SystemClock
from facegrid.errors import FacegridError, InvalidError
from facegrid.settings import EXIT_INVALID, effective, load
from facegrid.telemetry.log import configure, get_logger
from router.server import RouterServer
from router.settings import RouterSettings

PROG = "facegrid-router"


def main() -> int:
    """Run a router until SIGTERM or SIGINT; return the exit code."""
    settings = load(
        RouterSettings,
        sys.argv[1:],
        prog=PROG,
        description="Takes calls, fans them out to the nodes and merges the answers.",
    )
    configure(PROG, fmt=settings.log_format, level=settings.log_level)
    get_logger("router").info("effective settings", **effective(settings))
    try:
        asyncio.run(_run(settings))
    except FacegridError as error:
        sys.stderr.write(f"{PROG}: {error.message}\n")
        return EXIT_INVALID if isinstance(error, InvalidError) else 1
    return 0


async def _run(settings: RouterSettings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    clock = SystemClock()
    coordinator = settings.coordinator(clock)
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


if __name__ == "__main__":
    raise SystemExit(main())
