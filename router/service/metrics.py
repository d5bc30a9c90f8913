"""What a router tells Prometheus."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from prometheus_client.core import Metric

from facegrid.telemetry.metrics import Families, Spec
from router.dispatch.hedge import Hedger
from router.dispatch.ingest import Ingest
from router.dispatch.scatter import Searcher
from router.topology.pool import NodePool
from router.topology.watcher import Watcher

ROUTER_METRICS: Final = (
    Spec("facegrid_router_batches_total", "counter", "batches of probes searched"),
    Spec("facegrid_router_probes_total", "counter", "probes in these batches"),
    Spec(
        "facegrid_router_partial_batches_total",
        "counter",
        "batches of whose gallery a part was not searched: coverage below 1",
    ),
    Spec(
        "facegrid_router_unconfirmed_batches_total",
        "counter",
        "batches of which an answer could not be confirmed",
    ),
    Spec(
        "facegrid_router_map_restarts_total",
        "counter",
        "searches begun anew since the map was another one by then",
    ),
    Spec(
        "facegrid_router_writes_divided_anew_total",
        "counter",
        "writes divided anew since a shard was split or merged meanwhile",
    ),
    Spec(
        "facegrid_router_templates_total",
        "counter",
        "templates written: enrolled, found unchanged, erased",
        ("change",),
    ),
    Spec(
        "facegrid_router_hedges_total",
        "counter",
        "second copies asked since the first was slow, and nodes found silent amid a call",
        ("cause",),
    ),
    Spec("facegrid_router_node_failing", "gauge", "1: this node is passed over", ("node",)),
    Spec("facegrid_router_node_seconds", "gauge", "recent time of a search by a node", ("node",)),
    Spec("facegrid_router_node_calls", "gauge", "searches under way at a node", ("node",)),
    Spec("facegrid_router_nodes_registered", "gauge", "nodes listed in etcd"),
    Spec("facegrid_router_etcd_reachable", "gauge", "1: etcd was heard from lately"),
    Spec(
        "facegrid_router_view_age_seconds",
        "gauge",
        "time since etcd told last that nothing was missed; NaN: never since the start",
    ),
    Spec(
        "facegrid_router_view_confirmed",
        "gauge",
        "1: a majority of etcd has confirmed this router's maps lately",
    ),
    Spec("facegrid_router_map_version", "gauge", "version of a gallery's map", ("gallery",)),
    Spec(
        "facegrid_router_shards",
        "gauge",
        "shards of a gallery, serving and pending",
        ("gallery", "state"),
    ),
    Spec(
        "facegrid_router_operations",
        "gauge",
        "operations by state and next step, told by the router that drives them",
        ("state", "step"),
    ),
)

Operations = Callable[[], Mapping[tuple[str, str], int]]
"""Returns how many operations there are of each state and step."""


def no_operations() -> Mapping[tuple[str, str], int]:
    """Return what a router knows of operations that it does not drive."""
    return {}


class RouterMetrics:
    """Looks at the parts of a router.

    Args:
        watcher: for etcd, maps and registrations.
        pool: for the nodes as they are called.
        searcher: for searches.
        hedger: for second calls.
        ingest: for writes.
        operations: for operations.
    """

    def __init__(
        self,
        watcher: Watcher,
        pool: NodePool,
        *,
        searcher: Searcher,
        hedger: Hedger,
        ingest: Ingest,
        operations: Operations = no_operations,
    ) -> None:
        self._watcher = watcher
        self._pool = pool
        self._searcher = searcher
        self._hedger = hedger
        self._ingest = ingest
        self._operations = operations

    def __call__(self) -> Iterable[Metric]:
        """Return all metrics as of now."""
        families = Families(ROUTER_METRICS)
        self._add_work(families)
        self._add_nodes(families)
        self._add_view(families)
        for (state, step), count in self._operations().items():
            families.add("facegrid_router_operations", count, state, step)
        return families

    def _add_work(self, families: Families) -> None:
        searches, writes = self._searcher.counts, self._ingest.counts
        families.add("facegrid_router_batches_total", searches.batches)
        families.add("facegrid_router_probes_total", searches.probes)
        families.add("facegrid_router_partial_batches_total", searches.partial)
        families.add("facegrid_router_unconfirmed_batches_total", searches.unconfirmed)
        families.add("facegrid_router_map_restarts_total", searches.restarts)
        families.add("facegrid_router_writes_divided_anew_total", writes.divided_anew)
        families.add("facegrid_router_templates_total", writes.enrolled, "enrolled")
        families.add("facegrid_router_templates_total", writes.unchanged, "unchanged")
        families.add("facegrid_router_templates_total", writes.erased, "erased")
        families.add("facegrid_router_hedges_total", self._hedger.slow_count, "slow")
        families.add("facegrid_router_hedges_total", self._hedger.silent_count, "silent")

    def _add_nodes(self, families: Families) -> None:
        topology = self._watcher.topology
        for node_id, load in self._pool.loads().items():
            # Of nodes that are gone nothing is told, so that series do not add up.
            if node_id in topology.addresses:
                families.add("facegrid_router_node_failing", load.failing, node_id)
                families.add("facegrid_router_node_seconds", load.latency_s, node_id)
                families.add("facegrid_router_node_calls", load.calls_count, node_id)
        families.add("facegrid_router_nodes_registered", len(topology.nodes))

    def _add_view(self, families: Families) -> None:
        watcher = self._watcher
        age_s = watcher.age_s
        families.add("facegrid_router_etcd_reachable", watcher.reachable)
        families.add("facegrid_router_view_age_seconds", math.nan if age_s is None else age_s)
        families.add("facegrid_router_view_confirmed", watcher.confirmed)
        for name, served in watcher.topology.galleries.items():
            shard_map = served.shard_map
            families.add("facegrid_router_map_version", shard_map.version, name)
            families.add("facegrid_router_shards", len(shard_map.shards), name, "serving")
            families.add("facegrid_router_shards", len(shard_map.pending), name, "pending")
