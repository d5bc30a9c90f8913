"""What operators see of a cluster at a glance, at the widths that terminals have."""

import io
import json
import re
from collections.abc import AsyncIterator

import pytest
from rich.console import Console, RenderableType
from structlog.testing import capture_logs

from facegrid.api.admin.v1 import admin_service_pb2 as pb
from facegrid.api.shard.v1 import shard_service_pb2
from facegrid.api.v1 import types_pb2
from facegrid.testing.fake_admin import FakeCluster
from facegrid.testing.fake_router import FakeRouter
from fgctl.online.overview import RECOVERY, Status, copies_of, notes, shards_of, shards_table
from fgctl.online.top import Look, frame, loads_between, writes_between
from tests.fakes.shell import Shell

S0, S1 = "staff.1f00aa23.0000", "staff.1f00aa23.0001"
UNUSED = f"nothing of it is served ({RECOVERY})"


def a_cluster() -> FakeCluster:
    """Return a cluster in which everything happens at once."""
    cluster = FakeCluster()
    for node_id, zone in (("n1", "rack-a"), ("n2", "rack-b"), ("n3", "rack-a"), ("n4", "rack-b")):
        cluster.add_node(node_id, zone=zone)
    cluster.nodes["n4"].draining = True
    cluster.nodes["n3"].registered = False
    cluster.nodes["n3"].problem = "does not answer"
    cluster.add_gallery("staff", "n1 n2", "n2 n1", "n1 n3", "n2 n4")
    cluster.add_gallery("visitors-2026", "n1 n2", replicas=3)
    cluster.shards[0].joining_node_ids.append("n4")
    begun = pb.OperationSpec(
        gallery="staff", split=pb.OperationSpec.Split(shard_id=S1), cause="too large"
    )
    cluster.start(pb.StartOperationRequest(request_id="r1", spec=begun))
    pending = Status.Shard(
        id="staff.1f00aa23.0004", gallery="staff", node_ids=["n2", "n1"], source_shard_ids=[S1]
    )
    cluster.shards.append(pending)
    return cluster


def look(cluster: FakeCluster, seen_s: float) -> Look:
    operations = pb.ListOperationsResponse(
        operations=cluster.operations.values(), driver=cluster.driver
    )
    settings = pb.RebalancerResponse(p99_ms=23, automatic=True)
    return Look(seen_s, cluster.status(), operations, settings)


def drawn(shown: RenderableType, width: int) -> list[str]:
    """Return lines as a terminal of a width shows them."""
    file = io.StringIO()
    Console(file=file, width=width, highlight=False, markup=False).print(shown)
    return [line.rstrip() for line in file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [80, 120])
def test_a_frame_fits_and_names_shards_whole(width: int) -> None:
    cluster = a_cluster()
    lines = drawn(frame(None, look(cluster, 1.0)), width)

    assert max(len(line) for line in lines) <= width
    for shard in cluster.shards:
        assert any(line.startswith(f"{shard.id} ") for line in lines)
    text = "\n".join(lines)
    assert lines[0] == "2 galleries, 6 shards, 1,250,000 templates"
    assert "search p99 23 ms, rebalancing by itself on" in text
    for told in ("gone", "draining", "joining", "n3 no report", "pending: n2, n1", "step fill"):
        assert told in text
    assert "! n4 is draining, with 2 copies; fgctl rebalance apply moves them" in text


def test_load_and_writes_are_what_happened_between_two_looks() -> None:
    cluster = a_cluster()
    cluster.nodes["n1"].cpu_ms = 1000
    before = look(cluster, 10.0)
    cluster.nodes["n1"].cpu_ms = 4000
    now = look(cluster, 12.0)
    for node in now.status.nodes:
        for report in node.shards:
            report.position += 50 if report.shard_id == S1 else 0

    assert loads_between(before, now) == {"n1": 1.5}
    assert writes_between(before, now) == 25.0
    assert (loads_between(None, now), writes_between(None, now)) == ({}, None)


def test_a_node_that_was_started_anew_has_no_load_yet() -> None:
    cluster = a_cluster()
    cluster.nodes["n1"].cpu_ms = 9000
    before = look(cluster, 1.0)
    cluster.nodes["n1"].cpu_ms = 40

    assert loads_between(before, look(cluster, 2.0)) == {}


def test_on_a_small_screen_odd_shards_are_shown_and_the_others_counted() -> None:
    lines = drawn(frame(None, look(a_cluster(), 1.0), lines_max=25), 80)

    shown = [line for line in lines if line.startswith(("staff.", "visitors-"))]
    assert [line.split()[0] for line in shown] == [S0, "staff.1f00aa23.0002"]
    assert "and 4 more, 0 of them odd; fgctl shard list shows all" in lines


def test_copies_tell_what_is_odd_about_them() -> None:
    cluster = a_cluster()
    status = cluster.status()
    reports = {(node.id, one.shard_id): one for node in status.nodes for one in node.shards}
    reports["n2", S0].state = shard_service_pb2.SHARD_STATE_OPENING
    reports["n2", S1].role = shard_service_pb2.SHARD_ROLE_FOLLOWER
    reports["n1", S1].position -= 7

    told = {
        name: ", ".join(copy.text for copy in copies)
        for name, copies in shards_of(copies_of(status)).items()
    }
    assert told[S0] == "n1, n2 opening, n4 joining 20 behind"
    assert told[S1] == "n2 no primary yet, n1 7 behind"
    assert told["staff.1f00aa23.0002"] == "n1, n3 no report"
    assert any("n1, n2" in line for line in drawn(shards_table(shards_of(copies_of(status))), 80))


