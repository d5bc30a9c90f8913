"""The page of benchmarks: what it says follows from the results, and it is what is committed."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from bench import collected, plots, report, report_page
from bench.collected import Result
from bench.report_page import MissingNoteError, Page, page

ROOT = Path(__file__).parents[2]


def result(benchmark: str, time: str = "2026-01-01", **more: Any) -> Result:
    document = {
        "benchmark": benchmark,
        "command": f"python -m bench.{benchmark}",
        "time": f"{time}T00:00:00+00:00",
        "hardware": {"processor": "P", "cores": 2, "memory_gib": 8.0, "load_average": 0.1},
        "versions": {"python": "3.11"},
        **more,
    }
    return Result(f"{time}-{benchmark}.json", document)


def verdict(*, met: bool, value: float = 0.5) -> dict[str, Any]:
    return {"target": "G3", "value": value, "need": 0.7, "met": met, "facts": {"part": "64"}}


def test_the_committed_page_is_what_the_committed_results_give(tmp_path: Path) -> None:
    made = page(collected.read(report.RESULTS), report_page.read_notes(report_page.NOTES))
    report_page.write(made, tmp_path)

    assert made.text == (ROOT / "docs" / "BENCHMARKS.md").read_text(encoding="utf-8")
    committed = {path.name: path.read_text() for path in (ROOT / "docs/benchmarks").glob("*.svg")}
    assert committed == dict(made.pictures)


def test_the_newest_of_each_benchmark_and_machine_counts() -> None:
    old = result("quick", targets=[verdict(met=False)])
    new = result("quick", "2026-01-02", targets=[verdict(met=True, value=0.75)])
    refused = result("quick", "2026-01-03", not_started=["needs more"])

    text = page([old, new, refused], {}).text

    assert "| G3 | 64 | 0.75 | 0.70 | yes | quick | 2026-01-02 |" in text
    assert "2026-01-01" not in text
    assert "needs more" not in text


def test_what_was_not_started_is_told_with_its_reason() -> None:
    steps = [{"name": "growth", "status": "not started", "reason": "needs 8 GiB"}]
    text = page(
        [result("nist", not_started=["needs 9 GiB"]), result("whole", steps=steps)], {}
    ).text

    assert "- nist on P, 2 cores, 8.0 GiB: needs 9 GiB" in text
    assert "- growth on P, 2 cores, 8.0 GiB: not started, needs 8 GiB" in text


def test_a_missed_target_needs_a_note_and_shows_it() -> None:
    missed = [result("quick", targets=[verdict(met=False)])]

    with pytest.raises(MissingNoteError, match="targets=G3"):
        page(missed, {"G4": "of another"})
    assert "### G3\n\nlimited by the wire" in page(missed, {"G3": "limited by the wire\n"}).text


def test_targets_without_a_value_are_told() -> None:
    text = page([result("quick", targets=[verdict(met=True)])], {}).text

    assert "| G10 |  | not measured |" in text
    assert "| G3 |  | not measured |" not in text


def test_others_and_predictions_have_their_tables() -> None:
    peer = {
        "gallery": "default",
        "name": "x",
        "state": "measured",
        "extra_fnir": 0.001,
        "extra_fnir_max": 0.002,
        "recall_at_10": 0.9,
        "probes_per_s_64": 10.0,
        "ours_by_it_64": 2.5,
        "memory_bytes_per_template": 2048,
        "build_s": 3.0,
        "settings": {"ef": 64},
    }
    gone = {"gallery": "default", "name": "y", "state": "failed", "reason": "no such symbol"}
    target = {
        "target": "G8",
        "value": None,
        "need": 5.0,
        "met": True,
        "facts": {"part": "x", "unreached_by_peer": "yes"},
    }
    prediction = {"what": "disk", "unit": "MiB", "predicted": 110.0, "measured": 100.0}

    both = [
        result("peers", systems=[gone, peer], targets=[target]),
        result("planning", predictions=[prediction]),
    ]
    text = page(both, {}).text

    assert "| default | x | 0.001 | 0.002 | 0.900 | 10 | 2.50 | 2,048 | 3.0 | ef 64 |" in text
    assert "| default | y | failed: no such symbol |" in text
    assert "| G8 | x | no peer comes as far | 5 | yes |" in text
    assert "| disk | MiB | 110 | 100 | +10.0% |" in text


def full() -> Page:
    load = {"answered_per_s": 5.0, "p99_ms": 9.0}
    series = [{"probes_per_call": 64, "clients": 8, "loads": [load]}]
    points = [
        {
            "profile": "fast",
            "templates": count,
            "p50_ms": count / 100,
            "batch_probes_per_s": 10.0,
            "extra_fnir_max": 0.01,
        }
        for count in (100, 10_000)
    ]
    return page(
        [
            result("openloop", series=series),
            result("growth", points=points),
            result("nist", points=points, curve=points),
        ],
        {},
    )


def test_pictures_are_drawn_the_same_each_time_and_are_xml(tmp_path: Path) -> None:
    made = full()

    assert made == full()
    assert sorted(made.pictures) == [
        "extra-fnir-against-throughput-1.svg",
        "latency-against-load-1.svg",
        "time-against-size-growth-1.svg",
        "time-against-size-nist-1.svg",
    ]
    for name, text in made.pictures.items():
        assert f"(benchmarks/{name})" in made.text
        assert len(list(ET.fromstring(text))) > 5
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "old.svg").write_text("")
    report_page.write(made, tmp_path)
    assert {path.name for path in (tmp_path / "benchmarks").iterdir()} == set(made.pictures)


def test_a_line_goes_up_to_the_right() -> None:
    picture = plots.drawn("t", "x < y", "y", {"a": [(10.0, 1.0), (1.0, 0.1), (5.0, 0.0)]})

    (line,) = ET.fromstring(picture).findall("{*}polyline")
    assert line.attrib["points"] == "70.0,350.0 450.0,30.0"


def test_results_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("2026-02-01-a", "2026-01-01-a"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"benchmark": name}))

    assert [one.file[:7] for one in collected.read(tmp_path)] == ["2026-01", "2026-02"]
