"""Takeover and starts without etcd, on real processes."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import facegrid
from facegrid.testing.synthetic import SyntheticGallery
from fgctl import admin
from fgctl.local.cluster import LocalCluster
from tests.fakes.people import answers, enrol_all, probes_of, settle

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

DIM = 32
TEMPLATES = 1500
PROBES = 32


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalCluster]:
    """Three nodes whose leases last 4 s, and which take over 1 s after that."""
    monkeypatch.setenv("FACEGRID_INDEXD_LEASE_TTL_S", "4")
    monkeypatch.setenv("FACEGRID_INDEXD_TAKEOVER_AFTER_S", "1")
    cluster = LocalCluster(tmp_path, nodes=3)
    cluster.up()
    yield cluster
    cluster.down()


@pytest.fixture
def people() -> SyntheticGallery:
    return SyntheticGallery(dim=DIM, templates_count=TEMPLATES, seed=3)


def primaries(cluster: LocalCluster) -> set[str]:
    status = admin.cluster_status(cluster.router_targets[0], timeout_s=10)
    return {shard.node_ids[0] for shard in status.shards}


def enrol_until_taken(client: facegrid.Client, gallery: str, name: str) -> None:
    """Enrol one row for every shard, as a service does whose client goes on retrying."""
    pause = threading.Event()
    for _ in range(300):
        try:
            client.enrol(
                gallery,
                request_id=f"r-{name}",
                template_ids=[f"{name}-{n}" for n in range(64)],
                subject_ids=[f"{name}-{n}" for n in range(64)],
                vectors=np.tile(np.eye(1, DIM), (64, 1)),
            )
        except facegrid.UnavailableError:
            pause.wait(0.2)
        else:
            return
    raise AssertionError("no write was taken")


@pytest.mark.parametrize("replicas", [1, 2])
def test_the_shards_of_a_dead_node_take_writes_elsewhere_and_nothing_is_lost(
    cluster: LocalCluster, people: SyntheticGallery, replicas: int
) -> None:
    """1 enrol; 2 erase; 3 kill a primary for good; 4 enrol; 5 the same answers; 6 it is back."""
    with facegrid.Client(cluster.router_targets, timeout_s=60) as client:
        client.create_gallery("g", dim=DIM, extractor="x@1", shards=6, replicas=replicas)
        enrol_all(client, "g", people)
        gone = next(iter(people.blocks(10))).subject_ids[0]
        client.erase("g", subject_ids=[gone])
        settle(client, "g")
        before = answers(client, "g", probes_of(people, PROBES))
        count = client.get_gallery("g").templates_count
        was = primaries(cluster)

        cluster.kill_node("n1")
        enrol_until_taken(client, "g", "late")
        now = primaries(cluster)
        client.erase("g", subject_ids=[f"late-{n}" for n in range(64)])
        after = answers(client, "g", probes_of(people, PROBES))
        counted = client.get_gallery("g").templates_count
        cluster.start_node("n1")

        assert ("n1" in was, "n1" in now) == (True, False)
        assert (after, counted) == (before, count)
        assert answers(client, "g", probes_of(people, PROBES)) == before


def test_reads_go_on_when_everything_was_restarted_without_etcd(
    cluster: LocalCluster, people: SyntheticGallery
) -> None:
    """1 enrol; 2 etcd stops; 3 nodes and router are killed and started; 4 the same answers, told
    to be unconfirmed; 5 a write fails; 6 etcd starts; 7 writes go on.
    """
    with facegrid.Client(cluster.router_targets, timeout_s=60) as client:
        client.create_gallery("g", dim=DIM, extractor="x@1", shards=4, replicas=2)
        enrol_all(client, "g", people)
        settle(client, "g")
        before = answers(client, "g", probes_of(people, PROBES))
        wait_for(lambda: all(saved(cluster, node) for node in ("n1", "n2", "n3")))

    cluster.stop_etcd()
    for name in ("n1", "n2", "n3", "router1"):
        cluster.kill_node(name)
    start_unregistered(cluster, ("n1", "n2", "n3", "router1"))
    with facegrid.Client(cluster.router_targets, timeout_s=60) as client:
        lists = identify_in_the_end(client, people)
        during = answers(client, "g", probes_of(people, PROBES))
        with (
            facegrid.Client(cluster.router_targets, timeout_s=4) as hasty,
            pytest.raises(facegrid.UnavailableError),
        ):
            hasty.enrol("g", template_ids=["t"], subject_ids=["s"], vectors=np.eye(1, DIM))
        with pytest.raises(facegrid.NotFoundError) as unknown:
            client.verify("g", "nobody", np.eye(1, DIM))
        with pytest.raises(facegrid.UnavailableError) as refused:
            client.identify("g", people.probes(1, seed=9).vectors, unconfirmed_max=0)
        cluster.start_etcd()
        enrol_until_taken(client, "g", "late")
        wait_for(lambda: coverage(client, people).unconfirmed_share == 0)

        assert (during, refused.value.reason) == (before, "UNCONFIRMED")
        assert lists[0].coverage.unconfirmed_share == 1
        assert unknown.value.facts["unconfirmed"] == "true"
        assert client.get_gallery("g").templates_count == TEMPLATES + 64


def coverage(client: facegrid.Client, people: SyntheticGallery) -> facegrid.Coverage:
    return client.identify("g", people.probes(1, seed=9).vectors)[0].coverage


def identify_in_the_end(
    client: facegrid.Client, people: SyntheticGallery
) -> list[facegrid.CandidateList]:
    """Ask until all shards answer: nodes load them first."""
    pause = threading.Event()
    for _ in range(300):
        try:
            return client.identify("g", people.probes(1, seed=9).vectors)
        except facegrid.UnavailableError:
            pause.wait(0.2)
    raise AssertionError("no answer")


def saved(cluster: LocalCluster, name: str) -> bool:
    """Tell whether a node has saved a map of the gallery."""
    path = cluster.directory / name / "topology"
    return path.exists() and b"map/g" in path.read_bytes()


def start_unregistered(cluster: LocalCluster, names: tuple[str, ...]) -> None:
    """Start processes that cannot register: they count as not ready, and serve all the same."""
    for name in names:
        try:
            cluster.start_node(name, timeout_s=8)
        except facegrid.UnavailableError as error:
            assert error.reason == "NOT_READY", error  # noqa: PT017 - only this reason is expected


def wait_for(holds: Callable[[], bool]) -> None:
    """Look again and again, with a pause."""
    pause = threading.Event()
    assert any(holds() or pause.wait(0.1) for _ in range(300))
