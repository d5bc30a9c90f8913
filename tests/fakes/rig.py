"""A real cluster that tests hurt: a proxy in every link, failpoints in every node, a ledger.

Tests that share a rig each end with it healed, see `Rig.heal`.
"""

import asyncio
import json
import signal
import threading
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import pytest
from typing_extensions import override

import facegrid
from bench.chaos import links
from bench.chaos.audit import Auditor
from bench.chaos.healing import Healing
from bench.chaos.ledger import DIM, Ledger, template_of, vector_of, vectors_of
from bench.chaos.load import GALLERY, Load
from bench.chaos.proxy import Link, Proxies
from bench.chaos.tally import Tally, WriteGaps
from facegrid.api.admin.v1 import admin_service_pb2
from facegrid.clock import SystemClock
from facegrid.coord.etcd import EtcdCoordinator
from facegrid.errors import FacegridError, NotFoundError
from fgctl import admin, cluster_file
from fgctl.cluster_file import ClusterRecord, ProcessRecord
from fgctl.local import plan, processes
from fgctl.local.cluster import LocalCluster
from fgctl.local.plan import Wanted
from tests.fakes.waiting import PATIENCE_S

ROOT = Path(__file__).parents[2]
LEASE_S = 4
"""The shortest that a node takes."""
T = TypeVar("T")


def wait_for(problem: Callable[[], str], timeout_s: float = PATIENCE_S) -> None:
    """Wait until there is no problem any more; fail with the last one."""
    last = processes.wait_until(problem, timeout_s=timeout_s, clock=SystemClock())
    assert not last, last


def holds(condition: Callable[[], bool], what: str) -> Callable[[], str]:
    """Return a condition as `wait_for` takes it; what cannot be asked does not hold yet."""

    def problem() -> str:
        try:
            return "" if condition() else what
        except FacegridError as error:
            return f"{what}: {error.message}"

    return problem


class OtherBuild(LocalCluster):
    """A cluster whose nodes, or routers, are started from other modules: a weakened or old build.

    `argv_of` says by kind what stands in the place of the module's name.
    """

    argv_of: Mapping[str, tuple[str, ...]] = {}

    @override
    def commanded(self, process: ProcessRecord, cluster: ClusterRecord) -> ProcessRecord:
        """Return a process with the command line that starts it."""
        process = super().commanded(process, cluster)
        other = self.argv_of.get(process.kind, ())
        if not other:
            return process
        at = process.argv.index("indexd" if process.kind == "node" else "router")
        argv = (*process.argv[:at], *other, *process.argv[at + 1 :])
        return cluster_file.replace(process, argv=argv)


@dataclass
class Reads:
    """What searches that went on all the while saw: when each began, and how long it took."""

    wrong: list[str] = field(default_factory=list)
    times: list[tuple[float, float]] = field(default_factory=list)

    def since(self, at_s: float) -> list[float]:
        """Return how long the searches took that began at a time or later."""
        return [took_s for began_s, took_s in self.times if began_s >= at_s]

    def before(self, at_s: float) -> list[float]:
        """Return how long the searches took that were over by a time."""
        return [took_s for began_s, took_s in self.times if began_s + took_s <= at_s]


@dataclass
class Trial:
    """What is known of a gallery under test."""

    ledger: Ledger
    tally: Tally
    gaps: WriteGaps


