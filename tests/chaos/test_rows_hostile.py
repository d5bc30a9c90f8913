"""Rows of the fault matrix about callers who send what nobody should."""

from collections.abc import Iterator

import grpc
import numpy as np
import psutil
import pytest
from google.protobuf.descriptor import MethodDescriptor

from bench.chaos.ledger import DIM, vectors_of
from facegrid.api.admin.v1 import admin_service_pb2
from facegrid.api.shard.v1 import shard_service_pb2
from facegrid.api.v1 import (
    enrolment_service_pb2,
    gallery_service_pb2,
    identification_service_pb2,
    types_pb2,
)
from facegrid.rpc.channel import channel_options
from facegrid.rpc.status import from_grpc
from tests.fakes.crowd import crowd
from tests.fakes.rig import Rig, enrol, found_problem, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

PEOPLE = [f"one-{number}" for number in range(20)]
CALL_S = 5.0
METADATA_BYTES = 64 * 1024
CONNECTIONS = 10_000
CROWDS = 4
SILENT = 7000
"""Of them so many at least are kept; those that talk nonsense are hung up on."""
GROWTH_BYTES_MAX = 256 * 1024 * 1024
NEVER = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}

FILES = {
    "router1": (
        admin_service_pb2,
        gallery_service_pb2,
        enrolment_service_pb2,
        identification_service_pb2,
    ),
    "n1": (shard_service_pb2,),
}


def methods(process: str) -> list[MethodDescriptor]:
    """Return every rpc that a process serves."""
    return [
        method
        for module in FILES[process]
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]


