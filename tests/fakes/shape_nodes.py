"""Nodes as the driver sees them, and drivers, in the world of `tests.fakes.shape_world`."""

import asyncio
import hashlib
from collections.abc import Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from typing_extensions import override

from facegrid.api.shard.v1 import shard_service_pb2 as shard_pb2
from facegrid.coord import keys
from facegrid.errors import UnavailableError
from facegrid.format import digest, records
from facegrid.format.operations import Operation
from facegrid.ids import NodeId, ShardId
from facegrid.model import ShardAssignment
from facegrid.telemetry.log import get_logger
from router.dispatch.latencies import Latencies
from router.dispatch.lifecycle import Lifecycle
from router.dispatch.supervisor import Supervisor, _kept
from router.operate.driver import Driver
from router.operate.election import Election
from router.operate.nodes import CopyTold, Found, Nodes
from router.operate.parts import Operate
from router.operate.performer import Performer
from router.operate.planner import Planner
from router.operate.rebalancing import Rebalancing
from router.operate.register import Register
from router.plan.decision import CopySeen
from router.topology.snapshot import Topology, assemble
from tests.fakes.shape_world import Copy, Key, World


class StillWatcher:
    """Knows what etcd has at this moment."""

    reachable = True

    def __init__(self, world: World) -> None:
        self._world = world

    @property
    def topology(self) -> Topology:
        """Return the topology of now."""
        items = [
            item
            for item in self._world.coord._items.values()
            if item.key.startswith((keys.GALLERIES, keys.MAPS, keys.NODES, keys.GENERATIONS))
        ]
        return assemble(items, addresses={}).topology


