"""Log lines as a process writes them."""

import json
from collections.abc import Iterator

import pytest
import structlog

from facegrid.telemetry.log import configure, get_logger


@pytest.fixture(autouse=True)
def unconfigured() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def test_json_lines_are_events_with_fields_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    configure("indexd", fmt="json")
    get_logger("engine").info("flushed", rows_count=3)
    get_logger("engine").debug("not shown")
    printed = capsys.readouterr()
    line = json.loads(printed.err)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "flushed",
        "level": "info",
        "logger": "engine",
        "process": "indexd",
        "rows_count": 3,
    }
    assert printed.out == ""


@pytest.mark.parametrize("fmt", ["json", "console"])
def test_tracebacks_never_show_what_variables_held(
    capsys: pytest.CaptureFixture[str], fmt: str
) -> None:
    configure("indexd", fmt="json" if fmt == "json" else "console")
    held = f"a secret in {fmt}"
    try:
        int("")
    except ValueError:
        get_logger("engine").exception("broke")
    printed = capsys.readouterr().err
    assert "ValueError" in printed
    assert held not in printed
