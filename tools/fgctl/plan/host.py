"""The machine at hand, described and never named, and the versions of what runs on it."""

import os
import platform
from importlib import metadata
from pathlib import Path

import psutil

PACKAGES = ("facegrid", "faiss-cpu", "grpcio", "numpy", "protobuf")
CPUINFO = Path("/proc/cpuinfo")


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def hardware() -> dict[str, str | int | float]:
    """Describe the machine."""
    return {
        "processor": _processor(),
        "cores": cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.system(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """Return what was measured, and with what; packages that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
