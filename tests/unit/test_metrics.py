"""What processes tell Prometheus: all that is documented, and nothing of who is enrolled."""

import asyncio
import json
import re
import socket
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from facegrid import __version__
from facegrid.coord import keys
from facegrid.errors import UnavailableError
from facegrid.format.log import LogRef
from facegrid.ids import KEY_LAST, GalleryName, NodeId, ShardId
from facegrid.model import Gallery, HashRange, ShardAssignment
from facegrid.telemetry.log import get_logger
from facegrid.telemetry.metrics import (
    COMMON,
    OTHER,
    REASONS_MAX,
    SCRAPE_S,
    Families,
    Metrics,
    Spec,
)
from facegrid.testing.manual_clock import ManualClock
from facegrid.testing.memory_blob import MemoryBlobStore
from facegrid.testing.memory_coord import MemoryCoordinator
from indexd.ann.gpu.engine import GpuEngine
from indexd.replica.fence import Claimant
from indexd.replica.follower import Follower
from indexd.replica.shard_copy import NodePorts, Phase
from indexd.replica.tally import Tally
from indexd.replica.view import View
from indexd.service.metrics import (
    DEVICE_METRICS,
    NODE_METRICS,
    SEARCH_METRICS,
    DeviceMetrics,
    NodeMetrics,
)
from router.service.metrics import ROUTER_METRICS, RouterMetrics
from tests.fakes.canary_world import NAME, PEOPLE, CanaryWorld, seen_again
from tests.fakes.device_units import played_unit
from tests.fakes.reshaping import reshaping
from tests.fakes.router_cluster import cluster, faces
from tools import generate_dashboard

ROOT = Path(__file__).parents[2]
ALL = (*COMMON, *ROUTER_METRICS, *NODE_METRICS, *SEARCH_METRICS, *DEVICE_METRICS)
SHARD = ShardAssignment(
    ShardId("staff.1f00aa23.0000"), HashRange(0, KEY_LAST), (NodeId("n2"), NodeId("n1"))
)
STAFF = Gallery(GalleryName("staff"), "1f00aa23", 8, "e@1", 1, 2, 0)

Labels = tuple[tuple[str, str], ...]


