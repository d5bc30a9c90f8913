"""`make chaos`, briefly: it holds under a few faults, and fails when the ledger is falsified."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

COUNTS = (
    r"acks=(\d+) kills=(\d+) cuts=(\d+) lost=(\d+) resurrected=(\d+) failed_reads=(\d+)"
    r" max_write_gap_s=\d+\.\d"
)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is started make its folders in that of the test."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def run_chaos(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.chaos", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )


def counts(line: str, verdict: str) -> tuple[int, ...]:
    """Return acks, kills, cuts, lost, resurrected and failed reads of a last line."""
    found = re.match(rf"chaos: {verdict} {COUNTS}", line)
    assert found is not None, line
    return tuple(int(number) for number in found.groups())


def left_behind(folder: Path) -> list[str]:
    """Return what still runs in the folder or lies there."""
    running = [
        name
        for process in psutil.process_iter(["cmdline"])
        for name in process.info["cmdline"] or []
        if str(folder) in name
    ]
    return running + [path.name for path in folder.iterdir()]


@pytest.mark.alone
def test_nothing_acknowledged_is_lost_under_random_faults(tmp_path: Path) -> None:
    done = run_chaos("--seed", "9", "--minutes", "0.3")

    last = done.stdout.splitlines()[-1]
    assert done.returncode == 0, done.stdout + done.stderr
    acks, kills, cuts, *wrong = counts(last, "ok")
    assert re.fullmatch(rf"chaos: ok {COUNTS}", last)
    assert acks > 0
    assert (kills >= 1, cuts >= 1) == (True, True)
    assert wrong == [0, 0, 0]
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(
    ("forgery", "expected"), [("lost", (1, 0, 0)), ("resurrected", (0, 1, 0))]
)
def test_a_ledger_that_tells_of_what_never_happened_fails_the_audit(
    tmp_path: Path, forgery: str, expected: tuple[int, int, int]
) -> None:
    """An enrolment that nobody sent counts as lost, an erasure that nobody sent as undone."""
    done = run_chaos("--minutes", "0", "--forge", forgery)

    last = done.stdout.splitlines()[-1]
    assert done.returncode == 1, done.stdout + done.stderr
    assert counts(last, "failed")[3:] == expected
    assert f"reasons: {forgery} " in last
    assert left_behind(tmp_path) == []


def test_an_interrupted_run_stops_what_it_started(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "bench.chaos", "--seed", "1", "--minutes", "5"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as chaos:
        assert chaos.stdout is not None
        reached = any(line.startswith("  kill node ") for line in chaos.stdout)
        chaos.send_signal(signal.SIGTERM)
        after = chaos.stdout.read().splitlines()

    assert reached
    assert (chaos.returncode, after[-1]) == (1, "chaos: failed reasons: interrupted")
    assert left_behind(tmp_path) == []


def test_a_process_that_ends_by_itself_fails_the_run(tmp_path: Path) -> None:
    """1. a fault comes and goes; 2. a stranger ends etcd; 3. it is told who was gone, and when."""
    with subprocess.Popen(
        [sys.executable, "-m", "bench.chaos", "--seed", "1", "--minutes", "0.05"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as chaos:
        assert chaos.stdout is not None
        told = next(line for line in chaos.stdout if line.startswith("  etcd1 pid="))
        reached = any(line.startswith("  kill node ") for line in chaos.stdout)
        os.kill(int(told.split()[1].removeprefix("pid=")), signal.SIGKILL)
        after = chaos.stdout.read().splitlines()

    assert reached
    assert chaos.returncode == 1
    assert "etcd1 ended though nobody ended it, " in after[-1]
    assert "  etcd1 gone, its log ends:" in after
    assert left_behind(tmp_path) == []
