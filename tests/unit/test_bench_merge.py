"""The bench of the merge ends, and prints a line for each step."""

import pytest

from bench import merge


def test_each_step_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    assert merge.main(["--shards", "3", "--probes", "4", "--k", "5", "--rounds", "2"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("  ")[0] for line in lines] == [
        "bytes to messages (in gRPC)",
        "merge",
        "messages to merged lists",
        "ids of the lists to strings",
        "lists to the answer's message",
    ]
    assert all("median" in line and "best" in line for line in lines)
