"""One run: a cluster, clients, a nemesis, then peace and the last look. All of it from a seed."""

import asyncio
from dataclasses import dataclass
from typing import Any

from facegrid.coord import keys
from facegrid.coord.port import Delete, Put
from facegrid.errors import FacegridError, UnavailableError
from facegrid.format.records import encode_gallery, encode_shard_map
from facegrid.ids import GalleryName
from facegrid.model import Gallery, ShardAssignment, ShardMap
from facegrid.testing.memory_blob import MemoryBlobStore
from indexd.replica.follower import Follower
from indexd.replica.primary import Primary
from indexd.replica.shard_copy import Phase
from tests.sim.broken import broken
from tests.sim.client import DIM, Client
from tests.sim.deafness import deafen, deafen_at_the_worst
from tests.sim.drops import drop
from tests.sim.latecomer import Latecomer
from tests.sim.loader import Loader
from tests.sim.moves import Moves
from tests.sim.process import Process, Shared
from tests.sim.reshapes import Reshapes
from tests.sim.services import SimEtcd, damage
from tests.sim.shape import first_shards
from tests.sim.small import small_limits
from tests.sim.truth import Truth
from tests.sim.world import Controls, Faults, OuterClock, Violation, World, at_once

CONVERGE_S = 10.0
"""Checker 12: after faults heal, every shard takes writes within this time."""
PROCESSES_MAX = 3
"""Processes of one node at a time: the newest, and two that have stood still."""
UID = "1f00aa23"
NODES_MAX = 5
TWINS_SHARE = 0.1
"""Share of the runs in which nothing happens but that nodes have two processes that answer."""
LONG_SHARE = 0.25
"""Share of the runs that are long enough for leases to end and shards to be taken over."""
MOVES_SHARE = 0.3
"""Share of the runs in which copies change their nodes."""
CALM_SHARE = 0.2
"""Share of the runs with splits and merges in which nothing happens to the nodes."""
DEAF_SHARE = 0.05
"""Share of these in which nothing goes wrong but that processes hear late of new maps."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a run."""

    seed: int
    digest: str
    counts: dict[str, int]
    trace: list[str]


