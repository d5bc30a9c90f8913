"""One index in this process, grown step by step, and how it searches at each size.

What is measured is `indexd.ann.index`, without engine, server or network: galleries of ten million
templates would take hours through the API, and a search spends its time here.
"""

import math
import os
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np

from bench.accuracy import FPIR_WANTED
from bench.machine import GIB, Cost
from bench.report import Json, percentile
from bench.streamed import Best, Maker, Piece, pieces, subject_number
from facegrid import vectors
from facegrid.clock import Clock
from facegrid.testing.synthetic import SyntheticGallery
from facegrid.tuning import Effort, Profile
from facegrid.vectors import Float32, Int64
from indexd.ann.codebook import Codebook
from indexd.ann.effort import effort_of
from indexd.ann.index import ShardIndex
from indexd.ann.miss_rate import miss_rate_bound
from indexd.ann.rows import Int32
from indexd.ann.threads import set_threads
from indexd.ann.train import train

TRAIN_ROWS: Final = 262_144
ABSORB_ROWS: Final = 1 << 16
BATCH: Final = 64
NO_THRESHOLD: Final = -2.0
"""Below every score."""
ROW_BYTES: Final = 512 + 20 + 64
"""What a template takes at 512 dimensions: the row, its numbers, its code."""
SPARE: Final = 1.15
"""Arrays that grow are larger than what is in them."""
FIXED_BYTES: Final = 2 * GIB
"""Everything that does not grow: processes that make templates, training."""
GENERATION_S: Final = 25e-6
TRUTH_S: Final = 12e-9
CODING_S: Final = 12e-6
SCAN_S: Final = 1 / 200e6
"""Estimates for one core: of each template, of each template and probe, of each template, of each
code scanned."""


def cost(sizes: Sequence[int], *, probes_count: int, single_count: int, efforts: int) -> Cost:
    """Return what it takes to grow an index to sizes and search it at each, with truth."""
    last, all_rows = max(sizes), sum(sizes)
    making_s = last * (GENERATION_S + probes_count * TRUTH_S) / 2 + last * CODING_S
    searching_s = all_rows * SCAN_S * efforts * (probes_count / 2 + 2 * single_count)
    return Cost(
        took_s=60 + making_s + searching_s,
        memory_bytes=int(last * ROW_BYTES * SPARE) + FIXED_BYTES,
        cores=2,
    )


@dataclass(frozen=True, slots=True)
class Asked:
    """Probes, and whose they are.

    Attributes:
        x: float32 [m, dim] of norm 1.
        mates: int64 [m], the number of the subject, -1 where nobody enrolled is meant.
    """

    x: Float32
    mates: Int64

    @classmethod
    def of(cls, gallery: SyntheticGallery, count: int, *, seed: int) -> "Asked":
        """Return probes of a gallery, half of them mated."""
        probes = gallery.probes(count, seed=seed)
        names = probes.mate_subject_ids
        return cls(
            probes.vectors,
            np.array([-1 if name is None else subject_number(name) for name in names], np.int64),
        )


@dataclass(frozen=True, slots=True)
class Miss:
    """What an effort misses against exact search.

    Attributes:
        mates_count: mated probes.
        misses_count: those that exact search accepts at `threshold` and the index does not.
        threshold: score at which exact search has FPIR 0.003.
    """

    mates_count: int
    misses_count: int
    threshold: float

    @property
    def extra_fnir(self) -> float:
        """The share that was seen. Of fewer than 30 misses it says little: see the bound."""
        return self.misses_count / self.mates_count

    @property
    def bound(self) -> float:
        """The highest rate that agrees with what was seen, at 95 %."""
        return min(1.0, miss_rate_bound(self.misses_count, self.mates_count))


