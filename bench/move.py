"""How long it takes to move, split and merge a shard: `python -m bench.move`.

Two nodes, one copy, one shard, filled through the public API and trained. It is moved to the other
node and back, then split, and the halves merged again. The
time of each is from the operator's call until the operation is done.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import facegrid
from bench import report
from bench.filling import TIMEOUT_S, Filled
from bench.report import Json
from bench.reshard.operator import Operator, merge, replicas, split
from facegrid.api.admin.v1 import admin_service_pb2 as pb
from facegrid.clock import Clock, SystemClock
from fgctl.local.cluster import LocalCluster
from fgctl.local.plan import Wanted

GALLERY = "move"
DIM = 512
TEMPLATES = 1_000_000
NEED_S = 60.0
MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Timed:
    """One operation: what it was, and how long it took."""

    name: str
    seconds: float
    templates: int

    @property
    def per_million_s(self) -> float:
        """Seconds for a million templates."""
        return self.seconds / self.templates * MILLION

    @property
    def line(self) -> str:
        """Return what to print."""
        return (
            f"move: operation={self.name} templates={self.templates} seconds={self.seconds:.1f}"
            f" per_million_s={self.per_million_s:.1f}"
        )


def run(templates_count: int, *, seed: int, folder: Path, clock: Clock) -> list[Timed]:
    """Measure all operations on a cluster that is stopped again."""
    with ExitStack() as stack:
        cluster = LocalCluster(folder / "cluster", wanted=Wanted(2, 1, 1, 1))
        routers = list(cluster.up().router_targets)
        stack.callback(cluster.down)
        client = stack.enter_context(facegrid.Client(routers, timeout_s=TIMEOUT_S))
        filled = Filled(routers, client, name=GALLERY, dim=DIM, clock=clock)
        filled.create(shards=1, templates_count=templates_count)
        filled.fill(templates_count, seed=seed)
        operator = Operator(routers, clock, say=lambda text: print(f"  {text}", flush=True))
        done: list[Timed] = []

        def measure(name: str, work: Callable[[], pb.Operation]) -> pb.Operation:
            started_s = clock.now_s()
            operation = work()
            done.append(Timed(name, clock.now_s() - started_s, templates_count))
            print(f"  {done[-1].line}", flush=True)
            return operation

        shard = operator.status().shards[0]
        home = shard.node_ids[0]
        away = "n2" if home == "n1" else "n1"
        for name, node_id in (("move", away), ("move_back", home)):
            spec = replicas(GALLERY, shard.id, [node_id], "bench.move")
            measure(name, partial(operator.run, spec))
        halves = measure("split", lambda: operator.run(split(GALLERY, shard.id))).child_ids
        measure("merge", lambda: operator.run(merge(GALLERY, halves)))
        counted = client.get_gallery(GALLERY).templates_count
        assert counted == templates_count, f"other templates than before: {counted}"
        return done


def as_json(done: Sequence[Timed]) -> dict[str, Json]:
    """Return everything as JSON."""
    return {
        "cluster": {"shards": 1, "nodes": 2, "routers": 1, "replicas": 1},
        "dim": DIM,
        "need_s": NEED_S,
        "operations": [asdict(one) | {"per_million_s": one.per_million_s} for one in done],
    }


def main() -> int:
    """Measure, write the results down; return 0 only if moving is as fast as it must be."""
    parser = argparse.ArgumentParser(prog="bench.move", description="How long a move takes.")
    parser.add_argument("--templates", type=int, default=TEMPLATES, help="synthetic templates")
    parser.add_argument("--seed", type=int, default=1, help="of the templates")
    parser.add_argument("--results", type=Path, default=report.RESULTS, help="folder for the JSON")
    given = parser.parse_args()
    clock = SystemClock()
    with tempfile.TemporaryDirectory(prefix="facegrid-move-") as folder:
        done = run(given.templates, seed=given.seed, folder=Path(folder), clock=clock)
    parameters = {name: value for name, value in vars(given).items() if name != "results"}
    path = report.write(
        "move",
        ["python", "-m", "bench.move", *report.without_folders(sys.argv[1:])],
        unix_ms=clock.unix_ms(),
        results={"parameters": parameters} | as_json(done),
        folder=given.results,
    )
    print(f"written: {path}")
    worst = max(one.per_million_s for one in done if one.name.startswith("move"))
    met = worst <= NEED_S
    print(f"move: per_million_s={worst:.1f} need={NEED_S:g} met={'yes' if met else 'no'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
