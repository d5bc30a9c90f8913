"""Searches several shards for the same probes at once.

What they share is done once: the lists nearest to a probe are the same in all shards of a
codebook. And they stop together: a mate found in one shard makes further lists of all others
needless, where one shard alone would look on for something better, since a stranger is the best
that it has. So the k-th best score of all shards counts. What a shard contributes may then depend
on what was searched beside it; what the answer may miss does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Final, Protocol

import numpy as np

from facegrid.tuning import Effort
from facegrid.vectors import Float32, Int64, Probes
from indexd.ann.crew import ALONE, Crew
from indexd.ann.looking import Looking, Part, Wanted
from indexd.ann.rescore import Hits

PIECE_PROBES_MIN: Final = 16
"""FastScan reads a list once for eleven probes; with fewer its speed falls."""


class Nearest(Protocol):
    """Tells which lists are nearest to a probe."""

    def nearest(self, probes: Probes, nprobe: int) -> Int64:
        """Return the `nprobe` lists nearest to each probe, int64 [m, nprobe], nearest first."""


class CodedPart(Part, Protocol):
    """Rows that have codes, in lists that other shards have too."""

    @property
    def codebook(self) -> object:
        """What the lists are of: the same object for parts that share them."""

    @property
    def coarse(self) -> Nearest:
        """What orders the lists for a probe."""


class Searchable(Protocol):
    """What can be searched: the rows of one shard."""

    @property
    def coded(self) -> CodedPart | None:
        """The part that has codes; None: there is no codebook."""

    def effort(self, wanted: Effort | None) -> Effort | None:
        """Return how hard to search it, as wanted or as training found; None: exactly."""

    @property
    def rows_count(self) -> int:
        """Rows, erased ones included."""

    def looking(
        self, wanted: Wanted, nearest: Int64, effort: Effort | None, *, rows_count: int
    ) -> Looking:
        """Return a search that has not begun, of the first rows."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A shard to search, and how hard; None: as training found."""

    index: Searchable
    effort: Effort | None = None


def search(asked: Sequence[Asked], wanted: Wanted, crew: Crew = ALONE) -> list[Hits]:
    """Return for each shard the best row of each of the best subjects of each probe.

    In each shard up to k subjects at or above the threshold, erased rows left out. A subject that
    lies in several shards comes once for each.
    """
    pieces = _pieces(len(wanted.probes), len(asked), crew.count)
    while True:
        # Once for all pieces: rows come in meanwhile.
        counts = [one.index.rows_count for one in asked]
        searched = [_Piece(asked, counts, wanted.part(piece)) for piece in pieces]
        lookings = [looking for piece in searched for looking in piece.lookings]
        crew.do([looking.begin for looking in lookings])
        going = [piece for piece in searched if piece.may_stop_early]
        while going:
            works = [(piece, work) for piece in going for work in piece.works()]
            crew.do([work for _, work in works])
            going = [piece for piece in going if piece.went_on]
        crew.do([looking.finish for looking in lookings])
        # What was erased while the search ran: seldom, and never to be answered.
        if not any(looking.outdated for looking in lookings):
            break
    return [_joined([piece.lookings[at].hits for piece in searched]) for at in range(len(asked))]


class _Piece:
    """Some of the probes, in all shards."""

    def __init__(self, asked: Sequence[Asked], counts: Sequence[int], wanted: Wanted) -> None:
        self._wanted = wanted
        efforts = [one.index.effort(one.effort) for one in asked]
        nearest = _nearest(asked, efforts, wanted.probes)
        self.lookings = [
            one.index.looking(wanted, lists, effort, rows_count=count)
            for one, lists, effort, count in zip(asked, nearest, efforts, counts, strict=True)
        ]
        self.went_on = False

    @property
    def may_stop_early(self) -> bool:
        """Tell whether any shard has lists left that some probes may need."""
        return any(looking.may_stop_early for looking in self.lookings)

    def works(self) -> list[partial[None]]:
        """Return what is to be done next, from what all shards have found."""
        scores = self._enough()
        self.went_on = False
        return [partial(self._further, looking, scores) for looking in self.lookings]

    def _further(self, looking: Looking, scores: Float32) -> None:
        if looking.further(scores):
            self.went_on = True

    def _enough(self) -> Float32:
        """Return what a row must score more than to be of use, float32 [m]: the threshold, or the
        k-th best score of all shards.
        """
        k = self._wanted.k
        best = np.concatenate([looking.best() for looking in self.lookings], axis=1)
        floor = np.float32(self._wanted.threshold)
        if best.shape[1] < k:
            return np.full(len(best), floor)
        return np.maximum(-np.partition(-best, k - 1, axis=1)[:, k - 1], floor)


def _nearest(
    asked: Sequence[Asked], efforts: Sequence[Effort | None], probes: Probes
) -> list[Int64]:
    """Return the lists nearest to each probe, for each shard; once for each codebook."""
    nothing = np.empty((len(probes), 0), np.int64)
    found: dict[tuple[int, bool], Int64] = {}
    lists: list[Int64] = []
    for one, effort in zip(asked, efforts, strict=True):
        coded = one.index.coded
        if coded is None or effort is None:
            lists.append(nothing)
            continue
        nprobe = min(effort.nprobe, coded.nlist)
        # In order, unless all are looked into anyway.
        ordered = bool(effort.steps) or nprobe < coded.nlist
        key = (id(coded.codebook), ordered)
        known = found.get(key, nothing)
        if known.shape[1] < nprobe:
            choose = coded.coarse.nearest if ordered else coded.nearest
            found[key] = choose(probes, nprobe)
        lists.append(found[key])
    return lists


def _pieces(probes_count: int, shards_count: int, threads_count: int) -> list[slice]:
    """Return how to cut the probes where there are fewer shards than threads."""
    wanted = -(-threads_count // max(shards_count, 1))
    count = max(1, min(wanted, probes_count // PIECE_PROBES_MIN))
    ends = [probes_count * number // count for number in range(count + 1)]
    return [slice(first, last) for first, last in pairwise(ends)]


def _joined(parts: Sequence[Hits]) -> Hits:
    """Return the hits of all pieces."""
    if len(parts) == 1:
        return parts[0]
    return Hits(
        counts=np.concatenate([part.counts for part in parts]),
        rows=np.concatenate([part.rows for part in parts]),
        scores=np.concatenate([part.scores for part in parts]),
        scanned=np.concatenate([part.scanned for part in parts]),
        rows_count=parts[0].rows_count,
    )
