"""A router's driver as a simulated process: the real one, with all it needs, on simulated ports.

Several may stand for election; one that stood still may go on when another drives by then.
"""

import asyncio
from collections.abc import Sequence
from contextvars import copy_context
from typing import Any

import structlog
from typing_extensions import override

from facegrid.coord import keys
from facegrid.coord.port import Delete, Guard, Put, ValueGuard
from facegrid.telemetry.log import Logger
from router.dispatch.latencies import Latencies
from router.dispatch.lifecycle import Lifecycle
from router.dispatch.supervisor import Supervisor
from router.operate.driver import Driver
from router.operate.election import Election
from router.operate.nodes import Nodes
from router.operate.parts import Operate
from router.operate.performer import Performer
from router.operate.planner import Planner
from router.operate.rebalancing import Rebalancing
from router.operate.register import Register
from router.topology.pool import NodePool
from router.topology.watcher import Watcher
from tests.sim.loop import ACTOR, Actor
from tests.sim.process import Shared, SimPool
from tests.sim.services import SimCoordinator
from tests.sim.world import Link, SimClock, World


class DriverProcess:
    """One start of a router that stands for driver."""

    def __init__(self, shared: Shared, name: str) -> None:
        self.world = shared.world
        self.shared = shared
        self.name = name
        self.actor = Actor(name)
        self.actor.on_fuse = self.crash
        context = copy_context()
        context.run(ACTOR.set, self.actor)
        self.clock = SimClock(self.world)
        self.links = {
            service: Link(self.world, service, self.actor, self.crash, self.stall)
            for service in ("etcd", "net")
        }
        main = self.world.loop.create_task(self._main(), context=context)
        main.add_done_callback(self._ended, context=self.world.loop.world_context)

    async def _main(self) -> None:
        """Compose the parts as router.server does, and run them."""
        coord: Any = SimCoordinator(self.shared.etcd, self.links["etcd"])
        clock, logger = self.clock, driver_logger(self.world, self.name)
        watcher = Watcher(coord, clock, logger, state_dir=None)
        pool = NodePool(SimPool(self), clock)
        lifecycle = Lifecycle(coord, watcher, pool, clock=clock, new_uid=lambda: "0" * 8)
        register = Register(coord, clock, logger)
        election = Election(coord, self.name, clock, logger)
        operate = Operate(
            register=register,
            planner=Planner(coord, register, watcher, lifecycle=lifecycle, clock=clock),
            rebalancing=Rebalancing(watcher, lifecycle, register, pool=pool, clock=clock),
            latencies=Latencies(clock),
            lifecycle=lifecycle,
            watcher=watcher,
            election=election,
        )
        kind = Performer if self.world.controls.cutover_guards else HastyPerformer
        performer = kind(
            coord,
            watcher,
            Nodes(watcher, pool, lifecycle, clock),
            clock=clock,
            logger=logger,
            guard=lambda: election.guard,
        )
        supervisor = Supervisor()
        driver = Driver(operate, performer, supervisor=supervisor, clock=clock, logger=logger)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(watcher.run())
            tasks.create_task(supervisor.run())
            tasks.create_task(election.run())
            tasks.create_task(driver.run())

    def _ended(self, main: "asyncio.Task[None]") -> None:
        self.world.require(False, "a bug ended a driver", repr(main.exception()))  # noqa: FBT003 - it never ends

    def crash(self) -> None:
        """Die at once."""
        if not self.actor.dead:
            self.world.note(self.name, "crash")
            self.world.count("drivers crashed")
            self.world.loop.kill(self.actor)

    def stall(self) -> None:
        """Stand still for some seconds, in which another may be elected."""
        self.world.note(self.name, "pause")
        self.world.count("drivers paused")
        self.world.loop.pause(self.actor)
        self.world.loop.in_world(0.2 + self.world.rng.random() * 12, self._resume)

    def _resume(self) -> None:
        self.world.note(self.name, "resume")
        self.world.loop.resume(self.actor)


class HastyPerformer(Performer):
    """A negative control: the cutover does not care what was written since the hold."""

    @override
    async def _txn(
        self, guards: Sequence[Guard | ValueGuard], writes: Sequence[Put | Delete]
    ) -> bool:
        kept = [guard for guard in guards if not guard.key.startswith(keys.TIPS)]
        return await super()._txn(kept, writes)


def driver_logger(world: World, name: str) -> Logger:
    """Return a logger that writes into the run's history; a driver has no reason for errors."""

    def take(_logger: object, method: str, event: Any) -> Any:
        what = event.pop("event")
        world.note(name, method, what, sorted(event.items()))
        if what == "operation advanced":
            world.count(f"operation steps {event['done']}")
        world.require(method != "error", "a driver met an error", name, what, event)
        raise structlog.DropEvent

    logger: Logger = structlog.wrap_logger(
        None, processors=[take], wrapper_class=structlog.make_filtering_bound_logger(0)
    )
    return logger
