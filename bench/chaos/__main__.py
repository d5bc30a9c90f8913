"""Random faults under mixed load: `make chaos SEED=… MINUTES=…`.

Starts three nodes, two routers and an etcd on this machine, keeps enrolling, erasing and searching
while faults come and go, and audits in the end that nothing acknowledged was lost and nothing
erased came back. The last line says whether every promise held.
"""

import argparse
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal, Never

import facegrid
from bench.chaos import ledger as ledgers
from bench.chaos import links
from bench.chaos.audit import Auditor
from bench.chaos.faults import Saboteur, schedule
from bench.chaos.healing import Healing
from bench.chaos.ledger import DIM, Ledger
from bench.chaos.load import GALLERY, Load
from bench.chaos.proxy import Proxies
from bench.chaos.survivors import Survivors
from bench.chaos.tally import Tally, WriteGaps
from facegrid.clock import Clock, SystemClock
from facegrid.errors import FacegridError, NotFoundError
from fgctl import admin, cluster_file
from fgctl.local import plan, processes
from fgctl.local.cluster import LocalCluster
from fgctl.local.plan import Wanted

NODES = 3
ROUTERS = 2
REPLICAS = 2
SHARDS = 4
TRAIN_AT = 2000
"""Templates at which the index trains by itself, so that it does amid the faults."""
NODE_SETTINGS = {
    "ERASED_REWRITE_S": "5",
    "LEASE_TTL_S": "4",
    "TAKEOVER_AFTER_S": "1",
    "DEV": "true",
}
"""So that segments are rewritten, logs trimmed and shards taken over amid the faults."""
CALM_S = 1.5
"""Undisturbed load before the first fault and between two."""
AUDIT_TIMEOUT_S = 60.0
REASONS_SHOWN_MAX = 12
MIB = 1024 * 1024

