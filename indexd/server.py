"""Composition root of a node: builds the parts, starts them in order, stops them in reverse."""

import asyncio
import signal
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from facegrid import __version__
from facegrid.api.shard.v1.shard_service_pb2_grpc import add_ShardServiceServicer_to_server
from facegrid.blob.open import open_store
from facegrid.blob.port import BlobStore
from facegrid.clock import Clock, SystemClock
from facegrid.coord import saved
from facegrid.coord.etcd import EtcdCoordinator
from facegrid.coord.lease import Registration
from facegrid.coord.port import Coordinator, KeyValue
from facegrid.errors import CorruptError, UnavailableError
from facegrid.failpoint import FailingCoordinator, FailingStore, Failpoints, ShiftedClock
from facegrid.ids import NodeId
from facegrid.model import NodeInfo
from facegrid.rpc.pool import ChannelPool
from facegrid.rpc.server import RpcServer
from facegrid.settings import effective
from facegrid.telemetry.log import Logger, get_logger
from facegrid.telemetry.metrics import Metrics
from indexd.ann.gpu.engine import GpuEngine
from indexd.ann.gpu.open import open_devices
from indexd.ann.rescore import NATIVE, WHY_NOT
from indexd.ann.self_test import self_test
from indexd.ann.threads import be_last, set_threads
from indexd.ann.train import lists_fit
from indexd.engine.budget import Budget
from indexd.replica.canaries import Canaries, CanaryPorts
from indexd.replica.codebooks import Codebooks
from indexd.replica.committer import Committer, CommitterPorts
from indexd.replica.drift import Drifts
from indexd.replica.dropping import DROP_RULES
from indexd.replica.fence import Claimant
from indexd.replica.measuring import measuring_thread
from indexd.replica.mirrors import Asker, Mirrors
from indexd.replica.node import Node
from indexd.replica.policy import NodePolicy
from indexd.replica.remedies import Healing, Remedies, RemedyPorts
from indexd.replica.shard_copy import NodePorts
from indexd.replica.spread import Spread
from indexd.replica.sweeping import readers_grace_s
from indexd.replica.takeover import Rules
from indexd.replica.trainer import Trainer, TrainerPorts
from indexd.replica.tuner import Tuner, TunerPorts
from indexd.replica.view import View
from indexd.replica.writer import ShardWriter
from indexd.service.device import Device
from indexd.service.metrics import DeviceMetrics, NodeMetrics, SearchMetrics
from indexd.service.scheduler import Here
from indexd.service.shard_service import ServicePorts, ShardService
from indexd.settings import IndexdSettings

TIDY_S = 60.0
"""How often to look for connections that are not needed any more."""
SERVICE = "facegrid.api.shard.v1.ShardService"


@dataclass(frozen=True, slots=True)
class Ground:
    """What a node stands on."""

    store: BlobStore
    coord: Coordinator
    clock: Clock


