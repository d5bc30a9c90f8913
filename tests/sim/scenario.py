"""One run: a cluster, clients, a nemesis, then peace and the last look. All of it from a seed."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from facegrid import limits
from facegrid.coord import keys
from facegrid.coord.port import Delete, Put
from facegrid.errors import FacegridError, UnavailableError
from facegrid.format.records import Dropped, encode_dropped, encode_gallery, encode_shard_map
from facegrid.ids import KEY_LAST, GalleryName, NodeId, ShardId
from facegrid.model import Gallery, HashRange, ShardAssignment, ShardMap
from facegrid.testing.memory_blob import MemoryBlobStore
from indexd.replica.primary import Primary
from indexd.replica.shard_copy import Phase
from tests.sim.client import DIM, Client
from tests.sim.loop import SimLoop
from tests.sim.process import Process, Shared
from tests.sim.services import SimEtcd, damage
from tests.sim.truth import Truth
from tests.sim.world import Controls, Faults, Violation, World, at_once

CONVERGE_S = 10.0
"""Checker 12: after faults heal, every shard takes writes within this time."""
FLUSH_ROWS = 7
PROCESSES_MAX = 3
"""Processes of one node at a time: the newest, and two that have stood still."""
UID = "1f00aa23"


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a run."""

    seed: int
    digest: str
    counts: dict[str, int]
    trace: list[str]


@contextmanager
def small_limits() -> Iterator[None]:
    """Flush after a few rows, so that short runs flush often."""
    before = limits.FLUSH_ROWS
    limits.FLUSH_ROWS = FLUSH_ROWS
    try:
        yield
    finally:
        limits.FLUSH_ROWS = before


class OuterClock:
    """Time as etcd sees it."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop

    def now_s(self) -> float:
        """Return the loop's time."""
        return self._loop.now_s

    def unix_ms(self) -> int:
        """Return milliseconds."""
        return round(self._loop.now_s * 1000)

    async def sleep(self, duration_s: float) -> None:
        """Nobody sleeps by this clock."""
        raise NotImplementedError


