"""The composition root: builds the router, starts it in order, stops it in reverse."""

import asyncio
from collections.abc import Callable
from typing import Final

from facegrid import __version__
from facegrid.api.admin.v1.admin_service_pb2_grpc import add_AdminServiceServicer_to_server
from facegrid.api.v1.enrolment_service_pb2_grpc import add_EnrolmentServiceServicer_to_server
from facegrid.api.v1.gallery_service_pb2_grpc import add_GalleryServiceServicer_to_server
from facegrid.api.v1.identification_service_pb2_grpc import (
    add_IdentificationServiceServicer_to_server,
)
from facegrid.clock import Clock
from facegrid.coord.port import Coordinator
from facegrid.errors import DeadlineError, UnavailableError
from facegrid.rpc.pool import ChannelPool
from facegrid.rpc.server import RpcServer
from facegrid.telemetry.log import Logger
from facegrid.telemetry.metrics import Metrics
from router.dispatch.adjusting import Adjusting
from router.dispatch.coalesce import Coalescer
from router.dispatch.erasures import Erasures
from router.dispatch.hedge import Hedger
from router.dispatch.ingest import Ingest
from router.dispatch.latencies import Latencies
from router.dispatch.lifecycle import Lifecycle
from router.dispatch.positions import Positions
from router.dispatch.primaries import Primaries
from router.dispatch.reads import Reader
from router.dispatch.scatter import Searcher
from router.dispatch.supervisor import Supervisor
from router.dispatch.takeover import TakeOver
from router.operate.driver import Driver
from router.operate.election import Election
from router.operate.nodes import Nodes
from router.operate.parts import Operate
from router.operate.performer import Performer
from router.operate.planner import Planner
from router.operate.rebalancing import Rebalancing
from router.operate.register import Register
from router.service.admin import AdminService
from router.service.enrolment import EnrolmentService
from router.service.gallery import GalleryService
from router.service.identification import IdentificationService
from router.service.metrics import RouterMetrics
from router.settings import RouterSettings
from router.topology.directory import Directory
from router.topology.pool import NodePool
from router.topology.watcher import Watcher

SERVICES = (
    "facegrid.api.v1.GalleryService",
    "facegrid.api.v1.EnrolmentService",
    "facegrid.api.v1.IdentificationService",
    "facegrid.api.admin.v1.AdminService",
)

WAIT_WITH_SAVED_S_MAX: Final = 2.0
"""How long a start waits for etcd where there is a topology to start from without it."""
FORGET_S: Final = 60.0
"""How often to look for shards that are gone while the topology stays."""


