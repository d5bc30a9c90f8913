"""Generates docs/dashboard.json, a dashboard for Grafana, or checks that it is up to date."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tools.dashboard_rows import ROWS

DASHBOARD = Path("docs/dashboard.json")
SOURCE = {"type": "prometheus", "uid": "${source}"}
WIDTH, HEIGHT, COLUMNS = 8, 7, 3


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS:
        place = {"h": 1, "w": WIDTH * COLUMNS, "x": 0, "y": top}
        panels.append({"type": "row", "title": title, "gridPos": place, "panels": []})
        top += 1
        for number, (name, unit, queries) in enumerate(row):
            x, y = number % COLUMNS * WIDTH, top + number // COLUMNS * HEIGHT
            panels.append(panel(name, unit, queries, {"h": HEIGHT, "w": WIDTH, "x": x, "y": y}))
        top += -(-len(row) // COLUMNS) * HEIGHT
    for number, one in enumerate(panels, 1):
        one["id"] = number
    return {
        "title": "facegrid",
        "uid": "facegrid",
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "label": "source", "type": "datasource", "query": "prometheus"}
            ]
        },
        "panels": panels,
    }


def panel(
    title: str, unit: str, queries: list[tuple[str, str]], place: dict[str, int]
) -> dict[str, Any]:
    """Return a panel of lines over time."""
    return {
        "type": "timeseries",
        "title": title,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": SOURCE,
                "expr": query,
                "legendFormat": legend,
            }
            for number, (query, legend) in enumerate(queries)
        ],
    }


def text() -> str:
    """Return the file."""
    return json.dumps(dashboard(), indent=1) + "\n"


def main() -> None:
    """Write the file, or say that it is old."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare")
    if not parser.parse_args().check:
        DASHBOARD.write_text(text(), encoding="utf-8")
    elif DASHBOARD.read_text(encoding="utf-8") != text():
        sys.exit("docs/dashboard.json is old: run python -m tools.generate_dashboard")


if __name__ == "__main__":
    main()
