"""fgctl store: try an object store before a cluster is trusted to it."""

import asyncio

import click

from facegrid.blob.open import connect, new_probe_name
from facegrid.blob.probe import ProbeReport, probe
from fgctl import render
from fgctl.target import json_option

BUDGET_S = 5.0
"""How long requests are tried again: somebody waits for the answer."""


@click.group()
def store() -> None:
    """Look at object stores."""


@store.command("probe")
@click.argument("url")
@json_option
def probe_command(*, url: str, as_json: bool) -> None:
    """Try whether the store at URL keeps what facegrid builds on, and exit with 1 if not.

    URL is dir:PATH or s3://BUCKET/PREFIX?endpoint=..., as nodes take it in --store. Credentials
    for S3 come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. The objects that are put for the
    trial are deleted.
    """
    tried = connect(url, budget_s=BUDGET_S)
    with render.waiting(f"trying {url}", quiet=as_json):
        report = asyncio.run(probe(tried, new_probe_name()))
    if as_json:
        render.show_json(report_json(url, report))
    else:
        rows = [
            (found.condition, found.holds, found.problem or "as it must be")
            for found in report.findings
        ]
        render.show_table("what was found", ("condition", "holds", "found"), rows)
    report.check(url)


def report_json(url: str, report: ProbeReport) -> render.Json:
    """Return what was found out about a store."""
    return {
        "store": url,
        "safe": all(found.holds for found in report.findings),
        "conditions": [
            {"condition": found.condition, "holds": found.holds, "problem": found.problem}
            for found in report.findings
        ],
    }
