"""What serving costs, in two minutes: `make bench-quick`.

One client, a router and two nodes against faiss alone, with the same codebook on the same rows, in
the same run, in turns. Both may use as many threads for searching as there are cores. Times on a
shared machine mean little; the ratio of two times taken in turns means more.
"""

import argparse
import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

import facegrid
from bench import arrivals, dataset, inprocess, measure, report, served, stage, updates
from bench.accuracy import Accuracy
from bench.accuracy import measure as measure_accuracy
from bench.dataset import Dataset
from bench.machine import Cost, size, this_machine
from bench.profiles import Found, g1
from bench.raw import RawFaiss, use_threads
from bench.report import Json, Spread
from bench.target import against
from bench.truth import Ranking
from facegrid import vectors
from facegrid.clock import Clock
from facegrid.format.codebook import CodebookArrays, decode_codebook
from facegrid.tuning import Profile
from facegrid.vectors import Float32, Int64
from fgctl.local.cluster import LocalCluster

GALLERY = "bench"
DIM = 512
SHARDS = 4
NODES = 2
TEMPLATES = 200_000
PROBES = 8192
"""Half of them mated: with fewer, no miss at all would not show an extra FNIR of 1e-3."""
PROBES_PER_CALL = 64
CALLS_AT_ONCE = 4
"""Calls that the client keeps in flight: with one, client and nodes would wait for each other."""
K = 10
SEED = 1
ROUNDS = 5
ROUND_S = 0.75
ENROL_PARTS = 5
ONES_AT_ONCE = 32
"""Callers with one probe in each call."""
SERVED_RATIO_NEED = 0.70
SERVED_ONES_RATIO_NEED = 0.35
SCAN_RATIO_NEED = 0.60
SLOWER_MS_NEED = 2.0
HALF_LOAD_S = 4.0
ERASED_ANSWERS = 10_000
UPDATE_ROUNDS = 2
UPDATE_WINDOW_S = 2.0
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
    served_ones: list[Rate] = field(default_factory=list)
    served_single: list[Rate] = field(default_factory=list)
    raw_single: list[Rate] = field(default_factory=list)

    def ratios(self, raw: Sequence[Rate]) -> Spread:
        """Return the speed of served against raw, round by round."""
        return _ratios(self.served, raw)

    def slower_ms(self) -> Spread:
        """Return by how much a served call of one probe takes longer than a raw one."""
        both = zip(self.served_single, self.raw_single, strict=True)
        return report.spread(
            [1000 / one.probes_per_s - 1000 / two.probes_per_s for one, two in both]
        )

    def cpu_ratio(self) -> Spread:
        """Return the processor time of raw against served: the ratio were nobody waiting."""
        both = zip(self.served, self.raw, strict=True)
        return report.spread([raw.cpu_s / served.cpu_s for served, raw in both])


