"""A whole cluster on this machine: etcd, nodes and routers as detached child processes.

Everything about it lies in one folder: cluster.json (fgctl.cluster_file), log/, etcd/, store/ and
the routers' state. `down` ends the processes and leaves the folder; `up` brings all of it back.
"""

import fcntl
import http.client
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from facegrid.api.admin.v1 import admin_service_pb2
from facegrid.api.shard.v1 import shard_service_pb2
from facegrid.clock import SystemClock
from facegrid.errors import FacegridError, NotFoundError, UnavailableError
from fgctl import admin, cluster_file
from fgctl.cluster_file import ClusterRecord, Kind, ProcessRecord
from fgctl.local import plan, processes
from fgctl.local.etcd import HOST, STOP_S, free_ports
from fgctl.local.plan import Wanted
from fgctl.local.ports import is_free

UP_TIMEOUT_S = 120.0
CHECK_TIMEOUT_S = 2.0
GRACE_S = 30.0
"""How long a process may take to flush and end before it is killed."""
STOP_ORDER: tuple[Kind, ...] = ("router", "node", "etcd")

SETTLED = (
    shard_service_pb2.SHARD_STATE_SERVING,
    shard_service_pb2.SHARD_STATE_FENCED,
    shard_service_pb2.SHARD_STATE_FAILED,
)
"""States of a shard that waiting does not change."""


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """How one process is: `problem` says why it does not serve, and is empty when it does."""

    process: ProcessRecord
    alive: bool
    problem: str


