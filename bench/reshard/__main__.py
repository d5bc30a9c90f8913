"""A cluster changes its shape under load: `make reshard-check`.

Three nodes with two copies of each shard, a mixed load of enrolments, erasures and searches, and
every change that operators make: a node is added, the cluster rebalanced, the largest shard split,
a node drained, the halves merged again, and a node killed in the middle of a move. In the end all
that was acknowledged is looked for, and all copies are compared. The last line says whether
everything held.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import facegrid
from bench import report
from bench.chaos import ledger as ledgers
from bench.chaos.audit import Auditor, replica_problems
from bench.chaos.ledger import DIM, Ledger
from bench.chaos.load import GALLERY, Load
from bench.chaos.tally import Tally, WriteGaps
from bench.report import Json
from bench.reshard import answers
from bench.reshard.answers import Comparison
from bench.reshard.operator import Operator, merge, replicas, split
from facegrid.clock import Clock, SystemClock
from facegrid.errors import FacegridError
from fgctl.local.cluster import LocalCluster
from fgctl.local.plan import Wanted

NODES: Final = 3
WANTED: Final = Wanted(NODES, 2, 1, 2)
SHARDS: Final = 4
TRAIN_AT: Final = 2000
TIMEOUT_S: Final = 60.0
SETTLE_S: Final = 30.0
REST: Final = "rest"
LOAD_PAUSE_S: Final = 0.15
"""So that the cores are not full at rest: else every search shows all that is done besides."""
P99_RATIO_NEED: Final = 1.3
GAP_S_NEED: Final = 1.0
NODE_SETTINGS: Final = {"LEASE_TTL_S": "8", "TAKEOVER_AFTER_S": "1", "ERASED_REWRITE_S": "20"}


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for."""

    seed: int
    templates: int
    per_s: float
    rest_s: float
    results: Path | None


@dataclass(frozen=True, slots=True)
class Phase:
    """One change of shape: when it was, and how long any range took no write meanwhile."""

    name: str
    first_s: float
    last_s: float
    write_gap_s: float
    calm: bool
    """Nobody was killed in it."""


