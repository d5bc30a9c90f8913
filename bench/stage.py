"""The shape of every measurement of `make bench`: say what it takes, measure, write it down.

A stage is a command of its own. It says before it starts how long it takes and what it needs;
where the machine has too little it does not start, and writes that down in place of results.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Never, Protocol

from bench import report, target
from bench.machine import Cost, Machine, this_machine
from bench.report import Json
from facegrid.clock import Clock, SystemClock

EXIT_TOO_SMALL = 3
"""Status of a command that did not start because the machine is too small for it."""


class Results(Protocol):
    """What a measurement found."""

    def lines(self) -> list[str]:
        """Return what to print, lines of targets among it."""
        ...

    def as_json(self) -> Mapping[str, Json]:
        """Return it as JSON."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where a measurement works: a folder that is removed afterwards, and by which clock."""

    folder: Path
    clock: Clock


@dataclass(frozen=True, slots=True)
class Stage:
    """One measurement.

    Attributes:
        name: of the results; the command is `python -m bench.<name>`.
        about: what it measures, a sentence.
        options: adds its options to the command line.
        cost: what it takes with these options.
        run: measures.
    """

    name: str
    about: str
    options: Callable[[argparse.ArgumentParser], None]
    cost: Callable[[argparse.Namespace], Cost]
    run: Callable[[argparse.Namespace, Place], Results]

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Read its command line."""
        parser = argparse.ArgumentParser(prog=f"bench.{self.name}", description=self.about)
        self.options(parser)
        parser.add_argument("--seed", type=int, default=1, help="of templates and probes")
        parser.add_argument(
            "--results", type=Path, default=report.RESULTS, help="folder for the JSON"
        )
        return parser.parse_args(argv)


def main(
    stage: Stage,
    argv: Sequence[str],
    *,
    clock: Clock | None = None,
    machine: Machine | None = None,
) -> int:
    """Run a stage as a command.

    Returns:
        0 if it measured, whether targets are met or not; EXIT_TOO_SMALL if it could not start.
    """
    clock = clock or SystemClock()
    given = stage.parse(argv)
    with tempfile.TemporaryDirectory(prefix=f"facegrid-{stage.name}-") as folder:
        cost = stage.cost(given)
        print(f"{stage.name}: {cost.text}", flush=True)
        shortages = (machine or this_machine(Path(folder))).shortages(cost)
        started_s = clock.now_s()
        if shortages:
            why = ", ".join(shortages)
            lines = [f"{stage.name}: not started, the machine is too small: {why}"]
            found: dict[str, Json] = {"not_started": shortages}
        else:
            results = stage.run(given, Place(Path(folder), clock))
            lines, found = results.lines(), dict(results.as_json())
    about: dict[str, Json] = {
        "options": {
            name: _plain(value) for name, value in vars(given).items() if name != "results"
        },
        "took_s": round(clock.now_s() - started_s, 1),
        "estimate_s": cost.took_s,
        "targets": [one.as_json() for one in target.read(lines)],
    }
    command = ["python", "-m", f"bench.{stage.name}", *report.without_folders(argv)]
    path = report.write(
        stage.name, command, unix_ms=clock.unix_ms(), results=about | found, folder=given.results
    )
    for line in lines:
        print(line)
    print(f"written: {path.name}")
    return EXIT_TOO_SMALL if shortages else 0


def run_as_command(stage: Stage) -> None:
    """End the process with the status of a stage that got this process's command line.

    A request to end stops what the stage started, like Ctrl-C.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(main(stage, sys.argv[1:]))


def _interrupt(_number: int, _frame: FrameType | None) -> Never:
    raise KeyboardInterrupt


def _plain(value: object) -> Json:
    """Return the value of an option as JSON."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)
