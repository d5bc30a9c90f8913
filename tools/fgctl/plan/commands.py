"""fgctl plan: what a gallery needs; calibrate, simulate."""

import functools
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from facegrid.clock import SystemClock
from facegrid.errors import InvalidError
from facegrid.tuning import MISS_RATE_MAX_DEFAULT, Profile
from fgctl import render
from fgctl.plan import calibration as calibrations
from fgctl.plan import report
from fgctl.plan.calibration import Calibration, Curve
from fgctl.plan.demand import GIB, H200, Demand, Machine
from fgctl.plan.doubling import doubled
from fgctl.plan.fan_out import Crowd, simulated
from fgctl.plan.measuring import measured
from fgctl.plan.remedies import remedies
from fgctl.plan.service import spread_at
from fgctl.plan.sizing import NODES_MAX, Broken, Plan, Trial, planned
from fgctl.target import json_option

EXIT_UNMET = 1
TEXT_COLUMNS = 80
DEMAND = Demand(templates_count=1, probes_per_s=1, p99_ms=1)
MACHINE = Machine()


def _option(name: str, default: Any, kind: Any, text: str) -> Callable[..., Any]:
    required = default is None
    return click.option(name, default=default, show_default=not required, type=kind, help=text)


_OPTIONS = (
    _option("--templates", None, float, "In the gallery, for instance 50e6. Needed."),
    _option("--probes-per-s", None, float, "Probes to identify a second. Needed."),
    _option("--p99-ms", None, float, "What 99 of 100 identifications may take. Needed."),
    _option("--dim", DEMAND.dim, int, "Components of a vector."),
    _option("--component-bits", DEMAND.component_bits, int, "Of each component: 8 or 4."),
    _option("--replicas", DEMAND.replicas, int, "Copies of each shard."),
    _option(
        "--profile",
        DEMAND.profile.value,
        click.Choice([one.value for one in Profile]),
        "How hard searches try.",
    ),
    _option("--miss-rate-max", MISS_RATE_MAX_DEFAULT, float, "Of mates, because of the index."),
    _option("--scanned-share", None, float, "Of the rows; default: by the calibration's curve."),
    _option("--templates-per-subject", DEMAND.templates_per_subject, float, "On average."),
    _option("--enrolments-per-s", DEMAND.enrolments_per_s, float, "Templates that come in."),
    _option("--k", DEMAND.k, int, "Candidates wanted."),
    _option("--id-bytes", DEMAND.id_bytes, int, "Length of a template's or subject's id."),
    _option("--snapshots", DEMAND.snapshots, int, "That are kept, one a day."),
    _option("--cores", MACHINE.cores, int, "Of a node, for searches."),
    _option("--memory-gib", MACHINE.memory_bytes / GIB, float, "Of a node."),
    _option("--store-mb-per-s", MACHINE.store_bytes_per_s / 1e6, float, "Store to one node."),
    _option("--device", "cpu", click.Choice(["cpu", "gpu"]), "What scans codes."),
    _option("--nodes-max", NODES_MAX, click.IntRange(1, NODES_MAX), "No more nodes than that."),
    click.option(
        "--calibration",
        "calibration_file",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Measured by fgctl plan calibrate. Default: built in.",
    ),
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the options say."""

    demand: Demand
    machine: Machine
    calibration: Calibration
    source: str
    nodes_max: int


def _planning(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a demand."""
    return functools.reduce(lambda inner, option: option(inner), reversed(_OPTIONS), command)


def _asked(given: dict[str, Any]) -> Asked:
    """Return what options say.

    Raises:
        click.UsageError: one that is needed is missing.
        InvalidError: a value cannot be.
    """
    names = {"templates": "--templates", "probes_per_s": "--probes-per-s", "p99_ms": "--p99-ms"}
    missing = [flag for name, flag in names.items() if given[name] is None]
    if missing:
        raise click.UsageError(f"say what is asked: {' '.join(missing)}")
    demand = Demand(
        templates_count=given["templates"],
        probes_per_s=given["probes_per_s"],
        p99_ms=given["p99_ms"],
        dim=given["dim"],
        replicas=given["replicas"],
        profile=Profile(given["profile"]),
        miss_rate_max=given["miss_rate_max"],
        templates_per_subject=given["templates_per_subject"],
        enrolments_per_s=given["enrolments_per_s"],
        k=given["k"],
        id_bytes=given["id_bytes"],
        snapshots=given["snapshots"],
        component_bits=given["component_bits"],
    )
    machine = Machine(
        cores=given["cores"],
        memory_bytes=given["memory_gib"] * GIB,
        store_bytes_per_s=given["store_mb_per_s"] * 1e6,
        device=H200 if given["device"] == "gpu" else None,
    )
    path = given["calibration_file"]
    calibration = calibrations.built_in() if path is None else calibrations.load(path)
    share = given["scanned_share"]
    if share is not None:
        calibration = replace(calibration, curve=(_stated(share),))
    source = "built in" if path is None else path.name
    return Asked(demand, machine, calibration, source, given["nodes_max"])


def _stated(share: float) -> Curve:
    """Return a curve that says that this share of the rows suffices whatever may be missed."""
    if not 0 < share <= 1:
        raise InvalidError(
            f"scanned-share must be above 0 and at most 1 value={share:g}",
            reason="OUT_OF_BOUNDS",
            field="scanned-share",
        )
    return Curve(0.0, share)


@click.group(invoke_without_command=True)
@_planning
@json_option
@click.pass_context
def plan(context: click.Context, /, *, as_json: bool, **given: Any) -> None:
    """Say what a gallery needs: nodes, shards, memory, disk, times, and what they rest on.

    Exit code 1 where it cannot be met; then it says which limit breaks, by how much, and what
    would meet it.
    """
    if context.invoked_subcommand is not None:
        return
    asked = _asked(given)
    found = planned(asked.demand, asked.machine, asked.calibration, nodes_max=asked.nodes_max)
    if isinstance(found, Broken):
        _show_broken(found, asked, as_json=as_json)
        context.exit(EXIT_UNMET)
    _show_plan(found, asked, as_json=as_json)


def _show_broken(broken: Broken, asked: Asked, *, as_json: bool) -> None:
    found = remedies(broken, asked.demand, asked.machine, asked.calibration, asked.nodes_max)
    if as_json:
        render.show_json(report.broken_json(broken, found, asked.demand, asked.machine))
        return
    for line in report.broken_lines(broken, found):
        render.show_line(line)


def _show_plan(found: Plan, asked: Asked, *, as_json: bool) -> None:
    table = doubled(asked.demand, asked.machine, asked.calibration, nodes_max=asked.nodes_max)
    if as_json:
        render.show_json(report.plan_json(found, asked.calibration, asked.source, table))
        return
    rows = report.rows(found, asked.calibration)
    doubles = [report.base_row(found), *map(report.doubled_row, table)]
    render.show(
        render.table_of("plan", ("what", "value", "rests on"), rows, narrow=True),
        render.table_of("when one input doubles", report.DOUBLED_COLUMNS, doubles, narrow=True),
    )
    render.show_line("assumptions:")
    for sentence in report.assumptions(found, asked.calibration, asked.source):
        for line in textwrap.wrap(
            sentence, TEXT_COLUMNS, initial_indent="- ", subsequent_indent="  "
        ):
            render.show_line(line)


@plan.command()
@_planning
@click.option("--nodes", type=click.IntRange(1, 10_000), help="Default: as many as planned.")
@click.option("--slow-nodes", default=1, show_default=True, type=click.IntRange(0))
@click.option("--slow-factor", default=3.0, show_default=True, type=click.FloatRange(1, 1000))
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0))
@json_option
def simulate(
    *,
    nodes: int | None,
    slow_nodes: int,
    slow_factor: float,
    seed: int,
    as_json: bool,
    **given: Any,
) -> None:
    """Simulate the tails of searches over many nodes, with hedging and without.

    Durations are drawn from the calibration's; nothing is run. Queues are left out.
    """
    asked = _asked(given)
    if nodes is None:
        found = planned(asked.demand, asked.machine, asked.calibration, nodes_max=asked.nodes_max)
        if isinstance(found, Broken):
            _show_broken(found, asked, as_json=as_json)
            click.get_current_context().exit(EXIT_UNMET)
        nodes = found.trial.nodes
    quick = crowd_of(Trial(asked.demand, asked.machine, asked.calibration, nodes))
    slow = replace(quick, slow_nodes=min(slow_nodes, nodes), slow_factor=slow_factor)
    crowds = [quick, slow] if slow_nodes else [quick]
    results = [(crowd, simulated(crowd, seed=seed)) for crowd in crowds]
    if as_json:
        render.show_json(report.simulated_json(results, asked.source, seed=seed))
        return
    rows = [row for crowd, one in results for row in report.simulated_rows(crowd, one)]
    title = f"SIMULATED from measured durations ({asked.source}), seed {seed}"
    render.show(render.table_of(title, report.SIMULATED_COLUMNS, rows, narrow=True))


