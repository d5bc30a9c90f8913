"""What a measurement needs of a machine, and whether this one has it: told before it starts."""

import argparse
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

GIB = 2**30
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, slots=True)
class Cost:
    """What a measurement takes.

    Attributes:
        took_s: estimate of its duration on two cores of 2025.
        memory_bytes: most that all of its processes hold at once.
        disk_bytes: of temporary files.
        cores: it means nothing on fewer.
    """

    took_s: float
    memory_bytes: int = GIB
    disk_bytes: int = 0
    cores: int = 1

    @property
    def text(self) -> str:
        """Say it in a line."""
        return (
            f"about {max(self.took_s / 60, 0.1):.1f} min; needs {self.memory_bytes / GIB:.1f} GiB"
            f" of memory, {self.disk_bytes / GIB:.1f} GiB of disk, {self.cores} cores"
        )


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is: memory and disk that are free, cores that this process may use."""

    memory_bytes: int
    disk_bytes: int
    cores: int

    def shortages(self, cost: Cost) -> list[str]:
        """Say what is missing, a sentence each; nothing: it can start."""
        wanted = (
            ("GiB of free memory", cost.memory_bytes / GIB, self.memory_bytes / GIB),
            ("GiB of free disk", cost.disk_bytes / GIB, self.disk_bytes / GIB),
            ("cores", cost.cores, self.cores),
        )
        return [
            f"needs {need:.3g} {what} and there are {there:.3g}"
            for what, need, there in wanted
            if there < need
        ]


def this_machine(folder: Path) -> Machine:
    """Look at the machine; disk is that of a folder."""
    free = psutil.virtual_memory().available
    return Machine(
        memory_bytes=min(free, _limit_bytes(CGROUP_LIMIT)),
        disk_bytes=shutil.disk_usage(folder).free,
        cores=len(os.sched_getaffinity(0)),
    )


def _limit_bytes(file: Path) -> int:
    """Return how much memory the container allows; without a limit, more than there can be."""
    try:
        text = file.read_text(encoding="ascii").strip()
    except OSError:
        return 2**63
    return int(text) if text.isdecimal() else 2**63


def sizes(text: str) -> list[int]:
    """Read numbers of templates such as 100000,1e6; for options of the command line."""
    try:
        found = [int(float(word)) for word in text.split(",")]
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"not a list of sizes: {text}") from None
    if min(found) < 1 or sorted(set(found)) != found:
        raise argparse.ArgumentTypeError(f"sizes must be positive and rise: {text}")
    return found


def size(text: str) -> int:
    """Read one number of templates such as 12e6."""
    found = sizes(text)
    if len(found) != 1:
        raise argparse.ArgumentTypeError(f"one size: {text}")
    return found[0]
