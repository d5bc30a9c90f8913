"""What it costs to be served: client, router and two nodes against faiss alone (G3 and G4).

Both sides search the same rows with the same codebook, in turns, in the same run. The served side
has its arrivals by schedule where tails are looked at: a search that had to wait behind others
counts from when it was due.
"""

import argparse
import asyncio
import itertools
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

import facegrid
from bench import dataset, measure, report
from bench.cluster_cpu import Used, used
from bench.quick import trained_codebook
from bench.raw import RawFaiss, use_threads
from bench.report import Json, Spread
from bench.target import as_json as targets_of
from bench.target import line as target
from facegrid import vectors
from facegrid.clock import Clock, SystemClock
from facegrid.vectors import Float32
from fgctl.local.cluster import LocalCluster

GALLERY = "bench"
DIM = 512
SHARDS = 4
NODES = 2
TEMPLATES = 200_000
PROBES = 2048
K = 10
SEED = 1
TIMEOUT_S = 60.0
ENROL_ROWS = 16_384

BATCH_PROBES = 64
BATCH_CALLERS = 8
"""Calls of many probes in flight: with one, client and nodes would wait for each other."""
CLIENTS = 32
"""Clients with one probe per call, each with a connection of its own."""
ROUNDS = 5
ROUND_S = 2.0
ALONE_CALLS = 300
"""Calls of one client by itself, each beside one of raw faiss."""
OPEN_S = 15.0
LOAD_SHARE = 0.5
OPEN_MIN = 500
"""Fewer searches than this say nothing about one in a hundred."""

BATCH_RATIO_NEED = 0.70
SINGLE_RATIO_NEED = 0.35
ADDED_MS_NEED = 2.0
TAIL_NEED = 3.0

