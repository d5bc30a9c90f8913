"""A program that opens many connections and holds them: `python -m tests.fakes.crowd`.

Prints how many are open, then waits for the end of its input. Several of it open more than one
process may have files.
"""

import resource
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
NONSENSE = b"GET / HTTP/1.1\r\n\r\n" * 3
NONSENSE_EVERY = 4
"""Of so many connections one talks nonsense; the others say nothing."""
SPARE_FILES = 64


def main(arguments: Sequence[str]) -> None:
    """Open connections to HOST PORT, COUNT of them."""
    host, port, count = arguments
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, int(count) + SPARE_FILES), hard))
    with ExitStack() as connections:
        for number in range(int(count)):
            one = connections.enter_context(socket.create_connection((host, int(port))))
            if number % NONSENSE_EVERY == 0:
                one.sendall(NONSENSE)
        sys.stdout.write(f"{count}\n")
        sys.stdout.flush()
        sys.stdin.read()


@contextmanager
def crowd(address: str, *, connections: int, processes: int) -> Iterator[int]:
    """Hold connections to an address inside, from several processes; yields how many there are."""
    host, _, port = address.rpartition(":")
    argv = [sys.executable, "-m", "tests.fakes.crowd", host, port, str(connections // processes)]
    with ExitStack() as running:
        started = [
            running.enter_context(
                subprocess.Popen(
                    argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
            for _ in range(processes)
        ]
        try:
            yield sum(int(one.stdout.readline()) for one in started if one.stdout is not None)
        finally:
            for one in started:
                if one.stdin is not None:
                    one.stdin.close()


if __name__ == "__main__":
    main(sys.argv[1:])
