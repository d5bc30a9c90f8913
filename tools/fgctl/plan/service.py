"""How long a node and a router take for a batch of probes: pure functions of what was measured.

A batch costs what it costs without any rows, what each shard of a node adds, and what each row
adds. All three depend on how many probes share the batch, and were measured for some numbers of
them. The first of the three is shared out between client, router and node as their processor times
are.

Durations spread around these medians, and less so the longer they are: what disturbs adds up along
the way, so that the deviation grows with the square root (docs/PLANNING.md).
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from fgctl.plan.calibration import Calibration, Float64, piecewise
from fgctl.plan.demand import Demand, Machine

BATCH_MAX: Final = 256
"""Probes that a router sends at once: its setting coalesce_rows_max."""
ASKED_SHARE: Final = 0.25
"""Of what a call with one probe costs a router, what each node beyond the first adds: 0.5 ms of
2.1 ms, measured with one node and with five on a machine with two cores."""
CELLS: Final = 64
"""Quantiles that stand for a distribution, in cells of equal probability but for the last ones."""
TAIL_CELLS: Final = 16
"""Finer cells within the last of them: p99 lies there."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one batch finds in a cluster.

    Attributes:
        rows: that the busiest node is asked for.
        shards: the same, shards.
        scanned_share: of the rows, that is looked at.
    """

    rows: float
    shards: float
    scanned_share: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Weighted:
    """Values that stand for a distribution, with their probabilities; float64 [n] each."""

    values: Float64
    weights: Float64

    def quantile(self, share: float) -> float:
        """Return the smallest value that at least this share does not exceed."""
        order = np.argsort(self.values, kind="stable")
        reached = np.cumsum(self.weights[order])
        at = int(np.searchsorted(reached, share * reached[-1] * (1 - 1e-12)))
        return float(self.values[order[min(at, len(order) - 1)]])

    @property
    def mean(self) -> float:
        """The mean."""
        return float(np.average(self.values, weights=self.weights))


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """How durations spread around their median.

    Attributes:
        factors: durations over their median, of those whose median is `at_s`.
        at_s: see there.
    """

    factors: Weighted
    at_s: float

    def of(self, median_s: Float64) -> Float64:
        """Return durations, float64 [..., n]: a row of them for each median, 0 or more."""
        return durations(self.factors.values, self.at_s, np.asarray(median_s)[..., None])

    def mean(self, median_s: float) -> float:
        """Return the mean of the durations, over their median."""
        values = self.of(np.asarray(median_s)) / median_s
        return Weighted(values, self.factors.weights).mean

    def quantile_s(self, median_s: float, share: float) -> float:
        """Return the duration that at least this share does not exceed."""
        return Weighted(self.of(np.asarray(median_s)), self.factors.weights).quantile(share)


def durations(factors: Float64, at_s: float, median_s: Float64) -> Float64:
    """Return durations of another median, none below the least share of it that was measured: a
    call that is over before anything disturbs it still takes its time.

    Args:
        factors: durations over their median, where that is `at_s`; all of them.
        at_s: see there.
        median_s: the median wanted; broadcast with the factors.
    """
    found: Float64 = np.maximum(
        median_s + (factors - 1) * np.sqrt(at_s * median_s), np.min(factors) * median_s
    )
    return found


def cores_speed(machine: Machine, calibration: Calibration) -> float:
    """Return how many times as fast as on one core a node scans with all of its cores."""
    return 1 + (machine.cores - 1) * calibration.cores_share


def node_s(
    demand: Demand, machine: Machine, calibration: Calibration, load: Load, counts: Float64
) -> Float64:
    """Return the median time of batches in the busiest node, in seconds.

    Args:
        demand: length of vectors.
        machine: of each node.
        calibration: of a node and a router.
        load: what the batch finds.
        counts: probes of the batches, float64 [n], at least 1.
    """
    wider = demand.dim / calibration.dim
    at = calibration.probes
    fixed = piecewise(at, calibration.call_s, counts) * _shares(calibration)[2]
    shards = piecewise(at, calibration.shard_s, counts) * load.shards * wider
    rows = load.rows * load.scanned_share
    device = machine.device
    if device is not None:
        scan = device.fixed_s + counts * rows * demand.dim / 8 / device.codes_bytes_per_s
    else:
        per_row = piecewise(at, calibration.row_s, counts) * wider
        scan = per_row * rows / cores_speed(machine, calibration)
    total: Float64 = fixed + shards + scan
    return total


def router_s(calibration: Calibration, nodes: int, counts: Float64) -> Float64:
    """Return the median time of batches in client and router, in seconds.

    Args:
        calibration: of a node and a router.
        nodes: that a batch asks.
        counts: probes of the batches, float64 [n], at least 1.
    """
    fixed = piecewise(calibration.probes, calibration.call_s, counts)
    client, router, _ = _shares(calibration)
    total: Float64 = fixed * (client + router) + asking_s(calibration, nodes)
    return total


def client_s(calibration: Calibration, counts: Float64) -> Float64:
    """Return the client's part of that: it keeps a router from nothing."""
    total: Float64 = (
        piecewise(calibration.probes, calibration.call_s, counts) * _shares(calibration)[0]
    )
    return total


def asking_s(calibration: Calibration, nodes: int) -> float:
    """Return the processor time of a router for asking all nodes but the first, in seconds."""
    return (nodes - 1) * ASKED_SHARE * calibration.router_call_cpu_s


def _shares(calibration: Calibration) -> tuple[float, float, float]:
    """Return what parts of a call without rows are the client's, the router's and the node's."""
    parts = (
        calibration.client_call_cpu_s,
        calibration.router_call_cpu_s,
        calibration.node_call_cpu_s,
    )
    client, router, node = (part / sum(parts) for part in parts)
    return client, router, node


def slowest_of(calibration: Calibration, nodes: int) -> Spread:
    """Return how long the slowest of several calls of one kind takes.

    A batch is answered when the slowest node has answered. Quantile u of the slowest of n is
    quantile u ** (1 / n) of one, where they are slow independently.
    """
    edges = np.linspace(0, 1, CELLS + 1)
    edges = np.concatenate([edges[:-2], np.linspace(edges[-2], 1, TAIL_CELLS + 1)])
    middles = (edges[:-1] + edges[1:]) / 2
    spread = np.asarray(calibration.spread)
    known = np.linspace(0, 1, len(spread))
    factors = np.interp(middles ** (1 / max(nodes, 1)), known, spread)
    return Spread(Weighted(factors, np.diff(edges)), calibration.spread_at_s)


def spread_at(calibration: Calibration, median_s: float) -> tuple[float, ...]:
    """Return quantiles of the duration of a call over its median, for this median."""
    known = np.asarray(calibration.spread)
    found = durations(known, calibration.spread_at_s, np.asarray(median_s)) / median_s
    return tuple(found.tolist())