class Scenario:
    """Builds the cluster that the seed says, and plays it."""

    def __init__(
        self,
        world: World,
        *,
        flips: bool = False,
        loads: bool = False,
        deaf: bool = False,
        splits: bool = False,
    ) -> None:
        rng = world.rng
        self.world = world
        self.flips = flips
        self.loads = loads
        self.objects = MemoryBlobStore()
        self.truth = Truth(world, self.objects)
        clock: Any = OuterClock(world.loop)
        self.etcd = SimEtcd(clock, self.truth.on_change)
        self.shared = Shared(world, self.etcd, self.objects, self.truth.on_object, self._start, {})
        self.node_ids = [f"n{number}" for number in range(1, rng.choice((2, 2, 3)) + 1)]
        self._first = first_shards(rng, UID, self.node_ids, rng.choice((1, 1, 2)))
        self.moves: Moves | None = None
        self.reshapes: Reshapes | None = None
        if splits:
            self.reshapes = Reshapes(self.shared, self.truth, self.node_ids)
        elif deaf or rng.random() < MOVES_SHARE:
            self.node_ids.append(f"n{len(self.node_ids) + 1}")
            self.moves = Moves(self.shared, lambda: self.node_ids, lambda: self.shards)
        self.boots = dict.fromkeys(self.node_ids, 0)
        self.fault_s = 2.0 + rng.random() * 5.0
        self.lost: set[str] = set()
        """Nodes that are never started again."""
        self.down_until_s = dict.fromkeys(self.node_ids, 0.0)
        """Until when nodes that died are not started again, for others to take over."""
        if rng.random() < LONG_SHARE:
            self.fault_s += 8.0
        self.deaf = deaf or (self.moves is not None and rng.random() < DEAF_SHARE)
        if self.deaf:
            self.fault_s = 12.0
        if splits:
            self.fault_s = 8.0 + rng.random() * 10.0
        slow = self.reshapes is not None and self.reshapes.slow
        self.calm = self.deaf or slow or (splits and rng.random() < CALM_SHARE)
        """Whether nodes, network, etcd and store are left alone."""

    @property
    def shards(self) -> tuple[ShardAssignment, ...]:
        """The shards as the map has them now."""
        shard_map = self.truth.shard_map
        return self._first if shard_map is None else shard_map.shards

    @property
    def gallery(self) -> Gallery:
        """The one gallery."""
        replicas = len(self._first[0].node_ids)
        return Gallery(GalleryName("g"), UID, DIM, "x@1", len(self._first), replicas, 0)

    async def play(self) -> None:
        """Play the run."""
        rng = self.world.rng
        self._txn([], self._keys())
        for node_id in self.node_ids:
            self._start(node_id)
        clients = [
            (Client if self.reshapes is None else Latecomer)(
                self.shared, self.truth, self.shards, f"c{number}"
            )
            for number in range(4 if self.calm else rng.choice((1, 2, 3, 4)))
        ]
        if self.loads:
            clients.append(Loader(self.shared, self.truth, self.shards, "loader"))
        async with asyncio.TaskGroup() as tasks:
            for client in clients:
                pause_s = 0.02 if self.deaf else rng.choice((0.02, 0.1, 0.3))
                tasks.create_task(client.run(self.fault_s, pause_s))
            tasks.create_task(self._nemesis(clients))
            tasks.create_task(self._move())
            if self.reshapes is not None:
                tasks.create_task(self.reshapes.run(self.fault_s))
                tasks.create_task(self.reshapes.keep_routers_behind(clients, self.fault_s))
        self._heal(clients)
        last = Client(self.shared, self.truth, self.shards, "last")
        if self.flips:
            await self._everything_served_is_true(last)
            return
        if self.reshapes is not None:
            await self.reshapes.finish()
        if self.moves is not None:
            await self.moves.finish()
            await self.moves.nobody_holds_more()
        await self._converges(last)
        await self._last_look(last)
        await self._flushes()
        if rng.random() < 0.5:
            await self._recovery_equals_state(last)
        if rng.random() < 0.3:
            await drop(self, last)

    async def _move(self) -> None:
        """Let copies change their nodes, in runs that are about that."""
        async with asyncio.TaskGroup() as tasks:
            if self.moves is not None:
                tasks.create_task(self.moves.run(self.fault_s))
            if self.deaf:
                tasks.create_task(deafen_at_the_worst(self.shared, self.truth, self.fault_s))

    def _keys(self) -> list[Put | Delete]:
        shard_map = ShardMap(self.gallery.name, UID, 1, self._first)
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

    async def _nemesis(self, clients: list[Client]) -> None:
        """Break something every now and then."""
        rng, world = self.world.rng, self.world
        twins = rng.random() < TWINS_SHARE
        if not twins and not self.calm:
            self._switch_on_faults()
        kinds = (
            []
            if self.calm
            else [self._double]
            if twins
            else [
                kind
                for kind, probability in (
                    (Process.crash, 0.4),
                    (self._crash_soon, 0.5),
                    (self._pause, 0.5),
                    (self._cut, 0.5),
                    (self._outage, 0.3),
                    (self._stop, 0.3),
                    (self._jump, 0.3),
                    (self._flip, 0.9),
                    (self._go_away, 0.5),
                    (self._isolate, 0.5),
                    (self._double, 0.5),
                    (deafen, 0.3),
                    (self._add_node, 0.3 if self.moves is not None else 0.0),
                )
                if rng.random() < probability
            ]
        )
        pause_s = rng.choice((0.5, 1.0, 2.0))
        while world.loop.now_s < self.fault_s:
            await self._wait(rng.random() * pause_s)
            living = [p for n in self.node_ids for p in self.shared.living(n)]
            if kinds and living:
                rng.choice(kinds)(rng.choice(living))
            if rng.random() < (0.5 if self.deaf else 0.1):
                self._cut_client(rng.choice(clients))
            for node_id in self.node_ids:
                down = world.loop.now_s < self.down_until_s[node_id]
                if not down and not self.shared.living(node_id) and rng.random() < 0.7:
                    self._start(node_id)

    def _go_away(self, process: Process) -> None:
        """Lose a node for so long that others may take its shards over."""
        now_s = self.world.loop.now_s
        if any(until_s > now_s for until_s in self.down_until_s.values()):
            return
        self.down_until_s[process.node_id] = now_s + 4 + 6 * self.world.rng.random()
        for one in self.shared.living(process.node_id):
            one.crash()

    def _isolate(self, process: Process) -> None:
        """Cut a process off from etcd alone, for so long that others may take its shards over."""
        process.cut("etcd")
        self._later(4 + 6 * self.world.rng.random(), process.heal)

    def _double(self, process: Process) -> None:
        """Start a process of a node whose other one cannot reach etcd, and goes on answering."""
        process.cut("etcd")
        self._later(0.1 * self.world.rng.random(), lambda: self._start(process.node_id))
        self._later(2 + 4 * self.world.rng.random(), process.heal)

    def _add_node(self, _process: Process) -> None:
        """Let one node more be there."""
        if len(self.node_ids) < NODES_MAX:
            node_id = f"n{len(self.node_ids) + 1}"
            self.node_ids.append(node_id)
            self.boots[node_id], self.down_until_s[node_id] = 0, 0.0
            self._start(node_id)

    def _cut_client(self, client: Client) -> None:
        """Cut a router off from etcd."""
        client.etcd_link.cut = True

        def heal() -> None:
            client.etcd_link.cut = False

        self._later((12 if self.deaf else 6) * self.world.rng.random(), heal)

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

    def _heal(self, clients: list[Client]) -> None:
        """End all faults; bring every node up."""
        for client in clients:
            client.etcd_link.cut = False
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
            if not self.shared.living(node_id) and node_id not in self.lost:
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
        for node_id in shard.holders:
            living = self.shared.living(node_id)
            copy = living[-1].node.copies.get(shard.shard_id) if living else None
            if copy is None or copy.phase is not Phase.SERVING or copy.state.position != position:
                return False
            if isinstance(copy, Follower) and copy.guessed:
                # Its last record may be another than was committed, at the same position.
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
                found, process = None, None
                for _ in range(20):
                    # One that stood still may be back and end the newest under its id.
                    process = next(reversed(self.shared.living(node_id)), process)
                    if process is not None:
                        found = await last.search(shard, process)
                    if found is not None:
                        break
                    await self._wait(0.1)
                self.world.require(found is not None, "no answer after healing", node_id)
                assert found is not None, "required above"
                assert process is not None, "somebody answered"
                subjects = {key[0] for key in truth.live}
                self.world.require(
                    {key[0] for key in found} == subjects and set(found) <= truth.live.keys(),
                    "an answer differs from what was committed",
                    process.name,
                    sorted(found),
                    sorted(truth.live),
                )
                self.truth.equal_at_its_position(process.name, process.node.copies[shard.shard_id])
            names = truth.referenced | truth.log.keys() | truth.loads.keys()
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
        """Flush once; another node, or a process that woke up late, may still take the shard over
        meanwhile.
        """
        shard = next(one for one in self.shards if one.shard_id == shard.shard_id)
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
    seed: int,
    *,
    controls: Controls | None = None,
    flips: bool = False,
    loads: bool = False,
    deaf: bool = False,
    splits: bool = False,
    keep_trace: bool = False,
) -> Result:
    """Play one seed; return its digest and counts.

    Raises:
        Violation: a promise was broken; the message has the seed.
    """
    world = World(seed, controls or Controls(), keep_trace)
    with small_limits(), broken(world.controls):
        scenario = Scenario(world, flips=flips, loads=loads, deaf=deaf, splits=splits)
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
