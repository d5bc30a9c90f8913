"""The etcd client against real members that stop, fall silent, are killed or compact."""

import asyncio
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from facegrid.api.etcd.v3 import etcd_pb2 as pb
from facegrid.clock import SystemClock
from facegrid.coord import keys
from facegrid.coord.etcd import EtcdCoordinator
from facegrid.coord.lease import Registration
from facegrid.coord.port import (
    Changed,
    Guard,
    KeyValue,
    Listing,
    Progress,
    Put,
    Snapshot,
    WatchEvent,
)
from facegrid.coord.transport import EtcdTransport, Method
from facegrid.errors import UnavailableError
from facegrid.format.records import encode_node
from facegrid.ids import NodeId
from facegrid.model import NodeInfo
from facegrid.rpc.channel import TlsFiles
from facegrid.telemetry.log import get_logger
from fgctl.local.etcd import LocalEtcd, start_etcd
from tests.fakes.waiting import until

pytestmark = pytest.mark.cluster

CLOCK = SystemClock()
COMPACT = Method("/etcdserverpb.KV/Compact", pb.CompactionRequest, pb.CompactionResponse)


class GatedClock(SystemClock):
    """Sleeps only while its gate is open: holds a reconnecting watch until the test says go."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()

    async def sleep(self, duration_s: float) -> None:
        await super().sleep(duration_s)
        await self.gate.wait()


@pytest.fixture
async def member(tmp_path: Path) -> AsyncIterator[LocalEtcd]:
    """One member that the test may stop."""
    etcd = await start_etcd(tmp_path, clock=CLOCK)
    yield etcd
    etcd.resume()
    etcd.kill()


@pytest.fixture
async def trio(tmp_path: Path) -> AsyncIterator[LocalEtcd]:
    """Three members of which the test may lose one."""
    etcd = await start_etcd(tmp_path, 3, clock=CLOCK)
    yield etcd
    etcd.resume()
    etcd.kill()


@pytest.fixture
async def clients() -> AsyncIterator[Any]:
    """Return a function that makes clients, all closed at the end."""
    made: list[EtcdCoordinator] = []

    def make(endpoints: Sequence[str], **settings: Any) -> EtcdCoordinator:
        made.append(EtcdCoordinator(endpoints, **{"clock": CLOCK, **settings}))
        return made[-1]

    yield make
    for client in made:
        await client.aclose()


async def changes_of(watch: AsyncIterator[WatchEvent], count: int) -> list[WatchEvent]:
    """Return the next listings and changes of a watch, leaving progress out."""
    events: list[WatchEvent] = []
    async for event in watch:
        if not isinstance(event, Progress):
            events.append(event)
        if len(events) == count:
            break
    return events


async def put(client: EtcdCoordinator, key: str, value: bytes) -> Changed:
    """Write a key until it is written; return the change that a watch should see."""
    while True:
        try:
            revision = (await client.txn([], [Put(key, value)], timeout_s=3.0)).revision
        except UnavailableError:
            await CLOCK.sleep(0.05)
            continue
        return Changed("put", key, KeyValue(key, value, revision), revision)


async def compact(etcd: LocalEtcd, revision: int) -> None:
    """Make etcd forget what was before a revision."""
    transport = EtcdTransport(etcd.endpoints, clock=CLOCK)
    request = pb.CompactionRequest(revision=revision, physical=True)
    await transport.read(COMPACT, request, timeout_s=5.0)
    await transport.aclose()


async def test_a_watch_goes_on_after_a_restart_and_misses_nothing(
    member: LocalEtcd, clients: Any
) -> None:
    """(1) write (2) stop gracefully, start, write (3) kill, start, write: each is seen once."""
    client = clients(member.endpoints)
    async with aclosing(client.watch("")) as watch:
        listing = await changes_of(watch, 1)
        expected = [await put(client, "a", b"1")]
        for end in (member.stop, member.kill):
            end()
            member.start("etcd1")
            expected.append(await put(client, "a", end.__name__.encode()))

        assert listing == [Listing(Snapshot(1, ()))]
        assert await changes_of(watch, 3) == expected


async def test_a_watch_that_compaction_left_behind_lists_again(
    member: LocalEtcd, clients: Any
) -> None:
    """(1) the watch loses etcd and waits (2) etcd comes back; writes; compaction past the first
    of them (3) the watch reconnects: it cannot be told of that one, so it lists, and goes on.
    """
    writer = clients(member.endpoints)
    clock = GatedClock()
    async with aclosing(clients(member.endpoints, clock=clock).watch("")) as watch:
        await changes_of(watch, 1)
        clock.gate.clear()
        member.kill()
        async with asyncio.TaskGroup() as group:
            listing = group.create_task(changes_of(watch, 1))
            member.start("etcd1")
            await put(writer, "a", b"1")
            second = await put(writer, "b", b"2")
            third = await put(writer, "a", b"3")
            await compact(member, third.revision)
            clock.gate.set()
        fourth = await put(writer, "a", b"4")

        assert listing.result() == [Listing(Snapshot(third.revision, (third.item, second.item)))]
        assert await changes_of(watch, 1) == [fourth]


async def test_a_store_that_was_lost_and_begun_anew_is_listed_again(
    member: LocalEtcd, clients: Any, tmp_path: Path
) -> None:
    """Its revisions begin anew: waiting for the next one would be waiting for ever."""
    client = clients(member.endpoints)
    async with aclosing(client.watch("")) as watch:
        await changes_of(watch, 1)
        for value in (b"1", b"2"):
            await put(client, "a", value)
        await changes_of(watch, 2)
        member.kill()
        shutil.rmtree(tmp_path / "etcd1")
        member.start("etcd1")

        assert await changes_of(watch, 1) == [Listing(Snapshot(1, ()))]


async def test_a_member_that_falls_silent_is_noticed_and_left_for_another(
    trio: LocalEtcd, clients: Any
) -> None:
    """The member that serves the watch is paused: its connections stay open and say nothing."""
    writer = clients(trio.endpoints[1:])
    async with aclosing(clients(trio.endpoints).watch("")) as watch:
        await changes_of(watch, 1)
        trio.pause("etcd1")
        change = await put(writer, "a", b"1")
        began_s = CLOCK.now_s()

        assert await changes_of(watch, 1) == [change]
    assert CLOCK.now_s() - began_s < 10.0


async def test_a_watch_survives_the_silence_of_its_only_member(
    member: LocalEtcd, clients: Any
) -> None:
    client = clients(member.endpoints)
    async with aclosing(client.watch("")) as watch:
        await changes_of(watch, 1)
        assert await anext(watch) == Progress(1)
        member.pause()
        with pytest.raises(UnavailableError):
            await client.get("a", timeout_s=0.5)
        member.resume()
        change = await put(client, "a", b"1")

        assert await changes_of(watch, 1) == [change]


async def test_two_of_three_members_go_on(trio: LocalEtcd, clients: Any) -> None:
    """Reads, writes and watches begun on the lost member go on with the others."""
    client = clients(trio.endpoints)
    async with aclosing(client.watch("")) as watch:
        await changes_of(watch, 1)
        before = await put(client, "a", b"1")
        trio.kill("etcd1")
        assert await client.get("a") == before.item
        after = await put(client, "b", b"2")

        assert await client.list("") == Snapshot(after.revision, (before.item, after.item))
        assert await changes_of(watch, 2) == [before, after]


async def test_one_of_three_members_alone_refuses(trio: LocalEtcd, clients: Any) -> None:
    """Without a majority nothing is read or written; with one again, everything is."""
    trio.kill("etcd1", "etcd2")
    client = clients(trio.endpoints)
    with pytest.raises(UnavailableError):
        await client.get("a", timeout_s=2.0)
    with pytest.raises(UnavailableError):
        await client.txn([], [Put("a", b"1")], timeout_s=2.0)
    trio.start("etcd1")
    change = await put(client, "a", b"2")

    assert await client.get("a") == change.item


async def test_a_write_that_was_surely_not_sent_says_so(member: LocalEtcd, clients: Any) -> None:
    client = clients(member.endpoints)
    member.kill()

    with pytest.raises(UnavailableError) as caught:
        await client.txn([], [Put("a", b"1")], timeout_s=2.0)

    assert caught.value.reason == "COORDINATOR_UNREACHABLE"
    assert member.endpoints[0] in str(caught.value)


async def test_a_write_whose_outcome_is_unknown_is_not_sent_again(
    member: LocalEtcd, clients: Any
) -> None:
    """The member takes the request into its socket while paused, and carries it out later."""
    client = clients(member.endpoints)
    await client.check()
    member.pause()
    with pytest.raises(UnavailableError) as caught:
        await client.txn([Guard("a", 0)], [Put("a", b"1")], timeout_s=0.5)
    member.resume()

    assert caught.value.reason == "DEADLINE_EXCEEDED"
    item = await clients(member.endpoints).get("a")
    assert item in (None, KeyValue("a", b"1", 2))


async def test_a_missing_coordinator_is_named(clients: Any) -> None:
    with pytest.raises(UnavailableError) as caught:
        await clients(["127.0.0.1:1", "127.0.0.1:2"]).check()

    assert "endpoints=127.0.0.1:1,127.0.0.1:2" in str(caught.value)


async def test_a_node_stays_registered_over_a_restart_and_leaves_when_it_ends(
    member: LocalEtcd, clients: Any
) -> None:
    """(1) registered (2) etcd restarts (3) the lease is ended by somebody: registered anew
    (4) cancelled: the key goes at once, long before the lease would have ended.
    """
    client = clients(member.endpoints)
    node = NodeInfo(NodeId("n1"), "boot", "127.0.0.1:7500")
    registration = Registration(client, node, 6, CLOCK, get_logger("test"))
    async with aclosing(client.watch(keys.NODES)) as watch, asyncio.TaskGroup() as group:
        await changes_of(watch, 1)
        running = group.create_task(registration.run())
        (first,) = await changes_of(watch, 1)
        # Else the answer may be lost with the member, and the key is put a second time.
        await until(lambda: registration._registered)
        member.kill()
        member.start("etcd1")
        await member.wait_ready()
        await client.revoke_lease(lease_of(first))
        gone, second = await changes_of(watch, 2)
        running.cancel()
        (left,) = await changes_of(watch, 1)

    kinds = [(change.kind, change.key) for change in (first, gone, second, left)]
    assert kinds == [(kind, "nodes/n1/boot") for kind in ("put", "delete", "put", "delete")]
    assert first.item.value == second.item.value == encode_node(node)
    assert lease_of(first) != lease_of(second)


def lease_of(change: Any) -> int:
    """Return the lease under which a key was written."""
    return change.item.lease_id


@pytest.fixture
def tls(tmp_path: Path) -> TlsFiles:
    """Files of one identity, good for servers and clients, made for this test."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl program to make certificates with")
    for name in ("ours", "strange"):
        make_identity(openssl, tmp_path / name)
    return identity(tmp_path / "ours")