@dataclass
class Scraped:
    """The text of a scrape and its samples."""

    text: str
    samples: dict[tuple[str, Labels], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for family in text_string_to_metric_families(self.text):
            for sample in family.samples:
                labels = tuple(sorted(sample.labels.items()))
                self.samples[sample.name, labels] = sample.value

    def value(self, name: str, **labels: str) -> float:
        return self.samples[name, tuple(sorted(labels.items()))]

    def names(self) -> set[str]:
        """Return the names of metrics, parts of histograms counted with these."""
        return {re.sub(r"_(bucket|sum|count)$", "", name) for name, _ in self.samples}


async def scraped(port: int) -> Scraped:
    def fetch() -> str:
        url = f"http://127.0.0.1:{port}/metrics"
        with urllib.request.urlopen(url, timeout=2 * SCRAPE_S) as answer:
            return str(answer.read().decode())

    return Scraped(await asyncio.to_thread(fetch))


async def test_a_router_tells_of_calls_searches_writes_maps_and_nodes() -> None:
    async with reshaping(metrics="127.0.0.1:0") as running:
        await running.fill()
        await running.client.identify(faces(3), k=1)
        running.nodes[0].mischief.fail["Search"] = UnavailableError("no", reason="BUSY")
        with pytest.raises(UnavailableError):
            await running.client.identify(faces(3), k=1)
        running.nodes[0].mischief.fail.clear()
        running.maps.hold()
        await running.split(1)
        async with asyncio.TaskGroup() as group:
            late = [
                group.create_task(running.client.identify(faces(3), k=1)),
                group.create_task(
                    running.client.enrol(faces(9), [f"n{n}" for n in range(9)], request_id="r9")
                ),
            ]
            await asyncio.wait(late, timeout=0.5)
            running.maps.release()
        told = await scraped(running.client.server.metrics_port)

    identify = "IdentificationService/Identify"
    calls = "facegrid_calls_total"
    assert told.value(calls, method=identify, code="OK", reason="") == 2
    assert told.value(calls, method=identify, code="UNAVAILABLE", reason="COVERAGE_TOO_LOW") == 1
    assert told.value("facegrid_call_seconds_count", method=identify) == 3
    assert told.value("facegrid_router_partial_batches_total") == 1
    assert told.value("facegrid_router_map_restarts_total") >= 1
    assert told.value("facegrid_router_writes_divided_anew_total") == 1
    assert told.value("facegrid_router_templates_total", change="enrolled") == 49
    assert told.value("facegrid_router_map_version", gallery="staff") == 3
    assert told.value("facegrid_router_shards", gallery="staff", state="serving") == 5
    assert told.value("facegrid_router_nodes_registered") == 2
    assert told.value("facegrid_router_etcd_reachable") == 1
    assert told.value("facegrid_router_node_failing", node="n1") == 0
    assert told.value("facegrid_build_info", process="router", version=__version__) == 1
    named = {spec.name for spec in (*COMMON, *ROUTER_METRICS)}
    assert told.names() == named - {"facegrid_router_operations"}
    assert not re.search(r"\b(s\d+|t\d+|n[3-9]|r9)\b", told.text), "nobody is named"


async def test_operations_are_told_by_whoever_drives_them() -> None:
    async with cluster() as running:
        server = running.client.server
        metrics = RouterMetrics(
            server.watcher,
            server._pool,
            searcher=SimpleNamespace(counts=_counts("batches", "probes", "restarts")),  # type: ignore[arg-type]  # only counts are read
            hedger=SimpleNamespace(slow_count=0, silent_count=0),  # type: ignore[arg-type]  # likewise
            ingest=SimpleNamespace(counts=_counts("enrolled", "unchanged", "erased")),  # type: ignore[arg-type]  # likewise
            operations=lambda: {("running", "join"): 2, ("paused", "hold"): 1},
        )
        samples = {
            (sample.labels["state"], sample.labels["step"]): sample.value
            for family in metrics()
            for sample in family.samples
            if sample.name == "facegrid_router_operations"
        }

    assert samples == {("running", "join"): 2, ("paused", "hold"): 1}


def _counts(*names: str) -> Any:
    return SimpleNamespace(**dict.fromkeys((*names, "partial", "unconfirmed", "divided_anew"), 0))


@pytest.fixture
async def follower() -> AsyncIterator[Follower]:
    """A copy that has heard of four records, and has none of them."""
    clock = ManualClock()
    with ThreadPoolExecutor(1) as thread:
        ports = NodePorts(
            claimant=Claimant(NodeId("n1"), "b1"),
            coord=MemoryCoordinator(clock),
            store=MemoryBlobStore(),
            clock=clock,
            logger=get_logger("test"),
            search_thread=thread,
            build_thread=thread,
            coding_thread=thread,
        )
        copy = Follower(ports, STAFF, SHARD)
        copy.heard_position = 4
        copy.phase = Phase.SERVING
        copy.confirmed_s = clock.now_s()
        await clock.advance(2)
        yield copy


async def test_a_node_tells_of_each_shard_of_flushes_takeovers_and_etcd(
    follower: Follower,
) -> None:
    view = View()
    view.heard_s |= {keys.MAPS: 1.0, keys.GENERATIONS: follower.ports.clock.now_s()}
    node: Any = SimpleNamespace(copies={SHARD.shard_id: follower}, view=view)
    metrics = Metrics("indexd", __version__)
    world = CanaryWorld()
    world.search(seen_again(PEOPLE[:40], 0.9, 5))
    await world.compare()
    await world.ports.drifts.measure(NAME)
    world.budget.spend(0.5)
    tally = Tally(flushes_count=3, takeovers_count=1)
    metrics.add(NodeMetrics(node, tally, follower.ports.clock, world.canaries))
    port = metrics.start("127.0.0.1:0")
    told = await scraped(port)
    await asyncio.to_thread(metrics.stop)

    shard = {"gallery": "staff", "shard": SHARD.shard_id}
    prefix = "facegrid_node_shard"
    assert told.value(f"{prefix}_state", **shard, role="follower", state="serving") == 1
    assert told.value(f"{prefix}_lag_records", **shard) == 4
    assert told.value(f"{prefix}_confirmed", **shard) == 1
    assert told.value(f"{prefix}_confirmed_age_seconds", **shard) == 2
    assert told.value("facegrid_node_flushes_total") == 3
    assert told.value("facegrid_node_takeovers_total") == 1
    canary = {"gallery": "staff", "profile": "fast"}
    assert told.value("facegrid_node_canary_probes_total", **canary) == 40
    assert told.value("facegrid_node_canary_mates_total", **canary) == 40
    assert told.value("facegrid_node_canary_misses_total", **canary) > 10
    assert told.value("facegrid_node_canary_alarm", **canary) == 1
    assert told.value("facegrid_node_canary_given_up_total") == 0
    assert told.value("facegrid_node_canary_seconds_total") == 0.5
    assert 0.9 < told.value("facegrid_node_coding_error_ratio", gallery="staff") < 1.1
    named = {spec.name for spec in (*COMMON, *NODE_METRICS)}
    unheard = {"facegrid_calls_total", "facegrid_call_seconds", "facegrid_node_map_version"}
    assert told.names() == named - unheard


async def test_a_follower_remembers_the_tip_that_it_was_told_of(follower: Follower) -> None:
    follower.heard_position = 0
    tip = LogRef(1, 1, 7, "u", "ab" * 32)
    await follower.confirm(tip, asked_s=follower.confirmed_s + 1)

    assert follower.heard_position == 7


async def test_what_cannot_be_looked_up_in_time_fails_the_scrape_and_nothing_else() -> None:
    def broken() -> Families:
        raise UnavailableError("not now")

    metrics = Metrics("test", "1")
    metrics.add(broken)
    port = metrics.start("127.0.0.1:0")
    with pytest.raises(urllib.error.HTTPError) as caught:
        await scraped(port)
    caught.value.close()
    await asyncio.to_thread(metrics.stop)

    assert caught.value.code == 500


async def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UnavailableError) as caught:
            Metrics("test", "1").start(address)

    assert (caught.value.reason, caught.value.facts["address"]) == ("LISTEN_FAILED", address)


