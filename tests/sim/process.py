"""A node as a simulated process: the real parts of indexd on simulated ports."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, Protocol

import structlog
from typing_extensions import override

from facegrid.blob.port import BlobStore
from facegrid.coord.lease import Registration
from facegrid.coord.port import KeyValue
from facegrid.errors import DeadlineError, FacegridError, FencedError, UnavailableError
from facegrid.ids import NodeId, ShardId
from facegrid.model import NodeInfo, ShardAssignment
from facegrid.rpc.pool import ChannelPool
from facegrid.telemetry.log import Logger
from facegrid.testing.memory_blob import MemoryBlobStore
from indexd.engine.requests import Outcome
from indexd.replica.codebooks import Codebooks
from indexd.replica.committer import Committer, CommitterPorts
from indexd.replica.confirmation import Confirmation
from indexd.replica.dropping import DropRules
from indexd.replica.fence import Claimant
from indexd.replica.mirrors import Asker, Mirrors
from indexd.replica.node import Node
from indexd.replica.policy import NodePolicy
from indexd.replica.primary import Primary
from indexd.replica.shard_copy import NodePorts
from indexd.replica.spread import Spread
from indexd.replica.takeover import Rules
from indexd.replica.trainer import Trainer, TrainerPorts
from indexd.replica.view import View
from indexd.replica.writer import PendingGroup, ShardWriter
from indexd.service.shard_service import ServicePorts, ShardService
from tests.sim.loop import ACTOR, Actor
from tests.sim.services import SimCoordinator, SimEtcd, SimStore
from tests.sim.world import Link, SimClock, World

LEASE_TTL_S = 4
ERASED_REWRITE_S = 3.0
COUNTED = ("repacked",)
"""Events of the log that are counted."""
UNHEARD_OF = ("not repacked",)
"""Events of the log that tell of a bug."""
RESTORED_SHARE = 0.3
SILENT_S = 10.0
"""A call whose other side is gone ends after this time, whatever time it was given: connections
are kept alive by pings."""
POLICY = NodePolicy(
    ERASED_REWRITE_S, Rules(patience_s=0.5, calm_s=2.0), DropRules(patience_s=0.5, again_s=1.0)
)


@dataclass(eq=False)
class Shared:
    """What all processes reach: the services, and one another."""

    world: World
    etcd: SimEtcd
    objects: MemoryBlobStore
    on_object: Callable[[str, str, str, bytes], None]
    start: "Callable[[str], Process]"
    processes: "dict[str, Process]"
    """By address: each start of a process has its own."""

    def living(self, node_id: str) -> "list[Process]":
        """Return the processes of a node, paused ones too, oldest first."""
        return [p for p in self.processes.values() if p.node_id == node_id and not p.actor.dead]


class Process:
    """One start of one node."""

    def __init__(self, shared: Shared, node_id: str, boot: int) -> None:
        self.world = shared.world
        self.shared = shared
        self.node_id = NodeId(node_id)
        self.name = f"{node_id}-b{boot}"
        self.actor = Actor(self.name)
        self.actor.on_fuse = self.crash
        self.context = copy_context()
        self.context.run(ACTOR.set, self.actor)
        self.clock = SimClock(self.world)
        self.links = {
            service: Link(self.world, service, self.actor, self.crash, self.stall)
            for service in ("etcd", "store", "net")
        }
        self.node, self.service, self.registration = self._build()
        shared.processes[self.name] = self
        self.world.note(self.name, "start")
        main = self.world.loop.create_task(self._main(), context=self.context)
        main.add_done_callback(self._ended, context=self.world.loop.world_context)

    def _build(self) -> tuple[Node, ShardService, Registration]:
        """Compose the parts as indexd.server does."""
        world, clock = self.world, self.clock
        coord: Any = SimCoordinator(self.shared.etcd, self.links["etcd"])
        store: BlobStore = SimStore(
            self.shared.objects,
            self.links["store"],
            lambda what, name, data: self.shared.on_object(self.name, what, name, data),
        )
        logger = sim_logger(world, self.name)
        claimant = Claimant(self.node_id, self.name)
        # They start no thread: the loop runs what they are given.
        search, build = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        pool = SimPool(self)
        view = View()
        if world.chance(RESTORED_SHARE):
            # As if etcd had not answered at the start, and what it told once was on the disk.
            world.count("starts from a saved view")
            for before in [p for p in self.shared.processes.values() if p.node_id == self.node_id]:
                view.restore(before.node.view.items.values())

        def new_uuid() -> str:
            return f"{self.name}-{world.rng.getrandbits(48):012x}"

        kind = Committer if world.controls.commit_before_ack else HastyCommitter
        committer = kind(
            CommitterPorts(coord, store, clock, new_uuid, logger),
            self._applied,
        )
        ports = NodePorts(
            claimant=claimant,
            coord=coord,
            store=store,
            clock=clock,
            logger=logger,
            search_thread=search,
            build_thread=build,
            coding_thread=build,
            readers_grace_s=world.rng.choice((0.0, 0.5)),
        )
        trainer = Trainer(TrainerPorts(coord, clock, pool, Codebooks(store), build, 1), view)
        mirrors = Mirrors(
            Asker(pool, view), clock, logger, lambda: f"{world.rng.getrandbits(48):012x}"
        )
        node = Node(ports, committer, trainer, view, policy=POLICY, mirrors=mirrors)
        if not world.controls.map_confirms:
            node._confirmation.__class__ = TrustingConfirmation
        waiting = Spread if world.controls.erase_waits else HastySpread
        if not world.controls.claim_waits:
            waiting = ForgetfulSpread
        if not world.controls.joining_waits:
            waiting = NarrowSpread
        spread = waiting(pool, clock, view)
        no_streams: Any = None
        service = ShardService(
            ServicePorts(claimant, clock, search, spread, streams=no_streams), node, trainer
        )
        info = NodeInfo(self.node_id, self.name, self.name)
        return node, service, Registration(coord, info, LEASE_TTL_S, clock, logger)

    def _applied(self, writer: ShardWriter) -> None:
        """Let the node look after a shard that has taken writes."""
        self.node.applied(writer)

    async def _main(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.node.run())
            tasks.create_task(self.registration.run())

    def _ended(self, main: "asyncio.Task[None]") -> None:
        """Check that the process ended for a good reason."""
        error = _first(main.exception())
        fenced = isinstance(error, FencedError)
        self.world.require(fenced, "a bug ended a process", repr(error))
        self.world.note(self.name, "ends", error)
        self.world.count("processes fenced off")
        self.world.loop.kill(self.actor)

    def crash(self) -> None:
        """Die at once."""
        if not self.actor.dead:
            self.world.note(self.name, "crash")
            self.world.count("crashes")
            self.world.loop.kill(self.actor)

    def crash_soon(self, callbacks: int) -> None:
        """Die in the middle of whatever it does next."""
        self.actor.fuse = callbacks

    def stop(self) -> None:
        """Ask it to flush and end, as SIGTERM does."""
        self.world.note(self.name, "stop")
        stopping = self.world.loop.create_task(self.node.close(), context=self.context)
        stopping.add_done_callback(self._stopped, context=self.world.loop.world_context)

    def _stopped(self, stopping: "asyncio.Task[None]") -> None:
        error = stopping.exception()
        self.world.require(error is None, "a bug broke a graceful stop", repr(error))
        self.world.count("graceful stops")
        self.world.loop.kill(self.actor)

    async def do(self, work: Coroutine[Any, Any, None]) -> FacegridError | None:
        """Let this process do something; return the error that it ends with, if any."""
        task = self.world.loop.create_task(work, context=self.context)
        while not task.done():
            if self.actor.dead:
                return FencedError("the process has ended")
            future = self.world.loop.create_future()
            self.world.loop.in_world(0.02, future.set_result, None)
            await future
        error = task.exception()
        assert error is None or isinstance(error, FacegridError), error
        return error

    def pause(self) -> None:
        """Stand still, as under SIGSTOP."""
        self.world.note(self.name, "pause")
        self.world.count("pauses")
        self.world.loop.pause(self.actor)

    def resume(self) -> None:
        """Go on."""
        if self.actor.paused:
            self.world.note(self.name, "resume")
            self.world.loop.resume(self.actor)

    def stall(self) -> None:
        """Stand still for some seconds, in which another process may be started in its place."""
        rng, loop = self.world.rng, self.world.loop
        self.pause()
        if rng.random() < 0.8:
            loop.in_world(rng.random() * 0.5, self.shared.start, self.node_id)
        loop.in_world(0.2 + rng.random() * 4, self.resume)

    def cut(self, service: str) -> None:
        """Lose every packet to and from a service."""
        self.world.note(self.name, "cut", service)
        self.world.count("cuts")
        self.links[service].cut = True

    def heal(self) -> None:
        """Reach everything again."""
        for link in self.links.values():
            link.cut = link.deaf = False


def _first(several: BaseException | None) -> BaseException | None:
    while isinstance(several, BaseExceptionGroup):
        several = several.exceptions[0]
    return several


class HastyCommitter(Committer):
    """A negative control: tells callers before etcd has confirmed."""

    @override
    async def _commit(self, groups: list[PendingGroup]) -> None:
        for group in groups:
            for record, ticket in group.records:
                ids = len(getattr(record, "codes", ()))
                ticket.settle(Outcome(record.position, enrolled_count=ids))
        await super()._commit(groups)


class HastySpread(Spread):
    """A negative control: does not wait for followers."""

    @override
    async def wait(self, primary: Primary, position: int, asked: ShardAssignment) -> None:
        return


class ForgetfulSpread(Spread):
    """A negative control: waits for followers, but not for those who were the primary before."""

    @override
    async def wait(self, primary: Primary, position: int, asked: ShardAssignment) -> None:
        primary.forerunners.alone_from_s = float("-inf")
        await super().wait(primary, position, asked)


class NarrowSpread(Spread):
    """A negative control: waits for copies that serve by the present map, and for no others."""

    @override
    def _holders(self, primary: Primary, asked: ShardAssignment) -> Sequence[NodeId]:
        primary.forerunners.until_s.clear()
        return primary.assignment.node_ids


class TrustingConfirmation(Confirmation):
    """A negative control: confirms copies by their tips and claims, whatever the map says."""

    @override
    async def _searched(self, head: KeyValue | None, uid: str) -> frozenset[ShardId]:
        return frozenset(self._copies)


# Calls between processes


async def ask(
    caller: Link, shared: Shared, address: str, *, method: str, request: Any, timeout_s: float
) -> Any:
    """Call a method of another process's service.

    Raises:
        FacegridError: what the service raised.
        UnavailableError: nobody is there, or the call got lost.
    """
    world = shared.world
    if timeout_s <= 0:
        raise DeadlineError("no time left")
    timeout_s = min(timeout_s, SILENT_S)
    answer = world.loop.create_future()
    deadline_s = world.loop.now_s + timeout_s
    late = world.loop.call_at(deadline_s, _expire, answer)

    def arrive() -> None:
        process = shared.processes.get(address)
        if process is None or process.actor.dead:
            _settle(answer, UnavailableError("connection refused", reason="REFUSED"))
        elif not process.links["net"].cut:
            serving = world.loop.create_task(
                _serve(process, method, request, answer, deadline_s), context=process.context
            )
            serving.add_done_callback(served, context=world.loop.world_context)

    def served(serving: "asyncio.Task[None]") -> None:
        error = serving.exception()
        world.require(error is None, "an answer would have code INTERNAL", method, repr(error))

    faults = world.faults["net"]
    try:
        if not caller.cut and not world.chance(faults.lost_request):
            world.loop.in_world(world.rng.random() * faults.delay_s, arrive)
        return await answer
    finally:
        late.cancel()


async def _serve(
    process: Process, method: str, request: Any, answer: Any, deadline_s: float
) -> None:
    """Serve one call, until its deadline, and send the answer back."""
    world, faults = process.world, process.world.faults["net"]
    result: Any
    try:
        async with asyncio.timeout_at(deadline_s):
            result = await getattr(process.service, method)(request, SimContext(world, deadline_s))
    except TimeoutError:
        return
    except FacegridError as error:
        result = error
    if not process.links["net"].cut and not world.chance(faults.lost_answer):
        world.loop.in_world(world.rng.random() * faults.delay_s, _settle, answer, result)


def _settle(answer: Any, result: object) -> None:
    if answer.done():
        return
    if isinstance(result, FacegridError):
        answer.set_exception(result)
    else:
        answer.set_result(result)


def _expire(answer: Any) -> None:
    _settle(answer, DeadlineError("no answer in time", reason="TRANSPORT"))


class SimContext:
    """As much of a servicer context as handlers ask for."""

    def __init__(self, world: World, deadline_s: float) -> None:
        self._world = world
        self._deadline_s = deadline_s

    def time_remaining(self) -> float:
        """Return the seconds left."""
        return self._deadline_s - self._world.loop.now_s

    def peer(self) -> str:
        """Return nobody in particular."""
        return "sim"


class Caller(Protocol):
    """Whoever calls nodes."""

    shared: Shared
    links: dict[str, Link]


class SimPool(ChannelPool):
    """Channels of one process to the others."""

    def __init__(self, process: "Caller") -> None:
        super().__init__()
        self._process = process

    @override
    def get(self, address: str) -> Any:
        """Return what stubs take for a channel."""
        return SimChannel(self._process, address)


class SimChannel:
    """Hands out methods that go through the simulated network."""

    def __init__(self, process: "Caller", address: str) -> None:
        self._process = process
        self._address = address

    def unary_stream(self, _path: str, **_rest: Any) -> None:
        """Streams are asked for by nobody here."""

    stream_stream = unary_stream

    def unary_unary(self, path: str, **_rest: Any) -> Callable[..., Any]:
        """Return a method."""
        process, address = self._process, self._address

        async def method(request: Any, *, timeout: float) -> Any:  # noqa: ASYNC109 - as gRPC's
            return await ask(
                process.links["net"],
                process.shared,
                address,
                method=path.rsplit("/", 1)[1],
                request=request,
                timeout_s=timeout,
            )

        return method


def sim_logger(world: World, name: str) -> Logger:
    """Return a logger that writes into the run's history."""

    def take(_logger: object, method: str, event: Any) -> Any:
        what = event.pop("event")
        world.note(name, method, what, sorted(event.items()))
        if what in COUNTED:
            world.count(f"times {what}")
        world.require(what not in UNHEARD_OF, "a copy came to other rows", name, event)
        raise structlog.DropEvent

    logger: Logger = structlog.wrap_logger(
        None, processors=[take], wrapper_class=structlog.make_filtering_bound_logger(0)
    )
    return logger
