"""What serving costs, in two minutes: `make bench-quick`.

One client, a router and two nodes against faiss alone, with the same codebook on the same rows, in
the same run, in turns. Both may use as many threads for searching as there are cores. Times on a
shared machine mean little; the ratio of two times taken in turns means more.
"""

import argparse
import asyncio
import itertools
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

import facegrid
from bench import dataset, measure, report
from bench.accuracy import Accuracy
from bench.accuracy import measure as measure_accuracy
from bench.dataset import Dataset
from bench.raw import RawFaiss, use_threads
from bench.report import Json, Spread
from bench.truth import Ranking
from facegrid import vectors
from facegrid.clock import Clock, SystemClock
from facegrid.format.codebook import CodebookArrays, decode_codebook
from facegrid.vectors import Float32, Int64
from fgctl.local.cluster import LocalCluster

GALLERY = "bench"
DIM = 512
SHARDS = 4
NODES = 2
TEMPLATES = 200_000
PROBES = 2048
PROBES_PER_CALL = 64
CALLS_AT_ONCE = 4
"""Calls that the client keeps in flight: with one, client and nodes would wait for each other."""
K = 10
SEED = 1
ROUNDS = 7
ROUND_S = 2.0
ENROL_PARTS = 5
SERVED_RATIO_NEED = 0.50
ENROL_PER_S_NEED = 5000
EXTRA_FNIR_MAX = 1e-3
TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Rate:
    """One round of one side.

    `cpu_s` is processor time of client, router and nodes together, for each probe: it tells the
    work apart from the waiting, which on a shared machine is for others.
    """

    probes_per_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Rounds:
    """The rounds of every side, in the order in which they were taken."""

    served: list[Rate]
    served_alone: list[Rate]
    raw: list[Rate]
    raw_scan: list[Rate]

    def ratios(self, raw: Sequence[Rate]) -> Spread:
        """Return the speed of served against raw, round by round."""
        both = zip(self.served, raw, strict=True)
        return report.spread([one.probes_per_s / two.probes_per_s for one, two in both])

    def cpu_ratio(self) -> Spread:
        """Return the processor time of raw against served: the ratio were nobody waiting."""
        both = zip(self.served, self.raw, strict=True)
        return report.spread([raw.cpu_s / served.cpu_s for served, raw in both])


class Sides:
    """Both sides, ready to search.

    Args:
        client: of the cluster.
        raw: faiss with the same rows.
        threads: as many as there are cores, with one faiss thread each: several batches side by
            side disturb one another less than threads that wait for each other within one.
        clock: for the rounds.
        cpu_s: processor time used so far by client, router and nodes.
    """

    def __init__(
        self,
        client: facegrid.AsyncClient,
        raw: RawFaiss,
        *,
        threads: ThreadPoolExecutor,
        clock: Clock,
        cpu_s: Callable[[], float],
    ) -> None:
        self._client = client
        self._raw = raw
        self._threads = threads
        self._clock = clock
        self._cpu_s = cpu_s

    async def take_rounds(self, probes: Float32, *, cores: int) -> Rounds:
        """Measure both sides in turns."""
        rounds = Rounds([], [], [], [])
        batches = np.split(probes, len(probes) // PROBES_PER_CALL)
        turns = (
            (rounds.served, self._served, CALLS_AT_ONCE),
            (rounds.raw, self._raw_search, cores),
            (rounds.served_alone, self._served, 1),
            (rounds.raw_scan, self._raw_scan, cores),
        )
        for number in range(ROUNDS + 1):
            for kept, search, at_once in turns:
                rate = await self._rate(search, batches, at_once=at_once)
                # The first round warms caches and connections.
                if number:
                    kept.append(rate)
        return rounds

    async def _served(self, batch: Float32) -> None:
        await self._client.identify(GALLERY, batch, k=K)

    async def _raw_search(self, batch: Float32) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._threads, self._raw.search, batch, K)

    async def _raw_scan(self, batch: Float32) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._threads, self._raw.scan, batch, K)

    async def _rate(
        self,
        search: Callable[[Float32], Awaitable[None]],
        batches: Sequence[Float32],
        *,
        at_once: int,
    ) -> Rate:
        """Search batch after batch until the round's time is over."""
        started_s, started_cpu_s = self._clock.now_s(), self._cpu_s()
        answered = 0
        numbers = itertools.count()

        async def call_again_and_again() -> None:
            nonlocal answered
            while self._clock.now_s() < started_s + ROUND_S:
                batch = batches[next(numbers) % len(batches)]
                await search(batch)
                answered += len(batch)

        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(call_again_and_again())
        elapsed_s = self._clock.now_s() - started_s
        return Rate(answered / elapsed_s, (self._cpu_s() - started_cpu_s) / answered)


