"""A gallery of four bits on real processes: whatever happens to its rows, their scores stay."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import facegrid
from facegrid import vectors
from facegrid.api.shard.v1 import shard_service_pb2 as pb
from facegrid.api.shard.v1.shard_service_pb2_grpc import ShardServiceStub
from facegrid.rpc.status import from_grpc
from facegrid.testing.synthetic import SyntheticGallery
from fgctl.__main__ import run
from fgctl.local import processes
from fgctl.local.cluster import LocalCluster
from tests.fakes.people import Answers, answers, enrol_all, probes_of, settle

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

DIM = 64
TEMPLATES = 3000
TIMEOUT_S = 60


@pytest.fixture(scope="module")
def people() -> SyntheticGallery:
    return SyntheticGallery(dim=DIM, templates_count=TEMPLATES, seed=5)


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, people: SyntheticGallery
) -> Iterator[LocalCluster]:
    """Two nodes, and everybody in the gallery `four`: half of them before it was trained."""
    cluster = LocalCluster(tmp_path_factory.mktemp("cluster"), nodes=2)
    cluster.up()
    with facegrid.Client(cluster.router_targets, timeout_s=TIMEOUT_S) as client:
        client.create_gallery("four", dim=DIM, extractor="x@1", train_at=0, component_bits=4)
        enrol_all(client, "four", people)
        client.train("four")
    yield cluster
    cluster.down()


@pytest.fixture
def fgctl(cluster: LocalCluster, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs a command line on the cluster and returns what it prints as JSON."""

    def call(*arguments: str) -> Any:
        capsys.readouterr()
        code = run([*arguments, "--dir", str(cluster.directory), "--json"])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return json.loads(printed.out)

    return call


def answered(cluster: LocalCluster, people: SyntheticGallery, gallery: str) -> Answers:
    with facegrid.Client(cluster.router_targets, timeout_s=TIMEOUT_S) as client:
        settle(client, gallery)
        return answers(client, gallery, probes_of(people), profile="exhaustive")


def exact(people: SyntheticGallery) -> list[tuple[str, float]]:
    """Return the best subject of each probe and its score, by brute force over rounded rows."""
    (block,) = people.blocks(2 * TEMPLATES)
    codes = vectors.quantize(block.vectors, 4)
    probes = vectors.prepare_probes(probes_of(people))
    shape = (len(probes), *codes.shape)
    scores = vectors.scores(
        probes,
        np.broadcast_to(codes, shape),
        np.broadcast_to(vectors.code_norms(codes), shape[:2]),
    )
    best = scores.argmax(axis=1)
    return [(block.subject_ids[row], float(scores[at, row])) for at, row in enumerate(best)]


def test_scores_are_those_of_rows_rounded_to_four_bits_before_and_after_restarts(
    cluster: LocalCluster, people: SyntheticGallery
) -> None:
    """1 asked; 2 a node killed, which reads its log again; 3 all stopped in order, which stores
    segments, and started.
    """
    first = answered(cluster, people, "four")

    processes.kill([cluster.record.named("n1")])
    cluster.start_node("n1", timeout_s=TIMEOUT_S)
    replayed = answered(cluster, people, "four")
    cluster.down()
    cluster.up()
    stored = answered(cluster, people, "four")

    assert [(best[0][0], best[0][2]) for best in first] == exact(people)
    assert first == replayed == stored


def test_a_load_a_split_and_a_restore_keep_four_bits(
    cluster: LocalCluster, people: SyntheticGallery, fgctl: Callable[..., Any], tmp_path: Path
) -> None:
    """1 loaded around the log; 2 a snapshot restored in two shards; 3 one of them split."""
    (block,) = people.blocks(2 * TEMPLATES)
    np.save(tmp_path / "x.npy", block.vectors)
    for name, lines in (("s.txt", block.subject_ids), ("t.txt", block.template_ids)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    expected = answered(cluster, people, "four")

    made = fgctl(
        *("gallery", "create", "loaded", "--dim", str(DIM), "--extractor", "x@1"),
        *("--component-bits", "4", "--train-at", "0"),
    )
    fgctl(
        *("load", "--gallery=loaded", f"--vectors={tmp_path / 'x.npy'}"),
        *(f"--subjects={tmp_path / 's.txt'}", f"--templates={tmp_path / 't.txt'}"),
    )
    loaded = answered(cluster, people, "loaded")
    snapshot = fgctl("snapshot", "create", "loaded", f"dir:{tmp_path / 'repo'}")
    restore = ("snapshot", "restore", f"dir:{tmp_path / 'repo'}", snapshot["snapshot"])
    fgctl(*restore, "--gallery", "copy", "--shards", "2")
    restored = answered(cluster, people, "copy")
    shards = fgctl("shard", "list", "--gallery", "copy")["shards"]
    fgctl("shard", "split", shards[0]["id"], "--yes")

    assert made["component_bits"] == 4
    assert snapshot["component_bits"] == 4
    assert fgctl("gallery", "show", "copy")["component_bits"] == 4
    assert loaded == restored == answered(cluster, people, "copy") == expected


def test_a_node_refuses_rows_of_eight_bits(
    cluster: LocalCluster, people: SyntheticGallery
) -> None:
    """As a router of a version that does not know four bits would send them."""
    record = cluster.record
    with facegrid.Client(cluster.router_targets, timeout_s=TIMEOUT_S) as client:
        uid = client.get_gallery("four").uid
    request = pb.AppendRequest(
        shard_id=f"four.{uid}.0000",
        request_id="eight",
        rows=pb.StoredRows(
            template_ids=["t-eight"],
            subject_ids=["s-eight"],
            codes=vectors.quantize(next(people.blocks(10)).vectors[:1]).tobytes(),
            dim=DIM,
        ),
    )
    refused = []
    for process in record.of_kind("node"):
        with grpc.insecure_channel(process.address) as channel:
            try:
                ShardServiceStub(channel).Append(request, timeout=10)
            except grpc.RpcError as raised:
                refused.append(from_grpc(raised).reason)  # type: ignore[arg-type]  # the same accessors
    # The other node is not the shard's.
    assert "CODES_MALFORMED" in refused
    assert len(refused) == 2
