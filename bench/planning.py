"""The planner against what happens: `python -m bench.planning`.

A fresh calibration of this machine, on a gallery of one size; then a gallery several times as
large on one node with one search thread, filled, started again and asked open loop; then another
calibration. Each predicts, by the functions that `fgctl plan` uses, what was measured between
them, and the mean of both is held against it: a machine that others use too is faster in one
minute and slower in the next, which is not what a planner can know. For the same reason starts and
windows of searches alternate, and medians count: what disturbs few of the windows does not. Memory
is that of the node after a start, disk what lies in segments, load the time of a start, p99 that
of single probes at a share of what the first calibration holds for full load.
"""

import argparse
import asyncio
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np

import facegrid
from bench import arrivals, dataset, measure, stage, target
from bench.arrivals import Answered
from bench.dataset import Dataset
from bench.machine import GIB, Cost, size
from bench.report import Json
from facegrid.clock import Clock
from fgctl.local import processes
from fgctl.local.cluster import LocalCluster
from fgctl.local.plan import Wanted
from fgctl.plan import calibration as calibrations
from fgctl.plan import memory, queueing, service, storage
from fgctl.plan.calibration import Calibration
from fgctl.plan.demand import Demand, Machine
from fgctl.plan.measuring import measured as calibrated
from fgctl.plan.service import Load
from fgctl.plan.sizing import COUNTS, router_waits

GALLERY: Final = "planning"
NODE: Final = "n1"
SHARDS: Final = 4
TEMPLATES: Final = 200_000
DIM: Final = 512
PROBES: Final = 512
WAIT_S: Final = 600.0
ERROR_NEED: Final = 0.10
ROUTER_BUSY_MAX: Final = 0.8
"""A router that seems busier does more for each call at one time, and takes less for each."""
K: Final = 10


@dataclass(frozen=True, slots=True)
class Prediction:
    """One number.

    Attributes:
        what: it is of.
        unit: of all the values.
        predicted: by all calibrations, their mean.
        by_each: what each of them predicts.
        measured: between them.
    """

    what: str
    unit: str
    predicted: float
    by_each: Sequence[float]
    measured: float

    @property
    def error(self) -> float:
        """By what share of what was measured the prediction is off."""
        return abs(self.predicted / self.measured - 1)


