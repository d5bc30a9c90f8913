"""The same through client, router and node: processes ask, each one batch after another."""

import multiprocessing
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.context import SpawnContext
from typing import Any, Final

import numpy as np

import facegrid
from bench import served as clusters
from bench.report import Json
from bench.stage import Place
from facegrid.clock import SystemClock
from fgctl import admin

BATCH: Final = 64
"""Probes of one call."""
ROUND_S: Final = 10.0
PROBES: Final = 4096
K: Final = 10
READY_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Served:
    """What came through.

    Attributes:
        processes: that asked.
        probes_per_s: of all of them.
        raw_per_s: of faiss alone, at the same batch.
        devices: searches of each device of each node, so that it shows who searched.
    """

    processes: int
    probes_per_s: float
    raw_per_s: float
    devices: dict[str, int]

    @property
    def ratio(self) -> float:
        """Served to raw."""
        return self.probes_per_s / self.raw_per_s

    def lines(self) -> list[str]:
        """Return what to print."""
        rates = f"{self.probes_per_s:,.0f}/s, raw {self.raw_per_s:,.0f}/s"
        asked = f"{self.processes} processes at {BATCH} probes a call"
        return [f"served: {rates}; {asked}; batches by device {self.devices or 'none'}"]

    def as_json(self) -> dict[str, Json]:
        """Return it as JSON."""
        plain: dict[str, Json] = asdict(self)
        return plain


def measure_served(
    templates_count: int, processes: int, place: Place, *, raw_per_s: float, seed: int
) -> Served:
    """Fill a cluster and let several processes ask it."""
    with clusters.served(
        templates_count,
        probes_count=PROBES,
        seed=seed,
        folder=place.folder,
        clock=place.clock,
    ) as cluster:
        path = place.folder / "probes.npy"
        np.save(path, cluster.data.probes.vectors)
        # Started anew, since gRPC does not outlive a fork.
        context = multiprocessing.get_context("spawn")
        counts = _asked(context, cluster.routers, str(path), processes)
        status = admin.cluster_status(cluster.routers[0], timeout_s=clusters.TIMEOUT_S)
        devices = {
            f"{node.id} {one.name}": one.searches_count
            for node in status.nodes
            for one in node.devices
        }
    return Served(processes, sum(counts) / ROUND_S, raw_per_s, devices)


def _asked(context: SpawnContext, routers: Sequence[str], path: str, processes: int) -> list[int]:
    """Return how many probes each process was answered within a round, all at once."""
    ready = context.Barrier(processes)
    answers: Any = context.Queue()
    started = [
        context.Process(target=_ask, args=(list(routers), path, number, ready, answers))
        for number in range(processes)
    ]
    for one in started:
        one.start()
    counts = [answers.get(timeout=READY_S) for _ in started]
    for one in started:
        one.join(READY_S)
    return counts


def _ask(routers: list[str], path: str, number: int, ready: Any, answers: Any) -> None:
    """Ask for a round, beginning at another place of the probes than others."""
    probes = np.load(path)
    clock = SystemClock()
    with facegrid.Client(routers, timeout_s=clusters.TIMEOUT_S) as client:
        client.identify(clusters.GALLERY, probes[:BATCH], k=K)
        ready.wait(READY_S)
        ends_s = clock.now_s() + ROUND_S
        count, at = 0, number * BATCH
        while clock.now_s() < ends_s:
            at = (at + BATCH) % (len(probes) - BATCH + 1)
            client.identify(clusters.GALLERY, probes[at : at + BATCH], k=K)
            count += BATCH
        answers.put(count)