def call(channel: grpc.Channel, method: MethodDescriptor, data: bytes) -> grpc.StatusCode:
    """Send bytes to an rpc, whatever its kind; return how it ends."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    try:
        if method.client_streaming:
            list(channel.stream_stream(path)(iter([data]), timeout=CALL_S))
        elif method.server_streaming:
            list(channel.unary_stream(path)(data, timeout=CALL_S))
        else:
            channel.unary_unary(path)(data, timeout=CALL_S)
    except grpc.RpcError as error:
        code = error.code()  # type: ignore[attr-defined]  # a blocking call's error has it
        assert isinstance(code, grpc.StatusCode)
        return code
    return grpc.StatusCode.OK


def hostile_bytes() -> Iterator[bytes]:
    """Yield bytes that are no message, or one of another kind, or one that is cut off."""
    rng = np.random.default_rng(34)
    for size in (1, 7, 64, 1000, 100_000):
        yield rng.bytes(size)
    yield b"\x0a\xff\xff\xff\xff\x0f"
    yield b"\xff" * 64
    yield b"\x0b" * 5000
    whole = identification_service_pb2.IdentifyRequest(gallery="row34", k=5).SerializeToString()
    yield whole[:-1]


def state(rig: Rig) -> object:
    """Return what hostile calls must leave as it is."""
    return (rig.values("galleries/"), rig.values("map/"), rig.values("tip/"), rig.digests("row34"))


@pytest.mark.parametrize("process", FILES)
def test_row_34_bytes_that_are_no_message_are_refused_by_every_rpc(rig: Rig, process: str) -> None:
    with rig.client() as client:
        rig.new_gallery(client, "row34")
        enrol(client, "row34", PEOPLE)
        before = state(rig)
        pids = [record.pid for record in rig.cluster.record.processes]
        address = rig.cluster.record.named(process).address
        with grpc.insecure_channel(address, options=channel_options()) as channel:
            codes = {
                (method.full_name, data[:8]): call(channel, method, data)
                for method in methods(process)
                for data in hostile_bytes()
            }
        after = state(rig)
        assert found_problem(client, "row34", PEOPLE[0]) == ""
        client.drop_gallery("row34")

    assert {what: code for what, code in codes.items() if code in NEVER} == {}
    assert grpc.StatusCode.INVALID_ARGUMENT in codes.values()
    assert after == before
    assert [record.pid for record in rig.cluster.record.processes] == pids
    assert all(rig.is_alive(record.name) for record in rig.cluster.record.processes)


def probes(x: np.ndarray, dim: int = DIM) -> types_pb2.Vectors:
    data = x.astype("<f4").tobytes()
    return types_pb2.Vectors(data=data, dim=dim, dtype=types_pb2.DTYPE_FLOAT32)


GOOD = probes(vectors_of(PEOPLE[:1]))
BAD_PROBES = {
    "nan": (probes(np.full((1, DIM), np.nan)), 5, "VECTOR_NOT_FINITE"),
    "inf": (probes(np.full((1, DIM), np.inf)), 5, "VECTOR_NOT_FINITE"),
    "zero": (probes(np.zeros((1, DIM))), 5, "VECTOR_NORM"),
    "dimension": (probes(np.eye(1, 8), 8), 5, "DIM_MISMATCH"),
    "k of 0": (GOOD, 0, "OUT_OF_BOUNDS"),
    "k of 2^31": (GOOD, 2**31, "OUT_OF_BOUNDS"),
}


def test_row_34_vectors_and_numbers_that_make_no_sense_get_a_typed_error(rig: Rig) -> None:
    """Past the client, which refuses them itself. Nodes: tests/cluster/test_node.py."""
    path = "/facegrid.api.v1.IdentificationService/Identify"
    with rig.client() as client:
        rig.new_gallery(client, "row34")
        enrol(client, "row34", PEOPLE)
        before = state(rig)
        reasons = {}
        with grpc.insecure_channel(rig.targets[0], options=channel_options()) as channel:
            for case, (sent, k, _) in BAD_PROBES.items():
                request = identification_service_pb2.IdentifyRequest(
                    gallery="row34", probes=sent, k=k
                )
                with pytest.raises(grpc.RpcError) as refused:
                    channel.unary_unary(path)(request.SerializeToString(), timeout=CALL_S)
                reasons[case] = from_grpc(refused.value).reason  # type: ignore[arg-type]  # same accessors
        after = state(rig)
        client.drop_gallery("row34")

    assert reasons == {case: reason for case, (_, _, reason) in BAD_PROBES.items()}
    assert after == before


@pytest.mark.parametrize("process", FILES)
def test_row_34_metadata_of_64_kib_is_refused_and_others_are_served(
    rig: Rig, process: str
) -> None:
    address = rig.cluster.record.named(process).address
    codes = []
    with grpc.insecure_channel(address, options=channel_options()) as channel:
        for method in methods(process):
            path = f"/{method.containing_service.full_name}/{method.name}"
            if method.client_streaming or method.server_streaming:
                continue
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(path)(
                    b"", timeout=CALL_S, metadata=[("x-large", "x" * METADATA_BYTES)]
                )
            codes.append(refused.value.code())  # type: ignore[attr-defined]  # as above

    assert set(codes) == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert rig.is_alive(process)
    assert rig.status().nodes


@pytest.mark.parametrize("process", FILES)
def test_row_34_ten_thousand_connections_leave_others_served_and_memory_bounded(
    rig: Rig, process: str
) -> None:
    """1 idle connections, and some that talk nonsense; 2 searches go on; 3 all is let go again."""
    record = rig.cluster.record.named(process)
    living = psutil.Process(record.pid)
    # As many as it may have: what CI starts with may be less than this machine allows.
    hard = living.rlimit(psutil.RLIMIT_NOFILE)[1]
    living.rlimit(psutil.RLIMIT_NOFILE, (hard, hard))
    before_bytes, before_fds = living.memory_info().rss, living.num_fds()
    with rig.client() as client:
        rig.new_gallery(client, "row34")
        token = enrol(client, "row34", PEOPLE)
        with crowd(record.address, connections=CONNECTIONS, processes=CROWDS) as opened:
            wait_for(lambda: "" if living.num_fds() > SILENT else "not accepted")
            seen = [found_problem(client, "row34", one, token) for one in PEOPLE]
            growth_bytes = living.memory_info().rss - before_bytes
        client.drop_gallery("row34")

    assert (opened, seen) == (CONNECTIONS, [""] * len(PEOPLE))
    assert growth_bytes < GROWTH_BYTES_MAX
    wait_for(lambda: "" if living.num_fds() < before_fds + 100 else "connections are kept")