Search = Callable[[Float32], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Round:
    """One round of one side: its speed, and the processor time of each probe by process, in s."""

    probes_per_s: float
    cpu_s: Used


@dataclass(frozen=True, slots=True)
class Sides:
    """Rounds of both sides, taken in turns, with the same probes per call."""

    served: list[Round] = field(default_factory=list)
    raw: list[Round] = field(default_factory=list)

    @property
    def ratio(self) -> Spread:
        """The speed of served against raw, round by round."""
        both = zip(self.served, self.raw, strict=True)
        return report.spread([one.probes_per_s / two.probes_per_s for one, two in both])

    @property
    def cpu_ratio(self) -> Spread:
        """The processor time of raw against served: the ratio were nobody waiting."""
        both = zip(self.served, self.raw, strict=True)
        return report.spread([raw.cpu_s.total / one.cpu_s.total for one, raw in both])

    def lines(self, name: str) -> list[str]:
        """Return what to print."""
        cpu = [
            f"{part} {np.median([getattr(one.cpu_s, part) for one in self.served]) * 1e6:.0f}"
            for part in ("client", "routers", "nodes")
        ]
        return [
            f"{name}, served: {_speed(self.served)}, processor time a probe, us: {', '.join(cpu)}",
            (
                f"{name}, raw: {_speed(self.raw)}, processor time a probe, us:"
                f" {np.median([one.cpu_s.total for one in self.raw]) * 1e6:.0f}"
            ),
            f"{name}, served against raw: {self.ratio.text}",
            f"{name}, served against raw, by processor time: {self.cpu_ratio.text}",
        ]


@dataclass(frozen=True, slots=True)
class Latency:
    """Times of single calls, in s."""

    times_s: list[float]

    def ms(self, share: float) -> float:
        """Return the time that a share of the calls does not exceed, in ms."""
        return report.percentile(self.times_s, share) * 1000

    @property
    def text(self) -> str:
        """Show it."""
        return f"p50 {self.ms(0.5):.2f} ms, p99 {self.ms(0.99):.2f} ms of {len(self.times_s)}"

    def as_json(self) -> Json:
        """Return it as a JSON object."""
        return {"p50_ms": self.ms(0.5), "p99_ms": self.ms(0.99), "calls": len(self.times_s)}


@dataclass(frozen=True, slots=True)
class Results:
    """Everything that one run measured.

    Attributes:
        parameters: of the data.
        batch: many probes per call.
        single: one probe per call, from many clients.
        alone: one client by itself, one probe per call.
        raw_alone: raw faiss likewise, in turns with it.
        half_load: one probe per call, at half of what `single` reached, open loop.
        per_s: how many of these were due in a second.
    """

    parameters: dict[str, str]
    batch: Sides
    single: Sides
    alone: Latency
    raw_alone: Latency
    half_load: Latency
    per_s: float

    @property
    def added_ms(self) -> float:
        """How much longer a call takes when it is served."""
        return self.alone.ms(0.5) - self.raw_alone.ms(0.5)

    @property
    def tail(self) -> float:
        """The 99th percentile at half load, in medians."""
        return self.half_load.ms(0.99) / self.half_load.ms(0.5)

    def lines(self) -> list[str]:
        """Return what to print."""
        return [
            *self.batch.lines(f"{BATCH_PROBES} probes per call"),
            *self.single.lines(f"one probe per call, {CLIENTS} clients"),
            f"one client alone, served: {self.alone.text}",
            f"one client alone, raw: {self.raw_alone.text}",
            f"at half load, {self.per_s:.0f} searches/s: {self.half_load.text}",
            target("G3", self.batch.ratio.median, BATCH_RATIO_NEED),
            target("G3_single", self.single.ratio.median, SINGLE_RATIO_NEED),
            target("G4_added_ms", self.added_ms, ADDED_MS_NEED, at_most=True),
            target("G4_p99_in_p50", self.tail, TAIL_NEED, at_most=True),
        ]

    def as_json(self) -> dict[str, Json]:
        """Return it as JSON."""
        return {
            "parameters": self.parameters,
            "calls": {
                "k": K,
                "batch_probes": BATCH_PROBES,
                "batch_callers": BATCH_CALLERS,
                "clients": CLIENTS,
            },
            "cluster": {"shards": SHARDS, "nodes": NODES, "routers": 1, "replicas": 1},
            "batch": _sides_json(self.batch),
            "single": _sides_json(self.single),
            "alone": self.alone.as_json(),
            "raw_alone": self.raw_alone.as_json(),
            "added_ms": self.added_ms,
            "half_load": self.half_load.as_json(),
            "half_load_per_s": self.per_s,
            "p99_in_p50": self.tail,
        }


def _sides_json(sides: Sides) -> Json:
    return {
        "rounds": asdict(sides),
        "ratio": sides.ratio.as_json(),
        "ratio_processor_time": sides.cpu_ratio.as_json(),
    }


def _speed(rounds: Sequence[Round]) -> str:
    return f"probes/s {report.spread([one.probes_per_s for one in rounds]).text}"


def arrivals_s(rng: np.random.Generator, *, per_s: float, last_s: float) -> list[float]:
    """Return random moments from 0 on at which calls are due, so many a second on average."""
    gaps = rng.exponential(1 / per_s, size=int(per_s * last_s * 2) + 1)
    moments = np.cumsum(gaps)
    due: list[float] = moments[moments < last_s].tolist()
    return due


class Run:
    """Both sides, ready to search.

    Args:
        clients: of the cluster, one for each caller.
        raw: faiss with the same rows.
        threads: as many as there are cores, with one faiss thread each.
        clock: for everything.
        used: processor time used so far.
    """

    def __init__(
        self,
        clients: Sequence[facegrid.AsyncClient],
        raw: RawFaiss,
        *,
        threads: ThreadPoolExecutor,
        clock: Clock,
        used: Callable[[], Used],
    ) -> None:
        self._clients = clients
        self._raw = raw
        self._threads = threads
        self._clock = clock
        self._used = used

    async def sides(self, probes: Float32, *, rows: int, callers: int, cores: int) -> Sides:
        """Measure both sides in turns, with so many probes per call."""
        pieces = np.split(probes, len(probes) // rows)
        served = [
            self._served(self._clients[number % len(self._clients)]) for number in range(callers)
        ]
        sides = Sides()
        for number in range(ROUNDS + 1):
            for kept, searches in (
                (sides.served, served),
                (sides.raw, [self._raw_search] * cores),
            ):
                taken = await self._round(searches, pieces)
                # The first round warms caches and connections.
                if number:
                    kept.append(taken)
        return sides

    async def alone(self, probes: Float32) -> tuple[Latency, Latency]:
        """Return the times of single calls of one client, and those of raw faiss in between."""
        times: tuple[list[float], list[float]] = [], []
        both = (self._served(self._clients[0]), self._raw_search)
        for probe in itertools.islice(itertools.cycle(np.split(probes, len(probes))), ALONE_CALLS):
            for taken, search in zip(times, both, strict=True):
                started_s = self._clock.now_s()
                await search(probe)
                taken.append(self._clock.now_s() - started_s)
        return Latency(times[0]), Latency(times[1])

    async def open_loop(self, probes: Float32, *, per_s: float, seed: int) -> Latency:
        """Return the times of calls that come by schedule, each from when it was due."""
        moments_s = arrivals_s(np.random.default_rng(seed), per_s=per_s, last_s=OPEN_S)
        started_s = self._clock.now_s()
        searches = itertools.cycle([self._served(client) for client in self._clients])
        times_s: list[float] = []

        async def one(search: Search, probe: Float32, due_s: float) -> None:
            await search(probe)
            times_s.append(self._clock.now_s() - due_s)

        async with asyncio.TaskGroup() as group:
            for number, moment_s in enumerate(moments_s):
                due_s = started_s + moment_s
                await self._clock.sleep(max(0.0, due_s - self._clock.now_s()))
                at = number % len(probes)
                group.create_task(one(next(searches), probes[at : at + 1], due_s))
        return Latency(times_s)

    def _served(self, client: facegrid.AsyncClient) -> Search:
        async def search(piece: Float32) -> None:
            await client.identify(GALLERY, piece, k=K)

        return search

    async def _raw_search(self, piece: Float32) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._threads, self._raw.search, piece, K)

    async def _round(self, searches: Sequence[Search], pieces: Sequence[Float32]) -> Round:
        """Let each caller call again and again until the round's time is over."""
        started_s, before = self._clock.now_s(), self._used()
        answered = 0
        numbers = itertools.count()

        async def caller(search: Search) -> None:
            nonlocal answered
            while self._clock.now_s() < started_s + ROUND_S:
                piece = pieces[next(numbers) % len(pieces)]
                await search(piece)
                answered += len(piece)

        async with asyncio.TaskGroup() as group:
            for search in searches:
                group.create_task(caller(search))
        elapsed_s = self._clock.now_s() - started_s
        return Round(answered / elapsed_s, self._used().since(before).per(answered))


async def measured(
    run: Run, probes: Float32, parameters: dict[str, str], *, cores: int
) -> Results:
    """Measure everything."""
    batch = await run.sides(probes, rows=BATCH_PROBES, callers=BATCH_CALLERS, cores=cores)
    single = await run.sides(probes, rows=1, callers=CLIENTS, cores=cores)
    alone, raw_alone = await run.alone(probes)
    reached = report.spread([one.probes_per_s for one in single.served]).median
    per_s = max(LOAD_SHARE * reached, OPEN_MIN / OPEN_S)
    half_load = await run.open_loop(probes, per_s=per_s, seed=SEED)
    return Results(parameters, batch, single, alone, raw_alone, half_load, per_s)


@contextmanager
def filled(folder: Path, templates_count: int) -> Iterator[tuple[LocalCluster, dataset.Dataset]]:
    """Run a cluster with a trained gallery."""
    data = dataset.synthetic(
        templates_count, probes_count=PROBES, dim=DIM, seed=SEED, folder=folder
    )
    cluster = LocalCluster(folder / "cluster", nodes=NODES, replicas=1, etcd=1)
    with ExitStack() as stack:
        cluster.up()
        stack.callback(cluster.down)
        client = stack.enter_context(facegrid.Client(cluster.router_targets, timeout_s=TIMEOUT_S))
        client.create_gallery(
            GALLERY, dim=DIM, extractor="bench@1", shards=SHARDS, replicas=1, train_at=0
        )
        client.enrol_stream(GALLERY, map(measure.batch, data.blocks(ENROL_ROWS)))
        client.train(GALLERY)
        # Waited for: a node tunes by itself after training, and searches would share the cores.
        client.tune(GALLERY)
        yield cluster, data


def run(templates_count: int, *, folder: Path, clock: Clock, cores: int) -> Results:
    """Measure everything once, on a cluster that is stopped again."""
    with ExitStack() as stack:
        cluster, data = stack.enter_context(filled(folder, templates_count))
        rows = vectors.quantize(next(data.blocks(len(data))).vectors)
        raw = RawFaiss(trained_codebook(cluster.store), rows)
        threads = stack.enter_context(ThreadPoolExecutor(cores, "raw", use_threads, (1,)))

        async def with_clients() -> Results:
            targets = list(cluster.router_targets)
            clients = [facegrid.AsyncClient(targets, timeout_s=TIMEOUT_S) for _ in range(CLIENTS)]
            try:
                sides = Run(clients, raw, threads=threads, clock=clock, used=lambda: used(cluster))
                return await measured(sides, data.probes.vectors, data.parameters, cores=cores)
            finally:
                for client in clients:
                    await client.aclose()

        return asyncio.run(with_clients())


def main() -> int:
    """Measure, print, and write the results down."""
    parser = argparse.ArgumentParser(
        prog="bench.serving", description="What it costs to be served."
    )
    parser.add_argument("--templates", type=int, default=TEMPLATES, help="synthetic templates")
    parser.add_argument("--results", type=Path, default=report.RESULTS, help="folder for the JSON")
    given = parser.parse_args()
    clock = SystemClock()
    cores = int(str(report.hardware()["cores"]))
    with tempfile.TemporaryDirectory(prefix="facegrid-bench-") as folder:
        results = run(given.templates, folder=Path(folder), clock=clock, cores=cores)
    command = ["python", "-m", "bench.serving", *report.without_folders(sys.argv[1:])]
    path = report.write(
        "serving",
        command,
        unix_ms=clock.unix_ms(),
        results=results.as_json() | {"targets": targets_of(results.lines())},
        folder=given.results,
    )
    for line in results.lines():
        print(line)
    print(f"written: bench/results/{path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
