"""What a local cluster consists of, and what is remembered about it."""

from dataclasses import replace
from pathlib import Path

import pytest

from facegrid.errors import CorruptError, InvalidError, NotFoundError
from fgctl import cluster_file
from fgctl.cluster_file import ClusterRecord, ProcessRecord
from fgctl.local.plan import Wanted, planned, with_command
from fgctl.local.ports import is_free


def names(cluster: ClusterRecord) -> list[str]:
    return [process.name for process in cluster.processes]


def addressed(cluster: ClusterRecord) -> ClusterRecord:
    return replace(
        cluster,
        processes=tuple(
            replace(process, address=f"127.0.0.1:{7000 + number}")
            for number, process in enumerate(cluster.processes)
        ),
    )


def test_a_cluster_of_which_nothing_was_said_has_two_nodes() -> None:
    cluster = planned(Wanted(), None, cores=8)
    assert names(cluster) == ["etcd1", "n1", "n2", "router1"]
    assert (cluster.replicas, cluster.search_threads) == (1, 4)


def test_a_cluster_comes_back_as_it_was() -> None:
    before = addressed(
        planned(Wanted(nodes=3, replicas=2, etcd=3, search_threads=5), None, cores=8)
    )
    assert planned(Wanted(), before, cores=8) == before


def test_a_cluster_grows_by_nodes_and_keeps_those_it_had() -> None:
    before = addressed(planned(Wanted(nodes=2), None, cores=8))
    grown = planned(Wanted(nodes=4), before, cores=8)
    assert names(grown) == ["etcd1", "n1", "n2", "n3", "n4", "router1"]
    assert [node.address for node in grown.of_kind("node")] == [
        "127.0.0.1:7001",
        "127.0.0.1:7002",
        "",
        "",
    ]
    assert grown.search_threads == 2


def test_each_node_has_a_search_thread_even_where_cores_are_few() -> None:
    assert planned(Wanted(nodes=4), None, cores=2).search_threads == 1


@pytest.mark.parametrize(
    "wanted",
    [
        Wanted(nodes=1),
        Wanted(etcd=3),
        Wanted(etcd=2),
        Wanted(replicas=3),
        Wanted(nodes=65),
        Wanted(nodes=64, replicas=6),
    ],
)
def test_what_cannot_be_is_refused(wanted: Wanted) -> None:
    before = planned(Wanted(nodes=2), None, cores=8)
    with pytest.raises(InvalidError) as caught:
        planned(wanted, before, cores=8)
    assert caught.value.reason == "CLUSTER_SHAPE"


def test_nodes_and_routers_are_told_of_etcd_and_of_their_folders() -> None:
    cluster = addressed(planned(Wanted(etcd=3), None, cores=4))
    directory = Path("/somewhere")
    node = with_command(cluster.named("n2"), cluster, directory)
    router = with_command(cluster.named("router1"), cluster, directory)
    assert node.argv[2:] == (
        "-m",
        "indexd",
        "--node-id=n2",
        "--listen=127.0.0.1:7004",
        "--etcd=127.0.0.1:7000,127.0.0.1:7001,127.0.0.1:7002",
        "--store=dir:/somewhere/store",
        "--search-threads=2",
        "--state-dir=/somewhere/n2",
    )
    assert router.argv[2:] == (
        "-m",
        "router",
        "--listen=127.0.0.1:7005",
        "--etcd=127.0.0.1:7000,127.0.0.1:7001,127.0.0.1:7002",
        "--state-dir=/somewhere/router1",
        "--dev",
    )


def test_nodes_share_the_store_that_is_named_and_keep_it() -> None:
    first = addressed(planned(Wanted(store="s3://bucket"), None, cores=4))
    again = planned(Wanted(), first, cores=4)
    node = with_command(again.named("n1"), again, Path("/somewhere"))
    assert "--store=s3://bucket" in node.argv
    assert planned(Wanted(store="s3://bucket"), first, cores=4) == again
    with pytest.raises(InvalidError, match="cannot move to another store"):
        planned(Wanted(store="s3://other"), first, cores=4)


def test_a_cluster_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    process = ProcessRecord("n1", "node", "127.0.0.1:1", pid=7, created_s=1.25, argv=("a", "b"))
    cluster = ClusterRecord(
        replicas=2, search_threads=3, store="s3://bucket", processes=(process,)
    )
    cluster_file.save(tmp_path, cluster)
    assert cluster_file.load(tmp_path) == cluster
    assert [path.name for path in tmp_path.iterdir()] == ["cluster.json"]


def test_a_folder_without_a_cluster_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="fgctl local up") as caught:
        cluster_file.load(tmp_path)
    assert caught.value.reason == "CLUSTER_UNKNOWN"


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"version": 2}', '{"version": 1, "processes": [{"name": "n1"}]}'],
)
def test_a_cluster_file_that_fgctl_did_not_write_is_refused(tmp_path: Path, text: str) -> None:
    cluster_file.path_in(tmp_path).write_text(text)
    with pytest.raises(CorruptError) as caught:
        cluster_file.load(tmp_path)
    assert caught.value.reason == "CLUSTER_FILE"


def test_an_unknown_process_is_answered_with_those_there_are() -> None:
    with pytest.raises(NotFoundError, match="id=n9 known=etcd1 n1 n2 router1"):
        planned(Wanted(), None, cores=2).named("n9")


def test_an_address_of_another_machine_is_not_free() -> None:
    assert not is_free("192.0.2.1:80")
