"""The composition root: builds the router, starts it in order, stops it in reverse."""

import asyncio
from collections.abc import Callable
from typing import Final

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
from router.dispatch.coalesce import Coalescer
from router.dispatch.erasures import Erasures
from router.dispatch.ingest import Ingest
from router.dispatch.lifecycle import Lifecycle
from router.dispatch.positions import Positions
from router.dispatch.reads import Reader
from router.dispatch.scatter import Searcher
from router.dispatch.supervisor import Supervisor
from router.service.admin import AdminService
from router.service.enrolment import EnrolmentService
from router.service.gallery import GalleryService
from router.service.identification import IdentificationService
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
        self._channels = ChannelPool()
        self._supervisor = Supervisor()
        self.watcher = Watcher(coordinator, clock, logger, state_dir=settings.state_dir)
        self._rpc = RpcServer(clock, logger, dev=settings.dev)
        pool = NodePool(self._channels, clock)
        positions = Positions()
        erasures = Erasures()
        directory = Directory(self.watcher, coordinator, clock)
        reader = Reader(self.watcher, pool, clock, positions, erasures)
        lifecycle = Lifecycle(coordinator, self.watcher, pool, clock=clock, new_uid=new_uid)
        coalescer = Coalescer(
            Searcher(self.watcher, pool, clock, positions),
            self._supervisor,
            clock,
            positions=positions,
            limits=settings.coalesce,
        )
        ingest = Ingest(self.watcher, pool, clock, positions, erasures)
        server = self._rpc.server
        add_GalleryServiceServicer_to_server(
            GalleryService(lifecycle, directory, self.watcher, clock), server
        )
        add_EnrolmentServiceServicer_to_server(
            EnrolmentService(ingest, reader, directory, clock), server
        )
        add_IdentificationServiceServicer_to_server(
            IdentificationService(coalescer, reader, directory, clock, erasures), server
        )
        add_AdminServiceServicer_to_server(AdminService(lifecycle, self.watcher, clock), server)
        self._rpc.publish(SERVICES)

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
            ]
            failure = await self._serve(stop, started)
            for task in background:
                task.cancel()
        await self._channels.aclose()
        if failure is not None:
            raise failure

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
