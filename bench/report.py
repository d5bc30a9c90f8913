"""What is written beside a number, so that somebody else can get it again."""

import contextlib
import json
import shlex
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import numpy as np

from fgctl.plan import host
from indexd.ann.rescore import NATIVE

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]

PACKAGES = (
    *(
        "facegrid",
        "faiss-cpu",
        "faiss-gpu",
        "faiss-gpu-cuvs",
        "grpcio",
        "numpy",
        "protobuf",
        "torch",
    ),
)
RESULTS = Path(__file__).parent / "results"
FOLDERS = ("--results", "--venv")
"""Options that name a folder of this machine."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Several measurements of the same thing."""

    median: float
    low: float
    high: float
    count: int

    @property
    def text(self) -> str:
        """Show the median and where the others lie."""
        return f"{self.median:,.2f} ({self.low:,.2f} to {self.high:,.2f}, {self.count} runs)"

    def as_json(self) -> Json:
        """Return it as a JSON object."""
        return {"median": self.median, "low": self.low, "high": self.high, "count": self.count}


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the extremes of at least one value."""
    return Spread(statistics.median(values), min(values), max(values), len(values))


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least that share of the values does not exceed."""
    return float(np.quantile(values, share, method="inverted_cdf"))


def hardware() -> dict[str, Json]:
    """Describe the machine, without naming it."""
    return {**host.hardware()}


def versions() -> dict[str, Json]:
    """Return what was measured, and with what."""
    found: dict[str, Json] = {**host.versions()}
    for name in PACKAGES:
        # Of faiss there is one of three.
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    found["rescoring"] = "NumPy" if NATIVE is None else "compiled"
    return found


def versions_in(python: Path) -> dict[str, Json]:
    """Return all packages of another environment, by its interpreter."""
    asked = [str(python), "-m", "pip", "list", "--format=json", "--disable-pip-version-check"]
    listed = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    return {one["name"]: one["version"] for one in json.loads(listed)}


def write(
    name: str,
    argv: Sequence[str],
    *,
    unix_ms: int,
    results: Mapping[str, Json],
    folder: Path = RESULTS,
) -> Path:
    """Write results with their command and surroundings; return the file.

    Args:
        name: of the benchmark.
        argv: the command's words, without the interpreter.
        unix_ms: when; the file is named by that second, and never replaces another.
        results: parameters and numbers.
        folder: where to.
    """
    moment = datetime.fromtimestamp(unix_ms / 1000, UTC)
    path = folder / f"{moment:%Y-%m-%dT%H%M%SZ}-{name}.json"
    document = {
        "benchmark": name,
        "command": shlex.join(argv),
        "time": moment.isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": versions(),
        **results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("x", encoding="utf-8") as file:
        file.write(json.dumps(document, indent=2) + "\n")
    return path


def without_folders(argv: Sequence[str]) -> list[str]:
    """Leave out where the results went, and where peers are installed: paths of one machine."""
    kept: list[str] = []
    skip = False
    for word in argv:
        name, _, value = word.partition("=")
        if skip or (name in FOLDERS and value):
            skip = False
        elif name in FOLDERS:
            skip = True
        else:
            kept.append(word)
    return kept
