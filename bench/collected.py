"""The results that lie in a folder, the newest of each benchmark on each machine."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WHOLE = "whole"


@dataclass(frozen=True, slots=True)
class Result:
    """One file of results.

    Attributes:
        file: its name.
        document: everything in it, as bench.report wrote it.
    """

    file: str
    document: Mapping[str, Any]

    @property
    def benchmark(self) -> str:
        """What was measured."""
        return str(self.document["benchmark"])

    @property
    def hardware(self) -> str:
        """The machine, without how busy it was."""
        found = self.document["hardware"]
        device = found.get("device")
        text = f"{found['processor']}, {found['cores']} cores, {found['memory_gib']} GiB"
        return f"{text}, {device}" if device else text

    @property
    def is_measured(self) -> bool:
        """Whether it holds numbers, and not only why there are none."""
        return "not_started" not in self.document

    @property
    def targets(self) -> Sequence[Mapping[str, Any]]:
        """Values against needs, as bench.target writes them; older results have none."""
        found: Sequence[Mapping[str, Any]] = self.document.get("targets", [])
        return found


def read(folder: Path) -> list[Result]:
    """Return all results, oldest first: their names begin with the time."""
    return [
        Result(path.name, json.loads(path.read_text(encoding="utf-8")))
        for path in sorted(folder.glob("*.json"))
    ]


def newest(results: Iterable[Result]) -> list[Result]:
    """Return the newest of each benchmark and machine that measured something.

    One that was not started counts only where nothing was ever measured.
    """
    found: dict[tuple[str, str], Result] = {}
    for result in results:
        key = (result.benchmark, result.hardware)
        before = found.get(key)
        if before is None or result.is_measured or not before.is_measured:
            found[key] = result
    return [found[key] for key in sorted(found)]
