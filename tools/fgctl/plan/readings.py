"""From what was read off a cluster to what a calibration states: pure."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from fgctl.plan.calibration import Calibration
from fgctl.plan.demand import Demand
from fgctl.plan.memory import template_bytes
from fgctl.plan.service import durations
from fgctl.plan.storage import stored_bytes

LEAST_S: Final = 1e-7
"""What noise may have made nothing or less."""
LEAST_ROW_S: Final = 1e-12
FACTOR_MAX: Final = 3.0
FACTOR_TYPICAL: Final = 1.08
"""Resident bytes over those of arrays and ids: 1.07 to 1.14 from 50,000 to 190,000 templates."""
GROWN_MIN: Final = 256e6
"""Bytes by which a node must have grown to show its own factor: what an allocator keeps or gives
back after a start differs by tens of millions from one start to the next."""
QUANTILES: Final = 101

FEW, SPLIT, MANY = "few", "split", "many"
"""Galleries: few rows in one shard, as few in several, and many in as many shards."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of the galleries of a run.

    Attributes:
        few_rows, many_rows: templates of the small galleries and of the large one.
        shards: of all but one, which has one shard.
        dim: components.
        id_bytes: of each id.
        templates_per_subject: on average.
    """

    few_rows: int
    many_rows: int
    shards: int
    dim: int
    id_bytes: int
    templates_per_subject: float

    @property
    def rows(self) -> int:
        """Templates of all galleries."""
        return 2 * self.few_rows + self.many_rows

    def demand(self) -> Demand:
        """Return it as a demand, for the sizes of templates."""
        return Demand(
            templates_count=self.rows,
            probes_per_s=1,
            p99_ms=1,
            dim=self.dim,
            id_bytes=self.id_bytes,
            templates_per_subject=self.templates_per_subject,
        )


@dataclass(frozen=True, slots=True)
class Readings:
    """What was read off.

    Attributes:
        sizes: of the galleries.
        calls_s: durations, by gallery and number of probes; with one search thread.
        narrow_s, wide_s: the same of the large gallery at `wide_probes` with one search thread and
            with `wide_threads`, in turns; none where there is one core.
        wide_probes, wide_threads: see there.
        half_bytes, full_bytes: resident memory of the node with half of the large gallery, and
            with all of it, each after a start.
        router_bytes: of the router, at the end.
        segments_bytes: in the store, of all rows.
        start_s: that a node with the large gallery's shards takes to start, still empty.
        all_start_s: the same with the shards of all galleries, still empty.
        load_s: the same with all rows.
        enrol_s: that enrolling the large gallery took.
        store_bytes_per_s: read from the store.
        client_call_cpu_s, router_call_cpu_s, router_probe_cpu_s, node_call_cpu_s: see Calibration.
    """

    sizes: Sizes
    calls_s: Mapping[tuple[str, int], Sequence[float]]
    narrow_s: Sequence[float]
    wide_s: Sequence[float]
    wide_probes: int
    wide_threads: int
    half_bytes: int
    full_bytes: int
    router_bytes: int
    segments_bytes: int
    start_s: float
    all_start_s: float
    load_s: float
    enrol_s: float
    store_bytes_per_s: float
    client_call_cpu_s: float
    router_call_cpu_s: float
    router_probe_cpu_s: float
    node_call_cpu_s: float


@dataclass(frozen=True, slots=True)
class Parts:
    """What a call with so many probes is made of, in seconds: see Calibration."""

    call_s: float
    shard_s: float
    row_s: float


def parts(readings: Readings, probes: int) -> Parts:
    """Return what calls are made of: three galleries, three unknowns."""
    sizes = readings.sizes
    few, split, many = (
        statistics.median(readings.calls_s[name, probes]) for name in (FEW, SPLIT, MANY)
    )
    row_s = max((many - split) / (sizes.many_rows - sizes.few_rows), LEAST_ROW_S)
    shard_s = max((split - few) / (sizes.shards - 1), LEAST_S)
    call_s = max(few - shard_s - sizes.few_rows * row_s, LEAST_S)
    return Parts(call_s, shard_s, row_s)


def cores_share(readings: Readings) -> float:
    """Return how much of a further core a search gains, by what one thread and several took."""
    if not readings.wide_s:
        return 1.0
    probes, sizes = readings.wide_probes, readings.sizes
    one = parts(readings, probes)
    rest_s = one.call_s + sizes.shards * one.shard_s
    narrow_s, wide_s = (
        max(statistics.median(times) - rest_s, LEAST_S)
        for times in (readings.narrow_s, readings.wide_s)
    )
    times = narrow_s / wide_s
    return float(np.clip((times - 1) / (readings.wide_threads - 1), 0.01, 1.0))


def spread(readings: Readings) -> tuple[tuple[float, ...], float]:
    """Return quantiles of the durations of calls with one probe over their median, and for which
    median that holds; all galleries together, as `fgctl.plan.service.durations` relates them.
    """
    kinds = [calls_s for (_, probes), calls_s in readings.calls_s.items() if probes == 1]
    at_s = statistics.median(taken for calls_s in kinds for taken in calls_s)
    ratios: list[float] = []
    for calls_s in kinds:
        median_s = statistics.median(calls_s)
        factors = np.asarray(calls_s) / median_s
        ratios += (durations(factors, median_s, np.asarray(at_s)) / at_s).tolist()
    found = np.quantile(ratios, np.linspace(0, 1, QUANTILES))
    return tuple(round(float(value), 5) for value in np.maximum.accumulate(found)), at_s


def calibration(
    readings: Readings,
    *,
    time: str,
    hardware: Mapping[str, str | int | float],
    versions: Mapping[str, str],
    parameters: Mapping[str, str | int | float],
) -> Calibration:
    """Return what readings come to."""
    sizes = readings.sizes
    probes = sorted({count for _, count in readings.calls_s})
    found = [parts(readings, count) for count in probes]
    demand = sizes.demand()
    grown = sizes.many_rows / 2 * template_bytes(demand)
    shown = grown >= GROWN_MIN
    factor = (readings.full_bytes - readings.half_bytes) / grown if shown else FACTOR_TYPICAL
    factor = float(np.clip(factor, 1.0, FACTOR_MAX))
    spread_found, spread_at_s = spread(readings)
    base = readings.full_bytes - factor * sizes.rows * template_bytes(demand)
    calm = Calibration(
        time=time,
        hardware=hardware,
        versions=versions,
        parameters={**parameters, "memory_factor": "measured" if shown else "typical"},
        dim=sizes.dim,
        probes=tuple(probes),
        call_s=tuple(one.call_s for one in found),
        shard_s=tuple(one.shard_s for one in found),
        row_s=tuple(one.row_s for one in found),
        cores_share=cores_share(readings),
        spread=spread_found,
        spread_at_s=spread_at_s,
        client_call_cpu_s=max(readings.client_call_cpu_s, LEAST_S),
        router_call_cpu_s=max(readings.router_call_cpu_s, LEAST_S),
        router_probe_cpu_s=max(readings.router_probe_cpu_s, LEAST_S),
        node_call_cpu_s=max(readings.node_call_cpu_s, LEAST_S),
        node_base_bytes=max(base, 1.0),
        memory_factor=factor,
        router_bytes=readings.router_bytes,
        disk_factor=1.0,
        start_s=readings.start_s,
        load_per_s=sizes.rows / max(readings.load_s - readings.all_start_s, 0.01),
        enrol_per_s=sizes.many_rows / readings.enrol_s,
        store_bytes_per_s=readings.store_bytes_per_s,
    )
    plain = sizes.rows * stored_bytes(demand, calm)
    return replace(calm, disk_factor=readings.segments_bytes / plain)