class Server:
    """One node process."""

    def __init__(
        self, settings: IndexdSettings, on: Ground, view: View, devices: GpuEngine | None = None
    ) -> None:
        store, coord, clock = on.store, on.coord, on.clock
        self._settings = settings
        self._devices = devices
        self._coord = coord
        self._logger: Logger = get_logger("indexd").bind(node=settings.node_id)
        self._claimant = Claimant(NodeId(settings.node_id), _new_uuid())
        self._clock = clock
        self._pool = ChannelPool()
        threads = settings.threads
        # OpenMP keeps its number of threads for each thread that calls it.
        begin = partial(set_threads, settings.threads_of_search)
        self._device = Device(settings.searches_at_once, begin)
        # The event loop makes small searches itself.
        begin()
        self._build_thread = ThreadPoolExecutor(1, "build", set_threads, (threads,))
        self._coding_thread = ThreadPoolExecutor(1, "coding", set_threads, (1,))
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
            search_thread=self._device.owning,
            build_thread=self._build_thread,
            coding_thread=self._coding_thread,
            readers_grace_s=readers_grace_s(settings.erased_rewrite_s),
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
        tuner = Tuner(TunerPorts(coord, clock, self._pool), view)
        self._measure_thread = measuring_thread()
        mirrors = Mirrors(Asker(self._pool, view), clock, self._logger, _new_uuid)
        self._node = Node(
            ports,
            committer,
            trainer,
            view,
            policy=policy_of(settings),
            mirrors=mirrors,
            tuner=tuner,
        )
        self._canary_thread = ThreadPoolExecutor(1, "canary", be_last)
        self._canaries = None
        if settings.canary_share:
            self._canaries = self._make_canaries(view, tuner, trainer)
        self._metrics = None if settings.metrics is None else Metrics("indexd", __version__)
        if self._metrics is not None:
            self._metrics.add(NodeMetrics(self._node, ports.tally, clock, self._canaries))
        observe = None if self._metrics is None else self._metrics.called
        self._rpc = RpcServer(clock, self._logger, dev=settings.dev, observe=observe)
        self._view = view
        self._publish(tuner, trainer)

    def _publish(self, tuner: Tuner, trainer: Trainer) -> None:
        """Let the server answer, as soon as it listens."""
        service = ShardService(
            ServicePorts(
                self._claimant,
                self._clock,
                self._device.searching,
                Spread(self._pool, self._clock, self._view),
                streams=self._rpc.streams,
                zone=self._settings.zone,
                batching=self._settings.batching,
                canaries=self._canaries,
                tuner=tuner,
                measure_thread=self._measure_thread,
                devices=self._devices,
                search_here=self._search_here,
            ),
            self._node,
            trainer,
        )
        if self._metrics is not None:
            self._metrics.add(SearchMetrics(service.scheduler))
            if self._devices is not None:
                self._metrics.add(DeviceMetrics(self._devices))
        add_ShardServiceServicer_to_server(service, self._rpc.server)
        self._rpc.publish([SERVICE])

    @property
    def _search_here(self) -> Here | None:
        """What makes small searches on the event loop: not where a GPU would have to be waited
        for, or where NumPy takes its time.
        """
        return self._device.search_here if self._devices is None and NATIVE is not None else None

    def _make_canaries(self, view: View, tuner: Tuner, trainer: Trainer) -> Canaries:
        """Return what repeats some live probes exactly, and acts on what that shows."""
        copies, clock = self._node.copies, self._clock
        budget = Budget(self._settings.canary_share, clock)
        drifts = Drifts(copies, self._canary_thread, clock, budget)
        return Canaries(
            CanaryPorts(
                copies=copies,
                view=view,
                clock=clock,
                logger=self._logger,
                thread=self._canary_thread,
                budget=budget,
                rng=np.random.default_rng(),
                drifts=drifts,
                remedies=Remedies(
                    RemedyPorts(
                        node_id=self._claimant.node_id,
                        coord=self._coord,
                        clock=clock,
                        view=view,
                        pool=self._pool,
                        logger=self._logger,
                    ),
                    Healing(
                        tuner=tuner,
                        trainer=trainer,
                        drift=drifts.measure,
                        fits=lists_fit,
                        retrain_pause_s=self._settings.retrain_pause_s,
                    ),
                ),
            )
        )

    def _applied(self, writer: ShardWriter) -> None:
        """Let the node look after a shard that has taken writes."""
        self._node.applied(writer)

    async def _tidy(self) -> None:
        """Now and then let go of connections to processes that are not registered any more."""
        while True:
            await self._clock.sleep(TIDY_S)
            if self._view.complete:
                await self._pool.keep(self._view.all_addresses())

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
            if self._metrics is not None and self._settings.metrics is not None:
                self._metrics.start(self._settings.metrics)
            async with asyncio.TaskGroup() as tasks:
                running = [
                    tasks.create_task(self._node.run()),
                    tasks.create_task(registration.run()),
                    tasks.create_task(self._tidy()),
                ]
                if self._canaries is not None:
                    running.append(tasks.create_task(self._canaries.run()))
                await stop.wait()
                self._logger.info("stopping")
                self._rpc.drain()
                running[1].cancel()
                await self._node.close()
                await self._rpc.stop(self._settings.grace_s)
                for task in (running[0], *running[2:]):
                    task.cancel()
        finally:
            await self._rpc.stop(0)
            if self._metrics is not None:
                await asyncio.to_thread(self._metrics.stop)
            await self._pool.aclose()
            await self._coord.aclose()
            self._device.shutdown()
            if self._devices is not None:
                self._devices.close()
            self._build_thread.shutdown()
            self._coding_thread.shutdown()
            self._canary_thread.shutdown()
            self._measure_thread.shutdown()
        self._logger.info("stopped")


