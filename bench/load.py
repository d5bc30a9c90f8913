"""How fast a bulk load is against enrolment through the log: `python -m bench.load`.

The same rows, on the same cluster, in turns: a stream of enrolments from one client, and a load
around the log. Both read the rows from the same mapped file, and both end when the last row is
searchable on its primary: that is when a node answers. Times on a shared machine mean little; the
ratio of two times taken in turns means more.
"""

import argparse
import asyncio
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import facegrid
from bench import measure, report
from bench.report import Json, Spread
from facegrid.blob.open import open_store
from facegrid.clock import Clock, SystemClock
from facegrid.testing.synthetic import SyntheticGallery
from fgctl.bulk.journal import Journal
from fgctl.bulk.load import Load, LoadPorts, Report
from fgctl.bulk.publish import LoadCommitter
from fgctl.local.cluster import LocalCluster
from fgctl.online.cluster import first_answer
from fgctl.online.input_files import InputFiles
from fgctl.online.load import fingerprints, open_files, parameters_of
from fgctl.target import Target

DIM = 512
SHARDS = 4
NODES = 2
TEMPLATES = 400_000
ROUNDS = 5
SEED = 1
NEED = 3.0
BATCH_ROWS = 1024
"""What a client sends in one request of a stream: the most that it does not cut up."""
BLOCK_ROWS = 8192
TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Inputs:
    """Files of one data set."""

    vectors: Path
    subjects: Path
    templates: Path


@dataclass(frozen=True, slots=True)
class Timed:
    """What one side took for all rows: seconds, and processor time of client, router and nodes
    together, which tells the work apart from the waiting, on a shared machine for others.
    """

    elapsed_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Round:
    """What each side took for the same rows."""

    enrol: Timed
    load: Timed

    @property
    def ratio(self) -> float:
        """How many times as fast the load was."""
        return self.enrol.elapsed_s / self.load.elapsed_s

    @property
    def cpu_ratio(self) -> float:
        """The same by processor time: the ratio were nobody waiting."""
        return self.enrol.cpu_s / self.load.cpu_s


def write_inputs(folder: Path, templates_count: int) -> Inputs:
    """Write a synthetic gallery into files."""
    inputs = Inputs(folder / "x.npy", folder / "s.txt", folder / "t.txt")
    matrix = np.lib.format.open_memmap(
        inputs.vectors, mode="w+", dtype=np.float32, shape=(templates_count, DIM)
    )
    people = SyntheticGallery(dim=DIM, templates_count=templates_count, seed=SEED)
    first = 0
    with inputs.subjects.open("w") as subjects, inputs.templates.open("w") as templates:
        for block in people.blocks(BLOCK_ROWS):
            matrix[first : first + len(block)] = block.vectors
            first += len(block)
            subjects.writelines(f"{one}\n" for one in block.subject_ids)
            templates.writelines(f"{one}\n" for one in block.template_ids)
    matrix.flush()
    return inputs


class Sides:
    """Both ways into a gallery of a running cluster."""

    def __init__(self, cluster: LocalCluster, inputs: Inputs, *, clock: Clock) -> None:
        self._cluster = cluster
        self._inputs = inputs
        self._clock = clock
        self._routers = list(cluster.record.router_targets)

    def take_round(self, number: int, folder: Path) -> Round:
        """Take one turn of each, into galleries of their own, and drop these."""
        enrol = self._timed(f"log-{number}", self._enrol)
        load = self._timed(f"load-{number}", lambda name: self._load(name, folder / name))
        return Round(enrol, load)

    def _timed(self, name: str, fill: Callable[[str], int]) -> Timed:
        with facegrid.Client(self._routers, timeout_s=TIMEOUT_S) as client:
            client.create_gallery(name, dim=DIM, extractor="bench@1", shards=SHARDS, train_at=0)
            started_s, started_cpu_s = self._clock.now_s(), measure.cpu_s(self._cluster)
            rows_count = fill(name)
            cpu_s = measure.cpu_s(self._cluster) - started_cpu_s
            elapsed_s = self._clock.now_s() - started_s
            counted = client.get_gallery(name).templates_count
            assert counted == rows_count, f"rows are missing: {counted} of {rows_count}"
            client.drop_gallery(name)
        return Timed(elapsed_s, cpu_s)

    def _enrol(self, name: str) -> int:
        matrix = np.load(self._inputs.vectors, mmap_mode="r")
        with facegrid.Client(self._routers, timeout_s=TIMEOUT_S) as client:
            client.enrol_stream(name, self._batches(matrix))
        return len(matrix)

    def _batches(self, matrix: np.ndarray) -> Iterator[facegrid.EnrolBatch]:
        subjects = self._inputs.subjects.read_text().splitlines()
        templates = self._inputs.templates.read_text().splitlines()
        for first in range(0, len(matrix), BATCH_ROWS):
            part = slice(first, first + BATCH_ROWS)
            yield facegrid.EnrolBatch(
                template_ids=templates[part], subject_ids=subjects[part], vectors=matrix[part]
            )

    def _load(self, name: str, work: Path) -> int:
        loaded = asyncio.run(self._loaded(name, work))
        return loaded.loaded_count

    async def _loaded(self, name: str, work: Path) -> Report:
        record = self._cluster.record
        store = record.store_in(self._cluster.directory)
        target = Target(record.router_targets, TIMEOUT_S, as_json=True, store=store)
        inputs = self._inputs
        files = InputFiles(inputs.vectors, inputs.subjects, inputs.templates)
        source = open_files(files)
        parameters = parameters_of(first_answer(target), name, source, fingerprints(files))
        with Journal(work) as journal:
            async with LoadCommitter(target.routers, timeout_s=TIMEOUT_S) as committer:
                ports = LoadPorts(open_store(store), committer.commit, _new_id)
                return await Load(ports, journal, source).run(parameters)


