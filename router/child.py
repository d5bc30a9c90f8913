"""One router of several on one port; `router.parent` starts it, and it ends with its parent."""

import asyncio
import sys

from router.command import main


def orphaned(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Stop when the parent is gone: then its end of the pipe is closed."""

    def closed() -> None:
        loop.remove_reader(sys.stdin.fileno())
        stop.set()

    loop.add_reader(sys.stdin.fileno(), closed)


if __name__ == "__main__":
    raise SystemExit(main(orphaned))