@dataclass(frozen=True, slots=True)
class Point:
    """One effort at one size.

    Attributes:
        profile: whose effort it is, empty for one of the curve.
        templates: in the index.
        single_ms: of every search of one probe.
        cpu_share: processor time of this process by elapsed time during these: 1 is one core.
        batch_per_s: probes a second, 64 at a time.
        miss: against exact search.
    """

    profile: str
    templates: int
    nprobe: int
    nlist: int
    depth: int
    single_ms: Sequence[float]
    cpu_share: float
    batch_per_s: float
    miss: Miss

    @property
    def p50_ms(self) -> float:
        """Median of single searches."""
        return percentile(self.single_ms, 0.5)

    @property
    def line(self) -> str:
        """Return what to print."""
        return (
            f"{self.profile or 'curve'}: templates={self.templates}"
            f" nprobe={self.nprobe}/{self.nlist} depth={self.depth} p50_ms={self.p50_ms:.2f}"
            f" p90_ms={percentile(self.single_ms, 0.9):.2f} cores_used={self.cpu_share:.2f}"
            f" batch_probes_per_s={self.batch_per_s:.0f} misses={self.miss.misses_count} of"
            f" {self.miss.mates_count} mates, extra FNIR at most {self.miss.bound:.2g}"
        )

    def as_json(self) -> dict[str, Json]:
        """Return it as JSON."""
        return {
            "profile": self.profile,
            "templates": self.templates,
            "nprobe": self.nprobe,
            "nlist": self.nlist,
            "depth": self.depth,
            "p50_ms": self.p50_ms,
            "p90_ms": percentile(self.single_ms, 0.9),
            "p99_ms": percentile(self.single_ms, 0.99),
            "singles": len(self.single_ms),
            "cores_used": self.cpu_share,
            "batch_probes_per_s": self.batch_per_s,
            "mates": self.miss.mates_count,
            "misses": self.miss.misses_count,
            "extra_fnir": self.miss.extra_fnir,
            "extra_fnir_max": self.miss.bound,
            "threshold": self.miss.threshold,
        }


def misses(asked: Asked, best: Best, owner: Int64, found: Int64) -> Miss:
    """Count the mates that exact search accepts and an index does not find at rank 1.

    Args:
        asked: probes.
        best: exact search's best row of each.
        owner: int64 [m], whose that row is.
        found: int64 [m], the subject that the index puts first, -1 for none.
    """
    mated = asked.mates >= 0
    strangers = np.sort(best.scores[~mated])[::-1]
    allowed = math.floor(FPIR_WANTED * len(strangers) + 1e-9)
    threshold = float(strangers[allowed]) if len(strangers) else -math.inf
    accepted = mated & (owner == asked.mates) & (best.scores > threshold)
    missed = accepted & (found != asked.mates)
    return Miss(int(np.count_nonzero(mated)), int(np.count_nonzero(missed)), threshold)