class RouterServer:
    """One router.

    Args:
        settings: what it was told.
        coordinator: etcd, or its twin.
        clock: all of its time.
        new_uid: returns 8 hex digits, never the same again.
        logger: where events go.
    """

    def __init__(
        self,
        settings: RouterSettings,
        coordinator: Coordinator,
        clock: Clock,
        *,
        new_uid: Callable[[], str],
        logger: Logger,
    ) -> None:
        self._settings = settings
        self._logger = logger
        self._saved = False
        self.metrics_port = 0
        self._channels = ChannelPool()
        self._supervisor = Supervisor()
        self.watcher = Watcher(coordinator, clock, logger, state_dir=settings.state_dir)
        self._metrics = None if settings.metrics is None else Metrics("router", __version__)
        observe = None if self._metrics is None else self._metrics.called
        self._rpc = RpcServer(
            clock, logger, dev=settings.dev, observe=observe, shared=settings.processes > 1
        )
        self._pool = pool = NodePool(self._channels, clock)
        hedger = Hedger(pool, self.watcher, clock)
        self._positions = positions = Positions()
        erasures = Erasures()
        directory = Directory(self.watcher, coordinator, clock)
        reader = Reader(
            self.watcher, pool, clock, positions=positions, erasures=erasures, hedger=hedger
        )
        lifecycle = Lifecycle(coordinator, self.watcher, pool, clock=clock, new_uid=new_uid)
        searcher = Searcher(self.watcher, pool, clock, positions=positions, hedger=hedger)
        coalescer = Coalescer(
            searcher, self._supervisor, clock, positions=positions, limits=settings.coalesce
        )
        ingest = Ingest(Primaries(self.watcher, pool, clock), positions, erasures)
        latencies = Latencies(clock)
        self._operations = operate = self._build_operate(coordinator, lifecycle, latencies, clock)
        self._tell(searcher, hedger, ingest)
        server = self._rpc.server
        adjusting = Adjusting(coordinator, self.watcher, pool, clock)
        add_GalleryServiceServicer_to_server(
            GalleryService(lifecycle, adjusting, directory, watcher=self.watcher, clock=clock),
            server,
        )
        add_EnrolmentServiceServicer_to_server(
            EnrolmentService(ingest, reader, directory, clock), server
        )
        add_IdentificationServiceServicer_to_server(
            IdentificationService(
                coalescer,
                reader,
                directory,
                clock,
                erasures=erasures,
                latencies=latencies,
                streams=self._rpc.streams,
            ),
            server,
        )
        add_AdminServiceServicer_to_server(
            AdminService(
                TakeOver(coordinator, self.watcher, clock, lifecycle),
                operate,
                ingest=ingest,
                directory=directory,
                clock=clock,
            ),
            server,
        )
        self._rpc.publish(SERVICES)

    def _tell(self, searcher: Searcher, hedger: Hedger, ingest: Ingest) -> None:
        """Let metrics tell of these, where there are any."""
        if self._metrics is not None:
            self._metrics.add(
                RouterMetrics(
                    self.watcher,
                    self._pool,
                    searcher=searcher,
                    hedger=hedger,
                    ingest=ingest,
                    operations=lambda: self._driver.counts,
                )
            )

    def _build_operate(
        self, coordinator: Coordinator, lifecycle: Lifecycle, latencies: Latencies, clock: Clock
    ) -> Operate:
        register = Register(coordinator, clock, self._logger)
        election = Election(coordinator, self._settings.listen, clock, self._logger)
        operate = Operate(
            register=register,
            planner=Planner(coordinator, register, self.watcher, lifecycle=lifecycle, clock=clock),
            rebalancing=Rebalancing(
                self.watcher, lifecycle, register, pool=self._pool, clock=clock
            ),
            latencies=latencies,
            lifecycle=lifecycle,
            watcher=self.watcher,
            election=election,
        )
        performer = Performer(
            coordinator,
            self.watcher,
            Nodes(self.watcher, self._pool, lifecycle, clock),
            clock=clock,
            logger=self._logger,
            guard=lambda: election.guard,
        )
        self._driver = Driver(
            operate, performer, supervisor=self._supervisor, clock=clock, logger=self._logger
        )
        return operate

    async def run(
        self, *, stop: asyncio.Event, started: Callable[[str], None] | None = None
    ) -> None:
        """Serve until `stop` is set, then let the calls in flight end.

        Args:
            stop: ends it.
            started: told the address, once calls are served.

        Raises:
            UnavailableError: etcd cannot be reached and no topology is on disk
                (COORDINATOR_UNREACHABLE), the address cannot be had (LISTEN_FAILED), or the
                state folder cannot be written (STATE_DIR_UNUSABLE).
        """
        self._saved = self.watcher.load()
        async with asyncio.TaskGroup() as group:
            background = [
                group.create_task(self.watcher.run()),
                group.create_task(self._supervisor.run()),
                group.create_task(self._pool.run(lambda: self.watcher.topology)),
                group.create_task(self._forget_shards()),
            ]
            if self._settings.drive:
                background += [
                    group.create_task(self._operations.election.run()),
                    group.create_task(self._driver.run()),
                ]
            failure = await self._serve(stop, started)
            for task in background:
                task.cancel()
        await self._pool.aclose()
        await self._channels.aclose()
        if failure is not None:
            raise failure

    async def _forget_shards(self) -> None:
        """Let go of what is known of shards that are gone."""
        while True:
            topology = self.watcher.topology
            self._positions.keep(
                {
                    shard.shard_id
                    for served in topology.galleries.values()
                    for shard in served.shard_map.held
                }
            )
            await self.watcher.changed(topology, timeout_s=FORGET_S)

    async def _serve(
        self, stop: asyncio.Event, started: Callable[[str], None] | None
    ) -> UnavailableError | None:
        """Serve until told to stop. The error of a start that failed is a value, so that it
        leaves the group of background tasks as itself.
        """
        settings = self._settings
        grace_s = 0.0
        try:
            await self._first_view()
            port = await self._rpc.start(settings.listen)
            if self._metrics is not None and settings.metrics is not None:
                self.metrics_port = self._metrics.start(settings.metrics)
            address = f"{settings.listen.rpartition(':')[0]}:{port}"
            self._logger.info("router serves", address=address)
            if started is not None:
                started(address)
            await stop.wait()
            grace_s = settings.grace_s
            self._logger.info("router stops", grace_s=grace_s)
            self._rpc.drain()
        except UnavailableError as error:
            return error
        finally:
            await self._rpc.stop(grace_s)
            if self._metrics is not None:
                await asyncio.to_thread(self._metrics.stop)
        return None

    async def _first_view(self) -> None:
        settings = self._settings
        wait_s = settings.etcd_timeout_s
        if self._saved:
            wait_s = min(wait_s, WAIT_WITH_SAVED_S_MAX)
        try:
            await self.watcher.ready(timeout_s=wait_s)
        except DeadlineError as error:
            endpoints = ",".join(settings.etcd)
            if not self._saved:
                raise UnavailableError(
                    f"etcd cannot be reached, and no saved topology is there to start from"
                    f" endpoints={endpoints} waited_s={wait_s}",
                    reason="COORDINATOR_UNREACHABLE",
                    endpoints=endpoints,
                ) from error
            self._logger.warning("etcd not reached, starting from disk", endpoints=endpoints)
