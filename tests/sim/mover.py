"""Whoever changes where copies are: one map after the other, as RFC 0009 has it.

What comes next follows from the map and from what the nodes say, so a mover may die at any moment
and another go on, and two may be at it at once.
"""

from contextvars import copy_context
from dataclasses import dataclass, replace
from typing import Any

from facegrid.api.shard.v1 import shard_service_pb2 as pb
from facegrid.coord import keys
from facegrid.coord.port import Guard, KeyValue, Put
from facegrid.errors import FacegridError
from facegrid.format.records import (
    GenerationClaim,
    decode_generation,
    decode_node,
    decode_shard_map,
    encode_shard_map,
)
from facegrid.ids import NodeId, ShardId
from facegrid.model import NodeInfo, ShardAssignment, ShardMap
from tests.sim.loop import ACTOR, Actor
from tests.sim.process import Shared, ask
from tests.sim.services import SimCoordinator
from tests.sim.world import Link

LOOK_S = 0.1
LEAVE_S = 0.5
"""How long routers get to hear of a map before copies leave."""
TIMEOUT_S = 1.0


@dataclass(eq=False)
class Operation:
    """Where the copies of a shard shall be, primary first, and where they were before."""

    shard_id: ShardId
    wanted: tuple[NodeId, ...]
    former: tuple[NodeId, ...]
    aborting: bool = False
    done: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """What etcd says at one revision."""

    item: KeyValue
    shard_map: ShardMap
    claims: dict[str, GenerationClaim]
    nodes: dict[NodeId, NodeInfo]
    """Of each node the process registered last."""


class Mover:
    """One process that drives an operation."""

    def __init__(self, shared: Shared, name: str, operation: Operation) -> None:
        self.world = shared.world
        self.actor = Actor(name)
        self.actor.on_fuse = self.crash
        self._shared = shared
        self._operation = operation
        self._net = Link(self.world, "net", self.actor)
        link = Link(self.world, "etcd", self.actor, self.crash)
        self._coord: Any = SimCoordinator(shared.etcd, link)
        context = copy_context()
        context.run(ACTOR.set, self.actor)
        main = self.world.loop.create_task(self._run(), context=context)
        main.add_done_callback(self._ended, context=self.world.loop.world_context)

    def crash(self) -> None:
        """Die at once."""
        if not self.actor.dead:
            self.world.note(self.actor.name, "crash")
            self.world.count("movers crashed")
            self.world.loop.kill(self.actor)

    def _ended(self, main: Any) -> None:
        error = main.exception()
        self.world.require(error is None, "a bug ended a mover", repr(error))

    async def _run(self) -> None:
        while not self._operation.done:
            try:
                await self._step()
            except FacegridError as error:
                self.world.note(self.actor.name, "no step", error.reason)
            await self._wait(LOOK_S)

    async def _wait(self, duration_s: float) -> None:
        future = self.world.loop.create_future()
        self.world.loop.in_world(duration_s, future.set_result, None)
        await future

    async def _step(self) -> None:
        """Put the next map, if the present one has come true."""
        seen = await self._look()
        if seen is None:
            return
        shards = seen.shard_map.shards
        before = next(s for s in shards if s.shard_id == self._operation.shard_id)
        step, after = await self._next(before, seen)
        if after is None:
            return
        if after == before:
            self._operation.done = True
            self.world.count("moves aborted" if self._operation.aborting else "moves done")
            return
        following = replace(
            seen.shard_map,
            version=seen.shard_map.version + 1,
            shards=tuple(after if shard == before else shard for shard in shards),
        )
        result = await self._coord.txn(
            [Guard(seen.item.key, seen.item.mod_revision)],
            [Put(seen.item.key, encode_shard_map(following))],
            timeout_s=TIMEOUT_S,
        )
        if result.succeeded:
            self.world.count(f"steps {step}")

    async def _look(self) -> Seen | None:
        """Read everything as of one revision."""
        items = (await self._coord.list("", timeout_s=TIMEOUT_S)).items
        maps = [item for item in items if item.key.startswith(keys.MAPS)]
        if not maps:
            return None
        nodes = sorted(
            (item for item in items if item.key.startswith(keys.NODES)),
            key=lambda item: item.mod_revision,
        )
        return Seen(
            maps[0],
            decode_shard_map(maps[0].value),
            {
                keys.name_of(item.key, keys.GENERATIONS): decode_generation(item.value)
                for item in items
                if item.key.startswith(keys.GENERATIONS)
            },
            {node.node_id: node for node in (decode_node(item.value) for item in nodes)},
        )

    async def _next(
        self, shard: ShardAssignment, seen: Seen
    ) -> tuple[str, ShardAssignment | None]:
        """Return the name of the next step and the shard after it: None while it must wait, and
        unchanged when there is nothing left to do.
        """
        operation = self._operation
        if operation.aborting:
            left = tuple(node for node in shard.node_ids if node in operation.former)
            if left[:1] == (shard.primary,):
                return "abort", replace(shard, node_ids=left, joining=())
        missing = tuple(node for node in operation.wanted if node not in shard.holders)
        if missing:
            return "join", replace(shard, joining=(*shard.joining, *missing))
        if shard.joining:
            ready = await self._level(shard, shard.joining, seen)
            ready = ready and await self._primary_acts(shard, seen)
            served = replace(shard, node_ids=shard.holders, joining=())
            return "serve", served if ready else None
        return await self._after_serving(shard, seen)

    async def _after_serving(
        self, shard: ShardAssignment, seen: Seen
    ) -> tuple[str, ShardAssignment | None]:
        """Return the next step and the shard after it, where all wanted copies serve."""
        operation = self._operation
        first = operation.wanted[0]
        if shard.primary != first:
            ready = await self._level(shard, (first,), seen)
            rest = tuple(node for node in shard.node_ids if node != first)
            return "cutover", replace(shard, node_ids=(first, *rest)) if ready else None
        if shard.node_ids == operation.wanted:
            return "end", shard
        if not await self._primary_acts(shard, seen):
            return "leave", None
        await self._wait(LEAVE_S)
        return "leave", replace(shard, node_ids=operation.wanted)

    async def _level(
        self, shard: ShardAssignment, node_ids: tuple[NodeId, ...], seen: Seen
    ) -> bool:
        """Tell whether copies are confirmed by this map or a later one."""
        for node_id in node_ids:
            node = seen.nodes.get(node_id)
            status = None if node is None else await self._status(shard.shard_id, node.address)
            if status is None or not status.confirmed:
                return False
            if status.map_version < seen.shard_map.version:
                return False
        return True

    async def _primary_acts(self, shard: ShardAssignment, seen: Seen) -> bool:
        """Tell whether the process that claimed the shard last serves, by this map or later."""
        claim = seen.claims.get(shard.shard_id)
        if claim is None or claim.node_id != shard.primary:
            return False
        status = await self._status(shard.shard_id, claim.boot_id)
        return (
            status is not None
            and status.role == pb.SHARD_ROLE_PRIMARY
            and status.state == pb.SHARD_STATE_SERVING
            and status.generation == claim.generation
            and status.map_version >= seen.shard_map.version
        )

    async def _status(self, shard_id: ShardId, address: str) -> pb.ShardStatus | None:
        """Ask a process for its copy of a shard."""
        answer = await ask(
            self._net,
            self._shared,
            address,
            method="Status",
            request=pb.StatusRequest(),
            timeout_s=TIMEOUT_S,
        )
        return next((one for one in answer.shards if one.shard_id == shard_id), None)
