"""One system in a process of its own: `python -m bench.peers.worker module:Class folder threads`.

Commands come as JSON, one a line, on standard input; answers go the same way to what standard
output was at the start, as libraries like to print. Vectors travel as .npy files that both sides
map. Whatever an adapter raises ends the process, its traceback in standard error.
"""

import ctypes
import gc
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import Any, Never, TextIO, cast

import numpy as np
import psutil

from bench.peers.peer import Float32, Gallery, Peer

Answer = dict[str, Any]


class Worker:
    """Carries out commands.

    Args:
        peer: the system.
        folder: its files.
    """

    def __init__(self, peer: Peer, folder: Path) -> None:
        self._peer = peer
        self._folder = folder
        self._memory_before = 0

    def variants(self, rows: int, dim: int) -> Answer:
        """Return the ways to build and to search."""
        found = self._peer.variants(rows, dim)
        return {"variants": [{"build": one.build, "ladders": one.ladders} for one in found]}

    def build(self, templates: str, subjects: str, settings: dict[str, Any]) -> Answer:
        """Build the index; only that is timed."""
        gallery = Gallery(np.load(templates, mmap_mode="r"), np.load(subjects))
        self._peer.open(gallery.templates.shape[1])
        self._memory_before = self._memory()
        # Page cache and memory of the input are warm for everybody alike.
        for first in range(0, len(gallery.templates), 65_536):
            gallery.templates[first : first + 65_536].sum()
        started_s = perf_counter()
        self._peer.build(gallery, settings)
        return {"build_s": perf_counter() - started_s}

    def use(self, settings: dict[str, Any]) -> Answer:
        """Set how to search."""
        self._peer.use(settings)
        return {}

    def search(self, probes: str, first: int, last: int, batch: int, k: int, out: str) -> Answer:
        """Search some of the probes and write down the rows found."""
        x = np.ascontiguousarray(np.load(probes, mmap_mode="r")[first:last])
        started_s = perf_counter()
        found = [self._peer.search(x[at : at + batch], k) for at in range(0, len(x), batch)]
        elapsed_s = perf_counter() - started_s
        np.save(out, np.concatenate(found))
        return {"elapsed_s": elapsed_s}

    def rate(self, probes: str, batch: int, k: int, seconds: float) -> Answer:
        """Search again and again until the time is over, one call at a time."""
        x: Float32 = np.ascontiguousarray(np.load(probes, mmap_mode="r"))
        starts = range(0, len(x) - batch + 1, batch)
        calls_s: list[float] = []
        started_s = perf_counter()
        while sum(calls_s) < seconds:
            first = starts[len(calls_s) % len(starts)]
            called_s = perf_counter()
            self._peer.search(x[first : first + batch], k)
            calls_s.append(perf_counter() - called_s)
        elapsed_s = perf_counter() - started_s
        return {
            "probes_per_s": len(calls_s) * batch / elapsed_s,
            "p50_ms": float(np.median(calls_s)) * 1000,
            "calls": len(calls_s),
        }

    def memory(self) -> Answer:
        """Return what the templates and their index take in memory; after a first search."""
        return {
            "grown_bytes": self._memory() - self._memory_before,
            "peak_bytes": sum(_peak_bytes(pid) for pid in self._pids()),
        }

    def save(self) -> Answer:
        """Write the index down; return the bytes in its folder, 0 where it cannot be stored."""
        self._peer.save()
        files = (path for path in self._folder.rglob("*") if path.is_file())
        return {"disk_bytes": sum(path.stat().st_size for path in files)}

    def close(self) -> Answer:
        """Stop what the system started."""
        self._peer.close()
        return {}

    def _pids(self) -> Sequence[int]:
        return self._peer.processes() or (os.getpid(),)

    def _memory(self) -> int:
        gc.collect()
        # Memory that was freed and is kept for later is nobody's cost.
        ctypes.CDLL(None).malloc_trim(0)
        return sum(psutil.Process(pid).memory_info().rss for pid in self._pids())


def _peak_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    peaks = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(peaks[0]) * 1024 if peaks else 0


def serve(worker: Worker, commands: TextIO, answers: TextIO) -> None:
    """Carry out commands until there are no more."""
    for line in commands:
        command = json.loads(line)
        act: Callable[..., Answer] = getattr(worker, command.pop("do"))
        answers.write(json.dumps(act(**command)) + "\n")
        answers.flush()


def made(name: str, folder: Path, threads: int) -> Peer:
    """Return a system by module:Class, on as many processors as it may use threads."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    module, _, kind = name.partition(":")
    return cast("Peer", getattr(importlib.import_module(module), kind)(folder, threads))


def _stop(_number: int, _frame: FrameType | None) -> Never:
    raise SystemExit(1)


def main() -> None:
    """Serve one system."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGTERM, _stop)
    name, folder, threads = sys.argv[1:]
    peer = made(name, Path(folder), int(threads))
    try:
        serve(Worker(peer, Path(folder)), sys.stdin, answers)
    finally:
        peer.close()


if __name__ == "__main__":
    main()
