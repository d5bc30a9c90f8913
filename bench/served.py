"""A trained gallery behind one router and two nodes, while something is measured on it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import facegrid
from bench import dataset, measure
from bench.dataset import Dataset
from bench.machine import GIB, Cost
from facegrid.clock import Clock
from fgctl.local.cluster import LocalCluster

GALLERY: Final = "bench"
DIM: Final = 512
SHARDS: Final = 4
NODES: Final = 2
TIMEOUT_S: Final = 60.0
ROW_BYTES_MEMORY: Final = 1500
"""What a template takes in nodes and in this process together, while segments are written."""
ROW_BYTES_DISK: Final = 512 * 4 + 3 * 700
"""The float32 file that templates are enrolled from, log and segments."""
FILL_S: Final = 120e-6
"""Estimates of what making, enrolling and coding a template takes."""
START_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Served:
    """A cluster that is up, a client of it, what is enrolled there, and how fast that went."""

    cluster: LocalCluster
    routers: list[str]
    client: facegrid.Client
    data: Dataset
    enrolled_per_s: float


def cost(templates_count: int, *, measuring_s: float) -> Cost:
    """Return what it takes to fill a gallery and measure for so long."""
    return Cost(
        took_s=START_S + templates_count * FILL_S + measuring_s,
        memory_bytes=templates_count * ROW_BYTES_MEMORY + 2 * GIB,
        disk_bytes=templates_count * ROW_BYTES_DISK + GIB // 2,
        cores=2,
    )


@contextmanager
def served(
    templates_count: int, *, probes_count: int, seed: int, folder: Path, clock: Clock
) -> Iterator[Served]:
    """Start a cluster, enrol a synthetic gallery, train it; stop the cluster afterwards."""
    data = dataset.synthetic(
        templates_count, probes_count=probes_count, dim=DIM, seed=seed, folder=folder
    )
    with ExitStack() as stack:
        cluster = LocalCluster(folder / "cluster", nodes=NODES, replicas=1, etcd=1)
        routers = list(cluster.up().router_targets)
        stack.callback(cluster.down)
        client = stack.enter_context(facegrid.Client(routers, timeout_s=TIMEOUT_S))
        client.create_gallery(
            GALLERY, dim=DIM, extractor="bench@1", shards=SHARDS, replicas=1, train_at=0
        )
        enrolled = measure.enrol(client, GALLERY, data, clock=clock)
        print(f"enrolled: templates/s {enrolled.per_s:.0f}", flush=True)
        client.train(GALLERY)
        # Waited for: a node tunes by itself after training, and searches would share the cores.
        client.tune(GALLERY)
        yield Served(cluster, routers, client, data, enrolled.per_s)
