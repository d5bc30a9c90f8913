"""Reads a calibration off the machine at hand: a cluster is started here, filled and asked.

Everything is measured from outside, through the public API, as a client that does not block sees
it: one that does changes threads for each call. The vectors are random directions: what a search
costs does not depend on where they point, as long as all rows are looked at, and of random
directions all are. Templates of one subject resemble one another, so that the galleries can be
tuned as real ones are.
"""

import asyncio
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
import psutil

import facegrid
from facegrid import limits
from facegrid.blob.open import open_store
from facegrid.clock import Clock
from facegrid.errors import UnavailableError
from facegrid.vectors import Float32, Int64
from fgctl import render
from fgctl.local import processes
from fgctl.local.cluster import LocalCluster
from fgctl.local.plan import Wanted
from fgctl.plan import host, readings
from fgctl.plan.calibration import Calibration
from fgctl.plan.readings import FEW, MANY, SPLIT, Readings, Sizes

DIM: Final = 512
SHARDS: Final = 4
ROWS_PER_MINUTE: Final = 60_000
ROWS_MIN: Final = 8_192
FEW_SHARE: Final = 0.1
PROBES: Final = (1, 8, 64, 256)
WIDE_PROBES: Final = 64
WIDE_TURNS: Final = 3
"""Turns of searches with one core and with all: what one core does changes within minutes where
others use the machine too.
"""
WIDE_CALLS: Final = 30
"""Of each turn."""
ID_BYTES: Final = 16
TEN_SUBJECTS: Final = 13
"""Templates of ten subjects."""
MATED: Final = 0.7
"""Likeness of two templates of a subject, about: what real pairs have."""
CALLS_SHARE: Final = 0.4
"""Of the time given, spent on calls; the rest goes into filling and starting."""
ROUNDS_MIN: Final = 5
ONES_PER_ROUND: Final = 8
"""Calls with one probe, of which the tail is wanted, for one with each other number."""
CPU_CALLS: Final = 400
STARTS: Final = 3
"""Starts of the node, of which the median counts: one may meet a disturbance as long as itself."""
NODE: Final = "n1"
TIMEOUT_S: Final = 120.0
K: Final = 10


def measured(*, minutes: float, seed: int, clock: Clock, quiet: bool) -> Calibration:
    """Return what this machine does. The cluster is gone afterwards.

    Raises:
        UnavailableError: a process ended or did not get ready.
    """
    started_ms = clock.unix_ms()
    with tempfile.TemporaryDirectory(prefix="facegrid-calibrate-") as folder:
        run = _Run(Path(folder), sizes_for(minutes), seed=seed, clock=clock, quiet=quiet)
        found = run.readings(minutes * 60 * CALLS_SHARE)
    return readings.calibration(
        found,
        time=datetime.fromtimestamp(started_ms / 1000, UTC).isoformat(timespec="seconds"),
        hardware=host.hardware(),
        versions=host.versions(),
        parameters={"minutes": minutes, "seed": seed, "templates": found.sizes.rows, "k": K},
    )


def sizes_for(minutes: float) -> Sizes:
    """Return how many templates can be handled in the time given."""
    many = max(ROWS_MIN, round(ROWS_PER_MINUTE * minutes))
    many -= many % 2
    return Sizes(
        few_rows=max(limits.TRAIN_ROWS_MIN, round(many * FEW_SHARE)),
        many_rows=many,
        shards=SHARDS,
        dim=DIM,
        id_bytes=ID_BYTES,
        templates_per_subject=TEN_SUBJECTS / 10,
    )


@dataclass(frozen=True, slots=True)
class _ProcessorTimes:
    """Of client, router and node for a call with one probe; of the router for each one more."""

    client_call_s: float
    router_call_s: float
    router_probe_s: float
    node_call_s: float


