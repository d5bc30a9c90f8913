"""Everything, one measurement after the other: `make bench`, about an hour on two cores.

Before anything starts it says how long each takes and what it needs. What this machine is too
small for is not started, and the results say so with the reason. What was measured is kept after
each step: `--resume` goes on behind the last one that ended. `bench.nist` and the comparison with
others are commands of their own: they take as long again.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from bench import growth, openloop, planning, profiles, quick, report, served, updates
from bench.machine import GIB, Cost, Machine, this_machine
from bench.report import Json
from bench.stage import EXIT_TOO_SMALL, Stage
from facegrid.clock import Clock, SystemClock

WORK: Final = Path("build") / "bench"
STATE: Final = "state.json"
UNMET: Final = 1
"""Status of a command that measured, and whose need was not met."""


@dataclass(frozen=True, slots=True)
class Step:
    """One measurement: the command `python -m bench.<name>` with arguments, and what it takes."""

    name: str
    arguments: tuple[str, ...]
    cost: Cost


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of a step.

    Attributes:
        name: of the step.
        status: measured, not started or failed.
        reason: why, where it was not measured.
        result: name of the file.
        took_s: how long it took.
    """

    name: str
    status: str
    reason: str = ""
    result: str = ""
    took_s: float = 0.0


Execute = Callable[[Sequence[str]], int]
"""Runs a command and returns its status."""


def step_of(stage: Stage, *arguments: str) -> Step:
    """Return a stage as a step."""
    return Step(stage.name, arguments, stage.cost(stage.parse(arguments)))


def steps(scale: float) -> list[Step]:
    """Return all measurements, the quick ones first.

    Args:
        scale: 1 for all; less for smaller galleries, to try the run itself.
    """

    def count(templates: float) -> str:
        return str(max(10_000, int(templates * scale)))

    sizes = sorted({int(count(size)) for size in growth.SIZES})
    aside = int(count(200_000))
    loaded, recovered = int(count(400_000)), int(count(1_000_000))
    return [
        step_of(quick.STAGE, "--templates", count(quick.TEMPLATES)),
        Step("engine", (), Cost(240, memory_bytes=3 * GIB, disk_bytes=GIB, cores=2)),
        Step("serving", ("--templates", str(aside)), served.cost(aside, measuring_s=150.0)),
        step_of(
            profiles.STAGE,
            *("--templates", count(profiles.TEMPLATES), "--probes", count(profiles.PROBES)),
        ),
        step_of(openloop.STAGE, "--templates", count(openloop.TEMPLATES)),
        step_of(
            updates.STAGE,
            *("--templates", count(updates.TEMPLATES), "--answers", count(updates.ANSWERS)),
        ),
        Step(
            "load",
            ("--templates", str(loaded)),
            served.cost(loaded, measuring_s=6 * loaded * 80e-6),
        ),
        Step(
            "recovery",
            ("--templates", str(recovered)),
            served.cost(recovered, measuring_s=30 + 160 * recovered / 1e6),
        ),
        step_of(planning.STAGE, "--templates", count(planning.TEMPLATES)),
        step_of(growth.STAGE, "--sizes", ",".join(map(str, sizes))),
    ]


