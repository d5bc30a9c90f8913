"""How long a node and a router take for a batch of probes: pure functions of what was measured.

A batch costs what it costs without any rows, what each shard of a node adds, and what each row
adds. All three depend on how many probes share the batch, and were measured for some numbers of
them. The first of the three is shared out between node and router as their processor times are.
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
    fixed = piecewise(at, calibration.call_s, counts) * _node_share(calibration)
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
    total: Float64 = fixed * (1 - _node_share(calibration)) + asking_s(calibration, nodes)
    return total


def asking_s(calibration: Calibration, nodes: int) -> float:
    """Return the processor time of a router for asking all nodes but the first, in seconds."""
    return (nodes - 1) * ASKED_SHARE * calibration.router_call_cpu_s


def _node_share(calibration: Calibration) -> float:
    """Return what part of a call without rows is the node's."""
    both = calibration.node_call_cpu_s + calibration.router_call_cpu_s
    return calibration.node_call_cpu_s / both


def slowest_of(calibration: Calibration, nodes: int) -> Weighted:
    """Return how long the slowest of several calls of one kind takes, over their median.

    A batch is answered when the slowest node has answered. Quantile u of the slowest of n is
    quantile u ** (1 / n) of one, where they are slow independently.
    """
    edges = np.linspace(0, 1, CELLS + 1)
    edges = np.concatenate([edges[:-2], np.linspace(edges[-2], 1, TAIL_CELLS + 1)])
    middles = (edges[:-1] + edges[1:]) / 2
    spread = np.asarray(calibration.spread)
    known = np.linspace(0, 1, len(spread))
    return Weighted(np.interp(middles ** (1 / max(nodes, 1)), known, spread), np.diff(edges))