class Grown:
    """An index that grows with a gallery, and what exact search found so far.

    Args:
        dim: of the templates.
        asked: probes that the truth is kept for.
        threads: for searching and coding.
        clock: for times.
    """

    def __init__(self, dim: int, asked: Asked, *, threads: int, clock: Clock) -> None:
        self._asked = asked
        self._threads = threads
        self._clock = clock
        self._best = Best.none(len(asked.x))
        self._subjects: list[Int32] = []
        self.index = ShardIndex(dim)
        self.train_s = 0.0

    @property
    def codebook(self) -> Codebook:
        """What it was trained to."""
        assert self.index.codebook is not None, "train first"
        return self.index.codebook

    def take(self, piece: Piece) -> None:
        """Add rows; those beyond a certain number are coded at once."""
        self.index.append(piece.codes, piece.subjects)
        self._subjects.append(piece.subjects)
        self._best = self._best.or_better(piece.best)
        if self.index.codebook and self.index.rows_count - self.index.indexed_count > ABSORB_ROWS:
            self.index.absorb()

    def train(self, *, seed: int) -> None:
        """Train on what is there, and code it."""
        started_s = self._clock.now_s()
        rows = np.arange(min(self.index.rows_count, TRAIN_ROWS))
        codebook = train(self.index.codes(rows), seed=seed, threads=self._threads)
        self.train_s = self._clock.now_s() - started_s
        self.index.swap(self.index.rebuilt(codebook))

    def efforts(self) -> dict[str, Effort]:
        """Return the effort of each profile, as training found it."""
        return {one.value: effort_of(self.codebook, "", one, None) for one in Profile}

    def point(self, profile: str, effort: Effort, *, k: int, single_count: int) -> Point:
        """Measure an effort at the present size."""
        self.index.absorb()
        mated = np.flatnonzero(self._asked.mates >= 0)
        probes = vectors.prepare_probes(self._asked.x)
        single_ms, cpu_share = self._singles(probes, effort, k=k, count=single_count)
        found = np.full(len(self._asked.x), -1, np.int64)
        started_s = self._clock.now_s()
        for first in range(0, len(mated), BATCH):
            batch = mated[first : first + BATCH]
            hits = self.index.search(probes.part(batch), k, NO_THRESHOLD, effort)
            heads = np.concatenate([[0], np.cumsum(hits.counts)[:-1]])
            some = hits.counts > 0
            rows = hits.rows[heads[some]]
            found[batch[some]] = self._owners(rows)
        elapsed_s = self._clock.now_s() - started_s
        return Point(
            profile=profile,
            templates=self.index.rows_count,
            nprobe=effort.nprobe,
            nlist=self.codebook.nlist,
            depth=effort.depth,
            single_ms=single_ms,
            cpu_share=cpu_share,
            batch_per_s=len(mated) / elapsed_s,
            miss=misses(self._asked, self._best, self._owners(self._best.rows), found),
        )

    def _singles(
        self, probes: vectors.Probes, effort: Effort, *, k: int, count: int
    ) -> tuple[list[float], float]:
        """Search one probe after the other; return milliseconds, and cores used."""
        took_ms: list[float] = []
        began_s, began_cpu_s = self._clock.now_s(), _cpu_s()
        for number in range(count):
            probe = probes.part(np.array([number % len(self._asked.x)]))
            started_s = self._clock.now_s()
            self.index.search(probe, k, NO_THRESHOLD, effort)
            took_ms.append(1000 * (self._clock.now_s() - started_s))
        elapsed_s = self._clock.now_s() - began_s
        return took_ms, (_cpu_s() - began_cpu_s) / max(elapsed_s, 1e-9)

    def _owners(self, rows: Int64) -> Int64:
        """Return the subject's number of rows."""
        owners: Int64 = np.concatenate(self._subjects)[rows].astype(np.int64)
        return owners


def _cpu_s() -> float:
    """Return the processor time of this process, without that of its children."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@contextmanager
def cores(count: int) -> Iterator[None]:
    """Let this process use so many cores for what is in the block, and as many threads."""
    all_cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(all_cores)[-count:]))
    set_threads(count)
    try:
        yield
    finally:
        os.sched_setaffinity(0, all_cores)
        set_threads(len(all_cores))


def grow(
    grown: Grown,
    maker: Maker,
    sizes: Sequence[int],
    *,
    processes: int,
    seed: int,
    at_size: Callable[[Grown], None],
) -> None:
    """Grow an index to each of the rising sizes, and call `at_size` at each.

    It is trained at the first size. Sizes are rounded up to whole pieces, but the last one, which
    is all of the gallery.
    """
    wanted = [*sizes]
    assert wanted[-1] == maker.gallery.templates_count, "the last size is that of the gallery"
    for piece in pieces(maker, processes=processes):
        grown.take(piece)
        if grown.index.rows_count < wanted[0]:
            continue
        if grown.index.codebook is None:
            grown.train(seed=seed)
        at_size(grown)
        wanted.pop(0)


def exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """Return the power of the size that the times grow with: the slope between logarithms."""
    x, y = np.log(np.asarray(sizes, float)), np.log(np.asarray(times, float))
    x -= x.mean()
    return float((x * (y - y.mean())).sum() / (x * x).sum())
