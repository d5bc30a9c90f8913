"""What a node tells Prometheus."""

import math
from collections.abc import Iterable
from typing import Final

from prometheus_client.core import Metric

from facegrid.clock import Clock
from facegrid.coord import keys
from facegrid.telemetry.metrics import Families, Spec
from indexd.ann.gpu.engine import GpuEngine
from indexd.replica.canaries import Canaries
from indexd.replica.follower import Follower
from indexd.replica.node import Node
from indexd.replica.primary import Primary
from indexd.replica.shard_copy import ShardCopy
from indexd.replica.tally import Tally
from indexd.service.scheduler import Scheduler

HEARD_S_MAX: Final = 10.0
"""A watch tells of progress every few seconds; silence beyond this means etcd is out of reach."""
SHARD: Final = ("gallery", "shard")
PROFILE: Final = ("gallery", "profile")
DEVICE: Final = ("device",)

NODE_METRICS: Final = (
    Spec(
        "facegrid_node_shard_state",
        "gauge",
        "1 for the state and the role that a copy has",
        (*SHARD, "role", "state"),
    ),
    Spec("facegrid_node_shard_position", "gauge", "records applied", SHARD),
    Spec(
        "facegrid_node_shard_lag_records",
        "gauge",
        "records that etcd was told to be committed and a follower has not applied",
        SHARD,
    ),
    Spec("facegrid_node_shard_templates", "gauge", "rows that are not erased", SHARD),
    Spec("facegrid_node_shard_erased_templates", "gauge", "erased rows still in memory", SHARD),
    Spec(
        "facegrid_node_shard_indexed_templates",
        "gauge",
        "rows searched through the trained index",
        SHARD,
    ),
    Spec("facegrid_node_shard_memory_bytes", "gauge", "memory of a copy's rows", SHARD),
    Spec("facegrid_node_shard_segments", "gauge", "segments in the store", SHARD),
    Spec("facegrid_node_shard_generation", "gauge", "generation of the shard's primary", SHARD),
    Spec(
        "facegrid_node_shard_confirmed",
        "gauge",
        "1: etcd confirmed lately that the copy has everything",
        SHARD,
    ),
    Spec(
        "facegrid_node_shard_confirmed_age_seconds",
        "gauge",
        "time since it did; infinite: never",
        SHARD,
    ),
    Spec("facegrid_node_flushes_total", "counter", "manifests committed"),
    Spec("facegrid_node_takeovers_total", "counter", "shards taken over from a lost primary"),
    Spec("facegrid_node_etcd_reachable", "gauge", "1: etcd was heard from lately"),
    Spec(
        "facegrid_node_view_age_seconds",
        "gauge",
        "time since etcd told last that nothing was missed; NaN: never since the start",
    ),
    Spec("facegrid_node_map_version", "gauge", "version of a gallery's map", ("gallery",)),
    Spec(
        "facegrid_node_canary_probes_total",
        "counter",
        "live probes searched once more, exactly",
        PROFILE,
    ),
    Spec(
        "facegrid_node_canary_mates_total",
        "counter",
        "of these, exact search had somebody at rank 1 above the threshold",
        PROFILE,
    ),
    Spec(
        "facegrid_node_canary_misses_total",
        "counter",
        "of those, the answer lacked that subject",
        PROFILE,
    ),
    Spec("facegrid_node_canary_alarm", "gauge", "1: the profile misses more than it may", PROFILE),
    Spec(
        "facegrid_node_canary_given_up_total",
        "counter",
        "canaries that could not be compared, since their shard or tuning was replaced",
    ),
    Spec(
        "facegrid_node_canary_seconds_total",
        "counter",
        "time spent on canaries and drift; its rate is their share of a core",
    ),
    Spec(
        "facegrid_node_coding_error_ratio",
        "gauge",
        "mean error of the codes of recent rows through that of the rows trained on",
        ("gallery",),
    ),
)

SEARCH_METRICS: Final = (
    Spec("facegrid_node_search_waiting_probes", "gauge", "probes whose search has not begun"),
    Spec(
        "facegrid_node_search_batches_total", "counter", "searches run, of one caller or several"
    ),
    Spec("facegrid_node_search_calls_total", "counter", "callers who had a part in them"),
    Spec("facegrid_node_search_probes_total", "counter", "probes searched"),
    Spec(
        "facegrid_node_search_wait_seconds_total",
        "counter",
        "time from the coming of these callers to the beginning of their search",
    ),
    Spec(
        "facegrid_node_search_unsearched_total",
        "counter",
        "callers who were late when their search began, or refused since too many waited",
        ("cause",),
    ),
)


DEVICE_METRICS: Final = (
    Spec("facegrid_node_device_memory_bytes", "gauge", "promised to shards", DEVICE),
    Spec("facegrid_node_device_memory_limit_bytes", "gauge", "that shards may take", DEVICE),
    Spec("facegrid_node_device_shards", "gauge", "shards that live on a device", DEVICE),
    Spec("facegrid_node_device_searches_total", "counter", "batches searched", DEVICE),
    Spec(
        "facegrid_node_device_failures_total",
        "counter",
        "batches that the processor searched, since the device failed",
        DEVICE,
    ),
    Spec(
        "facegrid_node_device_shards_left_total",
        "counter",
        "shards that left a device since it failed or was full",
        DEVICE,
    ),
    Spec("facegrid_node_device_lost", "gauge", "1: it failed for good", DEVICE),
)


