"""Composition root of a node: builds the parts, starts them in order, stops them in reverse."""

import asyncio
import os
import signal
import uuid
from concurrent.futures import ThreadPoolExecutor

from facegrid import __version__
from facegrid.api.shard.v1.shard_service_pb2_grpc import add_ShardServiceServicer_to_server
from facegrid.blob.open import open_store
from facegrid.blob.port import BlobStore
from facegrid.clock import Clock, SystemClock
from facegrid.coord.etcd import EtcdCoordinator
from facegrid.coord.lease import Registration
from facegrid.ids import NodeId
from facegrid.model import NodeInfo
from facegrid.rpc.pool import ChannelPool
from facegrid.rpc.server import RpcServer
from facegrid.settings import effective
from facegrid.telemetry.log import Logger, get_logger
from indexd.ann.self_test import self_test
from indexd.ann.threads import set_threads
from indexd.replica.codebooks import Codebooks
from indexd.replica.committer import Committer, CommitterPorts
from indexd.replica.fence import Claimant
from indexd.replica.node import Node
from indexd.replica.shard_copy import NodePorts
from indexd.replica.spread import Spread
from indexd.replica.trainer import Trainer, TrainerPorts
from indexd.replica.view import View
from indexd.replica.writer import ShardWriter
from indexd.service.shard_service import ServicePorts, ShardService
from indexd.settings import IndexdSettings

SERVICE = "facegrid.api.shard.v1.ShardService"


class Server:
    """One node process."""

    def __init__(self, settings: IndexdSettings, store: BlobStore, coord: EtcdCoordinator) -> None:
        clock: Clock = SystemClock()
        self._settings = settings
        self._coord = coord
        self._logger: Logger = get_logger("indexd").bind(node=settings.node_id)
        self._claimant = Claimant(NodeId(settings.node_id), _new_uuid())
        self._clock = clock
        self._pool = ChannelPool()
        threads = threads_of(settings)
        # OpenMP keeps its number of threads for each thread that calls it.
        self._search_thread = ThreadPoolExecutor(1, "search", set_threads, (threads,))
        self._build_thread = ThreadPoolExecutor(1, "build", set_threads, (threads,))
        view = View()
        committer = Committer(
            CommitterPorts(coord, store, clock, _new_uuid, self._logger),
            self._applied,
        )
        ports = NodePorts(
            claimant=self._claimant,
            coord=coord,
            store=store,
            clock=clock,
            logger=self._logger,
            search_thread=self._search_thread,
            build_thread=self._build_thread,
        )
        trainer_ports = TrainerPorts(
            coord=coord,
            clock=clock,
            pool=self._pool,
            codebooks=Codebooks(store),
            build_thread=self._build_thread,
            threads=threads,
        )
        trainer = Trainer(trainer_ports, view)
        self._node = Node(
            ports, committer, trainer, view, erased_rewrite_s=settings.erased_rewrite_s
        )
        self._rpc = RpcServer(clock, self._logger, dev=settings.dev)
        spread = Spread(self._pool, clock, view)
        service = ShardService(
            ServicePorts(self._claimant, clock, self._search_thread, spread), self._node, trainer
        )
        add_ShardServiceServicer_to_server(service, self._rpc.server)
        self._rpc.publish([SERVICE])

    def _applied(self, writer: ShardWriter) -> None:
        """Let the node look after a shard that has taken writes."""
        self._node.applied(writer)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain, flush and stop.

        Raises:
            UnavailableError: the address cannot be had.
            FencedError: another process runs under this node's id.
        """
        stop = asyncio.Event()
        for signum in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(signum, stop.set)
        port = await self._rpc.start(self._settings.listen)
        info = NodeInfo(
            node_id=self._claimant.node_id,
            boot_id=self._claimant.boot_id,
            address=self._settings.advertise or _with_port(self._settings.listen, port),
            version=__version__,
            zone=self._settings.zone,
        )
        registration = Registration(
            self._coord, info, self._settings.lease_ttl_s, self._clock, self._logger
        )
        self._logger.info("serving", address=info.address, **effective(self._settings))
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [
                    tasks.create_task(self._node.run()),
                    tasks.create_task(registration.run()),
                ]
                await stop.wait()
                self._logger.info("stopping")
                self._rpc.drain()
                running[1].cancel()
                await self._node.close()
                await self._rpc.stop(self._settings.grace_s)
                running[0].cancel()
        finally:
            await self._rpc.stop(0)
            await self._pool.aclose()
            await self._coord.aclose()
            self._search_thread.shutdown()
            self._build_thread.shutdown()
        self._logger.info("stopped")


async def serve(settings: IndexdSettings) -> None:
    """Check what the node depends on, then serve.

    Raises:
        UnavailableError: etcd, the store or the address cannot be reached; the message says which.
        InvalidError: a setting names something that does not exist.
    """
    self_test()
    store = open_store(settings.store)
    coord = settings.coordinator(SystemClock())
    try:
        await coord.check()
        server = Server(settings, store, coord)
        await server.run()
    finally:
        await coord.aclose()


def threads_of(settings: IndexdSettings) -> int:
    """Return the number of threads that one search uses."""
    return settings.search_threads or len(os.sched_getaffinity(0))


def _with_port(listen: str, port: int) -> str:
    """Return the address listened at, with the port that was really given."""
    return f"{listen.rpartition(':')[0]}:{port}"


def _new_uuid() -> str:
    """Return a name that nothing else has."""
    return uuid.uuid4().hex  # noqa: TID251 - the edge where randomness enters the process
