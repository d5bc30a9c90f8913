"""A node in memory: ShardService by brute force on a real gRPC server, for tests of routers.

It registers itself, follows the maps, opens, claims and closes shards like a real node, and
scores with `facegrid.vectors` as everybody does. Nothing is durable, every node of a shard has
rows of its own (there is no replication), and tests may make it refuse, fail or hold calls, or be
cut off from etcd: then it hears of no maps, confirms nothing by itself and takes no writes.
"""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

import grpc.aio
import numpy as np
from typing_extensions import override

from facegrid.api.shard.v1 import shard_service_pb2 as pb
from facegrid.api.shard.v1.shard_service_pb2_grpc import (
    ShardServiceServicer,
    add_ShardServiceServicer_to_server,
)
from facegrid.clock import Clock
from facegrid.coord import keys
from facegrid.coord.port import Changed, Coordinator, Delete, Listing, Progress, Put
from facegrid.errors import (
    CorruptError,
    FacegridError,
    FencedError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from facegrid.format import records
from facegrid.ids import NodeId, ShardId
from facegrid.model import HashRange, NodeInfo
from facegrid.rpc.server import RpcServer
from facegrid.telemetry.log import get_logger
from facegrid.testing.fake_rows import FakeShard, found_in, new_rows
from facegrid.testing.fake_tuning import tune_recorded
from facegrid.tuning_messages import to_tuning_message
from facegrid.wire import from_wire_vectors

CODEBOOK: Final = "c0de" * 16
"""What training always results in."""

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(slots=True)
class Mischief:
    """What a test makes a node do.

    Attributes:
        refuse: shards that Search refuses, with the reason.
        fail: raised by every call of these methods.
        hold: methods whose calls wait until the event is set.
        shift: shards whose range Search tells wrongly.
        cut_off: the node does not reach etcd.
        unasked: Search answers unconfirmed where that was not wanted.
    """

    refuse: dict[str, str] = field(default_factory=dict)
    fail: dict[str, FacegridError] = field(default_factory=dict)
    hold: dict[str, asyncio.Event] = field(default_factory=dict)
    shift: set[str] = field(default_factory=set)
    cut_off: bool = False
    unasked: bool = False


class FakeNode(ShardServiceServicer):
    """One node. Use as an async context manager, which starts and stops it.

    Args:
        node_id: its name.
        coordinator: where maps come from and where it registers.
        clock: of its server.
    """

    def __init__(self, node_id: str, coordinator: Coordinator, clock: Clock) -> None:
        self.node_id = NodeId(node_id)
        self.address = ""
        self.shards: dict[str, FakeShard] = {}
        self.mischief = Mischief()
        self.memory = (0, 0)
        """Bytes that each shard takes, and bytes that the node has left."""
        self.searches: list[pb.SearchRequest] = []
        self.trusts: list[pb.Trust] = []
        self.calls: list[str] = []
        self.answered: list[str] = []
        self.map_versions: dict[str, int] = {}
        self._coordinator = coordinator
        self._clock = clock
        self._boots = 0
        self._tasks: asyncio.TaskGroup | None = None
        self._following: list[asyncio.Task[None]] = []
        self._rpc: RpcServer | None = None

    async def __aenter__(self) -> "FakeNode":
        self._tasks = await asyncio.TaskGroup().__aenter__()
        await self.listen("127.0.0.1:0")
        self._following = [
            self._tasks.create_task(self._follow_galleries()),
            self._tasks.create_task(self._follow_maps()),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._following:
            task.cancel()
        if self._tasks is not None:
            await self._tasks.__aexit__(None, None, None)
        await self.crash()

    async def listen(self, address: str) -> None:
        """Serve at an address and register."""
        self._rpc = RpcServer(self._clock, get_logger("fake"), dev=False)
        add_ShardServiceServicer_to_server(self, self._rpc.server)
        port = await self._rpc.start(address)
        self.address = f"127.0.0.1:{port}"
        self._boots += 1
        await self.register()

    @property
    def boot_id(self) -> str:
        """The present start of the process."""
        return f"{self.node_id}-boot{self._boots}"

    async def advertise(self, address: str) -> None:
        """Register another address, for instance of a proxy in front of this node."""
        self.address = address
        await self.register()

    async def register(self) -> None:
        """Put this node's key."""
        node = NodeInfo(self.node_id, self.boot_id, self.address, version="fake")
        key = keys.node(self.node_id, node.boot_id)
        await self._coordinator.txn([], [Put(key, records.encode_node(node))])

    async def unregister(self) -> None:
        """Delete this node's key, as when its lease runs out."""
        key = keys.node(self.node_id, self.boot_id)
        await self._coordinator.txn([], [Delete(key)])

    async def crash(self) -> None:
        """Stop listening at once; rows and registration stay."""
        if self._rpc is not None:
            await self._rpc.stop(0)

    @override
    async def Append(self, request: pb.AppendRequest, context: Context) -> pb.AppendResponse:
        shard = await self._begin_write("Append", request.shard_id)
        known = shard.answers.get(request.request_id)
        if isinstance(known, pb.AppendResponse):
            if shard.asked[request.request_id] != request.rows:
                raise InvalidError("the id was used before", reason="REQUEST_ID_REUSED")
            return known
        new = new_rows(shard, request.rows)
        shard.rows.update(new)
        shard.position += 1
        answer = pb.AppendResponse(
            position=shard.position,
            enrolled_count=len(new),
            unchanged_count=len(request.rows.subject_ids) - len(new),
        )
        shard.answers[request.request_id] = answer
        shard.asked[request.request_id] = request.rows
        return answer

    @override
    async def CheckIds(self, request: pb.CheckIdsRequest, context: Context) -> pb.CheckIdsResponse:
        shard = await self._begin_write("CheckIds", request.shard_id)
        if len(request.subject_ids) != len(request.template_ids):
            raise InvalidError("numbers of ids differ", reason="ROWS_MISMATCH")
        names = zip(request.subject_ids, request.template_ids, strict=True)
        known = request.request_id in shard.answers or any(name in shard.rows for name in names)
        return pb.CheckIdsResponse(vectors_decide=known)

    @override
    async def Check(self, request: pb.AppendRequest, context: Context) -> pb.CheckResponse:
        shard = await self._begin_write("Check", request.shard_id)
        if shard.asked.get(request.request_id, request.rows) != request.rows:
            raise InvalidError("the id was used before", reason="REQUEST_ID_REUSED")
        new_rows(shard, request.rows)
        return pb.CheckResponse()

    @override
    async def Erase(self, request: pb.EraseRequest, context: Context) -> pb.EraseResponse:
        shard = await self._begin_write("Erase", request.shard_id)
        gone = [
            name
            for name in shard.rows
            if name[0] in request.subject_ids or name[1] in request.template_ids
        ]
        for name in gone:
            del shard.rows[name]
        shard.position += 1
        return pb.EraseResponse(position=shard.position, erased_templates_count=len(gone))

    @override
    async def Search(self, request: pb.SearchRequest, context: Context) -> pb.SearchResponse:
        return await self._search(request)

    @override
    async def SearchStream(  # type: ignore[override]  # it owns tasks, so it writes
        self, request_iterator: AsyncIterator[pb.SearchStreamRequest], context: Context
    ) -> None:
        assert self._rpc is not None, "it is served"
        await self._rpc.streams.serve(
            request_iterator,
            context,
            method="Search",
            frame=pb.SearchStreamResponse,
            handle=lambda request, _: self._search(request),
        )

    async def _search(self, request: pb.SearchRequest) -> pb.SearchResponse:
        self.searches.append(request)
        await self._begin("Search")
        response = pb.SearchResponse()
        searched: list[FakeShard] = []
        for item in request.shards:
            shard = self.shards.get(item.shard_id)
            reason = self.mischief.refuse.get(item.shard_id, "")
            unconfirmed = shard is None or self._is_unconfirmed(shard, item.trust)
            accepted = item.trust.unconfirmed_accepted or self.mischief.unasked
            if unconfirmed and not accepted:
                reason = reason or "UNCONFIRMED"
            if shard is None or reason:
                reason = "SHARD_NOT_HERE" if shard is None else reason
                response.refused.add(
                    shard_id=item.shard_id,
                    reason=reason,
                    map_version=self.map_versions.get(request.gallery, 0),
                )
                continue
            response.searched.add(
                shard_id=item.shard_id,
                first=shard.range.first,
                last=shard.range.last - (item.shard_id in self.mischief.shift),
                position=shard.position,
                generation=shard.generation,
                unconfirmed=unconfirmed,
            )
            searched.append(shard)
        if not searched:
            return response
        x = from_wire_vectors(request.probes, dim=request.probes.dim)
        found = found_in(x, searched, request.k, request.threshold)
        response.counts.extend(len(rows) for rows in found)
        flat = [row for rows in found for row in rows]
        response.scores = np.array([row[0] for row in flat], "<f4").tobytes()
        response.subject_ids.extend(row[1][0] for row in flat)
        response.template_ids.extend(row[1][1] for row in flat)
        self.answered.append("Search")
        return response

    @override
    async def Load(self, request: pb.LoadRequest, context: Context) -> pb.LoadResponse:
        """Counts what the segments are said to hold; nothing is fetched."""
        shard = await self._begin("Load", request.shard_id)
        shard.position += 1
        rows_count = sum(segment.rows_count for segment in request.segments)
        return pb.LoadResponse(position=shard.position, enrolled_count=rows_count)

    @override
    async def Compare(self, request: pb.CompareRequest, context: Context) -> pb.CompareResponse:
        shard = await self._begin("Compare", request.shard_id)
        unconfirmed = self._checked_unconfirmed(shard, request.trust)
        x = from_wire_vectors(request.probe, dim=shard.dim)
        mine = FakeShard(shard.gallery, shard.range, shard.dim)
        mine.rows = {
            name: codes for name, codes in shard.rows.items() if name[0] == request.subject_id
        }
        best = found_in(x, [mine], 1, -2.0)[0]
        if not best:
            unknown = NotFoundError("there is no such subject", reason="SUBJECT_UNKNOWN")
            if unconfirmed:
                unknown.facts["unconfirmed"] = "true"
            raise unknown
        return pb.CompareResponse(
            score=best[0][0], template_id=best[0][1][1], unconfirmed=unconfirmed
        )

    @override
    async def Get(self, request: pb.GetRequest, context: Context) -> pb.GetResponse:
        shard = await self._begin("Get", request.shard_id)
        unconfirmed = self._checked_unconfirmed(shard, request.trust)
        names = [
            name
            for name in shard.rows
            if name[1] == request.template_id and request.subject_id in ("", name[0])
        ]
        rows = pb.StoredRows(
            subject_ids=[name[0] for name in names],
            template_ids=[name[1] for name in names],
            codes=b"".join(shard.rows[name].tobytes() for name in names),
            dim=shard.dim,
        )
        self.answered.append("Get")
        return pb.GetResponse(rows=rows, unconfirmed=unconfirmed)

    @override
    async def Train(self, request: pb.TrainRequest, context: Context) -> pb.TrainResponse:
        await self._begin("Train")
        found = await self._coordinator.get(f"{keys.GALLERIES}{request.gallery}")
        assert found is not None, "only galleries that exist are trained"
        gallery = dataclasses.replace(records.decode_gallery(found.value), codebook=CODEBOOK)
        await self._coordinator.txn([], [Put(found.key, records.encode_gallery(gallery))])
        return pb.TrainResponse(codebook=CODEBOOK, sample_count=7)

    @override
    async def Tune(self, request: pb.TuneRequest, context: Context) -> pb.TuneResponse:
        await self._begin("Tune")
        tuning = await tune_recorded(
            self._coordinator, request.gallery, mates_count_max=request.mates_count_max
        )
        return pb.TuneResponse(tuning=to_tuning_message(tuning))

    @override
    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusResponse:
        await self._begin("Status")
        return pb.StatusResponse(
            node_id=self.node_id,
            boot_id=self.boot_id,
            version="fake",
            memory_bytes=1,
            memory_available_bytes=self.memory[1],
            shards=[
                pb.ShardStatus(
                    shard_id=shard_id,
                    gallery=shard.gallery,
                    state=pb.SHARD_STATE_SERVING,
                    role=pb.SHARD_ROLE_PRIMARY if shard.generation else pb.SHARD_ROLE_FOLLOWER,
                    position=shard.position,
                    templates_count=len(shard.rows),
                    codebook=shard.codebook,
                    memory_bytes=self.memory[0],
                )
                for shard_id, shard in sorted(self.shards.items())
            ],
        )

    async def _begin(self, method: str, shard_id: str = "") -> FakeShard:
        """Do the mischief asked for; return the shard."""
        self.calls.append(method)
        if method in self.mischief.hold:
            await self.mischief.hold[method].wait()
        if method in self.mischief.fail:
            raise self.mischief.fail[method]
        if not shard_id:
            return FakeShard("", HashRange(0, 0), 0)
        if shard_id not in self.shards:
            raise NotFoundError(
                "this node does not hold the shard",
                reason="SHARD_NOT_HERE",
                map_version=self.map_versions.get(shard_id.partition(".")[0], 0),
            )
        return self.shards[shard_id]

    async def _begin_write(self, method: str, shard_id: str) -> FakeShard:
        """Return a shard that the node may write."""
        shard = await self._begin(method, shard_id)
        if not shard.generation:
            raise FencedError("this node follows the shard", reason="NOT_PRIMARY")
        if self.mischief.cut_off:
            raise UnavailableError("etcd cannot be reached", reason="COORDINATOR_UNREACHABLE")
        return shard

    def _is_unconfirmed(self, shard: FakeShard, trust: pb.Trust) -> bool:
        """Tell whether neither etcd nor the asker confirms that nothing is missing here."""
        vouched = bool(shard.generation) and trust.primary_boot_id == self.boot_id
        self.trusts.append(trust)
        return self.mischief.cut_off and not vouched

    def _checked_unconfirmed(self, shard: FakeShard, trust: pb.Trust) -> bool:
        unconfirmed = self._is_unconfirmed(shard, trust)
        if unconfirmed and not trust.unconfirmed_accepted:
            raise UnavailableError("the node may be behind", reason="UNCONFIRMED")
        return unconfirmed

    async def _follow_galleries(self) -> None:
        async for event in self._coordinator.watch(keys.GALLERIES):
            items = event.snapshot.items if isinstance(event, Listing) else ()
            if isinstance(event, Changed) and event.item is not None:
                items = (event.item,)
            for item in items:
                try:
                    gallery = records.decode_gallery(item.value)
                except CorruptError:
                    continue
                for shard in self.shards.values():
                    if shard.gallery == gallery.name:
                        shard.codebook = gallery.codebook

    async def _follow_maps(self) -> None:
        async for event in self._coordinator.watch(keys.MAPS):
            if self.mischief.cut_off:
                continue
            match event:
                case Listing(snapshot):
                    for item in snapshot.items:
                        await self._open(item.value)
                case Changed(item=item) if item is not None:
                    await self._open(item.value)
                case Changed(key=key):
                    name = keys.name_of(key, keys.MAPS)
                    self.map_versions.pop(name, None)
                    self.shards = {
                        shard_id: shard
                        for shard_id, shard in self.shards.items()
                        if shard.gallery != name
                    }
                case Progress():
                    pass

    async def _open(self, value: bytes) -> None:
        try:
            shard_map = records.decode_shard_map(value)
        except CorruptError:
            return
        found = await self._coordinator.get(keys.gallery(shard_map.gallery))
        if found is None:
            return
        gallery = records.decode_gallery(found.value)
        mine = {item.shard_id for item in shard_map.shards if self.node_id in item.node_ids}
        self.shards = {
            shard_id: shard
            for shard_id, shard in self.shards.items()
            if shard.gallery != shard_map.gallery or shard_id in mine
        }
        for item in shard_map.shards:
            if self.node_id not in item.node_ids:
                continue
            shard = self.shards.setdefault(
                item.shard_id,
                FakeShard(shard_map.gallery, item.range, gallery.dim, gallery.component_bits),
            )
            if item.primary != self.node_id:
                shard.generation = 0
            elif not shard.generation:
                shard.generation = await self._claim(item.shard_id)
        self.map_versions[shard_map.gallery] = shard_map.version

    async def _claim(self, shard_id: ShardId) -> int:
        """Raise a shard's generation in the name of this process; return it."""
        key = keys.generation(shard_id)
        held = await self._coordinator.get(key)
        generation = 1 if held is None else records.decode_generation(held.value).generation + 1
        claim = records.GenerationClaim(generation, self.node_id, self.boot_id)
        await self._coordinator.txn([], [Put(key, records.encode_generation(claim))])
        return generation
