"""What the death of a node, and of etcd's leader, costs: `python -m bench.failover`.

Three nodes, two copies of each shard, two routers, three members of etcd, all on this machine.
Searches come at a steady rate from several clients, and every shard is written to. Each node in
turn is killed with SIGKILL and started again, then the leader of etcd. Told is how many reads
failed, the 99th percentile of searches before, in the first two seconds and after them, the
longest time that a shard took no write, and, in the end, acknowledged writes that are not there.
"""

import argparse
import asyncio
import http.client
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import facegrid
from bench import report
from bench.chaos import ledger as ledgers
from bench.chaos.audit import Auditor
from bench.chaos.ledger import DIM, Ledger
from bench.chaos.tally import Tally, WriteGaps
from bench.report import Json
from bench.steady import Searches, Target, Writes
from facegrid.api.admin.v1 import admin_service_pb2
from facegrid.clock import Clock, SystemClock
from facegrid.errors import UnavailableError
from fgctl import admin
from fgctl.cluster_file import ProcessRecord
from fgctl.local.cluster import LocalCluster
from fgctl.local.plan import Wanted

GALLERY = "failover"
WANTED = Wanted(nodes=3, replicas=2, etcd=3, routers=2)
SHARDS = 4
TEMPLATES = 4000
BATCH_ROWS = 200
TRAIN_AT = 2000
CLIENTS = 4
TIMEOUT_S = 60.0
SHOCK_S = 2.0
"""The first seconds after a death, in which searches may take as long as they need."""
P99_RATIO_NEED = 2.0
LEASE_TIMES_NEED = 3.0
ETCD_GAP_S_NEED = 3.0


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for."""

    seed: int
    per_s: float
    window_s: float
    lease_s: int
    only: tuple[str, ...]
    results: Path


@dataclass(frozen=True, slots=True)
class Death:
    """What the death of one process cost.

    Attributes:
        victim: its name.
        role: "node" or "etcd leader".
        failed_reads: reads that got no answer, until all was well again.
        p99_before_ms, p99_shock_ms, p99_after_ms: of searches due before, in the first two seconds
            and after these.
        searches_before, searches_after: how many these are.
        write_gap_s: the longest time that a shard took no write.
        gap_need_s: what that may be.
    """

    victim: str
    role: str
    failed_reads: int
    p99_before_ms: float
    p99_shock_ms: float
    p99_after_ms: float
    searches_before: int
    searches_after: int
    write_gap_s: float
    gap_need_s: float

    @property
    def ratio(self) -> float:
        """How many times as long searches take afterwards."""
        return self.p99_after_ms / self.p99_before_ms

    @property
    def met(self) -> bool:
        """Whether that is within what is promised."""
        gap_met = self.write_gap_s <= self.gap_need_s
        return not self.failed_reads and self.ratio <= P99_RATIO_NEED and gap_met

    @property
    def line(self) -> str:
        """Return what to print."""
        return (
            f"failover: killed={self.victim} role={self.role.replace(' ', '_')}"
            f" failed_reads={self.failed_reads}"
            f" p99_before_ms={self.p99_before_ms:.1f} p99_first_{SHOCK_S:g}s_ms="
            f"{self.p99_shock_ms:.1f} p99_after_ms={self.p99_after_ms:.1f}"
            f" ratio={self.ratio:.2f} need={P99_RATIO_NEED:g}"
            f" write_gap_s={self.write_gap_s:.1f} need={self.gap_need_s:g}"
            f" met={'yes' if self.met else 'no'}"
        )


class Failover:
    """One run. `close` stops what was started."""

    def __init__(self, options: Options, *, folder: Path, clock: Clock) -> None:
        self._options = options
        self._clock = clock
        self._cluster = LocalCluster(folder / "cluster", wanted=WANTED)
        self._ledger_path = folder / "ledger.jsonl"
        self._open = ExitStack()
        self.tally = Tally()
        self.deaths: list[Death] = []
        self.lost_from_searches: set[str] = set()
        """Who was not found under load; the others of `tally.lost` were not found in the end."""

    def close(self) -> None:
        """Stop what was started."""
        self._open.close()

    def run(self) -> None:
        """Start, load, kill one after the other, audit."""
        options, clock = self._options, self._clock
        targets = self._start()
        ledger = Ledger(self._ledger_path, clock)
        self._open.callback(ledger.close)
        firsts = sorted(shard.first for shard in self._status().shards)
        target = Target(targets, GALLERY, ledger, self.tally, clock)
        writes = Writes(target, WriteGaps(firsts, clock))
        self._fill(targets, ledger, writes)
        searches = Searches(target, per_s=options.per_s, clients=CLIENTS, seed=options.seed)
        with writes.running(), searches.running():
            self._pause(options.window_s)
            for victim, role in self._victims():
                death = self._kill(victim, role, searches, writes)
                print(f"  {death.line}", flush=True)
                self.deaths.append(death)
        self.lost_from_searches = set(self.tally.lost)
        self._audit(targets, ledger)

    def _start(self) -> list[str]:
        self._open.callback(self._stop)
        targets = list(self._cluster.up().router_targets)
        client = self._open.enter_context(facegrid.Client(targets, timeout_s=TIMEOUT_S))
        client.create_gallery(
            GALLERY,
            dim=DIM,
            extractor="failover@1",
            shards=SHARDS,
            replicas=WANTED.replicas or 1,
            train_at=TRAIN_AT,
        )
        # Until every follower is open, the death of a node may take a shard's only copy.
        self._cluster.up()
        return targets

    def _fill(self, targets: Sequence[str], ledger: Ledger, writes: Writes) -> None:
        with facegrid.Client(targets, timeout_s=TIMEOUT_S) as client:
            for first in range(0, TEMPLATES, BATCH_ROWS):
                subject_ids = [f"base-{first + row}" for row in range(BATCH_ROWS)]
                ledger.send("enrol", f"enrol-{subject_ids[0]}", subject_ids)
                writes.enrol(client, subject_ids)
            while not client.get_gallery(GALLERY).codebook:
                self._pause(0.2)

    def _victims(self) -> Iterator[tuple[str, str]]:
        """Yield who dies next, and as what."""
        for node in self._cluster.record.of_kind("node"):
            if not self._options.only or node.name in self._options.only:
                yield node.name, "node"
        if not self._options.only or "etcd" in self._options.only:
            yield leader(self._cluster.record.of_kind("etcd")), "etcd leader"

    def _kill(self, victim: str, role: str, searches: Searches, writes: Writes) -> Death:
        options, clock = self._options, self._clock
        node = role == "node"
        gap_need_s = LEASE_TIMES_NEED * options.lease_s if node else ETCD_GAP_S_NEED
        before_s = clock.now_s()
        self._pause(options.window_s)
        failed = len(self.tally.failed_reads)
        killed_s = clock.now_s()
        writes.gaps = gaps = writes.gaps.fresh()
        self._cluster.kill_node(victim)
        self._pause(SHOCK_S + options.window_s)
        end_s = killed_s + SHOCK_S + options.window_s
        # Whoever takes over needs until the lease has ended, and some more.
        while gaps.open_s > 1.0 and clock.now_s() < killed_s + 2 * gap_need_s:
            self._pause(0.1)
        gap_s = max(gaps.longest_s, gaps.open_s)
        self._cluster.start_node(victim)
        self._cluster.up()
        self._pause(SHOCK_S)
        return Death(
            victim=victim,
            role=role,
            failed_reads=len(self.tally.failed_reads) - failed,
            p99_before_ms=searches.p99_ms(before_s, killed_s),
            p99_shock_ms=searches.p99_ms(killed_s, killed_s + SHOCK_S),
            p99_after_ms=searches.p99_ms(killed_s + SHOCK_S, end_s),
            searches_before=searches.count(before_s, killed_s),
            searches_after=searches.count(killed_s + SHOCK_S, end_s),
            write_gap_s=gap_s,
            gap_need_s=gap_need_s,
        )

    def _audit(self, targets: Sequence[str], ledger: Ledger) -> None:
        fates = ledgers.read(self._ledger_path)
        with facegrid.Client(targets, timeout_s=TIMEOUT_S) as client:
            Auditor(client, GALLERY, fates, token=ledger.token, tally=self.tally).run()

    def _status(self) -> admin_service_pb2.ClusterStatusResponse:
        return admin.cluster_status(self._cluster.router_targets[0], timeout_s=TIMEOUT_S)

    def _pause(self, duration_s: float) -> None:
        asyncio.run(self._clock.sleep(duration_s))

    def _stop(self) -> None:
        if self._cluster.directory.exists():
            self._cluster.down()


def leader(members: Sequence[ProcessRecord]) -> str:
    """Return the name of etcd's leader.

    Raises:
        UnavailableError: no member says that it is.
    """
    for member in members:
        connection = http.client.HTTPConnection(member.address, timeout=TIMEOUT_S)
        try:
            connection.request("POST", "/v3/maintenance/status", body="{}")
            answer = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        if answer["leader"] == answer["header"]["member_id"]:
            return member.name
    raise UnavailableError("etcd has no leader", reason="NO_LEADER")


def verdict(deaths: Sequence[Death], tally: Tally) -> str:
    """Return the last line to print."""
    lost = len(tally.lost)
    failed_reads = len(tally.failed_reads)
    worst = max((death.ratio for death in deaths), default=math.nan)
    good = deaths and all(death.met for death in deaths) and tally.clean
    return (
        f"failover: {'ok' if good else 'failed'} deaths={len(deaths)} failed_reads={failed_reads}"
        f" lost={lost} worst_ratio={worst:.2f} problems={len(tally.problems)}"
    )


def as_json(failover: Failover, options: Options) -> dict[str, Json]:
    """Return everything as JSON."""
    deaths, tally = failover.deaths, failover.tally
    return {
        "parameters": {
            "seed": options.seed,
            "per_s": options.per_s,
            "window_s": options.window_s,
            "lease_s": options.lease_s,
            "only": options.only,
        },
        "cluster": asdict(WANTED) | {"shards": SHARDS, "dim": DIM, "templates": TEMPLATES},
        "deaths": [asdict(death) | {"ratio": death.ratio, "met": death.met} for death in deaths],
        "done": dict(tally.done),
        "lost": sorted(tally.lost),
        "lost_from_searches": sorted(failover.lost_from_searches),
        "failed_reads": tally.failed_reads,
        "problems": tally.problems,
    }


def parse(argv: Sequence[str]) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="bench.failover", description="What a death costs.")
    parser.add_argument("--seed", type=int, default=1, help="of the moments of searches")
    parser.add_argument("--rate", type=float, default=40.0, help="searches a second")
    parser.add_argument("--window-s", type=float, default=20.0, help="measured before and after")
    parser.add_argument("--lease-s", type=int, default=10, help="lease time of the nodes")
    parser.add_argument("--only", default="", help="who dies, of n1,n2,n3,etcd; empty: all")
    parser.add_argument("--results", type=Path, default=report.RESULTS, help="folder for the JSON")
    given = parser.parse_args(argv)
    only = tuple(given.only.split(",")) if given.only else ()
    return Options(given.seed, given.rate, given.window_s, given.lease_s, only, given.results)


def main() -> int:
    """Run, write the results down; return 0 only if every need is met and nothing was lost."""
    options = parse(sys.argv[1:])
    os.environ["FACEGRID_INDEXD_LEASE_TTL_S"] = str(options.lease_s)  # noqa: TID251 - nodes inherit it
    clock = SystemClock()
    with tempfile.TemporaryDirectory(prefix="facegrid-failover-") as folder:
        failover = Failover(options, folder=Path(folder), clock=clock)
        try:
            failover.run()
        finally:
            failover.close()
    tally = failover.tally
    command = ["python", "-m", "bench.failover", *report.without_folders(sys.argv[1:])]
    path = report.write(
        "failover",
        command,
        unix_ms=clock.unix_ms(),
        results=as_json(failover, options),
        folder=options.results,
    )
    for reason in [*tally.failed_reads[:10], *tally.problems[:10]]:
        print(f"  {reason}")
    print(f"written: {path}")
    last = verdict(failover.deaths, tally)
    print(last)
    return 0 if last.startswith("failover: ok") else 1


if __name__ == "__main__":
    sys.exit(main())
