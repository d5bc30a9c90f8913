"""The run's end of a worker: starts it, asks it under a time limit, ends it, says why it died."""

import json
import os
import select
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from facegrid.clock import Clock

ROOT = Path(__file__).parents[2]
STOP_S = 40.0
"""A worker may have a cluster to stop."""
READ_BYTES = 1 << 16
LOG_TAIL_BYTES = 4096


class PeerError(Exception):
    """A system could not be measured, or not to the end.

    Attributes:
        state: "failed" or "over time".
        reason: what is known about it, one line.
    """

    def __init__(self, state: str, reason: str) -> None:
        super().__init__(reason)
        self.state = state
        self.reason = reason


class Process:
    """A system in a process of its own.

    Args:
        name: module:Class of its adapter.
        python: the interpreter that has its library.
        folder: empty, for its files.
        threads: how many it may use, and how many processors.
        clock: for time limits.
    """

    def __init__(
        self, name: str, *, python: Path, folder: Path, threads: int, clock: Clock
    ) -> None:
        self._clock = clock
        self._log = folder.with_suffix(".log")
        self._held = b""
        folder.mkdir(parents=True)
        with self._log.open("wb") as log:
            self._child = subprocess.Popen(
                [str(python), "-m", "bench.peers.worker", name, str(folder), str(threads)],
                cwd=ROOT,
                env=environment(folder.parent, threads),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
            )

    def ask(self, do: str, *, timeout_s: float, **arguments: Any) -> dict[str, Any]:
        """Have one command carried out.

        Raises:
            PeerError: the worker died, or took longer; it is ended then.
        """
        assert self._child.stdin is not None, "a pipe"
        try:
            self._child.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        except BrokenPipeError:
            raise self._died(do) from None
        answer: dict[str, Any] = json.loads(self._line(do, timeout_s))
        return answer

    def close(self) -> None:
        """End it: politely, then not."""
        assert self._child.stdin is not None, "a pipe"
        self._child.stdin.close()
        try:
            self._child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._end()
        self._release()

    def _line(self, do: str, timeout_s: float) -> bytes:
        assert self._child.stdout is not None, "a pipe"
        end_s = self._clock.now_s() + timeout_s
        while b"\n" not in self._held:
            left_s = max(0.0, end_s - self._clock.now_s())
            if not select.select([self._child.stdout], [], [], left_s)[0]:
                self._end()
                raise PeerError("over time", f"{do} took longer than {timeout_s:.0f} s")
            read = os.read(self._child.stdout.fileno(), READ_BYTES)
            if not read:
                raise self._died(do)
            self._held += read
        line, _, self._held = self._held.partition(b"\n")
        return line

    def _end(self) -> None:
        self._child.terminate()
        try:
            self._child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._release()

    def _release(self) -> None:
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()

    def _died(self, do: str) -> PeerError:
        code = self._child.wait()
        self._release()
        text = self._log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        last = lines[-1] if lines else "it said nothing"
        return PeerError("failed", f"{do}: ended with code {code}: {last}")


def environment(home: Path, threads: int) -> Mapping[str, str]:
    """Return what a worker sees of the environment: no more than it needs, and as many threads as
    it may use by the name of every pool that libraries are known to have.
    """
    pools = (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "RAYON_NUM_THREADS",
        "TOKIO_WORKER_THREADS",
        "LANCE_CPU_THREADS",
    )
    return {
        "PATH": os.defpath,
        "HOME": str(home),
        "TMPDIR": str(home),
        "LC_ALL": "C.UTF-8",
        **dict.fromkeys(pools, str(threads)),
    }
