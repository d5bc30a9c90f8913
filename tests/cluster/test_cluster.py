"""The main job on real processes: enrol, identify, erase, kill, restart, etcd away."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

import facegrid
from facegrid.testing.synthetic import SyntheticGallery
from facegrid.vectors import quantize
from fgctl.local.cluster import LocalCluster
from tests.fakes.people import answers, enrol_all, probes_of
from tests.fakes.rig import holds, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

DIM = 64
TEMPLATES = 6000


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Two nodes, one router, one etcd; each test uses a gallery of its own."""
    cluster = LocalCluster(tmp_path_factory.mktemp("cluster"), nodes=2)
    cluster.up()
    yield cluster
    cluster.down()


@pytest.fixture(scope="module")
def client(cluster: LocalCluster) -> Iterator[facegrid.Client]:
    with facegrid.Client(cluster.router_targets, timeout_s=60) as client:
        yield client


@pytest.fixture(scope="module")
def people() -> SyntheticGallery:
    return SyntheticGallery(dim=DIM, templates_count=TEMPLATES, seed=3)


@pytest.mark.parametrize("search", ["exact", "trained"])
def test_answers_are_the_same_after_every_node_was_killed_and_started(
    cluster: LocalCluster, client: facegrid.Client, people: SyntheticGallery, search: str
) -> None:
    """1 enrol; 2 train, or not; 3 erase; 4 kill -9 each node in turn; 5 ask again."""
    name = f"killed-{search}"
    client.create_gallery(name, dim=DIM, extractor="x@1", shards=4, train_at=0)
    enrol_all(client, name, people)
    if search == "trained":
        client.train(name)
    gone = next(iter(people.blocks(10))).subject_ids[0]
    token = client.erase(name, subject_ids=[gone]).token
    before = answers(client, name, probes_of(people), after=token)
    count = client.get_gallery(name).templates_count

    for node in ("n1", "n2"):
        cluster.kill_node(node)
        cluster.start_node(node)

    assert answers(client, name, probes_of(people), after=token) == before
    assert client.get_gallery(name).templates_count == count
    assert gone not in {subject for row in before for subject, _, _ in row}
    client.drop_gallery(name)


def test_a_whole_cluster_comes_back_with_its_data(
    cluster: LocalCluster, client: facegrid.Client, people: SyntheticGallery
) -> None:
    client.create_gallery("stopped", dim=DIM, extractor="x@1", shards=4)
    token = enrol_all(client, "stopped", people)
    before = answers(client, "stopped", probes_of(people), after=token)

    cluster.down()
    cluster.up()

    with facegrid.Client(cluster.router_targets, timeout_s=60) as again:
        assert answers(again, "stopped", probes_of(people), after=token) == before
        again.drop_gallery("stopped")


def test_searches_go_on_while_etcd_is_away_and_writes_say_so(
    cluster: LocalCluster, client: facegrid.Client, people: SyntheticGallery
) -> None:
    """1 search without pause; 2 etcd stops; 3 a write fails; 4 etcd starts; 5 a write succeeds."""
    client.create_gallery("outage", dim=DIM, extractor="x@1", shards=2)
    enrol_all(client, "outage", people)
    probes = probes_of(people)
    before = answers(client, "outage", probes)
    stop = threading.Event()
    wrong: list[object] = []

    def search_on() -> int:
        count = 0
        while not stop.is_set():
            now = answers(client, "outage", probes)
            count += 1
            if now != before:
                wrong.append(now)
        return count

    one = {"template_ids": ["t-new"], "subject_ids": ["s-new"], "vectors": np.eye(1, DIM)}
    with ThreadPoolExecutor(1) as pool:
        searching = pool.submit(search_on)
        cluster.stop_etcd()
        with (
            facegrid.Client(cluster.router_targets, timeout_s=5) as hasty,
            pytest.raises(facegrid.UnavailableError),
        ):
            hasty.enrol("outage", request_id="r-outage", **one)  # type: ignore[arg-type]  # as above
        during = answers(client, "outage", probes)
        cluster.start_etcd()
        client.enrol("outage", request_id="r-outage", **one)  # type: ignore[arg-type]  # as above
        stop.set()
        searched = searching.result()

    assert (wrong, during) == ([], before)
    assert searched > 0
    assert client.get_template("outage", "t-new").subject_id == "s-new"
    assert client.get_gallery("outage").templates_count == TEMPLATES + 1
    client.drop_gallery("outage")


def test_an_erased_subject_is_returned_by_no_replica(
    client: facegrid.Client, people: SyntheticGallery
) -> None:
    client.create_gallery("copies", dim=DIM, extractor="x@1", shards=2, replicas=2)
    enrol_all(client, "copies", people)
    block = next(iter(people.blocks(200)))

    for row, subject in enumerate(block.subject_ids[:20]):
        client.erase("copies", subject_ids=[subject])
        # Asked without a token, so that any replica may answer.
        for _ in range(4):
            found = answers(client, "copies", block.vectors[row : row + 1])[0]
            assert subject not in {candidate for candidate, _, _ in found}
    client.drop_gallery("copies")