class _Run:
    """One run on a cluster in a folder."""

    def __init__(
        self, folder: Path, sizes: Sizes, *, seed: int, clock: Clock, quiet: bool
    ) -> None:
        self._folder = folder / "cluster"
        self._sizes = sizes
        self._rng = np.random.default_rng(seed)
        self._clock = clock
        self._quiet = quiet
        self._cluster = LocalCluster(self._folder, wanted=Wanted(nodes=1, search_threads=1))

    def readings(self, calls_s: float) -> Readings:
        """Fill, ask, restart; `calls_s` is the time for timed calls."""
        with ExitStack() as stack:
            self._tell("starting a cluster")
            self._cluster.up()
            stack.callback(self._down)
            start_s, all_start_s = self._created()
            with self._client() as client:
                enrol_s = self._fill(client)
            half_bytes = self._settled_bytes()
            with self._client() as client:
                enrol_s += self._fill_rest(client)
            load_s = self._restarted_s()
            with self._client() as client:
                full_bytes = self._asked_bytes(client)
            self._tell("timing calls")
            timed, cpu = asyncio.run(self._calls(calls_s))
            router_bytes = self._process("router1").memory_info().rss
            segments = self._segments()
            narrow_s, wide_s = self._by_threads() if host.cores() > 1 else ([], [])
        return Readings(
            sizes=self._sizes,
            calls_s=timed,
            narrow_s=narrow_s,
            wide_s=wide_s,
            wide_probes=WIDE_PROBES,
            wide_threads=host.cores(),
            half_bytes=half_bytes,
            full_bytes=full_bytes,
            router_bytes=router_bytes,
            segments_bytes=segments[0],
            start_s=start_s,
            all_start_s=all_start_s,
            load_s=load_s,
            enrol_s=enrol_s,
            store_bytes_per_s=segments[1],
            client_call_cpu_s=cpu.client_call_s,
            router_call_cpu_s=cpu.router_call_s,
            router_probe_cpu_s=cpu.router_probe_s,
            node_call_cpu_s=cpu.node_call_s,
        )

    def _down(self) -> None:
        """Stop the cluster as it is by then."""
        self._cluster.down()

    def _created(self) -> tuple[float, float]:
        """Create the galleries; return what a start takes with the shards of the large one, and
        with those of all: opening a shard takes time without any rows.
        """
        shards = self._sizes.shards
        self._create((MANY, shards))
        few_s = self._restarted_s()
        self._create((FEW, 1), (SPLIT, shards))
        return few_s, self._restarted_s()

    def _create(self, *galleries: tuple[str, int]) -> None:
        """Create galleries, given by name and number of shards."""
        with self._client() as client:
            for name, shards in galleries:
                client.create_gallery(
                    name, dim=self._sizes.dim, extractor="calibrate@1", shards=shards, train_at=0
                )

    def _fill(self, client: facegrid.Client) -> float:
        """Fill the galleries, the large one by half; return what that half took."""
        sizes = self._sizes
        self._enrol(client, FEW, 0, sizes.few_rows)
        self._enrol(client, SPLIT, 0, sizes.few_rows)
        took_s = self._enrol(client, MANY, 0, sizes.many_rows // 2)
        for name in (FEW, SPLIT, MANY):
            self._train(client, name)
        return took_s

    def _fill_rest(self, client: facegrid.Client) -> float:
        """Enrol the other half, which is coded as it comes; return what that took.

        With another codebook each start after it would code anew what was stored before.
        """
        return self._enrol(client, MANY, self._sizes.many_rows // 2, self._sizes.many_rows)

    def _enrol(self, client: facegrid.Client, name: str, first: int, last: int) -> float:
        self._tell(f"enrolling {last - first:,} templates")
        # Made beforehand, so that it takes no time from what is measured.
        batches = list(self._batches(first, last))
        started_s = self._clock.now_s()
        client.enrol_stream(name, batches)
        return self._clock.now_s() - started_s

    def _batches(self, first: int, last: int) -> Iterator[facegrid.EnrolBatch]:
        for begin in range(first, last, limits.ENROL_ROWS_MAX // 4):
            rows = range(begin, min(begin + limits.ENROL_ROWS_MAX // 4, last))
            subjects = np.asarray(rows) * 10 // TEN_SUBJECTS
            yield facegrid.EnrolBatch(
                template_ids=[f"t{row:0{ID_BYTES - 1}}" for row in rows],
                subject_ids=[f"s{number:0{ID_BYTES - 1}}" for number in subjects.tolist()],
                vectors=self._templates(subjects).astype(np.float16),
            )

    def _templates(self, subjects: Int64) -> Float32:
        """Return a direction for each row; a second one of a subject lies near its first."""
        found = self._directions(len(subjects))
        second = np.flatnonzero(subjects[1:] == subjects[:-1]) + 1
        found[second] = MATED * found[second - 1] + np.sqrt(1 - MATED**2) * found[second]
        return found

    def _directions(self, count: int) -> Float32:
        drawn = self._rng.standard_normal((count, self._sizes.dim), dtype=np.float32)
        unit: Float32 = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
        return unit

    def _train(self, client: facegrid.Client, name: str) -> None:
        self._tell(f"training {name}")
        client.train(name)
        # Waited for: a node tunes by itself after training, while calls would be timed.
        client.tune(name)

    async def _calls(
        self, budget_s: float
    ) -> tuple[dict[tuple[str, int], list[float]], _ProcessorTimes]:
        """Time calls, and read off the processor time of some."""
        targets = self._cluster.router_targets
        async with facegrid.AsyncClient(targets, timeout_s=TIMEOUT_S) as client:
            timed = await self._timed(client, budget_s)
            return timed, await self._processor_times(client)

    async def _timed(
        self, client: facegrid.AsyncClient, budget_s: float
    ) -> dict[tuple[str, int], list[float]]:
        """Time calls to all galleries in turns, so that what disturbs meets all alike."""
        probes = self._directions(max(PROBES))
        kinds = [(name, count) for name in (FEW, SPLIT, MANY) for count in PROBES]
        times: dict[tuple[str, int], list[float]] = {kind: [] for kind in kinds}
        for kind in kinds:
            await self._call_s(client, *kind, probes)
        end_s = self._clock.now_s() + budget_s
        rounds = 0
        while rounds < ROUNDS_MIN or self._clock.now_s() < end_s:
            for name, count in kinds:
                for _ in range(ONES_PER_ROUND if count == 1 else 1):
                    times[name, count].append(await self._call_s(client, name, count, probes))
            rounds += 1
        return times

    async def _call_s(
        self, client: facegrid.AsyncClient, name: str, count: int, probes: Float32
    ) -> float:
        started_s = self._clock.now_s()
        await client.identify(name, probes[:count], k=K)
        return self._clock.now_s() - started_s

    async def _processor_times(self, client: facegrid.AsyncClient) -> _ProcessorTimes:
        probes = self._directions(WIDE_PROBES)
        ours = psutil.Process()

        def used() -> list[float]:
            times = [ours, self._process("router1"), self._process(NODE)]
            return [float(sum(one.cpu_times()[:2])) for one in times]

        async def each(count: int) -> list[float]:
            before = used()
            for _ in range(CPU_CALLS):
                await client.identify(FEW, probes[:count], k=K)
            return [(b - a) / CPU_CALLS for a, b in zip(before, used(), strict=True)]

        (client_s, router_s, node_s), (_, wider_s, _) = await each(1), await each(WIDE_PROBES)
        return _ProcessorTimes(
            client_s, router_s, (wider_s - router_s) / (WIDE_PROBES - 1), node_s
        )

    def _by_threads(self) -> tuple[list[float], list[float]]:
        """Return times of calls to the large gallery when a search has one core, and all."""
        probes = self._directions(WIDE_PROBES)

        async def calls() -> list[float]:
            targets = self._cluster.router_targets
            async with facegrid.AsyncClient(targets, timeout_s=TIMEOUT_S) as client:
                times = [
                    await self._call_s(client, MANY, WIDE_PROBES, probes)
                    for _ in range(WIDE_CALLS + 1)
                ]
            return times[1:]

        found: dict[int, list[float]] = {1: [], host.cores(): []}
        for _ in range(WIDE_TURNS):
            for threads, times in found.items():
                self._tell(f"timing calls with {threads} of the cores")
                self._cluster.down()
                self._cluster = LocalCluster(self._folder, wanted=Wanted(search_threads=threads))
                self._cluster.up()
                times.extend(asyncio.run(calls()))
        return found[1], found[host.cores()]

    def _settled_bytes(self) -> int:
        """Start the node again and return its resident memory once it was asked."""
        self._restarted_s()
        with self._client() as client:
            return self._asked_bytes(client)

    def _asked_bytes(self, client: facegrid.Client) -> int:
        probes = self._directions(max(PROBES))
        for name in (FEW, SPLIT, MANY):
            client.identify(name, probes, k=K)
        return int(self._process(NODE).memory_info().rss)

    def _restarted_s(self) -> float:
        """Stop the node, so that all is in segments; start it; return what the start took. Several
        times: the median.
        """
        self._tell("starting the node again")
        took_s: list[float] = []
        for _ in range(STARTS):
            processes.stop([self._cluster.record.named(NODE)], grace_s=TIMEOUT_S)
            started_s = self._clock.now_s()
            self._cluster.start_node(NODE, timeout_s=TIMEOUT_S)
            took_s.append(self._clock.now_s() - started_s)
        return statistics.median(took_s)

    def _segments(self) -> tuple[int, float]:
        """Return the bytes of all segments, and how many are read in a second."""

        async def read() -> tuple[int, float]:
            store = open_store(self._cluster.record.store_in(self._cluster.directory))
            names = [name for name in await store.list("shards/") if "/segments/" in name]
            started_s = self._clock.now_s()
            count = 0
            for name in names:
                count += len(await store.get(name))
            return count, count / max(self._clock.now_s() - started_s, 1e-6)

        return asyncio.run(read())

    def _process(self, name: str) -> psutil.Process:
        found = processes.find(self._cluster.record.named(name))
        if found is None:
            raise UnavailableError(f"{name} ended by itself", reason="PROCESS_ENDED")
        return found

    @contextmanager
    def _client(self) -> Iterator[facegrid.Client]:
        with facegrid.Client(self._cluster.router_targets, timeout_s=TIMEOUT_S) as client:
            yield client

    def _tell(self, what: str) -> None:
        if not self._quiet:
            render.show_note(what)