async def serve(settings: IndexdSettings) -> None:
    """Check what the node depends on, then serve.

    Raises:
        UnavailableError: etcd, the store, the address or a device cannot be reached; the message
            says which.
        InvalidError: a setting names something that does not exist.
    """
    self_test()
    if NATIVE is None:
        get_logger("indexd").warning("rows are rescored by NumPy: slower", why=WHY_NOT)
    clock = SystemClock()
    logger = get_logger("indexd").bind(node=settings.node_id)
    devices = open_devices(settings.device, logger, clock)
    store = open_store(settings.store)
    coord = settings.coordinator(clock)
    try:
        view = await first_view(settings, coord)
        server = Server(settings, ground(settings, store, coord, clock), view, devices)
        await server.run()
    finally:
        await coord.aclose()


def ground(settings: IndexdSettings, store: BlobStore, coord: Coordinator, clock: Clock) -> Ground:
    """Return what the node stands on, with failpoints around it where they are asked for."""
    folder = settings.failpoints
    if folder is None:
        return Ground(store, coord, clock)
    failpoints = Failpoints(folder / settings.node_id)
    return Ground(
        FailingStore(store, failpoints),
        FailingCoordinator(coord, failpoints),
        ShiftedClock(clock, folder / f"{settings.node_id}.wall"),
    )


async def first_view(settings: IndexdSettings, coord: EtcdCoordinator) -> View:
    """Return what to start from: nothing yet where etcd answers, else what was saved.

    Raises:
        UnavailableError: etcd does not answer and nothing was saved, or the folder for it cannot
            be written (STATE_DIR_UNUSABLE).
    """
    view = View()
    if settings.state_dir is not None:
        saved.probe(settings.state_dir)
    try:
        await coord.check()
    except UnavailableError as error:
        view.restore(_saved(settings.state_dir))
        if not view.restored:
            raise
        get_logger("indexd").warning("etcd not reached, starting from disk", problem=str(error))
    return view


def _saved(folder: Path | None) -> tuple[KeyValue, ...]:
    """Return the keys in a folder; none where there are none that can be read."""
    if folder is None:
        return ()
    try:
        return saved.load(folder)
    except (CorruptError, OSError) as error:
        get_logger("indexd").warning("saved view not used", problem=str(error))
        return ()


def policy_of(settings: IndexdSettings) -> NodePolicy:
    """Return how a node with these settings behaves."""
    rules = Rules(patience_s=settings.takeover_after_s, calm_s=float(settings.lease_ttl_s))
    return NodePolicy(
        erased_rewrite_s=settings.erased_rewrite_s,
        takeover=rules if settings.takeover_after_s else None,
        dropping=replace(
            DROP_RULES, patience_s=settings.takeover_after_s or DROP_RULES.patience_s
        ),
        state_dir=settings.state_dir,
    )


def _with_port(listen: str, port: int) -> str:
    """Return the address listened at, with the port that was really given."""
    return f"{listen.rpartition(':')[0]}:{port}"


def _new_uuid() -> str:
    """Return a name that nothing else has."""
    return uuid.uuid4().hex  # noqa: TID251 - the edge where randomness enters the process