class WorldNodes(Nodes):
    """What `router.operate.nodes.Nodes` is for real nodes."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.lacking: set[str] = set()

    @override
    async def copies(self, node_ids: Collection[NodeId]) -> Mapping[Key, CopySeen]:
        return {
            key: CopySeen(
                serving=True,
                primary=bool(copy.claim),
                confirmed=copy.position == self._world.stored_position.get(key[1], 0),
                position=copy.position,
                map_version=copy.map_version,
                generation=records.decode_generation(copy.claim).generation if copy.claim else 0,
                sources=dict(copy.sources),
            )
            for key, copy in self._world.copies.items()
            if key[0] in node_ids and key[0] not in self._world.dead
        }

    @override
    async def told(self, copies: Sequence[Key]) -> Mapping[Key, CopyTold]:
        for key in copies:
            self._world.replicate(key)
        await self._world.interrupted()
        return {key: self._told(key) for key in copies}

    def _told(self, key: Key) -> CopyTold:
        copy = self._copy(*key)
        return CopyTold(
            position=copy.position,
            digest=digest_of(copy.rows, wrong=key[1] in self._world.wrong),
            templates_count=len(copy.rows),
            codebook="",
            sources=dict(copy.sources),
        )

    @override
    async def sample(self, shard: ShardAssignment, *, seed: int) -> np.ndarray:
        rows = self._copy(shard.primary, shard.shard_id).rows
        return np.ones((min(len(rows), 2), 8), np.float32)

    @override
    async def search(
        self,
        gallery: str,
        node_id: NodeId,
        shard_id: ShardId,
        probes: np.ndarray,
        *,
        map_version: int,
        timeout_s: float = 2.0,
    ) -> Found:
        await self._world.interrupted()
        copy = self._copy(node_id, shard_id)
        rows = [(subject, "t", 1.0 / value) for subject, value in copy.rows.items()]
        if shard_id in self._world.worse:
            rows = rows[1:]
        ordered = tuple(sorted(rows, key=lambda row: (-row[2], row[0])))
        return Found(copy.position, tuple(ordered for _ in probes))

    @override
    async def hold(
        self, shard: ShardAssignment, *, hold_ms: int, timeout_s: float
    ) -> shard_pb2.HoldResponse:
        copy = self._copy(shard.primary, shard.shard_id)
        now_s = self._world.clock.now_s()
        copy.held_until_s = now_s + hold_ms / 1000
        if not hold_ms:
            return shard_pb2.HoldResponse()
        if not copy.claim:
            raise UnavailableError("it does not lead the shard", reason="NOT_PRIMARY_YET")
        self._world.holds.append(now_s)
        await self._world.fill()
        tip = await self._world.coord.get(keys.tip(shard.shard_id))
        return shard_pb2.HoldResponse(
            position=self._world.stored_position.get(shard.shard_id, 0),
            tip_revision=0 if tip is None else tip.mod_revision,
            claim=copy.claim,
            templates_count=len(copy.rows),
            digest=digest_of(copy.rows),
        )

    @override
    async def release(self, shards: Sequence[ShardAssignment]) -> None:
        for shard in shards:
            copy = self._world.copies.get((shard.primary, shard.shard_id))
            if copy is not None:
                copy.held_until_s = 0.0

    @override
    async def keep_record(
        self, node_id: NodeId, *, gallery: bytes, shard_map: bytes, timeout_s: float
    ) -> None:
        await self._world.interrupted()
        self._world.kept.append(records.decode_shard_map(shard_map))

    def _copy(self, node_id: NodeId, shard_id: ShardId) -> Copy:
        copy = self._world.copies.get((node_id, shard_id))
        if copy is None or node_id in self._world.dead:
            raise UnavailableError(f"node cannot be reached node={node_id}")
        return copy


def digest_of(rows: Mapping[str, int], *, wrong: bool = False) -> str:
    """Return the digest of rows as nodes tell it."""
    total = int(wrong)
    for subject, value in rows.items():
        hashed = hashlib.blake2b(f"{subject}={value}".encode(), digest_size=16).digest()
        total = digest.add(total, int.from_bytes(hashed, "little"))
    return digest.to_bytes(total).hex()


class NoStatuses(Lifecycle):
    """A lifecycle of which nobody asks anything."""

    def __init__(self) -> None:
        """Need nothing."""

    @override
    async def statuses(self, node_ids: Collection[NodeId], *, deadline_s: float) -> dict:
        return {}


class InlineSupervisor(Supervisor):
    """Supervises without being run."""

    @override
    def start(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.ensure_future(_kept(work))


class DriverOf:
    """A router's driver in a world; `look` is one turn of it, with its lease kept alive."""

    def __init__(self, world: World, name: str = "r1") -> None:
        logger = get_logger("driver")
        watcher, clock, coord = StillWatcher(world), world.clock, world.coord
        register = Register(coord, clock, logger)
        lifecycle = NoStatuses()
        planner = Planner(coord, register, watcher, lifecycle=lifecycle, clock=clock)
        self.latencies = Latencies(clock)
        rebalancing = Rebalancing(watcher, lifecycle, register, pool=None, clock=clock)
        self.election = Election(coord, name, clock, logger)
        self.nodes = WorldNodes(world)
        self.performer = Performer(
            coord,
            watcher,
            self.nodes,
            clock=clock,
            logger=logger,
            guard=lambda: self.election.guard,
        )
        operate = Operate(
            register,
            planner,
            rebalancing,
            self.latencies,
            lifecycle,
            watcher,
            self.election,
        )
        self.driver = Driver(
            operate,
            self.performer,
            supervisor=InlineSupervisor(),
            clock=clock,
            logger=logger,
        )
        self._world = world

    async def look(self) -> None:
        """Stand for driver, or renew, and look once; time goes on as far as that takes some."""
        await self.election._keep()
        async with asyncio.TaskGroup() as group:
            looking = group.create_task(self.driver.look())
            await self._world.clock.settle()
            while not looking.done():
                await self._world.clock.advance(0.05)

    async def run(self, operation_id: str = "op-1", turns: int = 60) -> Operation:
        """Look, with all nodes following, until an operation is over, or it does not go on."""
        world = self._world
        for _ in range(turns):
            await self.look()
            await world.settle()
            await world.fill()
            world.replicate()
            await world.check()
            await world.clock.advance(1.0)
            if (await world.operation(operation_id)).state.over:
                break
        return await world.operation(operation_id)


@contextmanager
def losing_answers(world: World, count: int) -> Iterator[None]:
    """Lose the answers of the next transactions."""
    world.coord.lost_answers = count
    try:
        yield
    finally:
        world.coord.lost_answers = 0