def enrol_in_parts(client: facegrid.Client, data: Dataset, *, clock: Clock) -> Spread:
    """Enrol everything in several streams; return templates a second of each."""
    rows = -(-len(data) // ENROL_PARTS)
    rates = []
    for block in data.blocks(rows):
        started_s = clock.now_s()
        client.enrol_stream(GALLERY, [measure.batch(block)])
        rates.append(len(block) / (clock.now_s() - started_s))
    return report.spread(rates)


def trained_codebook(store: Path) -> CodebookArrays:
    """Read the gallery's codebook from where the nodes put it."""
    files = [path for path in (store / "codebooks").rglob("*") if path.is_file()]
    assert len(files) == 1, f"one codebook expected: {len(files)}"
    return decode_codebook(files[0].read_bytes())


def raw_rankings(rows: Int64, scores: Float32, data: Dataset) -> list[Ranking]:
    """Return what raw faiss found, as subjects: the best row of each counts."""
    rankings = []
    for found, row_scores in zip(rows.tolist(), scores.tolist(), strict=True):
        best: dict[str, float] = {}
        for row, score in zip(found, row_scores, strict=True):
            best.setdefault(data.subject_ids[row], score)
        rankings.append(Ranking(tuple(best), tuple(best.values())))
    return rankings


def accuracies(
    served: list[facegrid.CandidateList], raw: RawFaiss, data: Dataset
) -> tuple[Accuracy, Accuracy]:
    """Compare both sides with exact search."""
    exact = measure.exact_rankings(data, k=K)
    mates = data.probes.mate_subject_ids
    rows = raw.search(data.probes.vectors, K)
    scores = np.einsum("md,mkd->mk", data.probes.vectors, data.source[data.rows[rows]])
    return (
        measure_accuracy(mates, exact=exact, found=[measure.ranking(one) for one in served]),
        measure_accuracy(mates, exact=exact, found=raw_rankings(rows, scores, data)),
    )


@dataclass(frozen=True, slots=True)
class Results:
    """Everything one run measured."""

    parameters: dict[str, str]
    codebook: dict[str, int]
    enrolled: Spread
    rounds: Rounds
    served_accuracy: Accuracy
    raw_accuracy: Accuracy

    def lines(self) -> list[str]:
        """Return what to print."""
        rounds = self.rounds
        ratio = rounds.ratios(rounds.raw)
        extra = self.served_accuracy.extra_fnir
        assert extra is not None, "synthetic data has mated and non-mated probes"
        return [
            f"served, {CALLS_AT_ONCE} calls at once: {_speed(rounds.served)}",
            f"served, one call at once: {_speed(rounds.served_alone)}",
            f"raw faiss, scan and rescoring: {_speed(rounds.raw)}",
            f"raw faiss, scan alone: {_speed(rounds.raw_scan)}",
            f"served against raw: {ratio.text}",
            f"served against raw, scan alone: {rounds.ratios(rounds.raw_scan).text}",
            f"served against raw, by processor time: {rounds.cpu_ratio().text}",
            f"extra FNIR of raw faiss: {self.raw_accuracy.extra_fnir}",
            f"enrolled through the public API: templates/s {self.enrolled.text}",
            target("served_ratio", ratio.median, SERVED_RATIO_NEED),
            target("enrol_per_s", self.enrolled.median, ENROL_PER_S_NEED),
            target("extra_fnir", extra, EXTRA_FNIR_MAX, at_most=True),
        ]

    def as_json(self) -> dict[str, Json]:
        """Return it as JSON."""
        return {
            "parameters": self.parameters,
            "calls": {"probes": PROBES_PER_CALL, "at_once": CALLS_AT_ONCE, "k": K},
            "cluster": {"shards": SHARDS, "nodes": NODES, "routers": 1, "replicas": 1},
            "codebook": self.codebook,
            "enrol_per_s": self.enrolled.as_json(),
            "rounds": asdict(self.rounds),
            "served_ratio": self.rounds.ratios(self.rounds.raw).as_json(),
            "served_ratio_scan_alone": self.rounds.ratios(self.rounds.raw_scan).as_json(),
            "served_ratio_processor_time": self.rounds.cpu_ratio().as_json(),
            "served_accuracy": asdict(self.served_accuracy),
            "raw_accuracy": asdict(self.raw_accuracy),
        }


def _speed(rates: Sequence[Rate]) -> str:
    return f"probes/s {report.spread([rate.probes_per_s for rate in rates]).text}"


def target(name: str, value: float, need: float, *, at_most: bool = False) -> str:
    """Return one line that says whether a target is met."""
    met = value <= need if at_most else value >= need
    return f"target {name} value={value:.4g} need={need:g} met={'yes' if met else 'no'}"


def run(templates_count: int, *, folder: Path, clock: Clock, cores: int) -> Results:
    """Measure everything once, on a cluster that is stopped again."""
    data = dataset.synthetic(
        templates_count, probes_count=PROBES, dim=DIM, seed=SEED, folder=folder
    )
    with ExitStack() as stack:
        cluster = LocalCluster(folder / "cluster", nodes=NODES, replicas=1, etcd=1)
        routers = list(cluster.up().router_targets)
        stack.callback(cluster.down)
        client = stack.enter_context(facegrid.Client(routers, timeout_s=TIMEOUT_S))
        client.create_gallery(
            GALLERY, dim=DIM, extractor="bench@1", shards=SHARDS, replicas=1, train_at=0
        )
        enrolled = enrol_in_parts(client, data, clock=clock)
        client.train(GALLERY)
        codebook = trained_codebook(cluster.store)
        raw = RawFaiss(codebook, vectors.quantize(next(data.blocks(len(data))).vectors))
        threads = stack.enter_context(ThreadPoolExecutor(cores, "raw", use_threads, (1,)))

        async def measured() -> Rounds:
            cpu_s = partial(measure.cpu_s, cluster)
            async with facegrid.AsyncClient(routers, timeout_s=TIMEOUT_S) as client:
                sides = Sides(client, raw, threads=threads, clock=clock, cpu_s=cpu_s)
                return await sides.take_rounds(data.probes.vectors, cores=cores)

        rounds = asyncio.run(measured())
        answers = measure.identify(
            client, GALLERY, data.probes.vectors, k=K, rows=PROBES_PER_CALL, clock=clock
        )
        served_accuracy, raw_accuracy = accuracies(answers.lists, raw, data)
    settings = ("nlist", "nprobe", "pq_m", "pq_bits", "rescore_factor", "sample_count")
    return Results(
        parameters=data.parameters,
        codebook={name: getattr(codebook, name) for name in settings},
        enrolled=enrolled,
        rounds=rounds,
        served_accuracy=served_accuracy,
        raw_accuracy=raw_accuracy,
    )


def main() -> int:
    """Measure, print, and write the results down."""
    parser = argparse.ArgumentParser(prog="bench.quick", description="What serving costs.")
    parser.add_argument("--templates", type=int, default=TEMPLATES, help="synthetic templates")
    given = parser.parse_args()
    clock = SystemClock()
    cores = int(str(report.hardware()["cores"]))
    with tempfile.TemporaryDirectory(prefix="facegrid-bench-") as folder:
        results = run(given.templates, folder=Path(folder), clock=clock, cores=cores)
    command = ["python", "-m", "bench.quick", *sys.argv[1:]]
    path = report.write("quick", command, unix_ms=clock.unix_ms(), results=results.as_json())
    for line in results.lines():
        print(line)
    print(f"written: bench/results/{path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
