"""A plan as people and programs read it: 80 columns, or one JSON document."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Final

from fgctl import render
from fgctl.plan.calibration import Calibration
from fgctl.plan.demand import GIB, Demand, Machine
from fgctl.plan.doubling import Doubled
from fgctl.plan.fan_out import Crowd, Simulated, Tail
from fgctl.plan.remedies import Remedy
from fgctl.plan.sizing import SHARDS_PER_NODE, Broken, Plan, Trial
from fgctl.plan.storage import LEASE_S, TAKEOVER_S

Row = tuple[str, str, str]
"""What, how much, and what it rests on."""

SHOWN: Final = {
    "templates_count": "templates",
    "dim": "dim",
    "probes_per_s": "probes/s",
    "p99_ms": "p99 asked",
    "replicas": "replicas",
    "miss_rate_max": "miss rate max",
    "templates_per_subject": "templates/subject",
    "enrolments_per_s": "enrolments/s",
    "cores": "cores a node",
    "memory_bytes": "memory a node",
    "store_bytes_per_s": "store rate",
}
DOUBLED_COLUMNS: Final = ("doubled", "to", "nodes", "memory", "in all", "disk", "load", "p99")


def rows(plan: Plan, calibration: Calibration) -> list[Row]:
    """Return the plan, each number with what it rests on."""
    trial = plan.trial
    return [
        *_shape_rows(plan),
        *_memory_rows(trial, calibration),
        *_disk_rows(plan, calibration),
        *_time_rows(plan, calibration),
    ]


def _shape_rows(plan: Plan) -> Iterator[Row]:
    trial, shape = plan.trial, plan.trial.shape
    yield "nodes", f"{shape.nodes:,}", _headroom(trial)
    yield (
        "shards",
        f"{shape.shards:,}",
        f"{SHARDS_PER_NODE} a node, so that a lost one's are shared",
    )
    yield (
        "copies",
        f"{shape.copies}",
        f"of each shard; {_count(shape.held(trial.demand))} rows a node",
    )
    yield "routers", f"{plan.routers:,}", "a core each; one of them may be lost"


def _headroom(trial: Trial) -> str:
    if trial.nodes == 1:
        return "all of the gallery on one: nothing is found while it is away"
    if trial.shape.copies == 1:
        return "one copy: the loss of a node leaves a gap until it is loaded elsewhere"
    return "one may be lost: memory, p99 and busy below are of the others then"


def _memory_rows(trial: Trial, calibration: Calibration) -> Iterator[Row]:
    node, demand = trial.node_memory, trial.demand
    held = trial.shape.held(demand)
    each = (node.rows + node.codes + node.ids) / held
    yield (
        "memory a node",
        render.size_text(node.peak),
        (
            f"{each:,.0f} B a template, {calibration.memory_factor:.2f} times the sum of arrays"
            f" and ids; {render.size_text(node.base)} base;"
            f" {render.size_text(node.working)} at work"
        ),
    )
    yield "  after a loss", render.size_text(trial.memory_after_loss), "all copies made anew"
    yield "memory in all", render.size_text(node.peak * trial.nodes), f"{trial.nodes} nodes"
    if trial.machine.device is not None:
        share = trial.machine.device.scratch_share
        yield (
            "device memory",
            render.size_text(trial.device_bytes),
            f"a node; scratch {share:.0%} of the device included; not measured here",
        )


def _disk_rows(plan: Plan, calibration: Calibration) -> Iterator[Row]:
    disk = plan.disk
    yield (
        "disk in the store",
        render.size_text(disk.total),
        (
            f"segments {render.size_text(disk.segments)} ({calibration.disk_factor:.2f} times"
            f" arrays and ids), log up to {render.size_text(disk.log)},"
            f" snapshots {render.size_text(disk.snapshots)}; copies share it"
        ),
    )


def _time_rows(plan: Plan, calibration: Calibration) -> Iterator[Row]:
    trial, recovery = plan.trial, plan.recovery
    latency = trial.latency
    yield (
        "p99",
        f"{latency.p99_s * 1000:.1f} ms",
        (
            f"p50 {latency.p50_s * 1000:.1f} ms; {latency.batch_mean:.1f} probes a batch;"
            f" {trial.scanned_share:.0%} of the rows looked at; copies share the shards of a batch"
        ),
    )
    yield "busy", f"{latency.busy_share:.0%}", "of the time, where batches are full"
    yield (
        "load of a node",
        render.duration_text(plan.load_s),
        f"{calibration.load_per_s:,.0f} templates/s or the store's rate, the slower",
    )
    yield (
        "writes after loss",
        render.duration_text(recovery.writes_s),
        _writes(recovery.reads_fail),
    )
    yield (
        "copies after loss",
        render.duration_text(recovery.copies_s),
        f"{recovery.peers} at a time read what it had; fgctl rebalance begins it",
    )


def _writes(reads_fail: bool) -> str:  # noqa: FBT001 - says which sentence holds
    if reads_fail:
        return "it is started again and loads; its shards are not searched meanwhile"
    return f"lease {LEASE_S:.0f} s and patience {TAKEOVER_S:.0f} s; no search fails"


def assumptions(plan: Plan, calibration: Calibration, source: str) -> list[str]:
    """Return what the whole plan rests on, a sentence each."""
    trial = plan.trial
    sentences = [
        f"calibration ({source}): {calibration.described}, {calibration.time[:10]}",
        f"cores beyond the first count {calibration.cores_share:.2f} each, as measured there",
        "arrivals at random moments, one probe a call, one gallery; hardware like that measured",
    ]
    if trial.scanned_share == 1:
        sentences.append(
            "all rows are looked at: for fewer, give a calibration with a curve, or"
            " --scanned-share as fgctl gallery tune measured it on your faces"
            if not calibration.curve
            else "all rows are looked at: no share of them was measured to miss few enough"
        )
    if trial.machine.device is not None:
        sentences.append(
            "gpu: an H200 at 40 % of its memory bandwidth, not measured here; this version"
            " searches on cores alone"
        )
    if trial.nodes > 8:
        sentences.append("so many nodes were never run: see fgctl plan simulate")
    return sentences


def plan_json(
    plan: Plan, calibration: Calibration, source: str, table: list[Doubled]
) -> dict[str, render.Json]:
    """Return the plan as programs read it, units in the names."""
    return {
        "met": True,
        "inputs": inputs_json(plan.trial.demand, plan.trial.machine),
        **numbers_json(plan),
        "assumptions": assumptions(plan, calibration, source),
        "rests_on": {name.strip(): basis for name, _, basis in rows(plan, calibration)},
        "doubled": [_doubled_json(one) for one in table],
    }


def numbers_json(plan: Plan) -> dict[str, render.Json]:
    """Return the numbers of a plan."""
    trial, memory, latency = plan.trial, plan.trial.node_memory, plan.trial.latency
    return {
        "nodes": trial.nodes,
        "shards": trial.shape.shards,
        "copies": trial.shape.copies,
        "routers": plan.routers,
        "memory_node_bytes": memory.peak,
        "memory_resident_bytes": memory.resident,
        "memory_after_loss_bytes": trial.memory_after_loss,
        "memory_total_bytes": memory.peak * trial.nodes,
        "device_bytes": trial.device_bytes,
        "disk_bytes": plan.disk.total,
        "disk": asdict(plan.disk),
        "p50_ms": latency.p50_s * 1000,
        "p99_ms": latency.p99_s * 1000,
        "busy_share": latency.busy_share,
        "scanned_share": trial.scanned_share,
        "load_s": plan.load_s,
        "recovery": asdict(plan.recovery),
    }


def inputs_json(demand: Demand, machine: Machine) -> dict[str, render.Json]:
    """Return what was asked."""
    device = None if machine.device is None else machine.device.name
    return {**asdict(demand), "profile": demand.profile.value, **asdict(machine), "device": device}


def broken_lines(broken: Broken, found: list[Remedy]) -> list[str]:
    """Return why there is no plan, and what would meet it."""
    lines = [
        (
            f"this cannot be met: {broken.limit} {_amount(broken.value, broken.unit)},"
            f" asked {_amount(broken.need, broken.unit)}: {broken.times:.2f} times off"
        ),
        f"  {broken.why}",
    ]
    if not found:
        return [*lines, "no single change that was tried meets it; change several"]
    lines.append("each of these alone would meet it:")
    for one in found:
        value = one.value or f"{one.nodes}"
        lines.append(f"  {one.option} {value:<10} {render.many(one.nodes, 'node')}")
    return lines


def broken_json(
    broken: Broken, found: list[Remedy], demand: Demand, machine: Machine
) -> dict[str, render.Json]:
    """Return the same for programs."""
    return {
        "met": False,
        "inputs": inputs_json(demand, machine),
        "broken": {**asdict(broken), "times": broken.times},
        "remedies": [asdict(one) for one in found],
    }


def doubled_row(one: Doubled) -> tuple[str, ...]:
    """Return a line of the table of doubled inputs, by DOUBLED_COLUMNS."""
    head = (SHOWN[one.name], _input(one.name, one.value))
    match one.outcome:
        case Plan() as plan:
            return (*head, *_outcome(plan))
        case Broken() as broken:
            return (*head, "none:", broken.limit, "", "", "", "")
        case refused:
            return (*head, "no:", refused.partition(" value=")[0], "", "", "", "")


def base_row(plan: Plan) -> tuple[str, ...]:
    """Return the first line of that table: nothing doubled."""
    return ("nothing", "", *_outcome(plan))


def _outcome(plan: Plan) -> tuple[str, ...]:
    memory = plan.trial.node_memory.peak
    return (
        f"{plan.trial.nodes:,}",
        _short(memory),
        _short(memory * plan.trial.nodes),
        _short(plan.disk.total),
        render.duration_text(plan.load_s).replace(" min ", "m").replace(" s", "s"),
        f"{plan.trial.latency.p99_s * 1000:.0f} ms",
    )


def _doubled_json(one: Doubled) -> render.Json:
    head: dict[str, render.Json] = {"input": one.name, "value": one.value}
    match one.outcome:
        case Plan() as plan:
            return {**head, "met": True, **numbers_json(plan)}
        case Broken() as broken:
            return {**head, "met": False, "broken": {**asdict(broken), "times": broken.times}}
        case refused:
            return {**head, "met": False, "refused": refused}


SIMULATED_COLUMNS: Final = ("nodes", "slow", "hedging", "p50", "p99", "p99.9", "asked twice")


def simulated_rows(crowd: Crowd, found: Simulated) -> list[tuple[str, ...]]:
    """Return two lines of the table of simulations."""
    slow = f"{crowd.slow_nodes} x{crowd.slow_factor:g}" if crowd.slow_nodes else "none"

    def line(hedging: str, tail: Tail) -> tuple[str, ...]:
        times = (f"{value * 1000:.1f} ms" for value in (tail.p50_s, tail.p99_s, tail.p999_s))
        return (f"{crowd.nodes}", slow, hedging, *times, f"{tail.hedged_share:.1%}")

    return [line("no", found.plain), line("yes", found.hedged)]


def simulated_json(
    results: list[tuple[Crowd, Simulated]], source: str, *, seed: int
) -> dict[str, render.Json]:
    """Return simulations as programs read them, marked as such."""
    return {
        "simulated": True,
        "calibration": source,
        "seed": seed,
        "runs": [
            {
                "nodes": crowd.nodes,
                "slow_nodes": crowd.slow_nodes,
                "slow_factor": crowd.slow_factor,
                "without_hedging": asdict(found.plain),
                "with_hedging": asdict(found.hedged),
            }
            for crowd, found in results
        ],
    }


def _input(name: str, value: float) -> str:
    match name:
        case "memory_bytes":
            return f"{value / GIB:g} GiB"
        case "store_bytes_per_s":
            return f"{value / 1e6:g} MB/s"
        case "p99_ms":
            return f"{value:g} ms"
        case "templates_count":
            return _count(value)
        case _:
            return f"{value:g}"


def _amount(value: float, unit: str) -> str:
    if unit == "bytes":
        return render.size_text(value)
    return f"{value:,.1f} {unit}" if unit == "ms" else f"{value:,.0f} {unit}"


def _count(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.0f}"


def _short(count: float) -> str:
    return render.size_text(count).replace("iB", "")
