"""One shard's search for some probes, as far as it has come.

It looks into the nearest lists, is told what the shards have found together, and goes on for the
probes that need it (RFC 11). Probes of which one subject's rows crowd out the others are searched
once more at the end, with more rows and lists each time.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from facegrid.tuning import Effort
from facegrid.vectors import Float32, Int64, Probes, UInt8
from indexd.ann import exact, rescore
from indexd.ann.effort import rows_to_rescore
from indexd.ann.ivfpq import Scanned
from indexd.ann.native.library import Limits
from indexd.ann.rescore import Best, Hits
from indexd.ann.rows import Bool, Rows
from indexd.ann.steps import Steps

EXACT_SPARE = 16
"""Rows rescored beyond k in the exact part, for rows that rounding puts in the wrong order."""
NOTHING = np.float32(-np.inf)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is looked for.

    Attributes:
        probes: m probes.
        k: longest list wanted, at least 1.
        threshold: lowest score wanted.
        exhaustive: whether all lists are wanted by whoever asks, not only by what was measured.
    """

    probes: Probes
    k: int
    threshold: float
    exhaustive: bool = False


class Part(Protocol):
    """Rows 0 to count - 1, coded and in lists."""

    @property
    def count(self) -> int:
        """Rows."""

    @property
    def nlist(self) -> int:
        """Lists."""

    def nearest(self, probes: Probes, nprobe: int) -> Int64:
        """Return the `nprobe` lists nearest to each probe, int64 [m, nprobe]."""

    def rows_in(self, lists: Int64) -> Int64:
        """Return how many rows the lists of each probe hold, int64 [m]; -1 stands for no list."""

    def scan(self, probes: Probes, lists: Int64, wanted: int, *, live: UInt8 | None) -> Scanned:
        """Return the `wanted` rows of each probe's lists that look best by their codes."""


class Kernels(Protocol):
    """What looks at rows themselves, exactly."""

    def scan(self, first: int, last: int, *, probes: Probes, wanted: int) -> Int64:
        """Return the `wanted` best of rows first to last - 1, as `indexd.ann.exact.scan` does."""

    def keys_of(self, probes: Probes, candidates: Int64) -> Int64:
        """Return what candidates sort by, as `indexd.ann.rescore.keys_of` does."""

    def best(self, probes: Probes, candidates: Int64, limits: Limits) -> Best:
        """Return the best of candidates, as `indexd.ann.rescore.best` does."""


@dataclass(frozen=True, slots=True)
class HostKernels:
    """The processor's."""

    rows: Rows

    def scan(self, first: int, last: int, *, probes: Probes, wanted: int) -> Int64:
        """See `Kernels`."""
        return exact.scan(self.rows, first, last, probes=probes, wanted=wanted)

    def keys_of(self, probes: Probes, candidates: Int64) -> Int64:
        """See `Kernels`."""
        return rescore.keys_of(self.rows, probes, candidates)

    def best(self, probes: Probes, candidates: Int64, limits: Limits) -> Best:
        """See `Kernels`."""
        return rescore.best(self.rows, probes, candidates, limits)


@dataclass(frozen=True, slots=True)
class Coded:
    """The rows that have codes, and how hard they are searched.

    Attributes:
        part: the rows.
        effort: as wanted of the whole search.
        share: of all rows that are searched together, those of this shard.
    """

    part: Part
    effort: Effort
    share: float = 1.0