def test_a_dropped_gallery_leaves_the_journal_of_erasures_and_nothing_else(
    cluster: LocalCluster, client: facegrid.Client, people: SyntheticGallery
) -> None:
    gallery = client.create_gallery("dropped", dim=DIM, extractor="x@1", shards=2)
    enrol_all(client, "dropped", people)
    client.train("dropped")
    client.erase("dropped", subject_ids=["s-0000001"])
    client.drop_gallery("dropped")
    with pytest.raises(facegrid.NotFoundError):
        client.get_gallery("dropped")

    wait_for(holds(lambda: not objects(cluster.store / "shards", gallery.uid), "objects are left"))
    left = objects(cluster.store, gallery.uid)
    assert {path.relative_to(cluster.store).parts[0] for path in left} == {"journal"}
    again = client.create_gallery("dropped", dim=DIM, extractor="x@1", shards=2)
    assert again.uid != gallery.uid
    assert replace(client.get_gallery("dropped"), created_unix_ms=0) == replace(
        again, templates_count=0, created_unix_ms=0
    )
    client.drop_gallery("dropped")


def objects(store: Path, uid: str) -> list[Path]:
    return [path for path in store.rglob("*") if path.is_file() and uid in str(path)]


def test_a_gallery_trains_by_itself_at_the_stated_size(
    client: facegrid.Client, people: SyntheticGallery
) -> None:
    client.create_gallery("self", dim=DIM, extractor="x@1", shards=2, train_at=TEMPLATES // 2)
    enrol_all(client, "self", people)

    wait_for(holds(lambda: client.get_gallery("self").codebook != "", "not trained"))
    client.drop_gallery("self")


def test_concurrent_single_probes_are_answered_like_a_batch(
    client: facegrid.Client, people: SyntheticGallery
) -> None:
    client.create_gallery("single", dim=DIM, extractor="x@1", shards=4)
    enrol_all(client, "single", people)
    probes = probes_of(people)
    together = answers(client, "single", probes)

    with ThreadPoolExecutor(16) as pool:
        alone = list(pool.map(lambda row: answers(client, "single", probes[row])[0], range(64)))

    assert alone == together
    client.drop_gallery("single")


def test_a_node_stops_in_time_while_etcd_is_away_and_loses_nothing(
    cluster: LocalCluster, client: facegrid.Client, people: SyntheticGallery
) -> None:
    """1 enrol; 2 etcd stops; 3 a write stays in doubt; 4 SIGTERM; 5 all start; 6 all is there."""
    client.create_gallery("doubt", dim=DIM, extractor="x@1", shards=2)
    enrol_all(client, "doubt", people)
    node = next(process for process in cluster.record.processes if process.name == "n1")
    cluster.stop_etcd()
    with (
        facegrid.Client(cluster.router_targets, timeout_s=3) as hasty,
        pytest.raises(facegrid.UnavailableError),
    ):
        hasty.enrol(
            "doubt",
            template_ids=[f"t-{n}" for n in range(8)],
            subject_ids=[f"new-{n}" for n in range(8)],
            vectors=np.eye(8, DIM),
        )

    running = psutil.Process(node.pid)
    running.terminate()
    code = running.wait(30)
    cluster.down()
    cluster.up()

    with facegrid.Client(cluster.router_targets, timeout_s=60) as again:
        count = again.get_gallery("doubt").templates_count
        again.drop_gallery("doubt")
    assert code == 0
    assert count is not None
    assert TEMPLATES <= count <= TEMPLATES + 8


def test_the_bytes_of_erased_rows_leave_the_store_in_the_stated_time(
    tmp_path: Path, people: SyntheticGallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 enrol; 2 the row's bytes lie in the store; 3 erase; 4 by themselves they are gone."""
    monkeypatch.setenv("FACEGRID_INDEXD_ERASED_REWRITE_S", "1")
    cluster = LocalCluster(tmp_path, nodes=1)
    cluster.up()
    try:
        with facegrid.Client(cluster.router_targets, timeout_s=60) as client:
            client.create_gallery("bytes", dim=DIM, extractor="x@1")
            enrol_all(client, "bytes", people)
            block = next(iter(people.blocks(10)))
            row = quantize(block.vectors[:1]).tobytes()
            before = holding(cluster.store, row)
            client.erase("bytes", subject_ids=block.subject_ids[:1])

            assert before, "else the search for the bytes shows nothing"
            wait_for(holds(lambda: not holding(cluster.store, row), "its bytes are stored"))
            assert client.get_template("bytes", block.template_ids[5]).subject_id
    finally:
        cluster.down()


def holding(store: Path, data: bytes) -> list[Path]:
    """Return the objects that hold these bytes."""
    found = []
    for path in store.rglob("*"):
        try:
            if path.is_file() and data in path.read_bytes():
                found.append(path)
        except FileNotFoundError:
            continue
    return found
