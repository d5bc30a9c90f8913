"""One node process by itself: how it refuses to start, and how it refuses requests."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest

import facegrid
from facegrid import vectors
from facegrid.api.shard.v1 import shard_service_pb2 as pb
from facegrid.api.shard.v1.shard_service_pb2_grpc import ShardServiceStub
from facegrid.api.v1 import types_pb2
from facegrid.rpc.status import from_grpc
from fgctl.local.cluster import LocalCluster
from tests.conftest import EtcdRoot

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

DIM = 16


def arguments(etcd: EtcdRoot, store: Path, listen: str = "127.0.0.1:0") -> list[str]:
    return [
        sys.executable,
        "-m",
        "indexd",
        "--node-id=n1",
        f"--listen={listen}",
        f"--etcd={etcd.endpoint}",
        f"--etcd-prefix={etcd.root}",
        f"--store=dir:{store}",
    ]


def refused(command: list[str]) -> tuple[int, str]:
    """Run a node that cannot start; return its exit code and its last line."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr.splitlines()[-1]


def test_a_node_without_etcd_says_so(tmp_path: Path) -> None:
    code, line = refused(arguments(EtcdRoot(("127.0.0.1:1",), "x/"), tmp_path))

    assert (code, line.startswith("facegrid-indexd: etcd cannot be reached")) == (1, True)
    assert "127.0.0.1:1" in line


def test_a_node_without_its_store_says_so(etcd: EtcdRoot, tmp_path: Path) -> None:
    taken = tmp_path / "file"
    taken.write_text("not a folder")

    code, line = refused(arguments(etcd, taken))

    assert (code, line.startswith("facegrid-indexd: ")) == (1, True)
    assert str(taken) in line


def test_a_node_without_its_port_says_so(etcd: EtcdRoot, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, line = refused(arguments(etcd, tmp_path, address))

    assert (code, line.startswith("facegrid-indexd: cannot listen")) == (1, True)
    assert address in line


def test_an_unknown_setting_stops_the_start(etcd: EtcdRoot, tmp_path: Path) -> None:
    code, line = refused([*arguments(etcd, tmp_path), "--serach-threads=2"])

    assert (code, "--serach-threads" in line) == (2, True)


def test_a_second_process_of_the_same_node_stops_the_first(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """1 n1 serves a shard; 2 another process starts as n1; 3 the first one ends, loudly."""
    cluster = LocalCluster(tmp_path_factory.mktemp("twice"), nodes=1)
    record = cluster.up()
    try:
        with facegrid.Client(cluster.router_targets) as client:
            client.create_gallery("g", dim=DIM, extractor="x@1")
        first = next(process for process in record.processes if process.name == "n1")
        argv = [part for part in first.argv if not part.startswith("--listen")]
        second = subprocess.Popen([*argv, "--listen=127.0.0.1:0"], stderr=subprocess.DEVNULL)
        try:
            psutil.Process(first.pid).wait(60)
            said = cluster.log("n1").read_text()
            assert "another process runs under this node's id" in said
        finally:
            second.send_signal(signal.SIGTERM)
            second.wait(30)
    finally:
        cluster.down()


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ShardServiceStub, str]]:
    """The stub of a real node, and a shard that it serves."""
    cluster = LocalCluster(tmp_path_factory.mktemp("node"), nodes=1)
    record = cluster.up()
    address = next(process.address for process in record.processes if process.name == "n1")
    with facegrid.Client(cluster.router_targets) as client, grpc.insecure_channel(address) as to:
        uid = client.create_gallery("g", dim=DIM, extractor="x@1").uid
        yield ShardServiceStub(to), f"g.{uid}.0000"
    cluster.down()


def rows(**changes: object) -> pb.StoredRows:
    codes = vectors.quantize(np.eye(2, DIM, dtype=np.float32))
    values: dict[str, object] = {
        "template_ids": ["t-0", "t-1"],
        "subject_ids": ["s-0", "s-1"],
        "codes": codes.tobytes(),
        "dim": DIM,
    }
    return pb.StoredRows(**{**values, **changes})  # type: ignore[arg-type]  # as the fields want


def probes(x: np.ndarray, dim: int = DIM) -> types_pb2.Vectors:
    data = x.astype("<f4").tobytes()
    return types_pb2.Vectors(data=data, dim=dim, dtype=types_pb2.DTYPE_FLOAT32)