def _new_id() -> str:
    return uuid.uuid4().hex  # noqa: TID251 - the edge: ids of loads are made here


@dataclass(frozen=True, slots=True)
class Results:
    """Everything one run measured."""

    templates_count: int
    rounds: list[Round]

    @property
    def ratio(self) -> Spread:
        """The load's rate against that of enrolment, round by round."""
        return report.spread([one.ratio for one in self.rounds])

    @property
    def cpu_ratio(self) -> Spread:
        """The same by processor time."""
        return report.spread([one.cpu_ratio for one in self.rounds])

    def lines(self) -> list[str]:
        """Return what to print."""
        count, ratio = self.templates_count, self.ratio
        enrolled = report.spread([count / one.enrol.elapsed_s for one in self.rounds])
        loaded = report.spread([count / one.load.elapsed_s for one in self.rounds])
        return [
            f"enrolled through the log: templates/s {enrolled.text}",
            f"loaded around the log: templates/s {loaded.text}",
            f"load against enrolment: {ratio.text}",
            f"load against enrolment, by processor time: {self.cpu_ratio.text}",
            f"load: ratio={ratio.median:.2f} need={NEED} met={_met(ratio)}",
        ]

    def as_json(self) -> dict[str, Json]:
        """Return it as JSON."""
        return {
            "parameters": {"templates": self.templates_count, "dim": DIM, "seed": SEED},
            "cluster": {"shards": SHARDS, "nodes": NODES, "routers": 1, "replicas": 1},
            "rounds": [asdict(one) for one in self.rounds],
            "ratio": self.ratio.as_json(),
            "ratio_processor_time": self.cpu_ratio.as_json(),
        }


def _met(ratio: Spread) -> str:
    return "yes" if ratio.median >= NEED else "no"


def run(templates_count: int, rounds_count: int, *, folder: Path, clock: Clock) -> Results:
    """Measure both sides in turns, on a cluster that is stopped again."""
    inputs = write_inputs(folder, templates_count)
    cluster = LocalCluster(folder / "cluster", nodes=NODES, replicas=1, etcd=1)
    cluster.up()
    try:
        sides = Sides(cluster, inputs, clock=clock)
        # The first round warms caches and connections.
        rounds = [sides.take_round(number, folder) for number in range(rounds_count + 1)]
    finally:
        cluster.down()
    return Results(templates_count, rounds[1:])


def main() -> int:
    """Measure, print, and write the results down."""
    parser = argparse.ArgumentParser(prog="bench.load", description="What a bulk load saves.")
    parser.add_argument("--templates", type=int, default=TEMPLATES, help="synthetic templates")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each side")
    parser.add_argument("--results", type=Path, default=report.RESULTS, help="folder for the JSON")
    given = parser.parse_args()
    clock = SystemClock()
    with tempfile.TemporaryDirectory(prefix="facegrid-bench-") as folder:
        results = run(given.templates, given.rounds, folder=Path(folder), clock=clock)
    command = ["python", "-m", "bench.load", *report.without_folders(sys.argv[1:])]
    path = report.write(
        "load",
        command,
        unix_ms=clock.unix_ms(),
        results=results.as_json(),
        folder=given.results,
    )
    for line in results.lines():
        print(line)
    print(f"written: bench/results/{path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
