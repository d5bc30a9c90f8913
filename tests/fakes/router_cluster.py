"""A router on fake nodes and a coordinator in memory, reached over real gRPC."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
from typing_extensions import override

from bench.chaos.proxy import Link
from facegrid.api.admin.v1 import admin_service_pb2, admin_service_pb2_grpc
from facegrid.api.v1 import (
    enrolment_service_pb2,
    enrolment_service_pb2_grpc,
    gallery_service_pb2,
    gallery_service_pb2_grpc,
    identification_service_pb2,
    identification_service_pb2_grpc,
    types_pb2,
)
from facegrid.clock import Clock, SystemClock
from facegrid.coord import keys
from facegrid.coord.port import Put
from facegrid.format import records
from facegrid.ids import GalleryName
from facegrid.rpc.call import call
from facegrid.rpc.channel import open_channel
from facegrid.telemetry.log import get_logger
from facegrid.testing.fake_shard import FakeNode
from facegrid.testing.memory_coord import MemoryCoordinator
from facegrid.wire import to_wire_vectors
from router.server import RouterServer
from router.settings import RouterSettings
from tests.fakes.waiting import until

DIM = 8


class LeapingClock(SystemClock):
    """Real time, and what the test adds to it between calls."""

    def __init__(self) -> None:
        self.added_s = 0.0

    @override
    def now_s(self) -> float:
        """Return the time with all leaps."""
        return super().now_s() + self.added_s

    def leap(self, duration_s: float) -> None:
        """Let time pass at once; whoever sleeps goes on sleeping."""
        self.added_s += duration_s


def settings(**changes: Any) -> RouterSettings:
    """Return settings for a router of a test."""
    given = {"listen": "127.0.0.1:0", "etcd": ("memory:1",), "grace_s": 0.0, "etcd_timeout_s": 0.2}
    return RouterSettings(**{**given, **changes})


@dataclass
class RouterClient:
    """Calls a router; every method raises the typed error."""

    channel: grpc.aio.Channel
    server: RouterServer
    address: str
    timeout_s: float = 10.0

    def __post_init__(self) -> None:
        self.galleries = gallery_service_pb2_grpc.GalleryServiceStub(self.channel)
        self.enrolment = enrolment_service_pb2_grpc.EnrolmentServiceStub(self.channel)
        self.identification = identification_service_pb2_grpc.IdentificationServiceStub(
            self.channel
        )
        self.admin = admin_service_pb2_grpc.AdminServiceStub(self.channel)

    async def call(self, method: Any, request: Any, timeout_s: float | None = None) -> Any:
        return await call(method, request, timeout_s=timeout_s or self.timeout_s)

    async def create(self, name: str = "staff", **changes: Any) -> types_pb2.Gallery:
        fields = {"dim": DIM, "extractor": "e@1", "shards_count": 4, "replicas_count": 1}
        request = gallery_service_pb2.CreateGalleryRequest(name=name, **{**fields, **changes})
        return (await self.call(self.galleries.CreateGallery, request)).gallery

    async def enrol(
        self,
        x: np.ndarray,
        subjects: Sequence[str],
        *,
        templates: Sequence[str] | None = None,
        request_id: str = "r1",
        gallery: str = "staff",
        timeout_s: float | None = None,
    ) -> enrolment_service_pb2.EnrolResponse:
        request = enrol_request(
            x, subjects, templates=templates, request_id=request_id, gallery=gallery
        )
        return await self.call(self.enrolment.Enrol, request, timeout_s)

    async def identify(
        self, x: np.ndarray, *, k: int = 3, timeout_s: float | None = None, **fields: Any
    ) -> identification_service_pb2.IdentifyResponse:
        request = identification_service_pb2.IdentifyRequest(
            gallery="staff", probes=to_wire_vectors(x), k=k, **fields
        )
        return await self.call(self.identification.Identify, request, timeout_s)

    async def status(self) -> admin_service_pb2.ClusterStatusResponse:
        request = admin_service_pb2.ClusterStatusRequest()
        return await self.call(self.admin.ClusterStatus, request)


def enrol_request(
    x: np.ndarray,
    subjects: Sequence[str],
    *,
    templates: Sequence[str] | None = None,
    request_id: str = "r1",
    gallery: str = "staff",
) -> enrolment_service_pb2.EnrolRequest:
    """Return a request; templates are named after their row unless given."""
    return enrolment_service_pb2.EnrolRequest(
        gallery=gallery,
        request_id=request_id,
        template_ids=templates or [f"t{row}" for row in range(len(x))],
        subject_ids=subjects,
        vectors=to_wire_vectors(x),
    )


def faces(rows: int, *, seed: int = 1) -> np.ndarray:
    """Return random unit vectors."""
    x = np.random.default_rng(seed).normal(size=(rows, DIM)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@asynccontextmanager
async def router(
    coordinator: MemoryCoordinator,
    *,
    state_dir: Path | None = None,
    clock: Clock | None = None,
    **changes: Any,
) -> AsyncIterator[RouterClient]:
    """Run a router; leaving stops it gracefully."""
    numbers = count(0x1F00AA23)
    server = RouterServer(
        settings(state_dir=state_dir, **changes),
        coordinator,
        clock or SystemClock(),
        new_uid=lambda: f"{next(numbers):08x}",
        logger=get_logger("router"),
    )
    stop = asyncio.Event()
    started: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as group:
        group.create_task(server.run(stop=stop, started=started.set_result))
        address = await started
        channel = open_channel(address)
        try:
            yield RouterClient(channel, server, address)
        finally:
            await channel.close()
            stop.set()


@dataclass
class Cluster:
    """Fake nodes, their coordinator and one router."""

    coordinator: MemoryCoordinator
    nodes: list[FakeNode]
    client: RouterClient

    def copy_rows(self) -> None:
        """Let followers have what the primaries have, as replication would."""
        shards = [(name, shard) for node in self.nodes for name, shard in node.shards.items()]
        for name, shard in shards:
            for other_name, other in shards:
                if name == other_name and other.position > shard.position:
                    shard.rows = dict(other.rows)
                    shard.position = other.position
                    shard.answers = dict(other.answers)

    async def move_primaries(self) -> None:
        """Make the last copy of every shard its primary, as a takeover does."""
        key = keys.shard_map(GalleryName("staff"))
        found = await self.coordinator.get(key)
        assert found is not None
        present = records.decode_shard_map(found.value)
        shards = tuple(
            replace(shard, node_ids=tuple(reversed(shard.node_ids))) for shard in present.shards
        )
        newer = replace(present, version=present.version + 1, shards=shards)
        await self.coordinator.txn([], [Put(key, records.encode_shard_map(newer))])

    @asynccontextmanager
    async def linked(self, number: int) -> AsyncIterator[Link]:
        """Put a proxy in front of a node; the link can be held without a word."""
        node = self.nodes[number]
        link = Link(node.address)
        server = await asyncio.start_server(link.serve, "127.0.0.1", 0)
        before = self.client.server.watcher.topology
        await node.advertise(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        assert await self.client.server.watcher.changed(before, timeout_s=5)
        try:
            yield link
        finally:
            server.close()
            link.heal()
            link.drop()

    @asynccontextmanager
    async def patience(self) -> AsyncIterator[None]:
        """Give up after 30 s."""
        async with asyncio.timeout(30):
            yield

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds, which must be within 30 s."""
        await until(holds, 30, look_s=0.01)


@asynccontextmanager
async def cluster(nodes: int = 2, **changes: Any) -> AsyncIterator[Cluster]:
    """Run some nodes n1, n2, ... and a router."""
    clock = SystemClock()
    coordinator = MemoryCoordinator(clock)
    async with AsyncExitStack() as stack:
        members = [
            await stack.enter_async_context(FakeNode(f"n{number + 1}", coordinator, clock))
            for number in range(nodes)
        ]
        client = await stack.enter_async_context(router(coordinator, **changes))
        yield Cluster(coordinator, members, client)