class ReshardCheck:
    """One run. `close` stops what was started."""

    def __init__(self, options: Options, *, folder: Path, clock: Clock) -> None:
        self._options = options
        self._clock = clock
        self._folder = folder
        self._cluster = LocalCluster(folder / "cluster", wanted=WANTED)
        self._open = ExitStack()
        self.tally = Tally()
        self.phases: list[Phase] = []
        self.operator: Operator
        self.comparison: Comparison
        self._load: Load

    def close(self) -> None:
        """Stop what was started."""
        self._open.close()

    def run(self) -> None:
        """Fill, load, change the shape, audit."""
        options, clock = self._options, self._clock
        deep = answers.reference(self._folder / "reference", GALLERY, options.templates)
        ledger = Ledger(self._folder / "ledger.jsonl", clock)
        self._open.callback(ledger.close)
        targets = self._start(ledger, deep)
        firsts = sorted(shard.first for shard in self.operator.status().shards)
        self._load = load = Load(
            targets,
            ledger,
            self.tally,
            gaps=WriteGaps(firsts, clock),
            clock=clock,
            seed=options.seed,
        )
        load.pause_s = LOAD_PAUSE_S
        with load, self.comparison.running(per_s=options.per_s, seed=options.seed):
            self._rest()
            self._change()
            self.operator.rebalance(settled=True)
            self._rest()
        self._check_replicas()
        fates = ledgers.read(self._folder / "ledger.jsonl")
        with facegrid.Client(targets, timeout_s=TIMEOUT_S) as client:
            Auditor(client, GALLERY, fates, token=ledger.token, tally=self.tally).run()

    def _start(self, ledger: Ledger, deep: dict[str, answers.Ranked]) -> list[str]:
        self._open.callback(self._stop)
        targets = list(self._cluster.up().router_targets)
        self.operator = Operator(targets, self._clock, say=_say)
        with facegrid.Client(targets, timeout_s=TIMEOUT_S) as client:
            client.create_gallery(
                GALLERY,
                dim=DIM,
                extractor="chaos@1",
                shards=SHARDS,
                replicas=WANTED.replicas or 1,
                train_at=TRAIN_AT,
            )
            self._cluster.up()
            subject_ids = sorted(deep)
            ledger.send("enrol", "base", subject_ids)
            token = answers.fill(client, GALLERY, subject_ids)
            ledger.acknowledge("enrol", "base", subject_ids, token=token, lasting=True)
            while not client.get_gallery(GALLERY).codebook:
                self.operator.pause(0.2)
            self.operator.pause(2.0)
            # Codes are approximate: in a few answers somebody far down the list is not found, by
            # whom the shards happen to be shared out. Those are not asked for.
            found = answers.ask(client, GALLERY, subject_ids, k=answers.K)
        sure = {
            subject_id: deep[subject_id]
            for subject_id, answer in zip(subject_ids, found, strict=True)
            if answer == deep[subject_id][: answers.K]
        }
        _say(f"probes with a sure answer: {len(sure)} of {len(deep)}")
        self.comparison = Comparison(targets, GALLERY, sure, tally=self.tally)
        return targets

    def _rest(self) -> None:
        """Let nothing change: before all changes, and after them, on the nodes there are then."""
        with self._phase(REST):
            self.operator.pause(self._options.rest_s)

    def _change(self) -> None:
        """Make every change that operators make."""
        operator = self.operator
        # A process that starts takes a core for a second or two, here one of those that search;
        # the node of an operator starts on a machine of its own.
        self._cluster = LocalCluster(self._cluster.directory, wanted=Wanted(NODES + 1, 2, 1, 2))
        self._cluster.up()
        with self._phase("rebalance onto a new node"):
            operator.rebalance()
            if not self._held_by("n4"):
                self.tally.problem("the new node holds nothing")
        with self._phase("split the largest shard"):
            done = operator.run(split(GALLERY, self._largest()))
            children = list(done.child_ids)
            if len(children) != 2:
                self.tally.problem(f"a split made children={children}")
        with self._phase("drain a node"):
            operator.mark("n1", draining=True)
            operator.rebalance()
            if held := self._held_by("n1"):
                self.tally.problem(f"the drained node still holds shards={held}")
            operator.mark("n1", draining=False)
        with self._phase("merge back"):
            operator.run(merge(GALLERY, children))
        with self._phase("kill a node in the middle of a move", calm=False):
            self._kill_in_a_move()

    def _kill_in_a_move(self) -> None:
        """Kill the node that a shard moves to; the move goes on once it is back."""
        shard = self.operator.status().shards[0]
        target = next(
            f"n{number}" for number in range(1, NODES + 2) if f"n{number}" not in shard.node_ids
        )
        wanted = [shard.node_ids[0], target]
        started = self.operator.start(replicas(GALLERY, shard.id, wanted, "reshard-check"))
        while target not in self._named(shard.id):
            self.operator.pause(0.02)
        self._cluster.kill_node(target)
        _say(f"killed {target} while it joined {shard.id}")
        self._cluster.start_node(target)
        self.operator.wait(started.id)
        if target not in self._held_nodes(shard.id):
            self.tally.problem(f"the move did not end on its target={target}")

    def _named(self, shard_id: str) -> list[str]:
        return next(
            [*one.node_ids, *one.joining_node_ids]
            for one in self.operator.status().shards
            if one.id == shard_id
        )

    def _held_nodes(self, shard_id: str) -> list[str]:
        return next(
            list(one.node_ids) for one in self.operator.status().shards if one.id == shard_id
        )

    def _held_by(self, node_id: str) -> list[str]:
        shards = self.operator.status().shards
        return [one.id for one in shards if node_id in (*one.node_ids, *one.joining_node_ids)]

    def _largest(self) -> str:
        """Return the shard with the most templates."""
        status = self.operator.status()
        counts = {
            one.shard_id: one.templates_count for node in status.nodes for one in node.shards
        }
        return max(counts, key=lambda shard_id: (counts[shard_id], shard_id))

    @contextmanager
    def _phase(self, name: str, *, calm: bool = True) -> Iterator[None]:
        """Measure one change."""
        self._load.gaps = gaps = self._load.gaps.fresh()
        first_s = self._clock.now_s()
        yield
        last_s = self._clock.now_s()
        gap_s = max(gaps.longest_s, gaps.open_s)
        self.phases.append(Phase(name, first_s, last_s, gap_s, calm))
        _say(
            f"{name}: took_s={last_s - first_s:.1f}"
            f" p99_ms={self.comparison.p99_ms([(first_s, last_s)]):.1f} write_gap_s={gap_s:.2f}"
        )

    def _check_replicas(self) -> None:
        """Wait until all copies agree, and note those that do not."""
        ends_s = self._clock.now_s() + SETTLE_S
        while problems := list(replica_problems(self.operator.status())):
            if self._clock.now_s() > ends_s:
                for problem in problems:
                    self.tally.problem(problem)
                return
            self.operator.pause(0.2)

    def _stop(self) -> None:
        if self._cluster.directory.exists():
            self._cluster.down()

    @property
    def p99_ratio(self) -> float:
        """How many times as long searches took while the shape changed, deaths left out."""
        calm = [one for one in self.phases if one.calm and one.name != REST]
        rest = [one for one in self.phases if one.name == REST]
        return self._p99_ms(calm) / self._p99_ms(rest)

    def _p99_ms(self, phases: Sequence[Phase]) -> float:
        """Return the 99th percentile of the searches due in some phases."""
        return self.comparison.p99_ms([(one.first_s, one.last_s) for one in phases])

    @property
    def last_line(self) -> str:
        """Return the line that says whether everything held."""
        tally = self.tally
        clean = tally.clean and not self.comparison.wrong
        told = (
            f"ops={self.operator.done_count} probes={self.comparison.probes_count}"
            f" failed_reads={len(tally.failed_reads)} wrong_answers={len(self.comparison.wrong)}"
            f" lost={len(tally.lost)} p99_ratio={self.p99_ratio:.2f}"
        )
        if clean:
            return f"reshard: ok {told}"
        also = f"resurrected={len(tally.resurrected)} problems={len(tally.problems)}"
        return f"reshard: failed {told} {also}"

    def as_json(self) -> dict[str, Json]:
        """Return everything as JSON."""
        return {
            "parameters": {
                "seed": self._options.seed,
                "templates": self._options.templates,
                "per_s": self._options.per_s,
                "rest_s": self._options.rest_s,
            },
            "phases": [
                {
                    "name": one.name,
                    "took_s": one.last_s - one.first_s,
                    "p99_ms": self.comparison.p99_ms([(one.first_s, one.last_s)]),
                    "write_gap_s": one.write_gap_s,
                }
                for one in self.phases
            ],
            "p99_ratio": self.p99_ratio,
            "probes": self.comparison.probes_count,
            "operations": self.operator.done_count,
            "done": dict(self.tally.done),
            "failed_reads": self.tally.failed_reads,
            "wrong_answers": self.comparison.wrong,
            "lost": sorted(self.tally.lost),
            "resurrected": sorted(self.tally.resurrected),
            "problems": self.tally.problems,
        }