class DeviceMetrics:
    """Looks at the GPUs of a node."""

    def __init__(self, devices: GpuEngine) -> None:
        self._devices = devices

    def __call__(self) -> Iterable[Metric]:
        """Return all metrics as of now."""
        families = Families(DEVICE_METRICS)
        for unit in self._devices.units:
            for name, value in (
                ("memory_bytes", unit.ledger.taken_bytes),
                ("memory_limit_bytes", unit.ledger.total_bytes),
                ("shards", unit.shards_count),
                ("searches_total", unit.counts.searches),
                ("failures_total", unit.counts.failures),
                ("shards_left_total", unit.counts.moved_away),
                ("lost", unit.lost),
            ):
                families.add(f"facegrid_node_device_{name}", value, unit.name)
        return families


class SearchMetrics:
    """Looks at what waits for a search and what has been searched."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def __call__(self) -> Iterable[Metric]:
        """Return all metrics as of now."""
        counts, prefix = self._scheduler.counts, "facegrid_node_search"
        families = Families(SEARCH_METRICS)
        families.add(f"{prefix}_waiting_probes", self._scheduler.waiting_count)
        families.add(f"{prefix}_batches_total", counts.batches)
        families.add(f"{prefix}_calls_total", counts.calls)
        families.add(f"{prefix}_probes_total", counts.probes)
        families.add(f"{prefix}_wait_seconds_total", counts.waited_s)
        families.add(f"{prefix}_unsearched_total", counts.late, "late")
        families.add(f"{prefix}_unsearched_total", counts.refused, "refused")
        return families


class NodeMetrics:
    """Looks at the shards of a node.

    Args:
        node: holds them.
        tally: what it has done so far.
        clock: for ages.
        canaries: what they found; None: there are none.
    """

    def __init__(
        self, node: Node, tally: Tally, clock: Clock, canaries: Canaries | None = None
    ) -> None:
        self._node = node
        self._tally = tally
        self._clock = clock
        self._canaries = canaries

    def __call__(self) -> Iterable[Metric]:
        """Return all metrics as of now."""
        families = Families(NODE_METRICS)
        for copy in self._node.copies.values():
            self._add_shard(families, copy)
        families.add("facegrid_node_flushes_total", self._tally.flushes_count)
        families.add("facegrid_node_takeovers_total", self._tally.takeovers_count)
        view = self._node.view
        heard_s = [view.heard_s.get(prefix) for prefix in (keys.MAPS, keys.GENERATIONS)]
        times_s = [one for one in heard_s if one is not None]
        complete = len(times_s) == len(heard_s)
        age_s = self._clock.now_s() - min(times_s) if complete else math.nan
        families.add("facegrid_node_view_age_seconds", age_s)
        families.add("facegrid_node_etcd_reachable", age_s <= HEARD_S_MAX)
        for seen in view.maps():
            shard_map = seen.shard_map
            families.add("facegrid_node_map_version", shard_map.version, shard_map.gallery)
        if self._canaries is not None:
            _add_canaries(families, self._canaries)
        return families

    def _add_shard(self, families: Families, copy: ShardCopy) -> None:
        state = copy.state
        names = copy.gallery.name, copy.assignment.shard_id
        role = "primary" if isinstance(copy, Primary) else "follower"
        behind = copy.heard_position - state.position if isinstance(copy, Follower) else 0
        age_s = self._clock.now_s() - copy.confirmed_s
        families.add("facegrid_node_shard_state", 1, *names, role, copy.phase.value)
        for name, value in (
            ("position", state.position),
            ("lag_records", max(0, behind)),
            ("templates", state.templates_count),
            ("erased_templates", state.erased_count),
            ("indexed_templates", state.index.indexed_count),
            ("memory_bytes", state.memory_bytes),
            ("segments", len(copy.persisted.segments)),
            ("generation", copy.generation),
            ("confirmed", copy.confirmed),
            ("confirmed_age_seconds", age_s),
        ):
            families.add(f"facegrid_node_shard_{name}", value, *names)


def _add_canaries(families: Families, canaries: Canaries) -> None:
    for one in canaries.told():
        labels = one.gallery, one.profile.value
        families.add("facegrid_node_canary_probes_total", one.probes, *labels)
        families.add("facegrid_node_canary_mates_total", one.mates, *labels)
        families.add("facegrid_node_canary_misses_total", one.misses, *labels)
        families.add("facegrid_node_canary_alarm", one.is_raised, *labels)
    families.add("facegrid_node_canary_given_up_total", canaries.given_up_count)
    families.add("facegrid_node_canary_seconds_total", canaries.spent_s)
    for gallery, drift in canaries.drifts().items():
        families.add("facegrid_node_coding_error_ratio", drift.ratio, gallery)