@dataclass(frozen=True, slots=True)
class Predicted:
    """What the planner says of the gallery to come."""

    memory_bytes: float
    disk_bytes: float
    load_s: float
    p99_ms: float
    p50_ms: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What became of it: one value for each start, searches for each window."""

    memory_bytes: Sequence[int]
    disk_bytes: int
    load_s: Sequence[float]
    windows: Sequence[Answered]

    def ms(self, share: float) -> float:
        """Return the median over the windows of what this share of the searches took at most."""
        return statistics.median(one.ms(share) for one in self.windows)


@dataclass(frozen=True, slots=True)
class Results:
    """The calibrations, and each prediction beside what was measured."""

    parameters: dict[str, str]
    calibrations: Sequence[Calibration]
    predictions: Sequence[Prediction]
    measured: Measured

    def targets(self) -> list[target.Target]:
        """Return G12, one part for each number that it names."""
        return [
            target.against("G12", one.error, "at most", ERROR_NEED, part=one.what)
            for one in self.predictions
            if one.what in {"memory", "disk", "load", "p99"}
        ]

    def lines(self) -> list[str]:
        """Return what to print."""
        told = [
            f"{one.what}: predicted={one.predicted:.4g} measured={one.measured:.4g}"
            f" unit={one.unit} error={one.predicted / one.measured - 1:+.1%}"
            f" by_each={','.join(f'{each:.4g}' for each in one.by_each)}"
            for one in self.predictions
        ]
        return [*told, *target.lines_of(self.targets())]

    def as_json(self) -> dict[str, Json]:
        """Return it as JSON."""
        return {
            "parameters": self.parameters,
            "predictions": [asdict(one) for one in self.predictions],
            "predicted": {one.what: one.predicted for one in self.predictions},
            "measured": {one.what: one.measured for one in self.predictions},
            "error": {one.what: one.error for one in self.predictions},
            "starts_s": list(self.measured.load_s),
            "windows": [one.as_json() for one in self.measured.windows],
            "calibrations": [calibrations.to_document(one) for one in self.calibrations],
        }


def demand_of(data: Dataset) -> Demand:
    """Return a data set as the planner sees it: by its counts and the length of its ids."""
    lengths = [statistics.fmean(map(len, ids)) for ids in (data.template_ids, data.subject_ids)]
    return Demand(
        templates_count=len(data),
        probes_per_s=1,
        p99_ms=1,
        dim=data.dim,
        replicas=1,
        templates_per_subject=len(data) / len(set(data.subject_ids)),
        id_bytes=round(statistics.fmean(lengths)),
        k=K,
    )


class Planned:
    """A gallery on one node that searches with one thread, as the planner sees it.

    One router sends the next batch when the one before is back: both keep others waiting, and the
    client nobody.

    Args:
        demand: the gallery.
        calibration: of this machine.
    """

    def __init__(self, demand: Demand, calibration: Calibration) -> None:
        self._demand = demand
        self._calibration = calibration
        self._machine = Machine(cores=1, store_bytes_per_s=calibration.store_bytes_per_s)
        self._client_s = service.client_s(calibration, COUNTS)
        self._router_s = service.router_s(calibration, 1, COUNTS) - self._client_s
        load = Load(rows=demand.templates_count, shards=SHARDS)
        self._node_s = service.node_s(demand, self._machine, calibration, load, COUNTS)
        self._slowest = service.slowest_of(calibration, 1)

    def per_s(self, busy_share: float) -> float:
        """Return the probes a second that are this share of full load."""
        batches_s = np.maximum.accumulate(self._node_s + self._router_s)
        return busy_share / queueing.busy_share(batches_s, 1.0, self._slowest)

    def predicted(self, per_s: float) -> Predicted:
        """Return what the planner says, with so many probes a second."""
        demand, calibration, machine = self._demand, self._calibration, self._machine
        rows = demand.templates_count
        shard_rows = rows / SHARDS
        node = memory.node_memory(demand, machine, calibration, held=rows, shard_rows=shard_rows)
        router_busy = min(per_s * calibration.router_call_cpu_s, ROUTER_BUSY_MAX)
        node_s = self._node_s * beside_others(calibration, per_s)
        batches_s = node_s + self._router_s * router_waits(router_busy)
        beside = queueing.Beside(self._slowest, np.maximum.accumulate(self._client_s))
        seen = queueing.latency(np.maximum.accumulate(batches_s), per_s, self._slowest, beside)
        return Predicted(
            memory_bytes=node.resident,
            disk_bytes=rows * storage.stored_bytes(demand, calibration),
            load_s=storage.load_s(demand, machine, calibration, held=rows),
            p99_ms=1000 * seen.p99_s,
            p50_ms=1000 * seen.p50_s,
        )


def beside_others(calibration: Calibration, per_s: float) -> float:
    """Return how many times as long a node takes here, where client and router share its machine:
    while they are at work on another core, a core does as much as the calibration's searches with
    several cores showed.
    """
    others = min(1.0, per_s * (calibration.client_call_cpu_s + calibration.router_call_cpu_s))
    return 1 + others * (2 / (1 + calibration.cores_share) - 1)


class Measurement:
    """One gallery on a cluster that is up."""

    def __init__(self, cluster: LocalCluster, data: Dataset, clock: Clock) -> None:
        self._cluster = cluster
        self._data = data
        self._clock = clock

    def fill(self) -> None:
        """Enrol everything and code it. More than some 400,000 templates would in part be stored
        before that: a start codes such rows again, which no plan counts.
        """
        with facegrid.Client(self._cluster.router_targets, timeout_s=WAIT_S) as client:
            client.create_gallery(
                GALLERY, dim=self._data.dim, extractor="bench@1", shards=SHARDS, train_at=0
            )
            measure.enrol(client, GALLERY, self._data, clock=self._clock)
            client.train(GALLERY)
            client.tune(GALLERY)  # by itself it would be tuned while it is asked

    def started_again_s(self) -> float:
        """Stop the node, so that all is in segments, and return what its start took."""
        processes.stop([self._cluster.record.named(NODE)], grace_s=WAIT_S)
        started_s = self._clock.now_s()
        self._cluster.start_node(NODE, timeout_s=WAIT_S)
        return self._clock.now_s() - started_s

    def memory_bytes(self) -> int:
        """Return what the node holds once it was asked, as the calibration does it."""
        probes = self._data.probes.vectors[:256]
        with facegrid.Client(self._cluster.router_targets, timeout_s=WAIT_S) as client:
            client.identify(GALLERY, probes, k=K)
        return measure.nodes_memory_bytes(self._cluster)

    def segments_bytes(self) -> int:
        """Return the bytes of all segments."""
        folders = (self._cluster.store / "shards").glob("*/segments")
        return sum(measure.stored_bytes(folder) for folder in folders)

    def asked(self, per_s: float, *, duration_s: float, seed: int) -> Answered:
        """Ask single probes at random moments."""
        probes = self._data.probes.vectors
        due_s = arrivals.moments(per_s, max(200, round(per_s * duration_s)), seed=seed)

        async def play() -> Answered:
            targets = self._cluster.router_targets
            async with facegrid.AsyncClient(targets, timeout_s=WAIT_S) as client:

                async def search(number: int) -> None:
                    at = number % len(probes)
                    await client.identify(GALLERY, probes[at : at + 1], k=K)

                for number in range(20):
                    await search(number)  # connections, and what else is made at first
                return await arrivals.play(search, due_s, per_s=per_s, clock=self._clock)

        return asyncio.run(play())


def measured(
    data: Dataset, per_s: float, given: argparse.Namespace, place: stage.Place
) -> Measured:
    """Measure it, in as many turns as wanted, on a cluster that is stopped again."""
    cluster = LocalCluster(place.folder / "cluster", wanted=Wanted(nodes=1, search_threads=1))
    cluster.up()
    starts_s: list[float] = []
    memory_bytes: list[int] = []
    windows: list[Answered] = []
    try:
        measurement = Measurement(cluster, data, place.clock)
        measurement.fill()
        for turn in range(given.turns):
            starts_s.append(measurement.started_again_s())
            memory_bytes.append(measurement.memory_bytes())
            seed = given.seed + turn
            windows.append(measurement.asked(per_s, duration_s=given.window_s, seed=seed))
        disk_bytes = measurement.segments_bytes()
    finally:
        cluster.down()
    return Measured(memory_bytes, disk_bytes, starts_s, windows)


def compared(found: Measured, each: Sequence[Predicted]) -> list[Prediction]:
    """Return what was predicted by each calibration beside what was measured between them."""
    memory_bytes = float(statistics.median(found.memory_bytes))
    rows: list[tuple[str, str, list[float], float]] = [
        ("memory", "bytes", [one.memory_bytes for one in each], memory_bytes),
        ("disk", "bytes", [one.disk_bytes for one in each], found.disk_bytes),
        ("load", "s", [one.load_s for one in each], statistics.median(found.load_s)),
        ("p99", "ms", [one.p99_ms for one in each], found.ms(0.99)),
        ("p50", "ms", [one.p50_ms for one in each], found.ms(0.5)),
    ]
    return [
        Prediction(what, unit, statistics.fmean(by_each), by_each, value)
        for what, unit, by_each, value in rows
    ]


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this stage."""
    parser.add_argument("--templates", type=size, default=TEMPLATES, help="of the gallery")
    parser.add_argument("--minutes", type=float, default=2.0, help="of each calibration")
    parser.add_argument("--calibration", type=Path, help="a file, instead of fresh ones")
    parser.add_argument("--busy", type=float, default=0.3, help="share of full load")
    parser.add_argument("--turns", type=int, default=5, help="a start and a window in each")
    parser.add_argument("--window-s", type=float, default=12.0, help="seconds of searches")