def test_what_an_operator_has_to_know_is_said() -> None:
    cluster = a_cluster()
    cluster.galleries["lost"] = types_pb2.Gallery(name="lost", replicas_count=1)
    status = cluster.status()
    status.problems.append("gallery other has no map")

    assert notes(status) == [
        f"in etcd, gallery other has no map: {UNUSED}",
        f"gallery lost has no map: {UNUSED}",
        "n3: does not answer",
        "n4 is draining, with 2 copies; fgctl rebalance apply moves them",
        f"{S0}: n4 joining",
        f"staff.1f00aa23.0004: being filled from {S1}",
        "gallery visitors-2026: fewer than 3 copies of 1 shard; fgctl rebalance apply adds them",
    ]


def test_copies_that_differ_are_said() -> None:
    status = a_cluster().status()
    for node in status.nodes:
        for report in node.shards:
            report.digest = "aa" if (node.id, report.shard_id) == ("n1", S1) else "bb"

    told = [note for note in notes(status) if "DIFFER" in note]
    assert told == [f"{S1}: copies at the same position DIFFER; compare fgctl shard show"]


def test_signs_that_etcd_lost_its_records_are_told() -> None:
    """1. all is gone. 2. nodes are registered again. 3. nodes still hold what no map names."""
    cluster = a_cluster()
    held = cluster.status()
    del held.galleries[:]
    del held.shards[:]

    (wiped,) = notes(Status(etcd_reachable=True))
    assert wiped == (
        "etcd knows no node and no gallery: the cluster is new, or the routers have another"
        f" etcd_prefix than the nodes, or etcd was wiped ({RECOVERY})"
    )
    registered = Status(etcd_reachable=True, nodes=[Status.Node(id="n1", registered=True)])
    assert notes(registered) == [
        f"etcd knows no gallery: if there was one, etcd lost its records ({RECOVERY})"
    ]
    assert (
        "n1 n2 n4 still hold gallery staff, which etcd does not know: it was dropped a moment ago,"
        f" or etcd lost its records ({RECOVERY})"
    ) in notes(held)


def test_without_etcd_nothing_is_said_of_what_it_may_have_lost() -> None:
    assert notes(Status(etcd_reachable=False)) == []


@pytest.fixture
async def fgctl(capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Shell]:
    with capture_logs():
        async with FakeRouter(cluster=a_cluster()) as router:
            router.cluster.frozen = True
            yield Shell(router, capsys)


async def test_one_frame_is_printed_on_demand_and_as_json(fgctl: Shell) -> None:
    once = await fgctl("top", "--once")
    document = (await fgctl("top", "--json")).document
    endless = await fgctl("top")

    assert once.code == 0
    assert "op-1" in once.out
    assert f"split {S1}" in once.out
    assert document["operations"][0]["id"] == "op-1"
    assert document["records_per_s"] == 0
    assert endless.code == 2
    assert "say --once for one frame" in endless.err


async def test_devices_are_shown_where_there_are_any(fgctl: Shell) -> None:
    without = await fgctl("top", "--once")
    fgctl.router.cluster.nodes["n2"].devices.add(
        name="gpu:0", memory_total_bytes=2**37, memory_taken_bytes=2**36, shards_count=4
    )
    fgctl.router.cluster.nodes["n2"].devices.add(name="gpu:1", lost=True, failures_count=7)

    once = await fgctl("top", "--once")
    document = (await fgctl("top", "--json")).document

    assert "gpu:0" not in without.out
    assert re.search(r"n2 +gpu:0 +searching +64(\.0)? GiB +128(\.0)? GiB +4 ", once.out)
    assert "! n2: gpu:1 failed, and the processor searches what it had" in once.out
    devices = {node["id"]: node["devices"] for node in document["status"]["nodes"]}
    assert (devices["n1"], devices["n2"][1]["lost"]) == ([], True)


async def test_the_status_of_a_cluster_names_operations_at_work(fgctl: Shell) -> None:
    told = await fgctl("cluster", "status")
    document = json.loads((await fgctl("cluster", "status", "--json")).out)

    assert "! operations at work: op-1; fgctl ops list shows them\n" in told.out
    assert "pending: n2, n1" in told.out
    assert f"{S0}: n4 joining" in document["notes"]


def test_profiles_that_miss_too_much_are_said_with_who_found_out() -> None:
    alarms = [types_pb2.PROFILE_FAST]
    report = shard_service_pb2.ShardStatus(
        shard_id="staff.1f00aa23.0000", gallery="staff", canary_alarms=alarms
    )
    quiet = shard_service_pb2.ShardStatus(shard_id="staff.1f00aa23.0001", gallery="staff")
    answer = pb.ClusterStatusResponse(
        nodes=[
            pb.ClusterStatusResponse.Node(id="n1", registered=True, shards=[report, quiet]),
            pb.ClusterStatusResponse.Node(id="n2", registered=True, shards=[quiet]),
            pb.ClusterStatusResponse.Node(id="n3", registered=True, shards=[report]),
        ]
    )

    (said,) = [note for note in notes(answer) if "profile" in note]
    assert said.startswith("gallery staff: searches with profile fast miss more than they may")
    assert "found by n1 n3;" in said
