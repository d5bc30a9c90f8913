"""The pure parts of the etcd client: key names, prefixes, messages, command lines."""

from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from facegrid.api.etcd.v3 import etcd_pb2 as pb
from facegrid.clock import SystemClock
from facegrid.coord import keys
from facegrid.coord.etcd import EtcdCoordinator
from facegrid.coord.port import Changed, KeyValue, Progress
from facegrid.coord.transport import EtcdTransport
from facegrid.coord.watch import KeySpace, Watch, prefix_end
from facegrid.errors import InvalidError, UnavailableError
from facegrid.ids import GalleryName, NodeId, ShardId
from facegrid.rpc.channel import TlsFiles
from facegrid.testing.skipping_clock import SkippingClock
from fgctl.local import etcd
from fgctl.local.etcd import EtcdMember, free_ports, member_argv

LOWEST_OUTGOING_PORT = 32_768
"""Of Linux, unless somebody has set another one."""


def test_keys_have_the_agreed_names() -> None:
    shard = ShardId("staff.1f00aa23.0003")

    assert (
        keys.node(NodeId("n1"), "boot"),
        keys.generation(shard),
        keys.tip(shard),
        keys.manifest(shard),
        keys.shard_map(GalleryName("staff")),
        keys.gallery(GalleryName("staff")),
        keys.dropped(shard),
    ) == (
        "nodes/n1/boot",
        "gen/staff.1f00aa23.0003",
        "tip/staff.1f00aa23.0003",
        "manifest/staff.1f00aa23.0003",
        "map/staff",
        "galleries/staff",
        "dropped/staff.1f00aa23.0003",
    )
    assert keys.name_of("tip/staff.1f00aa23.0003", keys.TIPS) == shard


@pytest.mark.parametrize("name", ["", "a/b", "a\nb", "/"])
def test_a_name_that_would_become_another_key_is_refused(name: str) -> None:
    with pytest.raises(InvalidError) as caught:
        keys.node(NodeId(name), "boot")

    assert caught.value.reason == "NAME_MALFORMED"


@pytest.mark.parametrize(
    ("prefix", "end"),
    [(b"map/", b"map0"), (b"a\xff\xff", b"b"), (b"\xff", b"\0"), (b"", b"\0")],
)
def test_a_prefix_ends_before_the_first_key_that_does_not_begin_with_it(
    prefix: bytes, end: bytes
) -> None:
    assert prefix_end(prefix) == end


def test_the_root_is_put_on_and_taken_off() -> None:
    space = KeySpace("test/")
    kv = pb.KeyValue(key=b"test/map/test/", value=b"v", mod_revision=7, lease=3)

    assert space.range_request("map/") == pb.RangeRequest(key=b"test/map/", range_end=b"test/map0")
    assert space.item(kv) == KeyValue("map/test/", b"v", 7, 3)


def test_without_root_and_prefix_everything_is_listed() -> None:
    assert KeySpace("").range_request("") == pb.RangeRequest(key=b"\0", range_end=b"\0")


def test_messages_have_the_bytes_that_etcd_expects() -> None:
    """Golden bytes by etcd's field numbers: a slip in our declarations would change them."""
    txn = pb.TxnRequest(
        compare=[pb.Compare(key=b"k", target=pb.Compare.MOD, mod_revision=5)],
        success=[
            pb.RequestOp(request_put=pb.PutRequest(key=b"k", value=b"v", lease=9)),
            pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=b"d")),
        ],
    )
    watch = pb.WatchRequest(
        create_request=pb.WatchCreateRequest(key=b"k", range_end=b"l", start_revision=6)
    )
    events = pb.WatchResponse(
        events=[pb.Event(type=pb.Event.DELETE, kv=pb.KeyValue(key=b"k", mod_revision=4))]
    )

    assert txn.SerializeToString(deterministic=True).hex(" ", 2) == (
        "0a07 1002 1a01 6b30 0512 0a12 080a 016b 1201 7618 0912 051a 030a 0164"
    )
    assert watch.SerializeToString(deterministic=True).hex() == "0a080a016b12016c1806"
    assert events.SerializeToString(deterministic=True).hex() == "5a09080112050a016b1804"


def standing_at(next_revision: int) -> Watch:
    """Return a watch of cluster 7 that has seen everything before a revision."""
    transport = EtcdTransport(["127.0.0.1:1"], clock=SystemClock())
    watch = Watch(transport, KeySpace("r/"), "", SystemClock())
    watch._next_revision = next_revision
    watch._cluster_id = 7
    return watch


def answer(revision: int, cluster_id: int = 7, **fields: Any) -> pb.WatchResponse:
    """Return an answer on a watch stream."""
    header = pb.ResponseHeader(cluster_id=cluster_id, revision=revision)
    return pb.WatchResponse(header=header, **fields)