class Looking:
    """One shard's search.

    Args:
        rows: of the shard.
        coded: None where everything is searched exactly.
        wanted: what is looked for.
        nearest: int64 [m, n], the lists nearest to each probe; as many as the effort looks into.
        rows_count: rows to search, the first ones.
        kernels: what looks at rows; None: the processor.
    """

    def __init__(
        self,
        rows: Rows,
        coded: Coded | None,
        wanted: Wanted,
        nearest: Int64,
        *,
        rows_count: int,
        kernels: Kernels | None = None,
    ) -> None:
        probes_count = len(wanted.probes)
        self._kernels = kernels or HostKernels(rows)
        self._rows = rows
        self._coded = coded if coded is not None and coded.part.count else None
        self._wanted = wanted
        self._nearest = nearest
        self._count = rows_count
        self._tail_first = 0 if self._coded is None else self._coded.part.count
        # Read once: whoever erases meanwhile is looked for again at the end.
        self._live = rows.live_bits() if rows.erased_count else None
        self._steps: Steps | None = None
        if self._coded is not None:
            nlist = self._coded.part.nlist
            self._steps = Steps(self._coded.effort, nlist, self._tail_first)
        self._looked = np.zeros(probes_count, np.int64)
        self._scanned = np.full(probes_count, self._count - self._tail_first, np.int64)
        self._best = Scanned(
            np.empty((probes_count, 0), np.int64), np.empty((probes_count, 0), np.float32)
        )
        self._candidates: Int64 = self._best.rows
        # Of what was found so far, sorted; made when somebody asks for the best before the end.
        self._keys: Int64 | None = None
        self._tail_all: Bool = np.zeros(probes_count, np.bool_)
        self._bounding: Int64 = np.empty(0, np.int64)
        self._hits: Hits | None = None

    @property
    def may_stop_early(self) -> bool:
        """Tell whether there are lists left that some probes may need."""
        return self._steps is not None and self._steps.first < self._steps.most

    def begin(self) -> None:
        """Look at the exact tail and into the first lists."""
        probes = self._wanted.probes
        tail, self._tail_all = self._tail(probes, times=1)
        rows = [tail] if tail.shape[1] else []
        if self._steps is not None:
            self._best = self._scan(np.arange(len(probes)), self._nearest[:, : self._steps.first])
            self._looked[:] = self._steps.first
            rows.append(self._best.rows)
        self._candidates = rows[0] if len(rows) == 1 else np.concatenate([tail, *rows[1:]], axis=1)

    def best(self) -> Float32:
        """Return the scores of the best k subjects found so far, float32 [m, c]; -inf for none.

        A search that stops because of one of them is made again when that one is erased.
        """
        if self._keys is None:
            self._keys = self._kernels.keys_of(self._wanted.probes, self._candidates)
            self._keys.sort(axis=1)
        ranked = rescore.ranked(self._keys)
        kept = self._kept(ranked)
        self._bounding = ranked.rows[kept]
        return np.where(kept, ranked.scores, NOTHING)

    def further(self, scores: Float32) -> bool:
        """Look into more lists for the probes that need it; tell whether there was any.

        Args:
            scores: float32 [m], a row that does not score more than this is of no use.
        """
        if self._coded is None or self._steps is None:
            return False
        needed = self._steps.needed(scores)
        which = np.flatnonzero(needed > self._looked)
        if not len(which):
            return False
        before = self._looked[which]
        until = self._steps.next(before, needed[which])
        first, last = int(before.min()), int(until.max())
        numbers = np.arange(first, last)
        inside = (numbers >= before[:, None]) & (numbers < until[:, None])
        lists = np.where(inside, self._nearest[which, first:last], -1)
        self._take(which, self._scan(which, lists))
        self._looked[which] = until
        return True

    def finish(self) -> None:
        """Make the answer, fetching more candidates where one subject has many of them."""
        probes = self._wanted.probes
        coded_all = self._all_coded(self._best.rows, self._looked)
        if self._keys is None:
            limits = self._limits(coded_all, self._tail_all)
            best = self._kernels.best(probes, self._candidates, limits)
        else:
            best = rescore.best_of(self._rows, self._keys, self._limits(coded_all, self._tail_all))
        asked, times = np.flatnonzero(~best.done), 1
        while len(asked):
            times *= 2
            more = self._again(asked, times)
            best.put(asked, more)
            asked = asked[~more.done]
        entries = np.arange(self._wanted.k) < best.counts[:, None]
        self._hits = Hits(
            counts=best.counts,
            rows=best.rows[entries],
            scores=best.scores[entries],
            scanned=self._scanned,
            rows_count=self._count,
        )

    @property
    def hits(self) -> Hits:
        """The answer."""
        assert self._hits is not None, "finish first"
        return self._hits

    @property
    def outdated(self) -> bool:
        """Tell whether a row was erased that is in the answer, or for which the search stopped."""
        erased = self._rows.erased
        return bool(erased(self.hits.rows).any() or erased(self._bounding).any())

    def _limits(self, coded_all: Bool, tail_all: Bool) -> Limits:
        wanted = self._wanted
        whole = np.array((coded_all, tail_all))
        return Limits(wanted.k, wanted.threshold, self._tail_first, whole)

    def _tail(self, probes: Probes, times: int) -> tuple[Int64, Bool]:
        """Return the best rows of the exact tail, and for which probes there are no others."""
        if self._tail_first == self._count:
            return np.empty((len(probes), 0), np.int64), np.ones(len(probes), np.bool_)
        wanted = self._wanted.k * times + EXACT_SPARE
        tail = self._kernels.scan(self._tail_first, self._count, probes=probes, wanted=wanted)
        return tail, np.count_nonzero(tail >= 0, axis=1) < wanted

    def _scan(self, which: Int64, lists: Int64, times: int = 1) -> Scanned:
        """Return what looks best in lists, int64 [m, n], chosen for some probes, int64 [m]."""
        assert self._coded is not None, "there are lists"
        coded, wanted = self._coded.part, self._coded_wanted(times)
        self._scanned[which] += coded.rows_in(lists)
        return coded.scan(self._wanted.probes.part(which), lists, wanted, live=self._live)

    def _coded_wanted(self, times: int) -> int:
        assert self._coded is not None, "there are codes"
        effort = self._coded.effort
        # A depth that nobody measured shard by shard is no reason to rescore fewer rows.
        share = self._coded.share if effort.proven else 1.0
        wanted = rows_to_rescore(effort.depth, self._wanted.k * times, share=share)
        return min(wanted, self._tail_first)

    def _take(self, which: Int64, scanned: Scanned) -> None:
        """Add what further lists held, as far as it is among the best of all lists by its codes.

        So nobody is rescored who would not have been, had all those lists been searched at once.
        """
        width = self._best.rows.shape[1]
        rows = np.concatenate([self._best.rows[which], scanned.rows], axis=1)
        likeness = np.concatenate([self._best.likeness[which], scanned.likeness], axis=1)
        likeness = np.where(rows < 0, NOTHING, likeness)
        order = np.argpartition(-likeness, width - 1, axis=1)[:, :width]
        self._best.rows[which] = np.take_along_axis(rows, order, axis=1)
        self._best.likeness[which] = np.take_along_axis(likeness, order, axis=1)
        # What was there already has a score; the others are moved to the left.
        new = np.where(order >= width, np.take_along_axis(rows, order, axis=1), -1)
        new = -np.sort(-new, axis=1)[:, : int(np.count_nonzero(new >= 0, axis=1).max())]
        assert self._keys is not None, "the best are known of what was found before"
        added = np.full((len(self._keys), new.shape[1]), rescore.LAST, np.int64)
        added[which] = self._kernels.keys_of(self._wanted.probes.part(which), new)
        self._keys = np.sort(np.concatenate([self._keys, added], axis=1), axis=1)

    def _again(self, asked: Int64, times: int) -> Best:
        """Search some probes anew by so many times the effort."""
        probes = self._wanted.probes.part(asked)
        tail, tail_all = self._tail(probes, times)
        if self._coded is None:
            limits = self._limits(np.ones(len(asked), np.bool_), tail_all)
            return self._kernels.best(probes, tail, limits)
        part = self._coded.part
        nprobe = min(self._coded.effort.nprobe * times, part.nlist)
        self._scanned[asked] = self._count - self._tail_first
        scanned = self._scan(asked, part.nearest(probes, nprobe), times)
        coded_all = self._all_coded(scanned.rows, np.full(len(asked), nprobe))
        candidates = np.concatenate([scanned.rows, tail], axis=1)
        return self._kernels.best(probes, candidates, self._limits(coded_all, tail_all))

    def _all_coded(self, rows: Int64, looked: Int64) -> Bool:
        """Tell for which probes there are no other rows with codes than those found."""
        if self._coded is None:
            return np.ones(len(rows), np.bool_)
        everywhere: Bool = looked == self._coded.part.nlist
        if rows.shape[1] == self._tail_first or not everywhere.any():
            return everywhere
        # Where fewer are found than wanted, -1 stands for the others.
        every: Bool = everywhere & (rows.min(axis=1) < 0)
        return every

    def _kept(self, ranked: rescore.Ranked) -> Bool:
        """Mark the best row of each of the first k subjects that are not erased."""
        rows = np.maximum(ranked.rows, 0)
        erased, subjects = self._rows.erased(rows), self._rows.subjects(rows)
        return rescore.keep(ranked, erased=erased, subjects=subjects, k=self._wanted.k)
