"""What people and programs see."""

import json

import pytest

from fgctl import render
from fgctl.online.cluster import Status, view_line

DOUBT = "NOT confirmed: no primary vouched for"


def test_progress_without_a_terminal_is_a_line_for_each_tenth(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with render.metered("enrolling", 2000, quiet=False) as meter:
        for _ in range(40):
            meter.advance(50)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        f"enrolling: {200 * tenth:,} of 2,000" for tenth in range(1, 11)
    ]


def test_nothing_is_shown_beside_a_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    with render.waiting("training", quiet=True), render.metered("x", 1, quiet=True) as meter:
        meter.advance(1)
        render.show_json({"name": "ä", "count": 1})
    shown = capsys.readouterr()
    assert (json.loads(shown.out), shown.err) == ({"name": "ä", "count": 1}, "")
    assert len(shown.out.splitlines()) == 1


def test_a_number_that_json_does_not_know_is_not_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        render.show_json({"score": float("nan")})


def test_a_table_keeps_long_values_whole_and_takes_no_markup(
    capsys: pytest.CaptureFixture[str],
) -> None:
    address, name = "a" * 90, "[red]s-1[/red]"
    render.show_table("nodes", ("id", "address", "rows"), [(name, address, 12345)])
    shown = capsys.readouterr().out
    assert name in shown
    assert address in shown
    assert "12,345" in shown


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (
            Status(etcd_reachable=True, map_age_ms=340, view_confirmed=True),
            "etcd reachable, map read 0.3 s ago, confirmed",
        ),
        (
            Status(etcd_reachable=False, map_age_ms=12_000),
            f"etcd NOT reachable: reads only, map read 12.0 s ago, {DOUBT}",
        ),
        (
            Status(map_age_ms=-1),
            f"etcd NOT reachable: reads only, map not read since the start, {DOUBT}",
        ),
    ],
)
def test_the_view_of_a_router_is_described_in_words(answer: Status, line: str) -> None:
    assert view_line(answer) == line
