"""Splits and merges while a run goes on: operations, those who drive them, and what stays."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from facegrid.coord import keys
from facegrid.errors import FacegridError
from facegrid.format.operations import Operation, OperationKind, OperationState
from facegrid.format.records import decode_shard_map
from facegrid.ids import NodeId
from facegrid.model import HashRange, ShardAssignment, ShardMap
from router.operate.register import Action, Register
from router.plan import kinds
from router.plan.reshape import middle
from tests.sim.client import Client, subjects_of
from tests.sim.driver import DriverProcess, driver_logger
from tests.sim.loop import Actor
from tests.sim.process import Shared
from tests.sim.services import SimCoordinator
from tests.sim.truth import Truth
from tests.sim.world import Link, SimClock

SHARDS_MAX = 4
DRIVERS_MAX = 2
ABORTED_SHARE = 0.1
PAUSED_SHARE = 0.1
SLOW_SHARE = 0.3
"""Share of the runs in which the driver's transactions are so slow that holds end before them,
and nothing else goes wrong."""
SLOW_S = 1.6
LATE_SHARE = 0.5
"""Share of the runs in which routers hear late that shards were replaced."""
LATE_S = 3.0
LOOK_S = 0.02
ETCD_S = 2.0
END_S = 60.0
"""After faults heal all operations come to their ends within this time."""
CLEARED_S = 20.0
"""Within this time nothing is left of shards that were replaced or given up."""


class Reshapes:
    """Begins operations, and lets drivers drive, die and go on.

    Args:
        shared: what all processes reach.
        truth: knows the map.
        nodes: the nodes that there are.
    """

    def __init__(self, shared: Shared, truth: Truth, nodes: list[str]) -> None:
        self._shared = shared
        self._world = shared.world
        self._truth = truth
        self._nodes = nodes
        self._drivers: list[DriverProcess] = []
        self._driver_count = 0
        self._begun_count = 0
        self.slow = self._world.chance(SLOW_SHARE)
        actor = Actor("operator")
        coord: Any = SimCoordinator(shared.etcd, Link(self._world, "etcd", actor))
        self._clock = SimClock(self._world)
        self._coord = coord
        self._register = Register(coord, self._clock, driver_logger(self._world, actor.name))

    async def run(self, until_s: float) -> None:
        """Begin operations until a time."""
        rng, loop = self._world.rng, self._world.loop
        # Some runs have drivers that are left in peace, so that operations get far.
        dying = rng.choice((0.0, 0.0, 0.1, 0.3))
        while loop.now_s < until_s:
            self._drivers = [one for one in self._drivers if not one.actor.dead]
            if len(self._drivers) < rng.choice((1, 1, DRIVERS_MAX)):
                self._drive()
            if rng.random() < dying:
                self._trouble(rng.choice(self._drivers) if self._drivers else None)
            try:
                await self._operate()
            except FacegridError as error:
                self._world.note("operator", "not done", error.reason)
            await self._wait(rng.random())

    async def keep_routers_behind(self, clients: Sequence[Client], until_s: float) -> None:
        """In some runs cut routers off from etcd right after shards were replaced: they go on
        searching those, while others erase in the new ones.
        """
        rng, loop, count = self._world.rng, self._world.loop, 0
        if rng.random() > LATE_SHARE:
            return
        while loop.now_s < until_s:
            await self._wait(LOOK_S)
            before, count = count, self._world.counts.get("shapes changed", 0)
            for client in clients if count > before else ():
                if rng.random() < 0.5:
                    link = client.etcd_link
                    link.cut = True
                    loop.in_world(rng.random() * LATE_S, link.mend)

    async def finish(self) -> None:
        """With nothing going wrong any more every operation ends, and leaves nothing behind."""
        for driver in self._drivers:
            driver.crash()
        self.slow = False
        self._drive()
        ends_s = self._world.loop.now_s + END_S
        while open_ones := await self._open():
            self._world.require(
                self._world.loop.now_s < ends_s, "an operation does not come to its end", open_ones
            )
            for one in open_ones:
                if one.state is OperationState.PAUSED:
                    await self._change(one, Action.RESUME)
            await self._wait(0.2)
        for one in await self._operations():
            self._world.count(f"{_kind(one.kind)}s {one.state.name.lower()}")
        locks = self._shared.etcd.snapshot(keys.OPERATION_LOCKS).items
        self._world.require(not locks, "an operation that is over has locks", locks)
        shard_map = self._truth.shard_map
        assert shard_map is not None, "the gallery is there"
        self._world.require(not shard_map.pending, "a pending shard stays", shard_map.pending)
        self._nothing_is_lost(shard_map)
        await self._cleared()

    def _nothing_is_lost(self, shard_map: ShardMap) -> None:
        """Checker 1, by what clients remember: what was acknowledged is in the one shard of the
        map that has its key, unless somebody asked for its erasure since.
        """
        truth = self._truth
        live = {key for shard in shard_map.shards for key in truth.shard(shard.shard_id).live}
        lost = [
            key
            for key, since_s in truth.wanted.items()
            if key not in live and max(truth.unwanted.get(name, 0.0) for name in key) < since_s
        ]
        self._world.require(not lost, "an acknowledged enrolment is lost", lost)

    async def _cleared(self) -> None:
        """Nothing stays of shards that the map had, and has no more, but their journals."""
        ends_s = self._world.loop.now_s + CLEARED_S
        while left := self._left():
            self._world.require(
                self._world.loop.now_s < ends_s, "something of a replaced shard stays", left
            )
            await self._wait(0.2)
        for shard_id in self._truth.retired():
            self._truth.journal_is_closed(shard_id)
            self._world.count("shards deleted")

    def _left(self) -> list[str]:
        processes = self._shared.processes.values()
        living = {process.name for process in processes if not process.actor.dead}
        return self._truth.left_of_the_retired(self._shared.etcd.snapshot("").items, living)

    # What the operator does

    async def _operate(self) -> None:
        """Begin an operation, or do something with those that there are."""
        rng, found = self._world.rng, await self._open()
        for one in found:
            if one.state is OperationState.PAUSED:
                await self._change(one, Action.RESUME)
            elif rng.random() < 0.2:
                draw = rng.random()
                if draw < ABORTED_SHARE:
                    await self._change(one, Action.ABORT)
                elif draw < ABORTED_SHARE + PAUSED_SHARE:
                    await self._change(one, Action.PAUSE)
        if len(found) < rng.choice((1, 1, 2)):
            await self._begin()

    async def _change(self, operation: Operation, action: Action) -> None:
        try:
            await self._register.change(
                operation.operation_id, action, deadline_s=self._deadline_s()
            )
        except FacegridError as error:
            self._world.note("operator", "refused", error.reason)
        else:
            self._world.count(f"operations told {action.name.lower()}")

    async def _begin(self) -> None:
        """Record an operation, as the planner does."""
        item = await self._coord.get(keys.shard_map("g"), timeout_s=ETCD_S)
        locks = await self._register.locks(deadline_s=self._deadline_s())
        if item is None:
            return
        shard_map = decode_shard_map(item.value)
        kind = self._kind(shard_map, locks)
        self._begun_count += 1
        now_ms = self._clock.unix_ms()
        operation = Operation(
            operation_id=f"op-{self._begun_count:04d}",
            gallery=shard_map.gallery,
            gallery_uid=shard_map.gallery_uid,
            kind=kind,
            state=OperationState.RUNNING,
            step=kinds.steps_of(kind)[0],
            created_unix_ms=now_ms,
            step_unix_ms=now_ms,
            former_node_ids=kinds.former_nodes(shard_map, kind),
        )
        if await self._register.begin(
            operation, map_revision=item.mod_revision, deadline_s=self._deadline_s()
        ):
            self._world.note("operator", "begins", operation)

    def _kind(self, shard_map: ShardMap, locks: Any) -> OperationKind:
        """Choose what to do: rather split where there are few shards, rather merge where many."""
        rng, shards = self._world.rng, shard_map.shards
        if rng.random() < 0.15:
            count = rng.randrange(min(2, len(self._nodes)), len(self._nodes) + 1)
            wanted = tuple(map(NodeId, rng.sample(self._nodes, count)))
            shard_id = rng.choice(shards).shard_id
            return kinds.replicas(shard_map, shard_id, wanted, registered=self._nodes)
        large = [shard for shard in shards if all(map(subjects_of, halves_of(shard)))]
        if len(shards) == 1 or (large and rng.random() > len(shards) / SHARDS_MAX):
            return kinds.split(shard_map, rng.choice(large or shards).shard_id, taken=locks)
        first = rng.randrange(len(shards) - 1)
        ids = [shard.shard_id for shard in shards[first : first + rng.choice((2, 2, 3))]]
        return kinds.merge(shard_map, ids, taken=locks)

    async def _operations(self) -> list[Operation]:
        found = await self._register.operations(deadline_s=self._deadline_s())
        return [one.operation for one in found]

    async def _open(self) -> list[Operation]:
        """Return the operations that are not over."""
        return [one for one in await self._operations() if not one.state.over]

    # Who drives

    def _drive(self) -> None:
        self._driver_count += 1
        driver = DriverProcess(self._shared, f"driver-{self._driver_count}")
        driver.links["etcd"].slow_s = SLOW_S if self.slow else 0.0
        self._drivers.append(driver)

    def _trouble(self, driver: DriverProcess | None) -> None:
        """Let a driver die in the middle of something, stand still, or be cut off."""
        if driver is None:
            return
        rng = self._world.rng
        match rng.choice(("death", "pause", "cut")):
            case "death":
                driver.actor.fuse = rng.randrange(1, 200)
            case "pause":
                driver.stall()
            case _:
                link = driver.links[rng.choice(("etcd", "net"))]
                link.cut = True
                self._world.loop.in_world(rng.random() * 8, link.mend)

    def _deadline_s(self) -> float:
        return self._clock.now_s() + ETCD_S

    async def _wait(self, duration_s: float) -> None:
        future = self._world.loop.create_future()
        self._world.loop.in_world(duration_s, future.set_result, None)
        await future


def halves_of(shard: ShardAssignment) -> list[ShardAssignment]:
    """Return what a split would make of a shard, as far as ranges go."""
    at, whole = middle(shard.range), shard.range
    ranges = HashRange(whole.first, at - 1), HashRange(at, whole.last)
    return [replace(shard, range=one) for one in ranges]


def _kind(kind: OperationKind) -> str:
    return type(kind).__name__.lower().removesuffix("s")
