"""Nodes in this process that bring shards into others: real parts; etcd and store in memory."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from typing_extensions import override

from facegrid.api.shard.v1 import shard_service_pb2 as pb
from facegrid.clock import SystemClock
from facegrid.coord import keys
from facegrid.coord.port import Delete, Put
from facegrid.errors import DeadlineError, FacegridError, UnavailableError
from facegrid.format.records import (
    GenerationClaim,
    decode_generation,
    encode_gallery,
    encode_generation,
    encode_node,
    encode_shard_map,
)
from facegrid.ids import KEY_LAST, GalleryName, NodeId, ShardId
from facegrid.model import Gallery, HashRange, NodeInfo, ShardAssignment, ShardMap
from facegrid.rpc.pool import ChannelPool
from facegrid.telemetry.log import get_logger
from facegrid.testing.memory_blob import MemoryBlobStore
from facegrid.testing.memory_coord import MemoryCoordinator
from indexd.replica.committer import Committer, CommitterPorts
from indexd.replica.dropping import DropRules
from indexd.replica.fence import Claimant
from indexd.replica.mirrors import Asker, Mirrors
from indexd.replica.node import Node, NodePolicy
from indexd.replica.primary import Primary
from indexd.replica.shard_copy import NodePorts, Phase
from indexd.replica.spread import Spread
from indexd.replica.view import View
from indexd.service.shard_service import ServicePorts, ShardService
from tests.fakes.caller import CALLER
from tests.fakes.waiting import PATIENCE_S, until

DIM = 16
UID = "1f00aa23"
GALLERY = Gallery(GalleryName("g"), UID, DIM, "x@1", 1, 1, 0)
MIDDLE = KEY_LAST // 2
WHOLE, LOWER, UPPER = HashRange(0, KEY_LAST), HashRange(0, MIDDLE), HashRange(MIDDLE + 1, KEY_LAST)
S, LOW, HIGH = (ShardId(f"g.{UID}.{number:04d}") for number in range(3))
N1, N2 = NodeId("n1"), NodeId("n2")
POLICY = NodePolicy(600.0, dropping=DropRules(patience_s=60.0, again_s=0.0))


class QuickClock(SystemClock):
    """Pauses are over in a moment; what comes every half a minute does not come."""

    @override
    async def sleep(self, duration_s: float) -> None:
        await super().sleep(0.001 if duration_s < 1 else duration_s)


@dataclass
class Process:
    """One start of a node."""

    node: Node
    service: ShardService
    address: str
    running: "asyncio.Task[None]"


class Wire(ChannelPool):
    """Reaches the services of the rig. `before` and `after` may raise: a call, or an answer, is
    lost.
    """

    def __init__(self, processes: dict[str, Process]) -> None:
        super().__init__()
        self._processes = processes
        self.before: Callable[[str, Any], None] = lambda _method, _request: None
        self.after: Callable[[str, Any], None] = lambda _method, _request: None
        self.calls: list[tuple[str, Any]] = []

    @override
    def get(self, address: str) -> Any:
        return Line(self, address)

    async def carry(self, address: str, method: str, request: Any) -> Any:
        """Carry a call over, and its answer back."""
        self.before(method, request)
        process = self._processes.get(address)
        if process is None:
            raise UnavailableError("nobody is there", reason="TRANSPORT")
        self.calls.append((method, request))
        answer = await getattr(process.service, method)(request, CALLER)
        if address not in self._processes:
            raise UnavailableError("it has died meanwhile", reason="TRANSPORT")
        self.after(method, request)
        return answer


class Line:
    """A channel to one address."""

    def __init__(self, wire: Wire, address: str) -> None:
        self._wire = wire
        self._address = address

    def unary_stream(self, _path: str, **_rest: Any) -> None:
        """Streams are asked for by nobody here."""

    stream_stream = unary_stream

    def unary_unary(self, path: str, **_rest: Any) -> Callable[..., Awaitable[Any]]:
        """Return a method."""
        method = path.rsplit("/", 1)[1]

        async def call(request: Any, *, timeout: float) -> Any:  # noqa: ASYNC109 - as gRPC's
            try:
                async with asyncio.timeout(timeout):
                    return await self._wire.carry(self._address, method, request)
            except TimeoutError:
                raise DeadlineError("no answer in time") from None

        return call


def split_map(version: int = 2) -> ShardMap:
    """The map of a gallery of one shard, on n1, that is being split: one half there, one on n2."""
    return ShardMap(
        GALLERY.name,
        UID,
        version,
        (ShardAssignment(S, WHOLE, (N1,)),),
        (
            ShardAssignment(LOW, LOWER, (N1,), sources=(S,)),
            ShardAssignment(HIGH, UPPER, (N2,), sources=(S,)),
        ),
        made_count=3,
    )


def whole_map(version: int = 1) -> ShardMap:
    """The map of a gallery of one shard, at first or after a split was given up."""
    made_count = 0 if version == 1 else split_map().made_count
    return replace(split_map(version), pending=(), made_count=made_count)


@dataclass
class Rig:
    """Nodes, and what they share."""

    coord: MemoryCoordinator
    store: MemoryBlobStore
    threads: tuple[ThreadPoolExecutor, ThreadPoolExecutor]
    clock: SystemClock = field(default_factory=QuickClock)
    processes: dict[str, Process] = field(default_factory=dict)
    numbers: "count[int]" = field(default_factory=lambda: count(1))
    gallery: Gallery = GALLERY
    wrap: Callable[[Any, str], Any] = lambda inner, _boot: inner
    """Put around the store and etcd of each process."""
    background: "set[asyncio.Task[None]]" = field(default_factory=set)

    def __post_init__(self) -> None:
        self.wire = Wire(self.processes)

    async def say(self, shard_map: ShardMap) -> None:
        """Put a map into etcd."""
        await self.coord.txn(
            [],
            [
                Put(keys.gallery(self.gallery.name), encode_gallery(self.gallery)),
                Put(keys.shard_map(self.gallery.name), encode_shard_map(shard_map)),
            ],
        )

    async def start(self, node_id: NodeId) -> Process:
        """Start a process of a node."""
        boot = f"{node_id}-{next(self.numbers)}"
        logger = get_logger("test").bind(boot=boot)
        coord, store = self.wrap(self.coord, boot), self.wrap(self.store, boot)
        ports = NodePorts(
            claimant=Claimant(node_id, boot),
            coord=coord,
            store=store,
            clock=self.clock,
            logger=logger,
            search_thread=self.threads[0],
            build_thread=self.threads[1],
            coding_thread=self.threads[1],
        )
        view = View()
        holder: list[Node] = []
        committer = Committer(
            CommitterPorts(coord, store, self.clock, lambda: f"u{next(self.numbers)}", logger),
            lambda writer: holder[0].applied(writer),  # noqa: PLW0108 - made in the next step
        )
        mirrors = Mirrors(
            Asker(self.wire, view), self.clock, logger, lambda: f"{next(self.numbers):012d}"
        )
        no_trainer: Any = None
        no_streams: Any = None
        node = Node(ports, committer, no_trainer, view, policy=POLICY, mirrors=mirrors)
        holder.append(node)
        spread = Spread(self.wire, self.clock, view)
        service = ShardService(
            ServicePorts(ports.claimant, self.clock, self.threads[0], spread, streams=no_streams),
            node,
            no_trainer,
        )
        running = asyncio.get_running_loop().create_task(node.run())
        process = self.processes[boot] = Process(node, service, boot, running)
        info = NodeInfo(node_id, boot, boot)
        await self.coord.txn([], [Put(keys.node(node_id, boot), encode_node(info))])
        return process

    async def kill(self, process: Process) -> None:
        """End a process at once."""
        del self.processes[process.address]
        claimant = process.node._ports.claimant
        await self.coord.txn([], [Delete(keys.node(claimant.node_id, claimant.boot_id))])
        process.running.cancel()
        await asyncio.wait([process.running])

    def primary(self, shard_id: ShardId) -> Primary | None:
        """Return the serving primary of a shard, if there is one."""
        for process in self.processes.values():
            copy = process.node.copies.get(shard_id)
            if isinstance(copy, Primary) and copy.phase is Phase.SERVING:
                return copy
        return None

    def service(self, shard_id: ShardId) -> ShardService:
        """Return the service of the node that has the primary of a shard."""
        for process in self.processes.values():
            if isinstance(process.node.copies.get(shard_id), Primary):
                return process.service
        raise UnavailableError("no primary", reason="TRANSPORT")

    async def serving(self, shard_id: ShardId) -> Primary:
        """Return the primary of a shard, once it serves."""
        await until(lambda: self.primary(shard_id) is not None)
        primary = self.primary(shard_id)
        assert primary is not None, "it serves"
        return primary

    async def brought_over(
        self,
        *children: ShardId,
        source: ShardId = S,
        unless: Callable[[], bool] = lambda: False,
    ) -> None:
        """Wait until pending shards have all of a source; raise if something happens before."""

        def level() -> bool:
            of_source = self.primary(source)
            return of_source is not None and all(
                (child := self.primary(one)) is not None
                and child.state.sources.get(source, 0) == of_source.state.position
                for one in children or (LOW, HIGH)
            )

        await until(lambda: level() or unless())
        if unless():
            raise UnavailableError("something has happened", reason="TRANSPORT")

    async def hold(self, shard_id: ShardId, hold_ms: int = 1000) -> pb.HoldResponse:
        """Hold writes back, as the driver does: again and again until it succeeds."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    request = pb.HoldRequest(shard_id=shard_id, hold_ms=hold_ms)
                    return await self.service(shard_id).Hold(request, CALLER)
                except FacegridError:
                    await self.clock.sleep(0)

    async def raise_generation(self, shard_id: ShardId) -> None:
        """Take the right to commit from whoever is the primary, as a cutover does."""
        item = await self.coord.get(keys.generation(shard_id))
        assert item is not None, "it was claimed"
        claim = GenerationClaim(decode_generation(item.value).generation + 1, NodeId("-"), "-")
        await self.coord.txn([], [Put(keys.generation(shard_id), encode_generation(claim))])


@asynccontextmanager
async def rigged(
    coord: MemoryCoordinator | None = None,
    store: MemoryBlobStore | None = None,
    *,
    shard_map: ShardMap | None = None,
    say: bool = True,
) -> AsyncIterator[Rig]:
    """A rig whose map is that of a gallery of one shard; or the one that etcd has."""
    coord = coord or MemoryCoordinator(SystemClock())
    with ThreadPoolExecutor(1) as search, ThreadPoolExecutor(1) as build:
        rig = Rig(coord, store or MemoryBlobStore(), (search, build))
        if say:
            await rig.say(shard_map or whole_map())
        yield rig
        for process in [*rig.processes.values()]:
            await rig.kill(process)
