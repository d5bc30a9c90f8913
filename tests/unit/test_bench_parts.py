"""The benchmarks of the parts run, each of them once."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_part_runs_once() -> None:
    files = sorted((ROOT / "bench" / "parts").glob("test_*.py"))

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--benchmark-disable", *map(str, files)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "14 passed" in done.stdout
