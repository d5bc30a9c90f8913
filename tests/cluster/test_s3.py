"""A cluster whose objects lie in S3: enrol, train, erase, kill, restart."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import facegrid
from facegrid.blob.open import connect
from facegrid.testing.synthetic import SyntheticGallery
from fgctl.local.cluster import LocalCluster
from fgctl.local.plan import Wanted
from tests.fakes.people import Answers, answers, enrol_all
from tests.fakes.s3_servers import S3Server

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

DIM = 64
TEMPLATES = 3000


@pytest.fixture
def url(s3: S3Server) -> str:
    return s3.url()


@pytest.fixture
def cluster(tmp_path: Path, url: str) -> Iterator[LocalCluster]:
    """One node, one router, one etcd, and a bucket."""
    cluster = LocalCluster(tmp_path / "cluster", wanted=Wanted(nodes=1, store=url))
    cluster.up()
    yield cluster
    cluster.down()


def answered(cluster: LocalCluster, probes: np.ndarray, after: facegrid.Token) -> Answers:
    with facegrid.Client(cluster.router_targets, timeout_s=60) as client:
        return answers(client, "staff", probes, after=after)


async def test_a_cluster_on_s3_comes_back_from_a_kill_and_from_a_stop(
    cluster: LocalCluster, url: str
) -> None:
    """1 enrol, train, erase; 2 kill -9 the node; 3 stop and start all; 4 drop the gallery."""
    people = SyntheticGallery(dim=DIM, templates_count=TEMPLATES, seed=5)
    probes = people.probes(32, seed=9).vectors
    with facegrid.Client(cluster.router_targets, timeout_s=60) as client:
        client.create_gallery("staff", dim=DIM, extractor="x@1", shards=2, train_at=0)
        enrol_all(client, "staff", people)
        client.train("staff")
        gone = next(iter(people.blocks(10))).subject_ids[0]
        token = client.erase("staff", subject_ids=[gone]).token
        before = answered(cluster, probes, token)

    cluster.kill_node("n1")
    cluster.start_node("n1")
    assert answered(cluster, probes, token) == before

    cluster.down()
    cluster.up()
    assert answered(cluster, probes, token) == before
    assert not (cluster.store / "shards").exists()
    stored = await connect(url).list("")
    assert {name.partition("/")[0] for name in stored} == {
        "cluster",
        "codebooks",
        "journal",
        "shards",
    }


def test_nodes_refuse_a_store_that_ignores_conditions(
    tmp_path: Path, careless_s3: S3Server
) -> None:
    cluster = LocalCluster(tmp_path / "cluster", wanted=Wanted(nodes=1, store=careless_s3.url()))
    with pytest.raises(facegrid.UnavailableError, match="store is not safe for facegrid"):
        cluster.up()
    cluster.down()
