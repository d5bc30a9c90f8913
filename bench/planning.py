"""The planner against what happens: `python -m bench.planning`.

A fresh calibration of this machine, on a gallery of one size; then predictions for a gallery
several times as large on one node with one search thread, by the functions that `fgctl plan` uses;
then that gallery, filled, started again and asked open loop. Memory is that of the node after a
start, disk what lies in segments, load the time of the start, p99 that of single probes at a share
of what the planner holds for full load.
"""

import argparse
import asyncio
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
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
    """One number: what was predicted before it was measured."""

    what: str
    unit: str
    predicted: float
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
    per_s: float


@dataclass(frozen=True, slots=True)
class Results:
    """The calibration, and each prediction beside what was measured."""

    parameters: dict[str, str]
    calibration: Calibration
    predictions: Sequence[Prediction]
    load: Answered

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
            "load": self.load.as_json(),
            "calibration": calibrations.to_document(self.calibration),
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


def predicted(demand: Demand, calibration: Calibration, *, busy_share: float) -> Predicted:
    """Return what the planner says of a gallery on one node that searches with one thread."""
    machine = Machine(cores=1, store_bytes_per_s=calibration.store_bytes_per_s)
    rows = demand.templates_count
    node = memory.node_memory(demand, machine, calibration, held=rows, shard_rows=rows / SHARDS)
    load = Load(rows=rows, shards=SHARDS)
    # One router sends the next batch when the one before is back: both keep others waiting, and
    # the client nobody.
    client_s = service.client_s(calibration, COUNTS)
    router_s = service.router_s(calibration, 1, COUNTS) - client_s
    node_s = service.node_s(demand, machine, calibration, load, COUNTS)
    slowest = service.slowest_of(calibration, 1)
    per_s = busy_share / queueing.busy_share(
        np.maximum.accumulate(node_s + router_s), 1.0, slowest
    )
    router_busy = min(per_s * calibration.router_call_cpu_s, ROUTER_BUSY_MAX)
    batches_s = node_s * beside_others(calibration, per_s) + router_s * router_waits(router_busy)
    beside = queueing.Beside(slowest, np.maximum.accumulate(client_s))
    seen = queueing.latency(np.maximum.accumulate(batches_s), per_s, slowest, beside)
    return Predicted(
        memory_bytes=node.resident,
        disk_bytes=rows * storage.stored_bytes(demand, calibration),
        load_s=storage.load_s(demand, machine, calibration, held=rows),
        p99_ms=1000 * seen.p99_s,
        p50_ms=1000 * seen.p50_s,
        per_s=per_s,
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
        """Enrol everything and code it."""
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


def compared(
    data: Dataset, calibration: Calibration, given: argparse.Namespace, place: stage.Place
) -> Results:
    """Predict, then measure, on a cluster that is stopped again."""
    before = predicted(demand_of(data), calibration, busy_share=given.busy)
    wanted = Wanted(nodes=1, search_threads=1)
    cluster = LocalCluster(place.folder / "cluster", wanted=wanted)
    cluster.up()
    try:
        measurement = Measurement(cluster, data, place.clock)
        measurement.fill()
        load_s = statistics.median(measurement.started_again_s() for _ in range(given.starts))
        found = Prediction("memory", "bytes", before.memory_bytes, measurement.memory_bytes())
        disk = Prediction("disk", "bytes", before.disk_bytes, measurement.segments_bytes())
        ask = partial(measurement.asked, before.per_s, seed=given.seed)
        answered = ask(duration_s=given.window_s)
    finally:
        cluster.down()
    predictions = (
        found,
        disk,
        Prediction("load", "s", before.load_s, load_s),
        Prediction("p99", "ms", before.p99_ms, answered.ms(0.99)),
        Prediction("p50", "ms", before.p50_ms, answered.ms(0.5)),
    )
    return Results(data.parameters, calibration, predictions, answered)


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this stage."""
    parser.add_argument("--templates", type=size, default=TEMPLATES, help="of the gallery")
    parser.add_argument("--minutes", type=float, default=2.0, help="of the calibration")
    parser.add_argument("--calibration", type=Path, help="a file, instead of a fresh one")
    parser.add_argument("--busy", type=float, default=0.3, help="share of full load")
    parser.add_argument("--window-s", type=float, default=30.0, help="seconds of searches")
    parser.add_argument("--starts", type=int, default=3, help="of the node; the median counts")


def cost(given: argparse.Namespace) -> Cost:
    """Return what it takes."""
    fresh = 0.0 if given.calibration else 60 * given.minutes + 30
    return Cost(
        took_s=60 + fresh + given.templates * 3e-4 + given.window_s,
        memory_bytes=given.templates * 2500 + 2 * GIB,
        disk_bytes=given.templates * 4000 + GIB,
        cores=2,
    )


def run(given: argparse.Namespace, place: stage.Place) -> Results:
    """Calibrate, predict and measure."""
    if given.calibration is None:
        calibration = calibrated(
            minutes=given.minutes, seed=given.seed, clock=place.clock, quiet=False
        )
    else:
        calibration = calibrations.load(given.calibration)
    data = dataset.synthetic(
        given.templates, probes_count=PROBES, dim=DIM, seed=given.seed, folder=place.folder
    )
    return compared(data, calibration, given, place)


STAGE = stage.Stage("planning", "The planner against what happens.", options, cost, run)

if __name__ == "__main__":
    stage.run_as_command(STAGE)
