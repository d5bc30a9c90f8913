"""A test that hangs, whatever it does about its timeout, ends its process and is named."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFTEST = """
from tests import hanging
from tests.hanging import pytest_runtest_protocol

hanging.HUNG_AFTER_S = 0.5


def pytest_configure(config):
    hanging.note_stderr(config)
"""
HANGS = """
import contextlib
import select

import pytest


@pytest.mark.timeout(0.5)
def test_swallows_its_timeout():
    while True:
        with contextlib.suppress(BaseException):
            select.select([], [], [])


def test_that_comes_after():
    pass
"""


def test_a_test_that_swallows_its_timeout_ends_the_process_and_is_shown(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(HANGS)

    options = ["-p", "no:cacheprovider", "-c", os.devnull]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 1
    assert "test_it.py" in done.stderr
    assert "in test_swallows_its_timeout" in done.stderr
    assert "passed" not in done.stdout