def _ratios(some: Sequence[Rate], others: Sequence[Rate]) -> Spread:
    both = zip(some, others, strict=True)
    return report.spread([one.probes_per_s / two.probes_per_s for one, two in both])


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
        full = np.split(probes, len(probes) // PROBES_PER_CALL)
        ones = np.split(probes, len(probes))
        turns = (
            (rounds.served, self._served, full, CALLS_AT_ONCE),
            (rounds.raw, self._raw_search, full, cores),
            (rounds.served_ones, self._served, ones, ONES_AT_ONCE),
            (rounds.served_alone, self._served, full, 1),
            (rounds.raw_scan, self._raw_scan, full, cores),
            (rounds.served_single, self._served, ones, 1),
            (rounds.raw_single, self._raw_search, ones, 1),
        )
        for number in range(ROUNDS + 1):
            for kept, search, batches, at_once in turns:
                rate = await self._rate(search, batches, at_once=at_once)
                # The first round warms caches and connections.
                if number:
                    kept.append(rate)
        return rounds

    async def half_load(self, probes: Float32) -> arrivals.Answered:
        """Play half of what the cluster can answer with one probe in each call, open loop."""

        async def search(number: int) -> None:
            await self._served(probes[number % len(probes)][None])

        full_per_s = await arrivals.fastest_per_s(
            search, at_once=ONES_AT_ONCE, duration_s=ROUND_S, clock=self._clock
        )
        per_s = full_per_s / 2
        due_s = arrivals.moments(per_s, round(per_s * HALF_LOAD_S), seed=SEED)
        return await arrivals.play(search, due_s, per_s=per_s, clock=self._clock)

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
    half_load: arrivals.Answered
    engine: inprocess.Results
    served_accuracy: Accuracy
    raw_accuracy: Accuracy
    updates: updates.Results

    def lines(self) -> list[str]:
        """Return what to print."""
        rounds = self.rounds
        return [
            f"served, {CALLS_AT_ONCE} calls at once: {_speed(rounds.served)}",
            f"served, one call at once: {_speed(rounds.served_alone)}",
            f"served, {ONES_AT_ONCE} calls of one probe at once: {_speed(rounds.served_ones)}",
            f"raw faiss, scan and rescoring: {_speed(rounds.raw)}",
            f"raw faiss, scan alone: {_speed(rounds.raw_scan)}",
            f"served against raw: {rounds.ratios(rounds.raw).text}",
            f"served against raw, by processor time: {rounds.cpu_ratio().text}",
            f"extra FNIR of raw faiss: {self.raw_accuracy.extra_fnir}",
            f"enrolled through the public API: templates/s {self.enrolled.text}",
            *self.target_lines(),
        ]

    def target_lines(self) -> list[str]:
        """Return the lines of targets: medians of rounds in turns."""
        rounds, half = self.rounds, self.half_load
        accuracy = Found(self.served_accuracy, (), ())
        return [
            g1(Profile.BALANCED, accuracy).line,
            *self.engine.lines(),
            ratio_line(
                "G3", rounds.ratios(rounds.raw), "at least", SERVED_RATIO_NEED, "64_probes"
            ),
            ratio_line(
                "G3",
                _ratios(rounds.served_ones, rounds.raw),
                "at least",
                SERVED_ONES_RATIO_NEED,
                "one_probe_32_callers",
            ),
            ratio_line("G4", rounds.slower_ms(), "at most", SLOWER_MS_NEED, "ms_above_raw"),
            against(
                "G4",
                half.ms(0.99) / half.ms(0.5),
                "at most",
                3.0,
                part="p99_at_half_load",
                calls=len(half.took_s),
            ).line,
            ratio_line(
                "G6", rounds.ratios(rounds.raw_scan), "at least", SCAN_RATIO_NEED, "codes_scanned"
            ),
            *(one.line for one in self.updates.targets()),
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
            "served_ones_ratio": _ratios(self.rounds.served_ones, self.rounds.raw).as_json(),
            "slower_ms": self.rounds.slower_ms().as_json(),
            "half_load": self.half_load.as_json(),
            "engine": self.engine.as_json(),
            "updates": self.updates.as_json(),
            "served_accuracy": asdict(self.served_accuracy),
            "raw_accuracy": asdict(self.raw_accuracy),
        }


def _speed(rates: Sequence[Rate]) -> str:
    return f"probes/s {report.spread([rate.probes_per_s for rate in rates]).text}"


def ratio_line(
    name: str, ratio: Spread, sense: Literal["at least", "at most"], need: float, part: str
) -> str:
    """Return the line of a target whose value is a median."""
    low, high = f"{ratio.low:.2f}", f"{ratio.high:.2f}"
    return against(name, ratio.median, sense, need, part=part, low=low, high=high).line


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
        # Waited for: a node tunes by itself after training, and searches would share the cores.
        client.tune(GALLERY)
        codebook = trained_codebook(cluster.store)
        codes = vectors.quantize(next(data.blocks(len(data))).vectors)
        raw = RawFaiss(codebook, codes)
        threads = stack.enter_context(ThreadPoolExecutor(cores, "raw", use_threads, (1,)))
        engine = threads.submit(
            lambda: inprocess.measure(
                inprocess.filled(codebook, codes), raw, data.probes.vectors, clock=clock
            )
        ).result()

        async def measured() -> tuple[Rounds, arrivals.Answered]:
            cpu_s = partial(measure.cpu_s, cluster)
            async with facegrid.AsyncClient(routers, timeout_s=TIMEOUT_S) as client:
                sides = Sides(client, raw, threads=threads, clock=clock, cpu_s=cpu_s)
                rounds = await sides.take_rounds(data.probes.vectors, cores=cores)
                return rounds, await sides.half_load(data.probes.vectors)

        rounds, half_load = asyncio.run(measured())
        answers = measure.identify(
            client, GALLERY, data.probes.vectors, k=K, rows=PROBES_PER_CALL, clock=clock
        )
        served_accuracy, raw_accuracy = accuracies(answers.lists, raw, data)
        one = served.Served(cluster, routers, client, data, enrolled.median)
        changed = updates.measure(one, update_options(), clock)
    settings = ("nlist", "nprobe", "pq_m", "pq_bits", "rescore_factor", "sample_count")
    return Results(
        parameters=data.parameters,
        codebook={name: getattr(codebook, name) for name in settings},
        enrolled=enrolled,
        rounds=rounds,
        half_load=half_load,
        engine=engine,
        served_accuracy=served_accuracy,
        raw_accuracy=raw_accuracy,
        updates=changed,
    )


def update_options() -> argparse.Namespace:
    """Return how bench.updates measures here: little of it."""
    rounds = ("--rounds", str(UPDATE_ROUNDS), "--window-s", str(UPDATE_WINDOW_S))
    return updates.STAGE.parse([*rounds, "--answers", str(ERASED_ANSWERS)])


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this stage."""
    parser.add_argument("--templates", type=size, default=TEMPLATES, help="synthetic templates")


def cost(given: argparse.Namespace) -> Cost:
    """Return what it takes."""
    return served.cost(2 * given.templates, measuring_s=80.0)


def run_stage(given: argparse.Namespace, place: stage.Place) -> Results:
    """Measure as the command line says."""
    cores = this_machine(place.folder).cores
    return run(given.templates, folder=place.folder, clock=place.clock, cores=cores)


STAGE = stage.Stage("quick", "What serving costs.", options, cost, run_stage)

if __name__ == "__main__":
    stage.run_as_command(STAGE)