BAD_ROWS = {
    "dimension": ({"dim": 8}, "DIM_MISMATCH", None),
    "length": ({"codes": b"\x7f" * (DIM + 1)}, "DIM_MISMATCH", None),
    "count": ({"template_ids": ["t-0"]}, "ROWS_MISMATCH", None),
    "no rows": ({"template_ids": [], "subject_ids": [], "codes": b""}, "ROWS_OUT_OF_RANGE", None),
    "zero row": ({"codes": b"\x7f" + b"\x00" * (2 * DIM - 1)}, "CODES_MALFORMED", 1),
    "-128": ({"codes": b"\x80" * (2 * DIM)}, "CODES_MALFORMED", 0),
    "empty id": ({"subject_ids": ["s-0", ""]}, "ID_MALFORMED", 1),
    "long id": ({"template_ids": ["t-0", "t" * 129]}, "ID_MALFORMED", 1),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_node_refuses_malformed_rows_and_changes_nothing(
    shard: tuple[ShardServiceStub, str], case: str
) -> None:
    stub, shard_id = shard
    changes, reason, row = BAD_ROWS[case]
    before = stub.Status(pb.StatusRequest(), timeout=10).shards

    request = pb.AppendRequest(shard_id=shard_id, request_id="r", rows=rows(**changes))
    with pytest.raises(grpc.RpcError) as raised:
        stub.Append(request, timeout=10)

    error = from_grpc(raised.value)  # type: ignore[arg-type]  # the same accessors
    assert (type(error), error.reason, error.row) == (facegrid.InvalidError, reason, row)
    assert stub.Status(pb.StatusRequest(), timeout=10).shards == before


def test_a_node_tells_by_ids_whether_vectors_decide(shard: tuple[ShardServiceStub, str]) -> None:
    stub, shard_id = shard

    def decide(request_id: str, *template_ids: str) -> bool:
        request = pb.CheckIdsRequest(
            shard_id=shard_id,
            request_id=request_id,
            template_ids=template_ids,
            subject_ids=["ids-0", "ids-1"],
        )
        return stub.CheckIds(request, timeout=10).vectors_decide

    before = decide("ids", "t-0", "t-1")
    enrolled = rows(subject_ids=["ids-0", "ids-1"])
    stub.Append(pb.AppendRequest(shard_id=shard_id, request_id="ids", rows=enrolled), timeout=10)

    assert not before
    assert decide("ids", "t-8", "t-9"), "heard before"
    assert decide("other", "t-8", "t-1"), "there already"
    assert not decide("other", "t-8", "t-9")
    with pytest.raises(grpc.RpcError) as raised:
        decide("other", "t-8")
    error = from_grpc(raised.value)  # type: ignore[arg-type]  # the same accessors
    assert error.reason == "ROWS_MISMATCH"


BAD_SEARCHES = {
    "nan": (probes(np.full((1, DIM), np.nan)), 5, "VECTOR_NOT_FINITE"),
    "inf": (probes(np.full((1, DIM), np.inf)), 5, "VECTOR_NOT_FINITE"),
    "zero": (probes(np.zeros((1, DIM))), 5, "VECTOR_NORM"),
    "huge": (probes(np.full((1, DIM), 1e30)), 5, "VECTOR_NORM"),
    "dimension": (probes(np.eye(1, 8), 8), 5, "DIM_MISMATCH"),
    "length": (types_pb2.Vectors(data=b"123", dim=DIM, dtype=1), 5, "VECTOR_LENGTH"),
    "dtype": (types_pb2.Vectors(data=b"", dim=DIM), 5, "DTYPE_UNKNOWN"),
    "no probe": (probes(np.zeros((0, DIM))), 5, "ROWS_OUT_OF_RANGE"),
    "k of 0": (probes(np.eye(1, DIM)), 0, "K_OUT_OF_RANGE"),
    "k too large": (probes(np.eye(1, DIM)), 2**31, "K_OUT_OF_RANGE"),
}


@pytest.mark.parametrize("case", BAD_SEARCHES)
def test_a_node_refuses_malformed_probes(shard: tuple[ShardServiceStub, str], case: str) -> None:
    stub, shard_id = shard
    vectors_sent, k, reason = BAD_SEARCHES[case]

    wanted = [pb.SearchRequest.Shard(shard_id=shard_id)]
    request = pb.SearchRequest(gallery="g", shards=wanted, probes=vectors_sent, k=k)
    with pytest.raises(grpc.RpcError) as raised:
        stub.Search(request, timeout=10)

    error = from_grpc(raised.value)  # type: ignore[arg-type]  # the same accessors
    assert (type(error), error.reason) == (facegrid.InvalidError, reason)


def test_a_node_refuses_a_call_without_deadline(shard: tuple[ShardServiceStub, str]) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        shard[0].Status(pb.StatusRequest())

    error = from_grpc(raised.value)  # type: ignore[arg-type]  # the same accessors
    assert error.reason == "DEADLINE_MISSING"


def test_retries_under_one_request_id_at_the_same_time_have_the_effect_of_once(
    shard: tuple[ShardServiceStub, str],
) -> None:
    stub, shard_id = shard
    request = pb.AppendRequest(shard_id=shard_id, request_id="r-once", rows=rows())

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: stub.Append(request, timeout=30), range(24)))

    assert all(answer == answers[0] for answer in answers)
    assert answers[0].enrolled_count == 2
