"""fgctl top: the cluster at a glance, over and over."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from facegrid.api.admin.v1 import admin_service_pb2 as pb
from facegrid.clock import Clock, SystemClock
from facegrid.errors import FacegridError, UnavailableError
from fgctl import render
from fgctl.online.cluster import first_answer, status_json, view_line
from fgctl.online.follow import operation_json, operations_of, operations_table, wait
from fgctl.online.ops import driver_line
from fgctl.online.overview import (
    Copy,
    Status,
    copies_of,
    devices_table,
    nodes_table,
    notes,
    shards_of,
    shards_table,
)
from fgctl.target import Target, online

GAP_S: Final = 0.5
"""Between the two looks of --once: load is what happens between looks."""
FIXED_LINES: Final = 12
"""Of a screen: headings and lines that are always there."""
HEADING_LINES: Final = 3
"""Of a table that is there only sometimes."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen at one moment.

    Attributes:
        seen_s: when, by a clock that never goes back.
        status: the cluster.
        operations: those at work, and who drives them.
        rebalancer: how operations are run; None: this router cannot tell.
    """

    seen_s: float
    status: Status
    operations: pb.ListOperationsResponse
    rebalancer: pb.RebalancerResponse | None


def look(target: Target, clock: Clock) -> Look:
    """Look at the cluster once.

    Raises:
        UnavailableError: no router answers.
    """
    status = first_answer(target)
    seen_s = clock.now_s()
    try:
        operations = operations_of(target, over=False)
        rebalancer = target.ask(lambda stub: stub.Rebalancer, pb.RebalancerRequest())
    except UnavailableError:
        raise
    except FacegridError:
        # A router of before operations: the rest is worth seeing.
        return Look(seen_s, status, pb.ListOperationsResponse(), None)
    return Look(seen_s, status, operations, rebalancer)


def loads_between(former: Look | None, now: Look) -> dict[str, float]:
    """Return how many processors each node has kept busy between two looks."""
    if former is None or now.seen_s <= former.seen_s:
        return {}
    before = {node.id: node.cpu_ms for node in former.status.nodes}
    elapsed_ms = (now.seen_s - former.seen_s) * 1000
    return {
        node.id: (node.cpu_ms - before[node.id]) / elapsed_ms
        for node in now.status.nodes
        if 0 < before.get(node.id, 0) <= node.cpu_ms
    }


def writes_between(former: Look | None, now: Look) -> float | None:
    """Return how many records the primaries have committed each second between two looks."""
    if former is None or now.seen_s <= former.seen_s:
        return None
    before, after = _positions(former.status), _positions(now.status)
    count = sum(max(after[one] - before[one], 0) for one in after.keys() & before.keys())
    return count / (now.seen_s - former.seen_s)


def _positions(status: Status) -> dict[str, int]:
    return {
        copy.shard.id: copy.report.position
        for copy in copies_of(status)
        if copy.report is not None and copy.node_id == copy.shard.node_ids[0]
    }


def frame(former: Look | None, now: Look, *, lines_max: int | None = None) -> RenderableType:
    """Return what to show of two looks.

    Args:
        former: the look before; None: there was none, so there are no rates.
        now: the newest.
        lines_max: height of the screen; shards that do not fit are counted, the odd ones last.
    """
    status, operations = now.status, now.operations
    parts: list[RenderableType] = [_header(former, now)]
    parts.append(nodes_table(status, loads_between(former, now)))
    devices = devices_table(status)
    if devices is not None:
        parts.append(devices)
    if operations.operations:
        note = "" if operations.driver else driver_line("")
        parts.append(operations_table(operations.operations, note))
    told = [Text(f"! {note}") for note in notes(status)]
    shards = shards_of(copies_of(status))
    shown, caption = shards, ""
    if lines_max is not None:
        count = sum(len(node.devices) for node in status.nodes)
        devices_lines = count + HEADING_LINES if count else 0
        operations_lines = 2 * len(operations.operations)
        rest = len(status.nodes) + len(told) + FIXED_LINES
        taken = devices_lines + operations_lines + rest
        shown, caption = _most_wanted(shards, max(lines_max - taken, 1))
    return Group(*parts, *told, shards_table(shown, caption=caption))


def _most_wanted(
    shards: dict[str, list[Copy]], count_max: int
) -> tuple[dict[str, list[Copy]], str]:
    """Return as many shards as fit, those first of which a copy is odd, and what is left out."""
    odd = {shard_id for shard_id, copies in shards.items() if any(copy.odd for copy in copies)}
    shown = sorted(shards, key=lambda shard_id: shard_id not in odd)[:count_max]
    left_count, odd_count = len(shards) - len(shown), len(odd.difference(shown))
    if not left_count:
        return shards, ""
    caption = f"and {left_count} more, {odd_count} of them odd; fgctl shard list shows all"
    return {shard_id: shards[shard_id] for shard_id in shown}, caption


def _header(former: Look | None, now: Look) -> Text:
    status = now.status
    templates_count = sum(
        copy.report.templates_count
        for copy in copies_of(status)
        if copy.report is not None
        and copy.node_id == copy.shard.node_ids[0]
        and not copy.shard.source_shard_ids
    )
    size = ", ".join(
        (
            render.many(len(status.galleries), "gallery", "galleries"),
            render.many(len(status.shards), "shard"),
            render.many(templates_count, "template"),
        )
    )
    writes = writes_between(former, now)
    told = [size if writes is None else f"{size}, {writes:,.0f} records/s"]
    if (rebalancer := now.rebalancer) is not None:
        p99 = f"{rebalancer.p99_ms:,} ms" if rebalancer.p99_ms else "not known"
        auto = "on" if rebalancer.automatic else "off"
        told.append(f"search p99 {p99}, rebalancing by itself {auto}")
    told.append(view_line(status))
    return Text("\n".join(told))


@click.command()
@click.option("--once", is_flag=True, help="Print one frame and end.")
@click.option(
    "--every",
    "every_s",
    default=2.0,
    show_default=True,
    type=click.FloatRange(0.2, 60),
    metavar="SECONDS",
    help="Time between frames.",
)
@online
def top(target: Target, *, once: bool, every_s: float) -> None:
    """Watch nodes, copies, load and operations; Ctrl-C ends it."""
    clock = SystemClock()
    if once or target.as_json:
        former = look(target, clock)
        wait(GAP_S)
        now = look(target, clock)
        if target.as_json:
            render.show_json(look_json(former, now))
        else:
            render.show(frame(former, now))
        return
    if not sys.stdout.isatty():
        raise click.UsageError("stdout is no terminal: say --once for one frame")
    _draw(target, clock, every_s)


def _draw(target: Target, clock: Clock, every_s: float) -> None:
    console = Console(highlight=False, markup=False)
    former: Look | None = None
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                try:
                    now = look(target, clock)
                    shown = frame(former, now, lines_max=console.size.height)
                    former = now
                except UnavailableError as error:
                    shown = Text(f"trying again: {error.message}")
                live.update(shown, refresh=True)
                wait(every_s)
    except KeyboardInterrupt:
        return


def look_json(former: Look, now: Look) -> render.Json:
    """Return what was seen as JSON."""
    loads: Iterable[tuple[str, float]] = loads_between(former, now).items()
    return {
        "status": status_json(now.status),
        "operations": [operation_json(one) for one in now.operations.operations],
        "driver": now.operations.driver,
        "busy_processors": dict(loads),
        "records_per_s": writes_between(former, now),
        "notes": notes(now.status),
    }
