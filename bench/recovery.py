"""How long a node takes to come back: `python -m bench.recovery`.

One node with four shards, filled through the public API and trained. It is killed while its log is
as long as the flushes leave it, and started again; then stopped in order, so that all is in
segments, and started again. The time is from the start of the process until a router finds all of
its shards serving.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import facegrid
from bench import measure, report
from bench.filling import TIMEOUT_S, WAIT_S, Filled
from bench.report import Json, Spread
from facegrid.clock import Clock, SystemClock
from fgctl.local import processes
from fgctl.local.cluster import LocalCluster

GALLERY = "recovery"
NODE = "n1"
SHARDS = 4
DIM = 512
TEMPLATES = 1_000_000
ROUNDS = 2
NEED_S = 60.0
MILLION = 1_000_000
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Recovered:
    """How long the node took, several times over, and what it read.

    Attributes:
        case: "killed" or "stopped".
        starts_s: seconds of each start.
        cpu_s: processor time that the node took for it: what is left of waiting for others.
        log_bytes: of all log objects in the store at the start.
        segment_bytes: of all segments.
        templates: that the gallery counts afterwards.
    """

    case: str
    starts_s: Sequence[float]
    cpu_s: Sequence[float]
    log_bytes: int
    segment_bytes: int
    templates: int

    @property
    def spread(self) -> Spread:
        """The times of all starts."""
        return report.spread(self.starts_s)

    @property
    def per_million_s(self) -> float:
        """Seconds for a million templates, by the median."""
        return self.spread.median / self.templates * MILLION

    @property
    def line(self) -> str:
        """Return what to print."""
        met = self.per_million_s <= NEED_S
        return (
            f"recovery: case={self.case} templates={self.templates}"
            f" log_mib={self.log_bytes / MIB:.0f} segments_mib={self.segment_bytes / MIB:.0f}"
            f" seconds={self.spread.text.replace(' ', '_')}"
            f" processor_s={report.spread(self.cpu_s).median:.1f}"
            f" per_million_s={self.per_million_s:.1f} need={NEED_S:g} met={'yes' if met else 'no'}"
        )


class Recovery:
    """One run on a cluster that is up."""

    def __init__(
        self, cluster: LocalCluster, client: facegrid.Client, *, clock: Clock, templates_count: int
    ) -> None:
        self._cluster = cluster
        self._client = client
        self._clock = clock
        self._templates_count = templates_count

    def measured(self, case: str, end: Callable[[], None]) -> Recovered:
        """End the node and start it again, several times."""
        starts_s: list[float] = []
        cpu_s: list[float] = []
        log_bytes = segment_bytes = 0
        for _ in range(ROUNDS):
            end()
            log_bytes, segment_bytes = self._stored("log"), self._stored("segments")
            started_s = self._clock.now_s()
            self._cluster.start_node(NODE, timeout_s=WAIT_S)
            starts_s.append(self._clock.now_s() - started_s)
            cpu_s.append(self._cpu_s())
            print(f"  {case}: {starts_s[-1]:.1f} s, processor {cpu_s[-1]:.1f} s", flush=True)
        templates = self._client.get_gallery(GALLERY).templates_count or 0
        assert templates == self._templates_count, f"other templates than before: {templates}"
        return Recovered(
            case=case,
            starts_s=starts_s,
            cpu_s=cpu_s,
            log_bytes=log_bytes,
            segment_bytes=segment_bytes,
            templates=templates,
        )

    def kill(self) -> None:
        """Kill the node with SIGKILL."""
        self._cluster.kill_node(NODE)

    def stop(self) -> None:
        """Stop the node in order, so that it writes segments."""
        record = self._cluster.record.named(NODE)
        killed = processes.stop([record], grace_s=WAIT_S)
        assert not killed, "the node did not stop in time"

    def _cpu_s(self) -> float:
        """Return the processor time that the node has used since its start."""
        process = processes.find(self._cluster.record.named(NODE))
        assert process is not None, "the node has just been started"
        times = process.cpu_times()
        return float(times.user + times.system)

    def _stored(self, kind: str) -> int:
        """Return the bytes of all objects of a kind."""
        folders = (self._cluster.store / "shards").glob(f"*/{kind}")
        return sum(measure.stored_bytes(folder) for folder in folders)


def run(templates_count: int, *, seed: int, folder: Path, clock: Clock) -> list[Recovered]:
    """Measure both cases on a cluster that is stopped again."""
    with ExitStack() as stack:
        cluster = LocalCluster(folder / "cluster", nodes=1, replicas=1, etcd=1)
        routers = list(cluster.up().router_targets)
        stack.callback(cluster.down)
        client = stack.enter_context(facegrid.Client(routers, timeout_s=TIMEOUT_S))
        filled = Filled(routers, client, name=GALLERY, dim=DIM, clock=clock)
        filled.create(shards=SHARDS, templates_count=templates_count)
        filled.fill(templates_count, seed=seed)
        recovery = Recovery(cluster, client, clock=clock, templates_count=templates_count)
        return [
            recovery.measured("killed", recovery.kill),
            recovery.measured("stopped", recovery.stop),
        ]


def as_json(recovered: Sequence[Recovered]) -> dict[str, Json]:
    """Return everything as JSON."""
    return {
        "cluster": {"shards": SHARDS, "nodes": 1, "routers": 1, "replicas": 1},
        "dim": DIM,
        "need_s": NEED_S,
        "cases": [asdict(one) | {"per_million_s": one.per_million_s} for one in recovered],
    }


def main() -> int:
    """Measure, write the results down; return 0 only if the need is met."""
    parser = argparse.ArgumentParser(prog="bench.recovery", description="How long a start takes.")
    parser.add_argument("--templates", type=int, default=TEMPLATES, help="synthetic templates")
    parser.add_argument("--seed", type=int, default=1, help="of the templates")
    parser.add_argument("--results", type=Path, default=report.RESULTS, help="folder for the JSON")
    given = parser.parse_args()
    clock = SystemClock()
    with tempfile.TemporaryDirectory(prefix="facegrid-recovery-") as folder:
        recovered = run(given.templates, seed=given.seed, folder=Path(folder), clock=clock)
    parameters = {name: value for name, value in vars(given).items() if name != "results"}
    command = ["python", "-m", "bench.recovery", *report.without_folders(sys.argv[1:])]
    path = report.write(
        "recovery",
        command,
        unix_ms=clock.unix_ms(),
        results={"parameters": parameters} | as_json(recovered),
        folder=given.results,
    )
    for one in recovered:
        print(one.line)
    worst = max(one.per_million_s for one in recovered)
    print(f"written: {path}")
    met = worst <= NEED_S
    print(f"recovery: per_million_s={worst:.1f} need={NEED_S:g} met={'yes' if met else 'no'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
