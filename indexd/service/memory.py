"""How much memory this process may use, and how much of it is left."""

from dataclasses import dataclass
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class Memory:
    """Of the machine, or of the tightest limit that this process is under; in bytes."""

    total_bytes: int
    available_bytes: int


def memory() -> Memory:
    """Return what this process may use, and what is left of it."""
    machine = psutil.virtual_memory()
    found = Memory(machine.total, machine.available)
    try:
        own = OWN_CGROUP.read_text()
    except OSError:
        return found
    return limited(found, own, CGROUPS)


def limited(machine: Memory, own: str, root: Path) -> Memory:
    """Return a machine's memory, as far as control groups leave it to a process.

    Args:
        machine: what there is.
        own: the groups that the process is in, as /proc/self/cgroup tells.
        root: where the groups are mounted, of version 1 or 2.
    """
    for folder in _folders(own, root):
        limit = _number(folder / "memory.max", folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.current", folder / "memory.usage_in_bytes")
        # Version 1 says "no limit" by a number beyond any memory.
        if limit is None or used is None or limit >= machine.total_bytes:
            continue
        # Files that were read and are kept can be let go of at any time.
        left = max(0, limit - used + _inactive_file(folder / "memory.stat"))
        machine = Memory(
            min(machine.total_bytes, limit), min(machine.available_bytes, left, limit)
        )
    return machine


def _folders(own: str, root: Path) -> list[Path]:
    """Return the folders of a process's groups and of those above them.

    In a container the root of the mount may be the process's own group, whatever its path outside.
    """
    folders: dict[Path, None] = {}
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory") and "memory" not in controllers.split(","):
            continue
        top = root / "memory" if controllers else root
        parts = Path(path.lstrip("/")).parts
        for count in range(len(parts), -1, -1):
            folders[top.joinpath(*parts[:count])] = None
    return list(folders)


def _number(*files: Path) -> int | None:
    """Return the number in the first of some files that holds one."""
    for file in files:
        try:
            text = file.read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            return int(text)
    return None


def _inactive_file(stat: Path) -> int:
    """Return the bytes of files that the kernel keeps and nobody uses."""
    try:
        lines = stat.read_text().splitlines()
    except OSError:
        return 0
    pairs = dict(line.split(maxsplit=1) for line in lines if " " in line)
    value = pairs.get("total_inactive_file") or pairs.get("inactive_file") or "0"
    return int(value) if value.isdigit() else 0