def parse(argv: Sequence[str]) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="bench.reshard", description="Reshard under load.")
    parser.add_argument("--seed", type=int, default=1, help="of the load")
    parser.add_argument("--templates", type=int, default=8000, help="that nobody writes")
    parser.add_argument("--rate", type=float, default=25.0, help="compared searches a second")
    parser.add_argument("--rest-s", type=float, default=30.0, help="measured at rest, twice")
    parser.add_argument("--results", type=Path, help="folder for the JSON; without: none is kept")
    given = parser.parse_args(argv)
    return Options(given.seed, given.templates, given.rate, given.rest_s, given.results)


def main() -> int:
    """Run; return 0 only if every promise held."""
    options = parse(sys.argv[1:])
    for name, value in NODE_SETTINGS.items():
        os.environ[f"FACEGRID_INDEXD_{name}"] = value  # noqa: TID251 - nodes inherit it
    clock = SystemClock()
    last_line = "reshard: failed unexpectedly"
    with tempfile.TemporaryDirectory(prefix="facegrid-reshard-") as folder:
        check = ReshardCheck(options, folder=Path(folder), clock=clock)
        try:
            check.run()
            last_line = check.last_line
        except FacegridError as error:
            last_line = f"reshard: failed {' '.join(str(error).split())}"
        finally:
            check.close()
    for reason in [*check.tally.failed_reads[:5], *check.tally.problems[:10]]:
        _say(reason)
    if options.results is not None and check.phases:
        command = ["python", "-m", "bench.reshard", *report.without_folders(sys.argv[1:])]
        path = report.write(
            "reshard",
            command,
            unix_ms=clock.unix_ms(),
            results=check.as_json(),
            folder=options.results,
        )
        _say(f"written: {path}")
    sys.stdout.write(last_line + "\n")
    sys.stdout.flush()
    return 0 if last_line.startswith("reshard: ok") else 1


def _say(text: str) -> None:
    sys.stdout.write(f"  {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
