"""etcd wiped, or restored from an older backup: refused, recovered, and nothing is missing."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import facegrid
from facegrid.errors import FacegridError
from facegrid.testing.synthetic import SyntheticGallery
from fgctl.__main__ import run
from fgctl.local.cluster import LocalCluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

DIM = 64
BLOCK = 500


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    cluster = LocalCluster(tmp_path / "cluster", nodes=2)
    cluster.up()
    yield cluster
    cluster.down()


def killed(cluster: LocalCluster) -> Path:
    """Kill the nodes, stop all others, and return where etcd keeps its data."""
    for node in ("n1", "n2"):
        cluster.kill_node(node)
    cluster.down()
    return cluster.directory / "etcd"


def enrol(client: facegrid.Client, block: facegrid.EnrolBatch) -> facegrid.Token:
    return client.enrol(
        "staff",
        template_ids=block.template_ids,
        subject_ids=block.subject_ids,
        vectors=block.vectors,
    )


def batches() -> list[facegrid.EnrolBatch]:
    people = SyntheticGallery(dim=DIM, templates_count=4 * BLOCK, seed=3)
    return [
        facegrid.EnrolBatch(one.template_ids, one.subject_ids, one.vectors)
        for one in people.blocks(BLOCK)
    ]


def identify(
    client: facegrid.Client, probes: np.ndarray, token: facegrid.Token | None = None
) -> list[str]:
    """The best candidate of each probe."""
    lists = client.identify("staff", probes, k=1, after=token)
    return [one.candidates[0].template_id for one in lists]


def recover(cluster: LocalCluster) -> int:
    """Run fgctl meta recover on a cluster of which etcd alone runs."""
    cluster.start_etcd()
    (etcd,) = cluster.record.of_kind("etcd")
    return run(["meta", "recover", str(cluster.store), "--etcd", etcd.address, "--yes"])


def test_a_wiped_etcd_is_made_anew_from_the_store(cluster: LocalCluster) -> None:
    """1 enrol, erase; 2 kill the nodes; 3 wipe etcd; 4 recover; 5 start, search and enrol."""
    first, second, *_ = batches()
    with facegrid.Client(cluster.router_targets, timeout_s=60) as client:
        client.create_gallery("staff", dim=DIM, extractor="x@1", shards=3, replicas=2, train_at=0)
        enrol(client, first)
        gone = first.subject_ids[0]
        token = client.erase("staff", subject_ids=[gone]).token
        count = client.get_gallery("staff").templates_count

    shutil.rmtree(killed(cluster))
    assert recover(cluster) == 0
    cluster.up()

    with facegrid.Client(cluster.router_targets, timeout_s=60) as client:
        found = client.get_gallery("staff")
        assert (found.templates_count, found.extractor, found.replicas_count) == (count, "x@1", 2)
        assert identify(client, first.vectors[-9:], token) == list(first.template_ids[-9:])
        later = enrol(client, second)
        assert identify(client, second.vectors[:9], later) == list(second.template_ids[:9])


def test_an_etcd_from_an_older_backup_is_refused_until_it_is_recovered(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    """1 enrol; 2 back etcd up; 3 enrol on; 4 kill; 5 restore etcd; 6 refused; 7 recover."""
    first, *others = batches()
    with facegrid.Client(cluster.router_targets, timeout_s=60) as client:
        client.create_gallery("staff", dim=DIM, extractor="x@1", shards=2, train_at=0)
        enrol(client, first)
    data = killed(cluster)
    shutil.copytree(data, tmp_path / "backup")
    cluster.up()
    with facegrid.Client(cluster.router_targets, timeout_s=60) as client:
        for block in others:
            token = enrol(client, block)
        count = client.get_gallery("staff").templates_count

    shutil.rmtree(killed(cluster))
    shutil.copytree(tmp_path / "backup", data)
    cluster.up()
    with facegrid.Client(cluster.router_targets, timeout_s=5) as client:
        with pytest.raises(FacegridError, match="fgctl meta recover"):
            enrol(client, others[-1])
        with pytest.raises(FacegridError, match="was not searched"):
            identify(client, first.vectors)
    killed(cluster)
    assert recover(cluster) == 0
    cluster.up()

    with facegrid.Client(cluster.router_targets, timeout_s=60) as client:
        assert client.get_gallery("staff").templates_count == count == 4 * BLOCK
        for block in (first, *others):
            assert identify(client, block.vectors[:9], token) == list(block.template_ids[:9])