Forgery = Literal["", "lost", "resurrected"]


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for.

    Attributes:
        seed: decides on the faults, and on what the load chooses.
        minutes: how long faults go on.
        etcd: members, 1 or 3.
        forge: falsify the ledger before the audit, which must then fail.
        keep: leave ledger, logs and data here; None: a folder that is deleted.
    """

    seed: int
    minutes: float
    etcd: int
    forge: Forgery
    keep: Path | None


class Chaos:
    """One run. `stop` ends it early, with the audit."""

    def __init__(self, options: Options, *, folder: Path, clock: Clock) -> None:
        self._options = options
        self._clock = clock
        self._ledger_path = folder / "ledger.jsonl"
        self._wanted = Wanted(NODES, REPLICAS, options.etcd, ROUTERS)
        self._cluster = LocalCluster(folder / "cluster", wanted=self._wanted)
        self._rules = folder / "failpoints"
        self._open = ExitStack()
        self._stop = threading.Event()
        self._memory_bytes: dict[str, list[int]] = {}
        self.tally = Tally()
        self._survivors = Survivors(self._cluster, self.tally)
        self._ledger: Ledger
        self._gaps: WriteGaps
        self._saboteur: Saboteur
        self._healing: Healing

    def close(self) -> None:
        """Stop what was started; harmless when nothing was."""
        self._open.close()

    def run(self) -> None:
        """Start, hurt, heal, audit."""
        self._start()
        with Load(
            self._cluster.router_targets,
            self._ledger,
            self.tally,
            gaps=self._gaps,
            clock=self._clock,
            seed=self._options.seed,
        ):
            self._hurt()
        self._healing.check("the end of the load")
        self._survivors.check("at the end of the load")
        self._healing.replicas()
        self._forge()
        self._audit()
        self._show()

    def verdict(self) -> str:
        """Return the last line."""
        tally = self.tally
        told = (
            f"acks={self._ledger.acks_count} kills={self._saboteur.kills_count}"
            f" cuts={self._saboteur.cuts_count} lost={len(tally.lost)}"
            f" resurrected={len(tally.resurrected)} failed_reads={len(tally.failed_reads)}"
            f" max_write_gap_s={self._gaps.longest_s:.1f}"
        )
        if tally.clean:
            return f"chaos: ok {told}"
        return f"chaos: failed {told} problems={len(tally.problems)} reasons: {self._reasons()}"

    def _reasons(self) -> str:
        tally = self.tally
        reasons = [
            *(f"lost {subject_id}" for subject_id in sorted(tally.lost)),
            *(f"resurrected {subject_id}" for subject_id in sorted(tally.resurrected)),
            *tally.failed_reads,
            *tally.problems,
        ]
        return "; ".join(" ".join(reason.split()) for reason in reasons[:REASONS_SHOWN_MAX])

    def _start(self) -> None:
        proxies = self._open.enter_context(Proxies())
        self._open.callback(self._stop_cluster)
        self._give_addresses(proxies)
        record = self._cluster.up()
        for process in record.processes:
            _say(f"{process.name} pid={process.pid} address={process.address}")
        client = self._open.enter_context(
            facegrid.Client(list(record.router_targets), timeout_s=AUDIT_TIMEOUT_S)
        )
        client.create_gallery(
            GALLERY,
            dim=DIM,
            extractor="chaos@1",
            shards=SHARDS,
            replicas=REPLICAS,
            train_at=TRAIN_AT,
        )
        # Until every follower is open, the death of a node may take a shard's only copy.
        self._cluster.up()
        status = admin.cluster_status(record.router_targets[0], timeout_s=AUDIT_TIMEOUT_S)
        self._gaps = WriteGaps(sorted(shard.first for shard in status.shards), self._clock)
        self._ledger = Ledger(self._ledger_path, self._clock)
        self._open.callback(self._ledger.close)
        self._saboteur = Saboteur(self._cluster, proxies, self._rules, self._stop)
        self._healing = Healing(
            self._cluster,
            self._open.enter_context(facegrid.Client(list(record.router_targets), timeout_s=2)),
            self._ledger,
            tally=self.tally,
            gaps=self._gaps,
            clock=self._clock,
        )

    def _give_addresses(self, proxies: Proxies) -> None:
        """Put a proxy into every link, and failpoints into every node."""
        self._cluster.directory.mkdir(parents=True)
        self._rules.mkdir()
        os.environ["FACEGRID_INDEXD_FAILPOINTS"] = str(self._rules)  # noqa: TID251 - nodes inherit it
        cluster = links.linked(plan.planned(self._wanted, None, cores=NODES), proxies)
        cluster_file.save(self._cluster.directory, cluster)

    def _hurt(self) -> None:
        end_s = self._clock.now_s() + 60 * self._options.minutes
        faults = schedule(
            self._options.seed, nodes=NODES, routers=ROUTERS, etcd=self._options.etcd
        )
        self._remember_memory()
        self._stop.wait(CALM_S)
        while self._clock.now_s() < end_s:
            fault = next(faults)
            self._survivors.check(f"before [{fault}]")
            started_s = self._clock.now_s()
            self._saboteur.inflict(fault)
            mended_s = self._clock.now_s()
            self._healing.check(str(fault))
            self._survivors.check(f"after [{fault}]")
            self._remember_memory()
            _say(
                f"{fault} mended_after_s={mended_s - started_s:.1f}"
                f" well_after_s={self._clock.now_s() - mended_s:.1f}"
            )
            self._stop.wait(CALM_S)

    def _forge(self) -> None:
        """Negative control: write into the ledger what never happened."""
        if self._options.forge == "lost":
            self._ledger.send("enrol", "forged", ["nobody"])
            self._ledger.acknowledge("enrol", "forged", ["nobody"])
        elif self._options.forge == "resurrected":
            there = next(one for one, fate in self._ledger.fates.items() if fate.must_be_there)
            self._ledger.acknowledge("erase", "forged", [there])

    def _audit(self) -> None:
        """Read the ledger back and hold the cluster against it."""
        fates = ledgers.read(self._ledger_path)
        targets = list(self._cluster.router_targets)
        with facegrid.Client(targets, timeout_s=AUDIT_TIMEOUT_S) as client:
            token = self._ledger.token
            Auditor(client, GALLERY, fates, token=token, tally=self.tally).run()

    def _remember_memory(self) -> None:
        for process in self._cluster.record.processes:
            found = processes.find(process)
            if found is not None:
                seen = self._memory_bytes.setdefault(process.name, [])
                seen.append(found.memory_info().rss)

    def _show(self) -> None:
        for what, count in sorted(self.tally.done.items()):
            _say(f"{what}: {count}")
        for kind, count in sorted(self._saboteur.inflicted.items()):
            _say(f"fault {kind}: {count}")
        _say(f"longest read: {self.tally.read_s_max:.2f} s")
        _say(f"longest way from mended to well: {self._healing.longest_s:.2f} s")
        with facegrid.Client(self._cluster.router_targets, timeout_s=AUDIT_TIMEOUT_S) as client:
            trained = client.get_gallery(GALLERY).codebook
        _say(f"codebook: {trained or 'none yet'}")
        for name, seen in self._memory_bytes.items():
            _say(
                f"memory of {name}: first {seen[0] // MIB} MiB,"
                f" most {max(seen) // MIB} MiB, last {seen[-1] // MIB} MiB"
            )
        if not self.tally.clean:
            for line in self._survivors.testimony():
                _say(line)

    def _stop_cluster(self) -> None:
        try:
            record = self._cluster.record
        except NotFoundError:
            return
        processes.resume(record.processes)
        self._cluster.down()


def run(options: Options, *, folder: Path, clock: Clock) -> str:
    """Run, and stop what was started; return the last line to print."""
    chaos = Chaos(options, folder=folder, clock=clock)
    try:
        chaos.run()
        return chaos.verdict()
    except KeyboardInterrupt:
        return "chaos: failed reasons: interrupted"
    except (FacegridError, OSError) as error:
        return f"chaos: failed reasons: {' '.join(str(error).split())}"
    finally:
        # A second Ctrl-C must not leave processes behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        chaos.close()


def parse(argv: Sequence[str]) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="bench.chaos", description="Random faults under load.")
    parser.add_argument("--seed", type=int, default=1, help="decides on the faults")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long faults go on")
    parser.add_argument("--etcd", type=int, choices=(1, 3), default=1, help="members of etcd")
    parser.add_argument(
        "--forge",
        choices=("lost", "resurrected"),
        default="",
        help="falsify the ledger before the audit, which must then fail",
    )
    parser.add_argument("--keep", type=Path, help="leave ledger, logs and data in this folder")
    given = parser.parse_args(argv)
    return Options(given.seed, given.minutes, given.etcd, given.forge, given.keep)


def main() -> int:
    """Run; return 0 only if every promise held."""
    options = parse(sys.argv[1:])
    for name, value in NODE_SETTINGS.items():
        os.environ[f"FACEGRID_INDEXD_{name}"] = value  # noqa: TID251 - nodes inherit it
    signal.signal(signal.SIGTERM, _interrupt)
    _say(f"seed={options.seed} minutes={options.minutes:g} etcd={options.etcd}")
    last_line = "chaos: failed reasons: unexpected"
    try:
        with ExitStack() as folders:
            folder = options.keep
            if folder is None:
                made = tempfile.TemporaryDirectory(prefix="facegrid-chaos-")
                folder = Path(folders.enter_context(made))
            folder.mkdir(parents=True, exist_ok=True)
            last_line = run(options, folder=folder, clock=SystemClock())
    finally:
        sys.stdout.write(last_line + "\n")
        sys.stdout.flush()
    return 0 if last_line.startswith("chaos: ok") else 1


def _interrupt(_number: int, _frame: FrameType | None) -> Never:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    sys.stdout.write(f"  {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
