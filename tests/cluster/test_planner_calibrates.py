"""Calibrating on a real cluster, and the planner held against a real gallery, both on little."""

import json
from pathlib import Path

import pytest

from bench import planning, stage
from fgctl.__main__ import run
from fgctl.plan import calibration as calibrations

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def test_what_is_calibrated_can_be_planned_with_and_is_held_to_account(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.json"

    assert run(["plan", "calibrate", "--minutes", "0.2", "--output", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["facegrid_calibration"] == calibrations.FORMAT
    measured = calibrations.load(file)
    assert measured.parameters["templates"] >= 10_000
    assert (
        run(
            [
                "plan",
                "--templates",
                "1e6",
                "--probes-per-s",
                "1",
                "--p99-ms",
                "60000",
                "--calibration",
                str(file),
                "--json",
            ]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["met"]

    given = ("--templates", "3000", "--window-s", "1", "--turns", "2")
    given = (*given, "--calibration", str(file), "--results", str(tmp_path / "results"))
    assert stage.main(planning.STAGE, given) == 0
    (written,) = (tmp_path / "results").iterdir()
    document = json.loads(written.read_text(encoding="utf-8"))
    assert set(document["error"]) == {"memory", "disk", "load", "p99", "p50"}
    assert [one["facts"]["part"] for one in document["targets"]] == [
        "memory",
        "disk",
        "load",
        "p99",
    ]
    assert document["measured"]["disk"] > 3000 * 512