@pytest.mark.parametrize(
    ("response", "lost"),
    [
        (answer(9, created=True), False),
        (answer(12, created=True), False),
        (answer(8, created=True), True),
        (answer(8), False),
        (answer(9, cluster_id=8), True),
        (answer(12, canceled=True, compact_revision=11), True),
    ],
    ids=["resumed", "behind", "gone-back", "sign-of-life", "other-cluster", "compacted"],
)
def test_a_watch_knows_when_it_may_have_missed_something(
    response: pb.WatchResponse, *, lost: bool
) -> None:
    assert standing_at(10)._is_lost(response) is lost


def test_changes_that_come_twice_are_told_once() -> None:
    """Etcd before 3.5.8 may repeat events (etcd issue 15220)."""
    watch = standing_at(10)
    events = [
        pb.Event(kv=pb.KeyValue(key=b"r/old", value=b"1", mod_revision=9)),
        pb.Event(kv=pb.KeyValue(key=b"r/a", value=b"2", mod_revision=10)),
        pb.Event(type=pb.Event.DELETE, kv=pb.KeyValue(key=b"r/b", mod_revision=10)),
    ]

    first = watch._news(answer(10, events=events))
    again = watch._news(answer(10, events=events))

    assert first == [
        Changed("put", "a", KeyValue("a", b"2", 10), 10),
        Changed("delete", "b", None, 10),
    ]
    assert again == [Progress(10)]


def test_a_sign_of_life_claims_no_more_than_what_was_delivered() -> None:
    """Etcd before 3.5.8 may name a revision whose changes are still on their way."""
    assert standing_at(10)._news(answer(99, watch_id=-1)) == [Progress(9)]


@pytest.mark.parametrize("endpoints", [[], ["localhost"], ["http://localhost:2379"]])
def test_endpoints_are_host_and_port(endpoints: list[str]) -> None:
    with pytest.raises(InvalidError) as caught:
        EtcdCoordinator(endpoints, clock=SystemClock())

    assert caught.value.reason == "ENDPOINT_MALFORMED"


def test_free_ports_are_distinct_and_below_those_of_outgoing_connections() -> None:
    ports = free_ports()
    taken = [next(ports) for _ in range(8)]

    assert len(set(taken)) == 8
    # Each process that runs tests has a range of its own, see tests/conftest.py.
    assert all(etcd.PORT_FIRST <= port < etcd.PORT_LAST for port in taken)
    assert etcd.PORT_LAST <= LOWEST_OUTGOING_PORT


def test_a_member_is_told_its_folder_its_ports_and_all_members() -> None:
    members = (EtcdMember("etcd1", "h:1", "h:2"), EtcdMember("etcd2", "h:3", "h:4"))
    tls = TlsFiles(ca=Path("ca"), cert=Path("cert"), key=Path("key"))

    program, *arguments = member_argv(members[1], members, Path("/d"))

    assert Path(program).name == "etcd"
    assert arguments == [
        "--name=etcd2",
        "--data-dir=/d/etcd2",
        "--listen-client-urls=http://h:3",
        "--advertise-client-urls=http://h:3",
        "--listen-peer-urls=http://h:4",
        "--initial-advertise-peer-urls=http://h:4",
        "--initial-cluster=etcd1=http://h:2,etcd2=http://h:4",
        "--initial-cluster-state=new",
        "--auto-compaction-mode=revision",
        "--auto-compaction-retention=10000",
        "--log-level=warn",
    ]
    secured = member_argv(members[1], members, Path("/d"), tls=tls)
    assert secured[3] == "--listen-client-urls=https://h:3"
    assert secured[12:] == (
        "--cert-file=cert",
        "--key-file=key",
        "--trusted-ca-file=ca",
        "--client-cert-auth",
    )


def refusal(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    """Return what a member's refusal raises."""
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


async def asked_until(answers_at: int, details: str) -> tuple[int, float]:
    """Ask two members that refuse so many times; return how often, and how long that took."""
    clock = SkippingClock()
    transport = EtcdTransport(["127.0.0.1:1", "127.0.0.1:2"], clock=clock)
    asked_count = 0

    async def attempt(_: grpc.aio.Channel, __: float) -> int:
        nonlocal asked_count
        asked_count += 1
        if asked_count < answers_at:
            raise refusal(grpc.StatusCode.UNAVAILABLE, details)
        return asked_count

    begun_s = clock.now_s()
    try:
        return await transport.anywhere(attempt, timeout_s=5.0), clock.now_s() - begun_s
    finally:
        await transport.aclose()


async def test_a_read_outlasts_the_election_of_a_leader() -> None:
    """Members refuse for a second or two while they choose one."""
    asked_count, took_s = await asked_until(21, "etcdserver: no leader")

    assert asked_count == 21
    assert 0.9 < took_s < 5.0


@pytest.mark.parametrize("details", ["etcdserver: no leader", "etcdserver: leader changed"])
async def test_an_election_without_end_is_an_outage(details: str) -> None:
    with pytest.raises(UnavailableError, match=details):
        await asked_until(10_000, details)


async def test_members_that_cannot_be_reached_are_asked_once_each() -> None:
    with pytest.raises(UnavailableError, match="connection refused"):
        await asked_until(4, "connection refused")