class Rig:
    """Starts on entry, and stops everything on exit.

    Args:
        folder: for all that the processes leave.
        wanted: which processes.
        clock_free: environment of the processes, beside what every rig sets.
    """

    def __init__(
        self,
        folder: Path,
        wanted: Wanted,
        *,
        environment: dict[str, str] | None = None,
        node_argv: Sequence[str] = (),
        router_argv: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.clock = SystemClock()
        self._wanted = wanted
        self._environment = environment or {}
        self._open = ExitStack()
        self.proxies = Proxies()
        self.rules = folder / "failpoints"
        self.cluster = OtherBuild(folder / "cluster", wanted=wanted)
        self.cluster.argv_of = {"node": tuple(node_argv), "router": tuple(router_argv)}

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            patch = undo.enter_context(pytest.MonkeyPatch.context())
            self._set(patch)
            undo.enter_context(self.proxies)
            undo.callback(self._stop)
            self.rules.mkdir(parents=True)
            self.cluster.directory.mkdir(parents=True)
            planned = plan.planned(self._wanted, None, cores=self._wanted.nodes or 1)
            cluster_file.save(self.cluster.directory, links.linked(planned, self.proxies))
            self.cluster.up()
            self._open = undo.pop_all()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._open.close()

    def _set(self, patch: pytest.MonkeyPatch) -> None:
        """Set the environment that processes started from here inherit."""
        both = {"DEV": "true", "FAILPOINTS": str(self.rules), "LOG_LEVEL": "info"}
        for name, value in both.items():
            patch.setenv(f"FACEGRID_INDEXD_{name}", value)
            patch.setenv(f"FACEGRID_ROUTER_{name}", value)
        patch.setenv("FACEGRID_INDEXD_LEASE_TTL_S", str(LEASE_S))
        patch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tools'}")
        for name, value in self._environment.items():
            patch.setenv(name, value)

    def _stop(self) -> None:
        try:
            record = self.cluster.record
        except NotFoundError:
            return
        processes.resume(record.processes)
        self.cluster.down(grace_s=5.0)

    # Hurting

    def heal(self) -> None:
        """Mend whatever a test has broken, and wait until all serves."""
        for name in self.proxies.names:
            self.proxies.change(name, lambda link: link.heal())
        for path in self.rules.iterdir():
            path.unlink()
        processes.resume(self.cluster.record.processes)
        self.cluster.up()

    def arm(self, process: str, *rules: str) -> None:
        """Let a process fail by these rules, and forget which have struck before."""
        (self.rules / f"{process}.struck").unlink(missing_ok=True)
        partial = self.rules / f"{process}.partial"
        partial.write_text("".join(f"{rule}\n" for rule in rules))
        partial.replace(self.rules / process)

    def disarm(self, process: str) -> None:
        """Let a process fail no more."""
        (self.rules / process).unlink(missing_ok=True)

    def struck(self, process: str) -> list[str]:
        """Return the rules that have struck."""
        path = self.rules / f"{process}.struck"
        return path.read_text().splitlines() if path.exists() else []

    def signal(self, process: str, number: signal.Signals) -> None:
        """Send a process a signal."""
        processes.send([self.cluster.record.named(process)], number)

    def pause(self, process: str) -> None:
        """Make a process stand still."""
        processes.pause([self.cluster.record.named(process)])

    def resume(self, process: str) -> None:
        """Let a process that stands still go on."""
        processes.resume([self.cluster.record.named(process)])

    def is_alive(self, process: str) -> bool:
        """Tell whether a process runs."""
        return processes.find(self.cluster.record.named(process)) is not None

    def memory_bytes_max(self, process: str) -> int:
        """Return the most memory that a process has held so far."""
        status = Path(f"/proc/{self.cluster.record.named(process).pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024

    def wait_ended(self, process: str) -> None:
        """Wait until a process has ended by itself."""
        wait_for(lambda: f"{process} still runs" if self.is_alive(process) else "")

    def start(self, process: str) -> None:
        """Start a process that ended, and wait until it serves."""
        self.cluster.start_node(process)

    def exchange(self, process: str) -> None:
        """Stop a process in order and start it again, of the build that is set by now."""
        self.signal(process, signal.SIGTERM)
        self.wait_ended(process)
        self.start(process)

    def said(self, process: str) -> str:
        """Return all that a process has logged."""
        return self.cluster.log(process).read_text(errors="replace")

    def hold(self, *names: str) -> None:
        """Let nothing pass on links, without a word."""
        self.change(names, lambda link: link.hold())

    def change(self, names: Sequence[str], action: Callable[[Link], None]) -> None:
        """Do the same to several links."""
        for name in names:
            self.proxies.change(name, action)

    def etcd_links(self, process: str) -> list[str]:
        """Return the links from a process to all members of etcd."""
        return [links.link(process, one.name) for one in self.cluster.record.of_kind("etcd")]

    # Asking

    @property
    def targets(self) -> list[str]:
        """Where clients connect."""
        return self.cluster.router_targets

    def client(self, timeout_s: float = PATIENCE_S) -> facegrid.Client:
        """Return a client of all routers."""
        return facegrid.Client(self.targets, timeout_s=timeout_s)

    def status(self) -> admin_service_pb2.ClusterStatusResponse:
        """Return what the first router that answers knows."""
        problem: FacegridError = NotFoundError("no router")
        for target in self.targets:
            try:
                return admin.cluster_status(target, timeout_s=10)
            except FacegridError as error:
                problem = error
        raise problem

    def copies(self, gallery: str) -> list[str]:
        """Return the ids of the nodes with copies of a gallery's first shard, primary first."""
        shards = [shard for shard in self.status().shards if shard.id.startswith(f"{gallery}.")]
        return list(shards[0].node_ids)

    def digests(self, gallery: str) -> set[tuple[int, str]]:
        """Return position and digest of each copy of a gallery's only shard."""
        return {
            (copy.position, copy.digest)
            for node in self.status().nodes
            for copy in node.shards
            if copy.shard_id.startswith(f"{gallery}.")
        }

    def wait_equal(self, gallery: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait until all copies of a gallery's only shard are the same."""
        wait_for(holds(lambda: len(self.digests(gallery)) == 1, "copies differ"), timeout_s)

    def etcd(self, work: Callable[[EtcdCoordinator], Awaitable[T]]) -> T:
        """Do something with etcd, past all links."""
        endpoints = [member.address for member in self.cluster.record.of_kind("etcd")]

        async def run() -> T:
            coord = EtcdCoordinator(endpoints, clock=self.clock)
            try:
                return await work(coord)
            finally:
                await coord.aclose()

        return asyncio.run(run())

    def values(self, prefix: str) -> dict[str, bytes]:
        """Return what etcd has under a prefix."""
        snapshot = self.etcd(lambda coord: coord.list(prefix))
        return {item.key: item.value for item in snapshot.items}

    def etcd_call(self, path: str, member: str = "etcd1", **body: object) -> Any:
        """Call etcd's JSON gateway, for what facegrid itself never does."""
        address = self.cluster.record.named(member).address
        request = urllib.request.Request(
            f"http://{address}/v3/{path}",
            data=json.dumps(body).encode(),
            headers={"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return json.load(answer)

    def objects(self, part: str) -> list[Path]:
        """Return the files of stored objects with this in their path, sorted."""
        found = [path for path in self.cluster.store.rglob("*") if path.is_file()]
        return sorted(
            path for path in found if part in path.as_posix() and "/.tmp/" not in str(path)
        )

    # Working

    def new_gallery(
        self, client: facegrid.Client, name: str, *, shards: int = 1, replicas: int = 1
    ) -> facegrid.Gallery:
        """Create a gallery that searches exactly, and wait until all of its copies serve."""
        gallery = client.create_gallery(
            name, dim=DIM, extractor="x@1", shards=shards, replicas=replicas, train_at=0
        )
        self.cluster.up()
        return gallery

    @contextmanager
    def trial(self, *, seed: int = 1, shards: int = 4, replicas: int = 2) -> Iterator[Trial]:
        """Keep up mixed load under a ledger; afterwards heal, audit, and demand that all held."""
        with self.client() as client:
            client.create_gallery(
                GALLERY,
                dim=DIM,
                extractor="x@1",
                shards=shards,
                replicas=replicas,
                train_at=0,
            )
            self.cluster.up()
            trial = self.opened(GALLERY)
            with Load(
                self.targets,
                trial.ledger,
                trial.tally,
                gaps=trial.gaps,
                clock=self.clock,
                seed=seed,
            ):
                wait_for(lambda: "" if trial.ledger.acks_count >= 20 else "no load yet")
                yield trial
                self.heal()
            with self.client(5) as writer:
                healing = Healing(
                    self.cluster,
                    writer,
                    trial.ledger,
                    tally=trial.tally,
                    gaps=trial.gaps,
                    clock=self.clock,
                )
                healing.check("the test")
                healing.replicas()
            self.audit(client, trial)
            client.drop_gallery(GALLERY)

    def opened(self, gallery: str) -> Trial:
        """Return an empty ledger for a gallery."""
        path = self.folder / f"ledger-{self.clock.now_s()}.jsonl"
        firsts = sorted(
            shard.first for shard in self.status().shards if shard.id.startswith(f"{gallery}.")
        )
        ledger = Ledger(path, self.clock)
        self._open.callback(ledger.close)
        return Trial(ledger, Tally(), WriteGaps(firsts, self.clock))

    def audit(self, client: facegrid.Client, trial: Trial, gallery: str = GALLERY) -> None:
        """Hold a gallery against its ledger, and demand that nothing was wrong all along."""
        tally = trial.tally
        token = trial.ledger.token
        Auditor(client, gallery, trial.ledger.fates, token=token, tally=tally).run()
        found = (tally.lost, tally.resurrected, tally.failed_reads, tally.problems)
        assert found == (set(), set(), [], []), found

    @contextmanager
    def reading(
        self,
        gallery: str,
        subject_ids: Sequence[str],
        after: facegrid.Token,
        *,
        timeout_s: float = 30.0,
        threads: int = 2,
    ) -> Iterator[Reads]:
        """Search for enrolled subjects without pause; each must be found in every answer."""
        reads, stop = Reads(), threading.Event()

        def search(number: int) -> None:
            rng = np.random.default_rng(number)
            with self.client(timeout_s) as client:
                while not stop.is_set():
                    wanted = subject_ids[int(rng.integers(len(subject_ids)))]
                    began_s = self.clock.now_s()
                    problem = found_problem(client, gallery, wanted, after)
                    if problem:
                        reads.wrong.append(problem)
                    reads.times.append((began_s, self.clock.now_s() - began_s))

        workers = [threading.Thread(target=search, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        try:
            wait_for(lambda: "" if len(reads.times) >= 20 else "no searches yet")
            yield reads
        finally:
            stop.set()
            for worker in workers:
                worker.join()


def found_problem(
    client: facegrid.Client, gallery: str, subject_id: str, after: facegrid.Token | None = None
) -> str:
    """Search for an enrolled subject; say what is wrong with the answer."""
    try:
        (answer,) = client.identify(gallery, vector_of(subject_id)[np.newaxis], k=1, after=after)
    except FacegridError as error:
        return f"{type(error).__name__} {error.reason}: {error.message}"
    found = [candidate.subject_id for candidate in answer.candidates]
    return "" if found == [subject_id] else f"found {found} instead of {subject_id}"


def enrol(
    client: facegrid.Client, gallery: str, subject_ids: Sequence[str], *, request_id: str = ""
) -> facegrid.Token:
    """Enrol subjects with the vectors that follow from their ids."""
    return client.enrol(
        gallery,
        template_ids=[template_of(subject_id) for subject_id in subject_ids],
        subject_ids=list(subject_ids),
        vectors=vectors_of(subject_ids),
        request_id=request_id or f"enrol-{subject_ids[0]}",
    )


def enrol_noted(
    client: facegrid.Client, gallery: str, trial: Trial, subject_ids: Sequence[str]
) -> facegrid.Token:
    """Enrol subjects; the ledger knows what was sent and what was acknowledged."""
    request_id = f"enrol-{subject_ids[0]}"
    trial.ledger.send("enrol", request_id, subject_ids)
    token = enrol(client, gallery, subject_ids, request_id=request_id)
    trial.ledger.acknowledge("enrol", request_id, subject_ids, token=token)
    return token


def erase_noted(
    client: facegrid.Client, gallery: str, trial: Trial, subject_id: str
) -> facegrid.Token:
    """Erase a subject; the ledger knows."""
    request_id = f"erase-{subject_id}"
    trial.ledger.send("erase", request_id, [subject_id])
    token = client.erase(gallery, subject_ids=[subject_id], request_id=request_id).token
    trial.ledger.acknowledge("erase", request_id, [subject_id], token=token)
    return token