def cost(given: argparse.Namespace) -> Cost:
    """Return what it takes."""
    fresh = 0.0 if given.calibration else 2 * (60 * given.minutes + 30)
    return Cost(
        took_s=60 + fresh + given.templates * 3e-4 + given.turns * (given.window_s + 5),
        memory_bytes=given.templates * 2500 + 2 * GIB,
        disk_bytes=given.templates * 4000 + GIB,
        cores=2,
    )


def run(given: argparse.Namespace, place: stage.Place) -> Results:
    """Calibrate, measure, calibrate again, and compare."""
    data = dataset.synthetic(
        given.templates, probes_count=PROBES, dim=DIM, seed=given.seed, folder=place.folder
    )
    demand = demand_of(data)
    used = [_calibration(given, place, given.seed)]
    per_s = Planned(demand, used[0]).per_s(given.busy)
    found = measured(data, per_s, given, place)
    if given.calibration is None:
        used.append(_calibration(given, place, given.seed + 1))
    each = [Planned(demand, one).predicted(per_s) for one in used]
    return Results(data.parameters, used, compared(found, each), found)


def _calibration(given: argparse.Namespace, place: stage.Place, seed: int) -> Calibration:
    if given.calibration is not None:
        return calibrations.load(given.calibration)
    return calibrated(minutes=given.minutes, seed=seed, clock=place.clock, quiet=False)


STAGE = stage.Stage("planning", "The planner against what happens.", options, cost, run)

if __name__ == "__main__":
    stage.run_as_command(STAGE)
