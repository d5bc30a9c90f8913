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
from contextlib import ExitStack
from dataclasses import asdict, dataclass
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
class Rounds:
    """Probes a second of every round, in the order in which they were taken."""

    served: list[float]
    served_alone: list[float]
    raw: list[float]
    raw_scan: list[float]

    def ratios(self, raw: Sequence[float]) -> Spread:
        """Return served against raw, round by round."""
        return report.spread([one / two for one, two in zip(self.served, raw, strict=True)])


async def take_rounds(
    client: facegrid.AsyncClient, raw: RawFaiss, probes: Float32, *, clock: Clock
) -> Rounds:
    """Measure both sides in turns."""
    rounds = Rounds([], [], [], [])
    batches = np.split(probes, len(probes) // PROBES_PER_CALL)

    async def served(batch: Float32) -> None:
        await client.identify(GALLERY, batch, k=K)

    async def raw_search(batch: Float32) -> None:
        raw.search(batch, K)

    async def raw_scan(batch: Float32) -> None:
        raw.scan(batch, K)

    for number in range(ROUNDS + 1):
        results = (
            await rate(served, batches, at_once=CALLS_AT_ONCE, clock=clock),
            await rate(served, batches, at_once=1, clock=clock),
            await rate(raw_search, batches, at_once=1, clock=clock),
            await rate(raw_scan, batches, at_once=1, clock=clock),
        )
        # The first round warms caches and connections.
        if number:
            lists = (rounds.served, rounds.served_alone, rounds.raw, rounds.raw_scan)
            for kept, result in zip(lists, results, strict=True):
                kept.append(result)
    return rounds


async def rate(
    search: Callable[[Float32], Awaitable[None]],
    batches: Sequence[Float32],
    *,
    at_once: int,
    clock: Clock,
) -> float:
    """Return probes a second of one round: calls are made until its time is over."""
    started_s = clock.now_s()
    answered = 0

    numbers = itertools.count()

    async def call_again_and_again() -> None:
        nonlocal answered
        while clock.now_s() < started_s + ROUND_S:
            batch = batches[next(numbers) % len(batches)]
            await search(batch)
            answered += len(batch)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(call_again_and_again())
    return answered / (clock.now_s() - started_s)


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
        ratio = self.rounds.ratios(self.rounds.raw)
        scan_ratio = self.rounds.ratios(self.rounds.raw_scan)
        extra = self.served_accuracy.extra_fnir
        assert extra is not None, "synthetic data has mated and non-mated probes"
        return [
            f"served, {CALLS_AT_ONCE} calls at once: probes/s "
            + report.spread(self.rounds.served).text,
            f"served, one call at once: probes/s {report.spread(self.rounds.served_alone).text}",
            f"raw faiss, scan and rescoring: probes/s {report.spread(self.rounds.raw).text}",
            f"raw faiss, scan alone: probes/s {report.spread(self.rounds.raw_scan).text}",
            f"served against raw: {ratio.text}",
            f"served against raw scan alone: {scan_ratio.text}",
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
            "probes_per_s": asdict(self.rounds),
            "served_ratio": self.rounds.ratios(self.rounds.raw).as_json(),
            "served_ratio_scan_alone": self.rounds.ratios(self.rounds.raw_scan).as_json(),
            "served_accuracy": asdict(self.served_accuracy),
            "raw_accuracy": asdict(self.raw_accuracy),
        }


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
        use_threads(cores)
        raw = RawFaiss(codebook, vectors.quantize(next(data.blocks(len(data))).vectors))
        rounds = asyncio.run(_rounds(routers, raw, data.probes.vectors, clock=clock))
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


async def _rounds(
    routers: Sequence[str], raw: RawFaiss, probes: Float32, *, clock: Clock
) -> Rounds:
    async with facegrid.AsyncClient(routers, timeout_s=TIMEOUT_S) as client:
        return await take_rounds(client, raw, probes, clock=clock)


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