async def test_reasons_are_told_apart_only_up_to_a_bound() -> None:
    metrics = Metrics("test", "1")
    for number in range(2 * REASONS_MAX):
        metrics.called("/a.B/C", "UNAVAILABLE", f"REASON_{number}", 0.1)
    metrics.called("/a.B/C", "UNAVAILABLE", "subject s-17 was not found", 0.1)
    told = Scraped(_text(metrics))

    series = [labels for name, labels in told.samples if name == "facegrid_calls_total"]
    assert len(series) == REASONS_MAX + 1
    method = {"method": "B/C", "code": "UNAVAILABLE"}
    assert told.value("facegrid_calls_total", **method, reason=OTHER) == REASONS_MAX + 1


def test_devices_tell_what_they_have_done_and_whether_they_are_lost() -> None:
    unit = played_unit(memory_bytes=1000)
    unit.ledger.take(1, 400)
    unit.counts.searches, unit.counts.failures, unit.counts.moved_away = 5, 2, 3
    unit.lost = True

    told = {
        sample.name: (sample.labels, sample.value)
        for family in DeviceMetrics(GpuEngine([unit], get_logger("test")))()
        for sample in family.samples
    }

    expected = {
        "memory_bytes": 400,
        "memory_limit_bytes": 900,
        "shards": 0,
        "searches_total": 5,
        "failures_total": 2,
        "shards_left_total": 3,
        "lost": 1,
    }
    assert told == {
        f"facegrid_node_device_{name}": ({"device": "cpu"}, value)
        for name, value in expected.items()
    }
    unit.close()


def _text(metrics: Metrics) -> str:
    return generate_latest(metrics.registry).decode()


def expressions(panels: Sequence[dict[str, Any]]) -> list[str]:
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    text = (ROOT / "docs" / "dashboard.json").read_text(encoding="utf-8")
    shown = {
        re.sub(r"_bucket$", "", name)
        for one in expressions(json.loads(text)["panels"])
        for name in re.findall(r"\b(?:facegrid|process)_\w+", one)
    }

    assert shown == {spec.name for spec in ALL}
    assert text == generate_dashboard.text()


def test_every_label_that_the_dashboard_names_exists() -> None:
    labels = {label for spec in ALL for label in spec.labels} | {"instance", "le"}
    panels = generate_dashboard.dashboard()["panels"]

    named = {
        name
        for one in expressions(panels)
        for group in re.findall(r"(?:by|on) \(([^)]*)\)", one)
        for name in group.split(", ")
    } | {
        name
        for panel in panels
        for target in panel.get("targets", ())
        for name in re.findall(r"{{(\w+)}}", target["legendFormat"])
    }

    assert named <= labels


def test_every_metric_is_documented_as_it_is() -> None:
    text = (ROOT / "docs" / "OPERATIONS.md").read_text(encoding="utf-8")
    section = text.partition("## Metrics\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*)\| (.+) \|$", section, re.MULTILINE)

    documented = [
        Spec(name, kind, says, tuple(one for one in labels.strip().split(", ") if one))
        for name, kind, labels, says in rows
    ]
    assert documented == list(ALL)


def test_no_metric_has_a_label_that_names_a_person_or_a_request() -> None:
    allowed = {
        *("method", "code", "reason", "process", "version", "node", "gallery", "shard"),
        *("role", "state", "step", "change", "cause", "profile", "device"),
    }

    assert {label for spec in ALL for label in spec.labels} <= allowed
