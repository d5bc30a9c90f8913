"""Operations on real nodes, with a real etcd: nobody who searches notices anything."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import facegrid
from facegrid.api.admin.v1 import admin_service_pb2 as pb
from facegrid.testing.synthetic import SyntheticGallery
from fgctl import admin
from fgctl.local.cluster import LocalCluster
from tests.fakes.people import answers, enrol_all, probes_of, settle

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

DIM = 32
TEMPLATES = 3000
PROBES = 32
PATIENCE_S = 90


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    cluster = LocalCluster(tmp_path, nodes=3)
    cluster.up()
    yield cluster
    cluster.down()


@pytest.fixture
def people() -> SyntheticGallery:
    return SyntheticGallery(dim=DIM, templates_count=TEMPLATES, seed=3)


def shards(cluster: LocalCluster) -> dict[str, list[str]]:
    status = admin.cluster_status(cluster.router_targets[0], timeout_s=10)
    return {shard.id: list(shard.node_ids) for shard in status.shards}


def begin(cluster: LocalCluster, spec: pb.OperationSpec, request_id: str) -> str:
    request = pb.StartOperationRequest(request_id=request_id, spec=spec)
    return admin.ask(
        cluster.router_targets, lambda stub: stub.StartOperation, request, timeout_s=20
    ).operation.id


def ended(cluster: LocalCluster, name: str) -> pb.Operation:
    """Wait until an operation is over."""
    pause, request = threading.Event(), pb.GetOperationRequest(id=name)
    shown = pb.Operation()
    for _ in range(PATIENCE_S * 4):
        shown = admin.ask(
            cluster.router_targets, lambda stub: stub.GetOperation, request, timeout_s=20
        ).operation
        if shown.state in (pb.OPERATION_STATE_DONE, pb.OPERATION_STATE_ABORTED):
            return shown
        pause.wait(0.25)
    raise AssertionError(shown)


@contextmanager
def searching(cluster: LocalCluster, people: SyntheticGallery) -> Iterator[list[int]]:
    """Search all the while, and assert that every answer is the same; count them."""
    counts, stop, failures = [0], threading.Event(), []
    probes = probes_of(people, PROBES)
    with facegrid.Client(*cluster.router_targets) as client:
        wanted = answers(client, "staff", probes)

    def search() -> None:
        with facegrid.Client(*cluster.router_targets) as mine:
            while not stop.is_set() and not failures:
                try:
                    found = answers(mine, "staff", probes)
                except facegrid.FacegridError as error:
                    failures.append(error)
                    return
                if found != wanted:
                    failures.append(found)
                counts[0] += 1

    thread = threading.Thread(target=search)
    thread.start()
    try:
        yield counts
    finally:
        stop.set()
        thread.join()
    assert failures == []


@contextmanager
def writing(cluster: LocalCluster, people: SyntheticGallery) -> Iterator[list[str]]:
    """Enrol, and erase every other subject again, all the while; list who stays."""
    there: list[str] = []
    stop, failures = threading.Event(), []
    # On the far side of every probe, so that the searches that are compared find none of them.
    probes = probes_of(people, PROBES)
    away = np.linalg.lstsq(probes, np.full(PROBES, -1.0), rcond=None)[0]
    x = (away / np.linalg.norm(away)).astype(np.float32)[np.newaxis]
    assert (probes @ x[0]).max() < 0, "the writes would be found"

    def write() -> None:
        with facegrid.Client(*cluster.router_targets) as mine:
            number = 0
            while not stop.is_set():
                name, number = f"w{number}", number + 1
                try:
                    mine.enrol("staff", template_ids=["t"], subject_ids=[name], vectors=x)
                    if number % 2:
                        mine.erase("staff", subject_ids=[name])
                    else:
                        there.append(name)
                except facegrid.FacegridError as error:
                    failures.append(error)
                    return

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield there
    finally:
        stop.set()
        thread.join()
    assert failures == []


def filled(client: facegrid.Client, people: SyntheticGallery, **settings: int) -> None:
    """Enrol everybody, on every copy: from then on no copy may show less."""
    client.create_gallery("staff", dim=DIM, extractor="e@1", **settings)
    enrol_all(client, "staff", people)
    settle(client, "staff")


def test_a_shard_moves_while_it_is_searched(
    cluster: LocalCluster, people: SyntheticGallery
) -> None:
    with facegrid.Client(*cluster.router_targets) as client:
        filled(client, people, shards=1, replicas=2)
        (shard_id, nodes), *_ = shards(cluster).items()
        status = admin.cluster_status(cluster.router_targets[0], timeout_s=10)
        (third,) = {node.id for node in status.nodes} - {*nodes}

        wanted = pb.OperationSpec.Replicas(shard_id=shard_id, node_ids=[third, nodes[0]])
        with searching(cluster, people) as counts:
            name = begin(cluster, pb.OperationSpec(gallery="staff", replicas=wanted), "r1")
            shown = ended(cluster, name)

        assert shown.state == pb.OPERATION_STATE_DONE
        assert shards(cluster) == {shard_id: [third, nodes[0]]}
        assert counts[0] > 0
        client.erase("staff", subject_ids=["nobody"])


def test_a_shard_is_split_and_merged_while_it_is_searched(
    cluster: LocalCluster, people: SyntheticGallery
) -> None:
    with facegrid.Client(*cluster.router_targets) as client:
        filled(client, people, shards=1, replicas=2)
        (shard_id,) = shards(cluster)

        with searching(cluster, people), writing(cluster, people) as first:
            split = pb.OperationSpec.Split(shard_id=shard_id)
            name = begin(cluster, pb.OperationSpec(gallery="staff", split=split), "r1")
            halves = ended(cluster, name)
        assert halves.state == pb.OPERATION_STATE_DONE
        assert list(shards(cluster)) == list(halves.child_ids)

        with searching(cluster, people), writing(cluster, people) as second:
            merge = pb.OperationSpec.Merge(shard_ids=halves.child_ids)
            name = begin(cluster, pb.OperationSpec(gallery="staff", merge=merge), "r2")
            whole = ended(cluster, name)
        assert whole.state == pb.OPERATION_STATE_DONE
        assert list(shards(cluster)) == list(whole.child_ids)
        assert first
        assert second
        # The second writer uses the same names: who was there already is there once.
        count = len({*first, *second})
        assert client.get_gallery("staff").templates_count == TEMPLATES + count


@pytest.mark.parametrize(
    ("kind", "victim"),
    [("split", "driver"), ("split", "source"), ("move", "source"), ("move", "target")],
)
def test_an_operation_outlives_whoever_dies_in_the_middle(
    cluster: LocalCluster, people: SyntheticGallery, kind: str, victim: str
) -> None:
    with facegrid.Client(*cluster.router_targets) as client:
        filled(client, people, shards=1, replicas=2)
        before = answers(client, "staff", probes_of(people, PROBES))
    (shard_id, nodes), *_ = shards(cluster).items()
    status = admin.cluster_status(cluster.router_targets[0], timeout_s=10)
    (third,) = {node.id for node in status.nodes} - {*nodes}
    spec = pb.OperationSpec(gallery="staff")
    if kind == "split":
        spec.split.shard_id = shard_id
    else:
        spec.replicas.shard_id = shard_id
        spec.replicas.node_ids.extend([third, nodes[1]])
    (router,) = [one.name for one in cluster.record.of_kind("router")]
    name = begin(cluster, spec, "r1")

    begun(cluster, name)
    dies = {"driver": router, "source": nodes[0], "target": third}[victim]
    cluster.kill_node(dies)
    cluster.start_node(dies)

    assert ended(cluster, name).state == pb.OPERATION_STATE_DONE
    with facegrid.Client(*cluster.router_targets) as client:
        assert answers(client, "staff", probes_of(people, PROBES)) == before
        assert client.get_gallery("staff").templates_count == TEMPLATES
    again = pb.OperationSpec(gallery="staff")
    again.replicas.shard_id, held = next(iter(shards(cluster).items()))
    again.replicas.node_ids.extend(reversed(held))
    assert ended(cluster, begin(cluster, again, "r2")).state == pb.OPERATION_STATE_DONE


def begun(cluster: LocalCluster, name: str) -> None:
    """Wait until the first step of an operation is done."""
    pause, request = threading.Event(), pb.GetOperationRequest(id=name)
    for _ in range(PATIENCE_S * 20):
        shown = admin.ask(
            cluster.router_targets, lambda stub: stub.GetOperation, request, timeout_s=20
        ).operation
        if shown.steps_done:
            return
        pause.wait(0.05)
    raise AssertionError("nobody drives")