def crowd_of(trial: Trial) -> Crowd:
    """Return the nodes of a trial, all of them sound, as a simulation wants them."""
    call_s = float(trial.batches_s[0])
    return Crowd(
        nodes=trial.nodes,
        call_s=call_s,
        router_s=float(trial.routed_s[0]),
        spread=spread_at(trial.calibration, call_s),
    )


@plan.command()
@click.option(
    "--minutes", default=2.0, show_default=True, type=click.FloatRange(0.2, 60), metavar="MINUTES"
)
@click.option(
    "--output",
    default=Path("calibration.json"),
    show_default=True,
    type=click.Path(dir_okay=False, path_type=Path),
)
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0))
@json_option
def calibrate(*, minutes: float, output: Path, seed: int, as_json: bool) -> None:
    """Measure this machine: a local cluster is started, filled, asked, and removed again.

    Nothing else should run meanwhile. fgctl plan --calibration uses the file.
    """
    found = measured(minutes=minutes, seed=seed, clock=SystemClock(), quiet=as_json)
    calibrations.save(found, output)
    if as_json:
        render.show_json(calibrations.to_document(found))
        return
    rates = zip(found.probes, found.codes_per_s, strict=True)
    rows = [(f"{count}", f"{rate / 1e6:,.0f}") for count, rate in rates]
    columns = ("probes a call", "million codes/s a core")
    render.show(render.table_of(found.described, columns, rows, narrow=True))
    render.show_line(f"written: {output}")
