"""Searches several shards for the same probes at once.

What they share is done once: the lists nearest to a probe are the same in all shards of a
codebook. And they stop together: a mate found in one shard makes further lists of all others
needless, where one shard alone would look on for something better, since a stranger is the best
that it has. So the k-th best score of all shards counts. What a shard contributes may then depend
on what was searched beside it; what the answer may miss does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from facegrid.tuning import Effort
from facegrid.vectors import Float32, Int64, Probes
from indexd.ann.looking import Looking, Part, Wanted
from indexd.ann.rescore import Hits


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
        self,
        wanted: Wanted,
        nearest: Int64,
        effort: Effort | None,
        *,
        rows_count: int,
        share: float,
    ) -> Looking:
        """Return a search that has not begun, of the first rows, which are a share of all."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A shard to search, and how hard; None: as training found."""

    index: Searchable
    effort: Effort | None = None


def search(asked: Sequence[Asked], wanted: Wanted) -> list[Hits]:
    """Return for each shard the best row of each of the best subjects of each probe.

    In each shard up to k subjects at or above the threshold, erased rows left out. A subject that
    lies in several shards comes once for each.
    """
    while True:
        searched = _Searched(asked, wanted)
        # What was erased while the search ran: seldom, and never to be answered.
        if not any(looking.outdated for looking in searched.lookings):
            return [looking.hits for looking in searched.lookings]


class _Searched:
    """One search of all shards, done when it is made."""

    def __init__(self, asked: Sequence[Asked], wanted: Wanted) -> None:
        self._wanted = wanted
        efforts = [one.index.effort(one.effort) for one in asked]
        nearest = _nearest(asked, efforts, wanted.probes)
        counts = [one.index.rows_count for one in asked]
        whole = max(1, sum(counts))
        self.lookings = [
            one.index.looking(wanted, lists, effort, rows_count=count, share=count / whole)
            for one, lists, effort, count in zip(asked, nearest, efforts, counts, strict=True)
        ]
        for looking in self.lookings:
            looking.begin()
        if any(looking.may_stop_early for looking in self.lookings):
            while self._further():
                pass
        for looking in self.lookings:
            looking.finish()

    def _further(self) -> bool:
        """Go on from what all shards have found; tell whether any had to."""
        scores = self._enough()
        went_on = [looking.further(scores) for looking in self.lookings]
        return any(went_on)

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