def identity(folder: Path) -> TlsFiles:
    """Return where the files of an identity lie."""
    return TlsFiles(ca=folder / "ca.pem", cert=folder / "cert.pem", key=folder / "key.pem")


def make_identity(openssl: str, folder: Path) -> None:
    """Make an authority and one certificate of it for 127.0.0.1."""
    folder.mkdir()
    (folder / "extensions").write_text(
        "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n"
    )
    new_key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    authority = "-CA ca.pem -CAkey ca.key -CAcreateserial"
    for command in (
        f"req -x509 {new_key} -subj /CN=authority -days 2 -keyout ca.key -out ca.pem",
        f"req {new_key} -subj /CN=member -keyout key.pem -out member.csr",
        f"x509 -req -in member.csr {authority} -days 2 -extfile extensions -out cert.pem",
    ):
        subprocess.run([openssl, *command.split()], cwd=folder, check=True, capture_output=True)


async def test_tls_is_spoken_with_friends_and_refused_to_strangers(
    tmp_path: Path, tls: TlsFiles, clients: Any
) -> None:
    etcd = await start_etcd(tmp_path / "etcd", clock=CLOCK, tls=tls)
    try:
        friend = clients(etcd.endpoints, tls=tls)
        change = await put(friend, "a", b"1")
        assert await friend.get("a") == change.item
        for stranger in (identity(tmp_path / "strange"), None):
            with pytest.raises(UnavailableError):
                await clients(etcd.endpoints, tls=stranger).check(timeout_s=2.0)
    finally:
        etcd.kill()


async def test_a_node_told_of_three_files_speaks_tls_with_etcd(
    tmp_path: Path, tls: TlsFiles
) -> None:
    """1 etcd wants certificates; 2 a node without any says so; 3 one with them gets past it."""
    etcd = await start_etcd(tmp_path / "etcd", clock=CLOCK, tls=tls)
    files = [f"--etcd-ca={tls.ca}", f"--etcd-cert={tls.cert}", f"--etcd-key={tls.key}"]
    # The port is taken, so a node that gets past etcd ends there.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command = [
            *(sys.executable, "-m", "indexd", "--node-id=n1"),
            f"--listen=127.0.0.1:{taken.getsockname()[1]}",
            f"--etcd={etcd.endpoints[0]}",
            f"--store=dir:{tmp_path / 'store'}",
        ]
        said = [
            await asyncio.to_thread(last_line, [*command, *more])
            for more in ([], files, files[:2])
        ]
    etcd.kill()

    assert "etcd cannot be reached" in said[0]
    assert "cannot listen" in said[1]
    assert "go together" in said[2]


def last_line(command: list[str]) -> str:
    """Run a process that ends by itself; return the last line of what it complains about."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stderr.splitlines()[-1]
