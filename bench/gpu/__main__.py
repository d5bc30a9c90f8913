"""Search on a GPU, beside faiss alone: `python -m bench.gpu --device gpu:0`.

The same codes and the same probes for both sides, in turns, in one process: faiss alone scans and
returns rows by their codes; the engine scans, leaves out who is erased, and scores exactly. Beside
every speed stands what the search missed, and how close it comes to what the memory of the device
can be read with. `--codes` measures scans of codes alone, without rows: a billion fit. `--served`
asks the same through client, router and node, from several processes.

`--device cpu` lets the processor play the device, to try the command; its results mean nothing.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Final

import numpy as np

from bench import report
from bench.accuracy import Accuracy
from bench.accuracy import measure as measure_accuracy
from bench.gpu import scene
from bench.gpu.scene import PLAYED, Built, Faces, Ground
from bench.gpu.served import BATCH, Served, measure_served
from bench.machine import GIB, Cost
from bench.report import Json, Spread
from bench.stage import Place, Stage, run_as_command
from bench.target import Target, against
from bench.truth import Ranking
from facegrid.clock import SystemClock
from facegrid.telemetry.log import get_logger
from facegrid.tuning import Effort
from facegrid.vectors import Int64, Probes
from indexd.ann.gpu import open as opening
from indexd.ann.gpu.arrays import HostArrays
from indexd.ann.gpu.scanner import HostScanners, pq_m
from indexd.ann.gpu.unit import Unit
from indexd.ann.looking import Coded, Looking, Wanted
from indexd.ann.rescore import Hits

K: Final = 10
DEPTH: Final = 64
ALL: Final = -2.0
ROUNDS: Final = 5
PROBES: Final = 4096
BOUND_NEED: Final = 0.40
SERVED_NEED: Final = 0.60
BUILD_S_NEED: Final = 900.0
BUILD_ROWS: Final = 100_000_000
"""For which the need holds; fewer have to be as fast in proportion."""


@dataclass(frozen=True, slots=True)
class Speed:
    """One setting, both sides in turns.

    Attributes:
        nprobe: lists looked into.
        batch: probes at once.
        raw_per_s: probes a second of faiss alone.
        engine_per_s: of the engine.
        ratio: engine to raw, round by round.
        scanned: rows that a probe looks at, on average.
        bound_share: codes that the engine reads each second, through what the memory can; None:
            not known of this device.
    """

    nprobe: int
    batch: int
    raw_per_s: Spread
    engine_per_s: Spread
    ratio: Spread
    scanned: float
    bound_share: float | None


@dataclass(frozen=True, slots=True)
class Found:
    """What was measured.

    Attributes:
        device: as its maker calls it.
        rows_count: rows in the index.
        nlist: lists.
        kept: whether there were rows beside the codes.
        trained_s, built_s: how long that took.
        speeds: one for each setting.
        accuracies: by nprobe; none without rows.
        served: what came through client, router and node; None: not asked for.
    """

    device: str
    rows_count: int
    nlist: int
    kept: bool
    trained_s: float
    built_s: float
    speeds: list[Speed]
    accuracies: dict[int, Accuracy] = field(default_factory=dict)
    served: Served | None = None

    def lines(self) -> list[str]:
        """Return what to print."""
        told = [
            (
                f"device: {self.device}; {self.rows_count:,} rows in {self.nlist:,} lists;"
                f" trained in {self.trained_s:.1f} s, built in {self.built_s:.1f} s"
            )
        ]
        for nprobe, one in self.accuracies.items():
            told.append(
                f"nprobe={nprobe}: extra FNIR {one.extra_fnir}, recall@{K} {one.recall:.4f}"
                f" on {one.mated_count} mates"
            )
        for speed in self.speeds:
            bound = "" if speed.bound_share is None else f", {speed.bound_share:.2f} of the bound"
            told.append(
                f"nprobe={speed.nprobe} batch={speed.batch}: engine"
                f" {speed.engine_per_s.median:,.0f}/s, raw {speed.raw_per_s.median:,.0f}/s,"
                f" ratio {speed.ratio.text}{bound}"
            )
        if self.served is not None:
            told += self.served.lines()
        return told + [one.line for one in self.targets()]

    def targets(self) -> list[Target]:
        """Return what was asked for beside what came; nothing where the processor played."""
        if self.device == PLAYED:
            return []
        found = [
            against(
                "G10", speed.bound_share, "at least", BOUND_NEED, part=f"nprobe-{speed.nprobe}"
            )
            for speed in self.speeds
            if speed.batch == 1024 and speed.bound_share is not None
        ]
        in_all_s = (self.trained_s + self.built_s) * BUILD_ROWS / self.rows_count
        if self.kept:
            found.append(against("G10", in_all_s, "at most", BUILD_S_NEED, part="build"))
        if self.served is not None:
            found.append(against("G10", self.served.ratio, "at least", SERVED_NEED, part="served"))
        return found

    def as_json(self) -> Mapping[str, Json]:
        """Return everything as JSON."""
        return {
            "device": self.device,
            "rows": self.rows_count,
            "nlist": self.nlist,
            "rows_kept": self.kept,
            "trained_s": self.trained_s,
            "built_s": self.built_s,
            "speeds": [asdict(one) for one in self.speeds],
            "accuracy": {str(nprobe): asdict(one) for nprobe, one in self.accuracies.items()},
            "served": None if self.served is None else self.served.as_json(),
        }


class Bench:
    """One index on one device.

    Args:
        unit: the device.
        built: the index.
        place: by which clock.
    """

    def __init__(self, unit: Unit, built: Built, place: Place) -> None:
        self._unit = unit
        self._built = built
        self._clock = place.clock

    def engine(self, probes: Probes, nprobe: int) -> Hits:
        """Search as a node does; in the owner thread."""
        built = self._built
        coded = Coded(built.part, Effort(nprobe=nprobe, depth=DEPTH))
        wanted = Wanted(probes, K, ALL)
        lists = built.part.nearest(probes, nprobe)
        looking = Looking(
            built.source, coded, wanted, lists, rows_count=built.rows.count, kernels=built.rows
        )
        looking.begin()
        looking.finish()
        return looking.hits

    def scan(self, probes: Probes, nprobe: int) -> object:
        """Search the codes alone, as the engine does it; in the owner thread."""
        lists = self._built.part.nearest(probes, nprobe)
        return self._built.part.scan(probes, lists, DEPTH, live=None)

    def raw(self, probes: Probes, nprobe: int) -> object:
        """Let faiss alone search; in the owner thread."""
        return self._built.raw.search(probes.unit, min(DEPTH, self._built.part.count), nprobe)

    def speed(self, probes: Probes, nprobe: int, batch: int, *, kept: bool) -> Speed:
        """Measure both sides in turns."""
        engine = self.engine if kept else self.scan
        parts = [probes.part(slice(at, at + batch)) for at in range(0, len(probes), batch)]
        parts = [part for part in parts if len(part) == batch][: max(1, 4096 // batch)]
        lists = self._built.part.nearest(parts[0], nprobe)
        scanned = float(self._built.part.rows_in(lists).mean())
        for side in (self.raw, engine):
            side(parts[0], nprobe)
        raw, ours = [], []
        for _ in range(ROUNDS):
            raw.append(self._rate(partial(self.raw, nprobe=nprobe), parts))
            ours.append(self._rate(partial(engine, nprobe=nprobe), parts))
        peak = scene.peak_bytes_per_s(self._unit.arrays)
        read = report.spread(ours).median * scanned * pq_m(self._built.source.dim)
        return Speed(
            nprobe=nprobe,
            batch=batch,
            raw_per_s=report.spread(raw),
            engine_per_s=report.spread(ours),
            ratio=report.spread([one / two for one, two in zip(ours, raw, strict=True)]),
            scanned=scanned,
            bound_share=None if peak is None else read / peak,
        )

    def _rate(self, search: Callable[[Probes], object], parts: Sequence[Probes]) -> float:
        started_s = self._clock.now_s()
        for part in parts:
            search(part)
        return sum(map(len, parts)) / (self._clock.now_s() - started_s)

    def accuracy(self, probes: Probes, truth: Int64, nprobe: int) -> Accuracy:
        """Judge what the engine finds against exact search. A row is its own subject."""
        hits = self.engine(probes, nprobe)
        ends = np.cumsum(hits.counts)
        firsts = ends - hits.counts
        found = [
            _ranking(hits.rows[first:last], hits.scores[first:last])
            for first, last in zip(firsts.tolist(), ends.tolist(), strict=True)
        ]
        scores = self._built.rows.scores(probes, truth)
        exact = [_ranking(rows, own) for rows, own in zip(truth, scores, strict=True)]
        half = len(probes) // 2
        mates = [str(row) for row in mates_of(self._built.part.count, half)]
        return measure_accuracy([*mates, *[None] * (len(probes) - half)], exact=exact, found=found)


def _ranking(rows: Int64, scores: object) -> Ranking:
    return Ranking(tuple(map(str, rows.tolist())), tuple(np.asarray(scores).tolist()))


def mates_of(rows_count: int, count: int) -> Int64:
    """Return the rows that probes are made of: of the first block, evenly."""
    there = min(rows_count, scene.BLOCK_ROWS)
    rows: Int64 = np.linspace(0, there - 1, count).astype(np.int64)
    return rows


def run(given: argparse.Namespace, place: Place) -> Found:
    """Build and measure."""
    unit = _unit(given.device)
    kept = not given.codes
    rows_count = given.codes or given.rows
    nlist = min(given.nlist, unit.scanners.lists_max)
    try:
        return unit.do(lambda: _measured(unit, given, place, (rows_count, nlist, kept))).result()
    finally:
        unit.close()


def _measured(
    unit: Unit,
    given: argparse.Namespace,
    place: Place,
    size: tuple[int, int, bool],
) -> Found:
    rows_count, nlist, kept = size
    faces = Faces(unit.arrays, given.seed, given.dim)
    ground = Ground(unit.arrays, unit.scanners, place.clock)
    built = scene.build(faces, rows_count, nlist=nlist, keep=kept, ground=ground, seed=given.seed)
    first = unit.arrays.get(faces.block(0, min(rows_count, scene.BLOCK_ROWS)))
    half = given.probes // 2
    probes = faces.probes(first[mates_of(rows_count, half)], given.probes - half)
    bench = Bench(unit, built, place)
    nprobes = [min(one, nlist) for one in _numbers(given.nprobe)]
    speeds = [
        bench.speed(probes, nprobe, batch, kept=kept)
        for nprobe in nprobes
        for batch in _numbers(given.batches)
        if batch <= len(probes)
    ]
    accuracies = {}
    if kept:
        truth = scene.exact(built, probes, wanted=K)
        accuracies = {nprobe: bench.accuracy(probes, truth, nprobe) for nprobe in nprobes}
    through = None
    if given.served:
        raw = bench.speed(probes, nprobes[0], BATCH, kept=kept).raw_per_s.median
        through = measure_served(
            given.rows, given.processes, place, raw_per_s=raw, seed=given.seed
        )
    return Found(
        device=unit.arrays.title,
        rows_count=rows_count,
        nlist=nlist,
        kept=kept,
        trained_s=built.trained_s,
        built_s=built.built_s,
        speeds=speeds,
        accuracies=accuracies,
        served=through,
    )


def _unit(device: str) -> Unit:
    logger, clock = get_logger("bench"), SystemClock()
    if device == opening.PROCESSOR:
        arrays = HostArrays()
        return Unit(arrays, lambda: HostScanners(arrays.get), logger, clock=clock)
    return opening.unit(int(device.removeprefix(opening.GPU)), logger, clock)


def _numbers(text: str) -> list[int]:
    return [int(one) for one in text.split(",")]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="gpu:0", help="gpu:N, or cpu to try the command")
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows, kept beside codes")
    parser.add_argument("--codes", type=int, default=0, help="rows of which only codes are kept")
    parser.add_argument("--nlist", type=int, default=16_384, help="lists")
    parser.add_argument("--nprobe", default="64,256", help="lists to look into")
    parser.add_argument("--batches", default="1,16,64,256,1024,4096", help="probes at once")
    parser.add_argument("--probes", type=int, default=PROBES, help="half of them mated")
    parser.add_argument("--dim", type=int, default=scene.DIM, help="components of a template")
    parser.add_argument("--served", action="store_true", help="also through client and router")
    parser.add_argument("--processes", type=int, default=16, help="that ask, with --served")


def _cost(given: argparse.Namespace) -> Cost:
    rows = given.rows if not given.codes else 0
    return Cost(
        took_s=60 + (given.codes or given.rows) / 150_000,
        memory_bytes=rows * (given.dim + 16) + 4 * GIB,
        disk_bytes=GIB if not given.served else GIB + rows * 1500,
        cores=2,
    )


STAGE: Final = Stage(
    name="gpu",
    about="Search on a GPU, beside faiss alone.",
    options=_options,
    cost=_cost,
    run=run,
)

if __name__ == "__main__":
    run_as_command(STAGE)
