"""Targets as lines, machines that are too small, and a run of all measurements that goes on."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bench import stage, whole
from bench.machine import GIB, Cost, Machine, size, sizes
from bench.report import Json
from bench.target import Sense, Target, against, read, shown
from bench.whole import Ended, Run, Step
from facegrid.testing.manual_clock import ManualClock

SMALL = Machine(memory_bytes=4 * GIB, disk_bytes=GIB, cores=2)
CHEAP = Cost(60)
DEAR = Cost(60, memory_bytes=8 * GIB, disk_bytes=GIB * 2, cores=4)


@pytest.mark.parametrize(
    ("value", "sense", "met"),
    [(0.7, "at least", "yes"), (0.69, "at least", "no"), (0.7, "at most", "yes")],
)
def test_a_target_says_whether_it_is_met(value: float, sense: Sense, met: str) -> None:
    line = against("G3", value, sense, 0.7, part="64 probes").line

    assert line == f"target G3 value={shown(value)} need=0.70 met={met} part=64_probes"


def test_no_number_meets_nothing() -> None:
    nan = float("nan")

    assert not against("G3", nan, "at least", 0.7).met
    assert not against("G4", nan, "at most", 2).met


def test_lines_are_read_back_and_other_lines_are_not() -> None:
    one = Target("G1", 0.00073, 0.001, met=True, facts={"part": "balanced", "mates": "4096"})

    assert read(["target practice", one.line, "served: 12"]) == [one]


@pytest.mark.parametrize(
    ("value", "text"), [(0.7, "0.70"), (0.123456, "0.1235"), (1e-4, "0.0001"), (10000, "1e+04")]
)
def test_values_are_shown_in_few_digits(value: float, text: str) -> None:
    assert shown(value) == text


def test_a_machine_says_what_it_lacks() -> None:
    assert SMALL.shortages(CHEAP) == []
    assert SMALL.shortages(DEAR) == [
        "needs 8 GiB of free memory and there are 4",
        "needs 2 GiB of free disk and there are 1",
        "needs 4 cores and there are 2",
    ]


def test_sizes_rise() -> None:
    assert (sizes("1e5,1e6"), size("12e6")) == ([100_000, 1_000_000], 12_000_000)
    for wrong in ("1e6,1e5", "0", "x", "nan", "1e999"):
        with pytest.raises(argparse.ArgumentTypeError):
            sizes(wrong)


@dataclass(frozen=True)
class Measured:
    """Results of a stage that measures nothing."""

    def lines(self) -> list[str]:
        return ["target G3 value=1 need=2 met=no"]

    def as_json(self) -> dict[str, Json]:
        return {"numbers": [1]}


def trial(cost: Cost) -> stage.Stage:
    return stage.Stage(
        "trial",
        "Tries.",
        lambda parser: parser.add_argument("--templates", type=size, default=5) and None,
        lambda _: cost,
        lambda _, __: Measured(),
    )


def test_a_stage_writes_its_targets_and_not_the_folder(tmp_path: Path) -> None:
    status = stage.main(
        trial(CHEAP),
        ["--results", str(tmp_path), "--templates", "7"],
        clock=ManualClock(),
        machine=SMALL,
    )

    (path,) = tmp_path.iterdir()
    written = json.loads(path.read_text())
    assert status == 0
    assert written["command"] == "python -m bench.trial --templates 7"
    assert written["options"] == {"templates": 7, "seed": 1}
    assert [one["met"] for one in written["targets"]] == [False]
    assert written["numbers"] == [1]
    assert str(tmp_path) not in path.read_text()


def test_a_stage_too_large_is_not_started_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = stage.main(
        trial(DEAR), ["--results", str(tmp_path)], clock=ManualClock(), machine=SMALL
    )

    (path,) = tmp_path.iterdir()
    written = json.loads(path.read_text())
    assert status == stage.EXIT_TOO_SMALL
    assert written["not_started"] == SMALL.shortages(DEAR)
    assert "numbers" not in written
    assert "needs 8 GiB of free memory and there are 4" in capsys.readouterr().out


@dataclass
class Machinery:
    """Stands for the commands: writes a result, and returns the status wanted of it."""

    statuses: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def __call__(self, command: Sequence[str]) -> int:
        name = command[2].removeprefix("bench.")
        folder = Path(command[command.index("--results") + 1])
        self.asked.append(name)
        status = self.statuses.get(name, 0)
        if status in (0, whole.UNMET):
            (folder / f"now-{name}.json").write_text("{}")
        return status


def test_a_run_goes_on_behind_what_was_measured(tmp_path: Path) -> None:
    steps = [Step("a", (), CHEAP), Step("b", (), DEAR), Step("c", (), CHEAP), Step("d", (), CHEAP)]
    machinery = Machinery({"c": 2, "d": whole.UNMET})

    def run(machine: Machine) -> Run:
        return Run(
            tmp_path / "results",
            tmp_path / "work",
            machine,
            execute=machinery,
            clock=ManualClock(),
        )

    first = run(SMALL).play(steps)
    machinery.statuses.clear()
    later = run(Machine(9 * GIB, 9 * GIB, 4))
    later.take_up()
    second = later.play(steps)

    assert [one.status for one in first] == ["measured", "not started", "failed", "measured"]
    assert first[1] == Ended("b", "not started", ", ".join(SMALL.shortages(DEAR)))
    assert first[2].reason == "status 2 and 0 results"
    assert [one.status for one in second] == ["measured"] * 4
    assert machinery.asked == ["a", "c", "d", "b", "c"]
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == [
        f"now-{name}.json" for name in "abcd"
    ]


def test_a_step_that_finds_the_machine_too_small_is_no_failure(tmp_path: Path) -> None:
    run = Run(
        tmp_path / "results",
        tmp_path / "work",
        SMALL,
        execute=Machinery({"a": stage.EXIT_TOO_SMALL}),
        clock=ManualClock(),
    )

    assert [one.status for one in run.play([Step("a", (), CHEAP)])] == ["not started"]


def test_what_will_not_be_started_is_said_before() -> None:
    lines = whole.announced([Step("a", (), CHEAP), Step("b", (), DEAR)], SMALL)

    assert lines[2].startswith("  it will not be started: needs 8 GiB")
    assert lines[-1] == "all together: about 1 min"


def test_everything_takes_about_an_hour() -> None:
    minutes = sum(step.cost.took_s for step in whole.steps(1.0)) / 60

    assert 40 <= minutes <= 75