class LocalCluster:
    """A cluster in a folder. Blocking; one command at a time works on a folder.

    Args:
        directory: where everything lies; made by `up`.
        nodes, replicas, etcd: as many as that; None: as the cluster has them, or else 2, 1 and 1.
        wanted: the same and more, instead of these.

    Raises:
        InvalidError: no cluster can be like that, or not made of the one that is there.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        nodes: int | None = None,
        replicas: int | None = None,
        etcd: int | None = None,
        wanted: Wanted | None = None,
    ) -> None:
        self.directory = Path(directory).resolve()
        self._clock = SystemClock()
        self._wanted = wanted or Wanted(nodes=nodes, replicas=replicas, etcd=etcd)
        # Only to refuse at once what cannot be: `up` plans anew, under the lock.
        self._planned()

    @property
    def record(self) -> ClusterRecord:
        """What the folder says about the cluster.

        Raises:
            NotFoundError: it was never started.
        """
        return cluster_file.load(self.directory)

    @property
    def router_targets(self) -> list[str]:
        """host:port of every router."""
        return list(self.record.router_targets)

    @property
    def store(self) -> Path:
        """Where the nodes keep logs, segments and manifests, unless a URL was given for that."""
        return self.directory / "store"

    def up(self, *, timeout_s: float = UP_TIMEOUT_S) -> ClusterRecord:
        """Start what does not run and return when every node and shard serves.

        Raises:
            UnavailableError: a process ended, or the time was not enough; what this call started
                is stopped again.
        """
        end_s = self._clock.now_s() + timeout_s
        self.directory.mkdir(parents=True, exist_ok=True)
        with self._locked(), ExitStack() as undo:
            cluster = self._addressed(self._planned())
            cluster_file.save(self.directory, cluster)
            dead = [one.name for one in cluster.processes if processes.find(one) is None]
            undo.callback(self._stop, dead)
            self._start([name for name in dead if cluster.named(name).kind == "etcd"], end_s)
            self._start([name for name in dead if cluster.named(name).kind != "etcd"], end_s)
            self._wait_serving(end_s)
            undo.pop_all()
        return self.record

    def down(self, *, grace_s: float = GRACE_S) -> list[str]:
        """Stop routers, nodes and etcd, in this order; return the names of those that ran."""
        with self._locked():
            running = [
                process.name
                for process in self.record.processes
                if processes.find(process) is not None
            ]
            self._stop([process.name for process in self.record.processes], grace_s=grace_s)
        return running

    def kill_node(self, node_id: str) -> None:
        """End a process with SIGKILL: it has no chance to write anything."""
        with self._locked():
            process = self.record.named(node_id)
            processes.kill([process])
            self._save(replace(process, pid=0, created_s=0.0))

    def start_node(self, node_id: str, *, timeout_s: float = UP_TIMEOUT_S) -> ProcessRecord:
        """Start a process again and return when it serves, and its shards as far as a router runs
        that can tell.
        """
        end_s = self._clock.now_s() + timeout_s
        with self._locked():
            process = self.record.named(node_id)
            if processes.find(process) is None:
                self._start([node_id], end_s)
            if process.kind == "node":
                self._wait_serving(end_s, only=node_id)
            return self.record.named(node_id)

    def stop_etcd(self) -> None:
        """Stop all members of etcd and leave the rest running."""
        with self._locked():
            self._stop([process.name for process in self.record.of_kind("etcd")])

    def start_etcd(self, *, timeout_s: float = UP_TIMEOUT_S) -> None:
        """Start all members of etcd again and return when they answer."""
        with self._locked():
            members = self.record.of_kind("etcd")
            dead = [process.name for process in members if processes.find(process) is None]
            self._start(dead, self._clock.now_s() + timeout_s)

    def status(self) -> list[ProcessStatus]:
        """Look at every process."""
        return [_status(process) for process in self.record.processes]

    def log(self, name: str) -> Path:
        """Return where a process writes what it has to say."""
        return plan.log_of(self.record.named(name), self.directory)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if not self.directory.exists():
            cluster_file.load(self.directory)  # says that there is none
        with (self.directory / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UnavailableError(
                    f"another fgctl is at work on this cluster dir={self.directory}",
                    reason="CLUSTER_BUSY",
                ) from None
            yield

    def _planned(self) -> ClusterRecord:
        try:
            before = cluster_file.load(self.directory)
        except NotFoundError:
            before = None
        return plan.planned(self._wanted, before, cores=len(os.sched_getaffinity(0)))

    def _addressed(self, cluster: ClusterRecord) -> ClusterRecord:
        """Give every process an address: the one it had while that can still be had."""
        ports = (f"{HOST}:{port}" for port in free_ports())
        taken = {address for one in cluster.processes for address in _addresses(one)}
        fresh = (address for address in ports if address not in taken)
        idle = not any(processes.find(one) is not None for one in cluster.processes)
        for process in cluster.processes:
            if processes.find(process) is not None:
                continue
            lost = [address for address in _addresses(process) if not is_free(address)]
            if lost and not (idle and _may_move(process, cluster)):
                raise UnavailableError(
                    f"another process took the port of {process.name} address={lost[0]}",
                    reason="PORT_TAKEN",
                )
            cluster = cluster.with_process(_with_addresses(process, lost, fresh))
        return cluster

    def _start(self, names: Sequence[str], end_s: float) -> None:
        """Start processes and wait until each of them serves."""
        self._prepare(names)
        said = {name: processes.log_bytes(self.log(name)) for name in names}
        for name in names:
            cluster = self.record
            process = self.commanded(cluster.named(name), cluster)
            pid, created_s = processes.spawn(process.argv, self.log(name))
            self._save(replace(process, pid=pid, created_s=created_s))
        for name in names:
            self._wait(partial(self._start_problem, name, said[name]), end_s)

    def commanded(self, process: ProcessRecord, cluster: ClusterRecord) -> ProcessRecord:
        """Return a process with the command line that starts it; other builds have another."""
        return plan.with_command(process, cluster, self.directory)

    def _prepare(self, names: Sequence[str]) -> None:
        for folder in (plan.etcd_folder(self.directory), self.store):
            folder.mkdir(exist_ok=True)
        assert not any(processes.find(self.record.named(name)) for name in names), "runs already"

    def _start_problem(self, name: str, said: int) -> str:
        process = self.record.named(name)
        if processes.find(process) is None:
            log = self.log(name)
            raise UnavailableError(
                f"{name} ended as soon as it was started log={log}\n"
                f"{processes.log_tail(log, since=said)}",
                reason="PROCESS_ENDED",
            )
        problem = _health_problem(process)
        return f"{name}: {problem}" if problem else ""

    def _wait_serving(self, end_s: float, only: str = "") -> None:
        """Wait until every node, or one, is registered and has opened its shards, as the routers
        that run see it. One that was stopped or killed on purpose is not waited for.
        """
        cluster = self.record
        wanted = [
            process.name
            for process in cluster.of_kind("node")
            if (only or process.name) == process.name and processes.find(process) is not None
        ]
        for router in cluster.of_kind("router"):
            if processes.find(router) is not None:
                self._wait(partial(_serving_problem, router.address, wanted), end_s)

    def _wait(self, problem: Callable[[], str], end_s: float) -> None:
        left_s = end_s - self._clock.now_s()
        last = processes.wait_until(problem, timeout_s=left_s, clock=self._clock)
        if last:
            raise UnavailableError(f"not ready in time, {last}", reason="NOT_READY")

    def _stop(self, names: Sequence[str], grace_s: float = GRACE_S) -> None:
        cluster = self.record
        for kind in STOP_ORDER:
            doomed = [process for process in cluster.of_kind(kind) if process.name in names]
            processes.stop(doomed, grace_s=min(grace_s, STOP_S) if kind == "etcd" else grace_s)
            for process in doomed:
                self._save(replace(process, pid=0, created_s=0.0))

    def _save(self, changed: ProcessRecord) -> None:
        cluster_file.save(self.directory, self.record.with_process(changed))


def _addresses(process: ProcessRecord) -> list[str]:
    return [address for address in (process.address, process.peer_address) if address]


def _with_addresses(
    process: ProcessRecord, lost: Sequence[str], fresh: Iterator[str]
) -> ProcessRecord:
    address, peer = process.address, process.peer_address
    if not address or address in lost:
        address = next(fresh)
    if process.kind == "etcd" and (not peer or peer in lost):
        peer = next(fresh)
    return replace(process, address=address, peer_address=peer)


def _may_move(process: ProcessRecord, cluster: ClusterRecord) -> bool:
    # Members of one etcd know each other by addresses that are part of their data.
    return process.kind != "etcd" or len(cluster.of_kind("etcd")) == 1


def _status(process: ProcessRecord) -> ProcessStatus:
    alive = processes.find(process) is not None
    if alive:
        return ProcessStatus(process, alive=True, problem=_health_problem(process))
    what = "stopped" if process.pid == 0 else "ended by itself"
    return ProcessStatus(process, alive=False, problem=what)


def _health_problem(process: ProcessRecord) -> str:
    if process.kind == "etcd":
        return _etcd_problem(process.address)
    return admin.health_problem(process.address, timeout_s=CHECK_TIMEOUT_S)


def _etcd_problem(address: str) -> str:
    connection = http.client.HTTPConnection(address, timeout=CHECK_TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        healthy = b'"true"' in answer.read()
    except (OSError, http.client.HTTPException):
        return "does not answer"
    finally:
        connection.close()
    return "" if healthy else "has no quorum"


def _serving_problem(target: str, nodes: Sequence[str]) -> str:
    try:
        answer = admin.cluster_status(target, timeout_s=CHECK_TIMEOUT_S)
    except FacegridError as error:
        return f"router {target}: {error.message}"
    answering = {node.id: node for node in answer.nodes if node.registered and not node.problem}
    for name in nodes:
        if name not in answering:
            return f"{name}: not registered, or does not answer the router"
    return next(filter(None, (_shard_problem(s, answering, nodes) for s in answer.shards)), "")


def _shard_problem(
    shard: admin_service_pb2.ClusterStatusResponse.Shard,
    answering: dict[str, admin_service_pb2.ClusterStatusResponse.Node],
    nodes: Sequence[str],
) -> str:
    for node_id in shard.node_ids:
        if node_id not in nodes:
            continue
        states = [one.state for one in answering[node_id].shards if one.shard_id == shard.id]
        if not any(state in SETTLED for state in states):
            return f"{node_id}: shard is not open yet shard={shard.id}"
    return ""