class Run:
    """One run through all steps.

    Args:
        results: folder for what the steps write.
        work: folder for what is kept between runs.
        machine: what there is.
        execute: runs commands.
        clock: for how long steps take.
    """

    def __init__(
        self, results: Path, work: Path, machine: Machine, *, execute: Execute, clock: Clock
    ) -> None:
        self._results = results
        self._work = work
        self._machine = machine
        self._execute = execute
        self._clock = clock
        self._ended: dict[str, Ended] = {}

    def take_up(self) -> None:
        """Go on with what was kept."""
        try:
            kept = json.loads((self._work / STATE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        ended = [Ended(**one) for one in kept]
        # What failed or could not be started is tried again: the machine may be another.
        self._ended = {one.name: one for one in ended if one.status == "measured"}

    def play(self, wanted: Sequence[Step]) -> list[Ended]:
        """Play the steps that have not ended yet; return what became of all."""
        for step in wanted:
            if step.name in self._ended:
                print(f"{step.name}: measured before, {self._ended[step.name].result}")
                continue
            self._ended[step.name] = ended = self._play(step)
            self._keep()
            print(f"{step.name}: {ended.status} {ended.reason or ended.result}", flush=True)
        return [self._ended[step.name] for step in wanted]

    def _play(self, step: Step) -> Ended:
        shortages = self._machine.shortages(step.cost)
        if shortages:
            return Ended(step.name, "not started", ", ".join(shortages))
        folder = self._work / step.name
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.iterdir():
            left.unlink()
        command = [sys.executable, "-m", f"bench.{step.name}", *step.arguments]
        started_s = self._clock.now_s()
        status = self._execute([*command, "--results", str(folder)])
        took_s = self._clock.now_s() - started_s
        written = sorted(folder.iterdir())
        if status == EXIT_TOO_SMALL:
            reason = "the machine has become too small, see the output"
            return Ended(step.name, "not started", reason, "", took_s)
        if status not in (0, UNMET) or len(written) != 1:
            reason = f"status {status} and {len(written)} results"
            return Ended(step.name, "failed", reason, "", took_s)
        kept = self._results / written[0].name
        self._results.mkdir(parents=True, exist_ok=True)
        with kept.open("x", encoding="utf-8") as file:
            file.write(written[0].read_text(encoding="utf-8"))
        return Ended(step.name, "measured", "", kept.name, took_s)

    def _keep(self) -> None:
        self._work.mkdir(parents=True, exist_ok=True)
        text = json.dumps([asdict(one) for one in self._ended.values()], indent=2)
        fresh = self._work / f"{STATE}.new"
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(self._work / STATE)


def announced(wanted: Sequence[Step], machine: Machine) -> list[str]:
    """Say what each step takes, and which cannot be started."""
    lines = []
    for step in wanted:
        short = machine.shortages(step.cost)
        lines.append(f"{step.name}: {step.cost.text}")
        if short:
            lines.append(f"  it will not be started: {', '.join(short)}")
    able = [step for step in wanted if not machine.shortages(step.cost)]
    minutes = sum(step.cost.took_s for step in able) / 60
    return [*lines, f"all together: about {minutes:.0f} min"]


def as_json(ended: Sequence[Ended], wanted: Sequence[Step]) -> Mapping[str, Json]:
    """Return what became of the run."""
    estimates = {step.name: step.cost.took_s for step in wanted}
    return {
        "steps": [asdict(one) | {"estimate_s": estimates[one.name]} for one in ended],
    }


def _execute(command: Sequence[str]) -> int:
    return subprocess.run(command, check=False).returncode


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything; return 0 only if all that this machine can do was measured."""
    parser = argparse.ArgumentParser(prog="bench.whole", description="All measurements.")
    parser.add_argument("--resume", action="store_true", help="go on behind the last that ended")
    parser.add_argument("--only", default="", help="names of steps, separated by commas")
    parser.add_argument("--scale", type=float, default=1.0, help="of all sizes; 1 for a result")
    parser.add_argument("--plan", action="store_true", help="say what it takes, and end")
    parser.add_argument("--results", type=Path, default=report.RESULTS, help="folder for the JSON")
    parser.add_argument("--work", type=Path, default=WORK, help="folder kept between runs")
    given = parser.parse_args(argv)
    wanted = steps(given.scale)
    only = set(filter(None, given.only.split(",")))
    if unknown := only - {step.name for step in wanted}:
        parser.error(f"no such step: {', '.join(sorted(unknown))}")
    wanted = [step for step in wanted if not only or step.name in only]
    machine = this_machine(Path.cwd())
    print("\n".join(announced(wanted, machine)), flush=True)
    if given.plan:
        return 0
    clock = SystemClock()
    run = Run(given.results, given.work, machine, execute=_execute, clock=clock)
    if given.resume:
        run.take_up()
    ended = run.play(wanted)
    command = ["python", "-m", "bench.whole", "--scale", f"{given.scale:g}"]
    path = report.write(
        "whole",
        command,
        unix_ms=clock.unix_ms(),
        results=as_json(ended, wanted),
        folder=given.results,
    )
    print(f"written: {path.name}")
    failed = [one.name for one in ended if one.status == "failed"]
    print(f"bench: {'failed ' + ', '.join(failed) if failed else 'ok'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