class Scenario:
    """Builds the cluster that the seed says, and plays it."""

    def __init__(self, world: World, *, flips: bool = False) -> None:
        rng = world.rng
        self.world = world
        self.flips = flips
        self.objects = MemoryBlobStore()
        self.truth = Truth(world, self.objects)
        clock: Any = OuterClock(world.loop)
        self.etcd = SimEtcd(clock, self.truth.on_change)
        self.shared = Shared(world, self.etcd, self.objects, self.truth.on_object, self._start, {})
        self.node_ids = [f"n{number}" for number in range(1, rng.choice((2, 2, 3)) + 1)]
        self.shards = self._shards(rng.choice((1, 1, 2)))
        self.boots = dict.fromkeys(self.node_ids, 0)
        self.fault_s = 2.0 + rng.random() * 5.0

    def _shards(self, count: int) -> tuple[ShardAssignment, ...]:
        rng, step = self.world.rng, (KEY_LAST + 1) // count
        replicas = min(len(self.node_ids), rng.choice((1, 2, 2, 3)))
        return tuple(
            ShardAssignment(
                ShardId(f"g.{UID}.{number:04d}"),
                HashRange(
                    number * step, KEY_LAST if number == count - 1 else (number + 1) * step - 1
                ),
                tuple(map(NodeId, rng.sample(self.node_ids, replicas))),
            )
            for number in range(count)
        )

    @property
    def gallery(self) -> Gallery:
        """The one gallery."""
        replicas = len(self.shards[0].node_ids)
        return Gallery(GalleryName("g"), UID, DIM, "x@1", len(self.shards), replicas, 0)

    async def play(self) -> None:
        """Play the run."""
        rng = self.world.rng
        self._txn([], self._keys())
        for node_id in self.node_ids:
            self._start(node_id)
        clients = [
            Client(self.shared, self.truth, self.shards, f"c{number}")
            for number in range(rng.choice((1, 2, 3, 4)))
        ]
        async with asyncio.TaskGroup() as tasks:
            for client in clients:
                tasks.create_task(client.run(self.fault_s, rng.choice((0.02, 0.1, 0.3))))
            tasks.create_task(self._nemesis())
        self._heal()
        last = Client(self.shared, self.truth, self.shards, "last")
        if self.flips:
            await self._everything_served_is_true(last)
            return
        await self._converges(last)
        await self._last_look(last)
        await self._flushes()
        if rng.random() < 0.5:
            await self._recovery_equals_state(last)
        if rng.random() < 0.3:
            await self._drop(last)

    def _keys(self) -> list[Put | Delete]:
        shard_map = ShardMap(self.gallery.name, UID, 1, self.shards)
        return [
            Put(keys.gallery(self.gallery.name), encode_gallery(self.gallery)),
            Put(keys.shard_map(self.gallery.name), encode_shard_map(shard_map)),
        ]

    def _txn(self, guards: list[Any], operations: list[Put | Delete]) -> None:
        self.etcd.origin = ""
        at_once(self.etcd.txn(guards, operations))

    def _start(self, node_id: str) -> Process:
        living = self.shared.living(node_id)
        if len(living) >= PROCESSES_MAX:
            living[0].crash()
        self.boots[node_id] += 1
        return Process(self.shared, node_id, self.boots[node_id])

    # Faults

    def _switch_on_faults(self) -> None:
        """Each kind of fault is in about half of the runs, so that each is sometimes alone."""
        rng = self.world.rng
        for service in self.world.faults:
            if rng.random() < 0.5:
                rate = rng.choice((0.02, 0.1))
                self.world.faults[service] = Faults(
                    lost_request=rng.random() * rate,
                    lost_answer=rng.random() * rate,
                    late=rng.random() * rate / 2,
                    crash=rng.choice((0.0, 0.002, 0.01)),
                    stall=rng.choice((0.0, 0.002, 0.01)),
                    slow=rng.choice((0.0, 0.02)),
                    delay_s=rng.choice((0.002, 0.02, 0.1)),
                )

    async def _nemesis(self) -> None:
        """Break something every now and then."""
        rng, world = self.world.rng, self.world
        self._switch_on_faults()
        kinds = [
            kind
            for kind, probability in (
                (self._crash, 0.4),
                (self._crash_soon, 0.5),
                (self._pause, 0.5),
                (self._cut, 0.5),
                (self._outage, 0.3),
                (self._stop, 0.3),
                (self._jump, 0.3),
                (self._flip, 0.9),
            )
            if rng.random() < probability
        ]
        pause_s = rng.choice((0.5, 1.0, 2.0))
        while world.loop.now_s < self.fault_s:
            await self._wait(rng.random() * pause_s)
            living = [p for n in self.node_ids for p in self.shared.living(n)]
            if kinds and living:
                rng.choice(kinds)(rng.choice(living))
            for node_id in self.node_ids:
                if not self.shared.living(node_id) and rng.random() < 0.7:
                    self._start(node_id)

    def _crash(self, process: Process) -> None:
        process.crash()

    def _crash_soon(self, process: Process) -> None:
        process.crash_soon(self.world.rng.randrange(1, 60))

    def _pause(self, process: Process) -> None:
        """Stop a process; another one may be started under its name before it goes on."""
        process.stall()

    def _cut(self, process: Process) -> None:
        rng = self.world.rng
        process.cut(rng.choice(("etcd", "store", "net")))
        self._later(rng.random() * 6, process.heal)

    def _outage(self, _process: Process) -> None:
        self.world.count("outages of etcd")
        self.etcd.stop()
        self._later(self.world.rng.random() * 3, self.etcd.start)

    def _stop(self, process: Process) -> None:
        process.stop()

    def _jump(self, process: Process) -> None:
        process.clock.wall_jump_ms += self.world.rng.choice((-3_600_000, 3_600_000))

    def _flip(self, _process: Process) -> None:
        """Damage a stored object, in runs that are about that."""
        names = sorted(self.objects.objects)
        if self.flips and names:
            name = self.world.rng.choice(names)
            self.truth.damaged.add(name)
            damage(self.world, self.objects, name)
            self.world.count("bits flipped")

    def _later(self, delay_s: float, action: Any) -> None:
        self.world.loop.in_world(delay_s, action)

    async def _wait(self, duration_s: float) -> None:
        future = self.world.loop.create_future()
        self.world.loop.in_world(duration_s, future.set_result, None)
        await future

    def _heal(self) -> None:
        """End all faults; bring every node up."""
        self.world.note("world", "heal")
        for service in self.world.faults:
            self.world.faults[service] = Faults()
        self.etcd.start()
        for node_id in self.node_ids:
            living = self.shared.living(node_id)
            for process in living:
                process.actor.fuse = 0
                process.heal()
                process.resume()
        self._revive()

    def _revive(self) -> None:
        """Start what has ended, now and from now on, as a supervisor of processes does."""
        for node_id in self.node_ids:
            if not self.shared.living(node_id):
                self._start(node_id)
        self._later(0.3, self._revive)

    # The last look

    async def _converges(self, last: Client) -> None:
        """Checker 12: every shard takes writes within 10 s, and followers come level."""
        loop = self.world.loop
        ends_s = loop.now_s + CONVERGE_S
        for shard in self.shards:
            while not await last.enrol(shard):
                self.world.require(loop.now_s < ends_s, "no writes after healing", shard.shard_id)
        while not all(self._level(shard) for shard in self.shards):
            self.world.require(loop.now_s < ends_s, "a copy lags after healing", self._phases())
            await self._wait(0.1)

    def _level(self, shard: ShardAssignment) -> bool:
        """Tell whether the newest process of each node serves all that is committed."""
        position = self.truth.shard(shard.shard_id).position
        for node_id in shard.node_ids:
            living = self.shared.living(node_id)
            copy = living[-1].node.copies.get(shard.shard_id) if living else None
            if copy is None or copy.phase is not Phase.SERVING or copy.state.position != position:
                return False
        return True

    def _phases(self) -> list[tuple[str, str, str, int, str]]:
        return [
            (p.name, shard_id, copy.phase.value, copy.state.position, copy.problem)
            for p in self.shared.processes.values()
            if not p.actor.dead
            for shard_id, copy in p.node.copies.items()
        ]

    async def _last_look(self, last: Client) -> None:
        """Checkers 1, 2, 5 and 6 on every copy of every shard, with nothing going on."""
        for shard in self.shards:
            truth = self.truth.shard(shard.shard_id)
            for node_id in shard.node_ids:
                process = self.shared.living(node_id)[-1]
                found = None
                for _ in range(20):
                    found = await last.search(shard, process)
                    if found is not None:
                        break
                    await self._wait(0.1)
                self.world.require(found is not None, "no answer after healing", process.name)
                assert found is not None, "required above"
                subjects = {key[0] for key in truth.live}
                self.world.require(
                    {key[0] for key in found} == subjects and set(found) <= truth.live.keys(),
                    "an answer differs from what was committed",
                    process.name,
                    sorted(found),
                    sorted(truth.live),
                )
                self.truth.equal_at_its_position(process.name, process.node.copies[shard.shard_id])
            names = truth.referenced | truth.log.keys()
            missing = sorted(names - self.objects.objects.keys())
            self.world.require(not missing, "objects are missing at the end", missing)

    async def _flushes(self) -> None:
        """Checker 12: every primary can flush again, and changes no answer by that."""
        for shard in self.shards:
            error: FacegridError | None = None
            for _ in range(20):
                error = await self._flush(shard)
                if error is None:
                    break
                await self._wait(0.5)
            self.world.require(error is None, "no flush after healing", repr(error))

    async def _flush(self, shard: ShardAssignment) -> FacegridError | None:
        """Flush once; a process that woke up late may still take the shard over meanwhile."""
        for process in self.shared.living(shard.primary):
            copy = process.node.copies.get(shard.shard_id)
            serving = isinstance(copy, Primary) and copy.phase is Phase.SERVING
            if isinstance(copy, Primary) and serving and not self.truth.superseded(copy):
                return await process.do(copy.flush())
        return UnavailableError("nobody serves")

    async def _recovery_equals_state(self, last: Client) -> None:
        """Checker 5: what a new start loads is what was there before."""
        for process in list(self.shared.processes.values()):
            if not process.actor.dead:
                process.crash()
        await self._converges(last)
        await self._last_look(last)

    async def _drop(self, last: Client) -> None:
        """Nothing of a dropped gallery stays, neither in the store nor in etcd.

        With one process for each node: two would delete and write past each other.
        """
        for node_id in self.node_ids:
            for process in self.shared.living(node_id)[:-1]:
                process.crash()
        await self._converges(last)
        operations: list[Put | Delete] = [
            Delete(keys.gallery(self.gallery.name)),
            Delete(keys.shard_map(self.gallery.name)),
        ]
        for shard in self.shards:
            dropped = Dropped(shard.shard_id, UID, shard.node_ids)
            operations.append(Put(keys.dropped(shard.shard_id), encode_dropped(dropped)))
        writing = asyncio.get_running_loop().create_task(last.enrol())
        await self._wait(self.world.rng.random() * 0.02)
        ordered_s = self.world.loop.now_s
        self._txn([], operations)
        ends_s = self.world.loop.now_s + CONVERGE_S
        while self.etcd.snapshot(keys.DROPPED).items:
            self.world.require(self.world.loop.now_s < ends_s, "a drop does not come to its end")
            await self._wait(0.1)
        await self._wait(1.0)
        writing.cancel()
        left = [
            n
            for n in self.objects.objects
            # What arrives behind its writer's back is for a sweeper to find.
            if self.truth.stored_s[n] < ordered_s or n in self.truth.confirmed
        ]
        self.world.require(not left, "a dropped gallery left objects behind", left)
        prefixes = (keys.GENERATIONS, keys.TIPS, keys.MANIFESTS, keys.DROPPED, keys.MAPS)
        items = [i.key for prefix in prefixes for i in self.etcd.snapshot(prefix).items]
        self.world.require(not items, "a dropped gallery left keys behind", items)
        self.world.count("drops")

    async def _everything_served_is_true(self, last: Client) -> None:
        """Checker 10: with damaged objects about, a copy serves the truth or nothing."""
        for node_id in self.node_ids:
            for process in self.shared.living(node_id):
                process.crash()
            self._start(node_id)
        await self._wait(3.0)
        for shard in self.shards:
            for node_id in shard.node_ids:
                for process in self.shared.living(node_id)[-1:]:
                    copy = process.node.copies.get(shard.shard_id)
                    if copy is not None and copy.phase is Phase.FAILED:
                        self.world.count("copies that refuse damaged bytes")
                        self.world.require(
                            self.truth.damaged, "intact bytes refused", copy.problem
                        )
                    await last.search(shard, process)


def run_seed(
    seed: int, *, controls: Controls | None = None, flips: bool = False, keep_trace: bool = False
) -> Result:
    """Play one seed; return its digest and counts.

    Raises:
        Violation: a promise was broken; the message has the seed.
    """
    world = World(seed, controls or Controls(), keep_trace)
    with small_limits():
        scenario = Scenario(world, flips=flips)
        try:
            world.loop.run(_until_over(world, scenario))
        except Violation as violation:
            violation.add_note("\n".join(world.trace[-400:]))
            raise
        except (AssertionError, BaseExceptionGroup) as error:
            error.add_note(f"seed={seed}; replay with FACEGRID_SEEDS={seed}")
            error.add_note("\n".join(world.trace[-400:]))
            raise
    return Result(seed, world.digest(), world.counts, world.trace)


async def _until_over(world: World, scenario: Scenario) -> None:
    try:
        await scenario.play()
    finally:
        world.over = True
