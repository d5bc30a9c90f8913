"""Searches several shards for the same probes and merges what they found, in columns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from facegrid.tuning import Effort, Profile, Tuning
from facegrid.vectors import Float32, Int64, Probes
from indexd.ann.effort import effort_of
from indexd.ann.looking import Wanted
from indexd.ann.rescore import Hits
from indexd.ann.together import Asked
from indexd.ann.together import search as together
from indexd.engine.state import ShardState

Find = Callable[[Sequence[Asked], Wanted], list[Hits]]
"""Searches shards, wherever they live."""


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Candidates of m probes, best first: the list of probe i has counts[i] entries.

    Attributes:
        counts: uint32 [m].
        scores: float32 [sum of counts].
        subject_ids: one for each score.
        template_ids: one for each score.
        places: one for each score: number of the shard searched, and row in it.
        scanned: int64 [m], rows that were looked at.
        rows_counts: for each shard how many rows it had when it was searched, erased ones too.
    """

    counts: npt.NDArray[np.uint32]
    scores: Float32
    subject_ids: list[str]
    template_ids: list[str]
    places: list[tuple[int, int]]
    scanned: Int64
    rows_counts: tuple[int, ...]

    @property
    def rows_count(self) -> int:
        """Rows of the shards, summed over the probes."""
        return sum(self.rows_counts) * len(self.counts)

    @property
    def scanned_rows_count(self) -> int:
        """Rows that were looked at, summed over the probes."""
        return int(self.scanned.sum())

    def stale(self, states: Sequence[ShardState]) -> bool:
        """Tell whether any of it has been erased since. For the event loop, where rows change."""
        return any(states[at].is_erased(row) for at, row in self.places)

    def parts(self, firsts: Sequence[int]) -> "list[Found]":
        """Return it cut up: part i is about probes firsts[i] to firsts[i + 1] - 1."""
        if len(firsts) == 2:  # all of it
            return [self]
        ends = np.concatenate([[0], np.cumsum(self.counts, dtype=np.int64)])[list(firsts)].tolist()
        return [
            replace(
                self,
                counts=self.counts[first:last],
                scores=self.scores[begin:end],
                subject_ids=self.subject_ids[begin:end],
                template_ids=self.template_ids[begin:end],
                places=self.places[begin:end],
                scanned=self.scanned[first:last],
            )
            for (first, last), (begin, end) in zip(pairwise(firsts), pairwise(ends), strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Wish:
    """What is wanted of a search.

    Attributes:
        k: longest list, at least 1.
        threshold: lowest score; -2: all.
        profile: how hard to search.
        tuning: what was measured of the gallery; None: nothing.
    """

    k: int
    threshold: float
    profile: Profile = Profile.BALANCED
    tuning: Tuning | None = None

    def effort(self, state: ShardState) -> Effort | None:
        """Return how hard to search one shard; None where it is searched exactly."""
        codebook = state.index.codebook
        if codebook is None:
            return None
        return effort_of(codebook, state.codebook, self.profile, self.tuning)


def search(
    states: Sequence[ShardState], probes: Probes, wish: Wish, find: Find = together
) -> Found:
    """Return the best subjects of each probe over all shards, by score, then subject id.

    For the thread that owns the indexes. A subject lies in one shard, so no subject comes twice.
    """
    asked = [Asked(state.index, wish.effort(state)) for state in states]
    exhaustive = wish.profile is Profile.EXHAUSTIVE
    hits = find(asked, Wanted(probes, wish.k, wish.threshold, exhaustive))
    numbers = np.arange(len(probes))
    every = _Entries(
        probe=np.concatenate([np.repeat(numbers, hit.counts) for hit in hits]),
        scores=np.concatenate([hit.scores for hit in hits]),
        shard=np.repeat(np.arange(len(hits)), [len(hit.rows) for hit in hits]),
        rows=np.concatenate([hit.rows for hit in hits]),
    )
    best = _best_of_one if len(probes) == 1 else _best
    entries = best(every, states, wish.k)
    places = list(zip(entries.shard.tolist(), entries.rows.tolist(), strict=True))
    return Found(
        counts=np.bincount(entries.probe, minlength=len(probes)).astype(np.uint32),
        scores=entries.scores,
        subject_ids=[states[at].subjects.name_of_row(row) for at, row in places],
        template_ids=[states[at].templates[row] for at, row in places],
        places=places,
        scanned=np.sum([hit.scanned for hit in hits], axis=0),
        rows_counts=tuple(hit.rows_count for hit in hits),
    )


@dataclass(frozen=True, slots=True)
class _Entries:
    """Candidates in columns: whose, how alike, and where their rows are."""

    probe: Int64
    scores: Float32
    shard: Int64
    rows: Int64

    def part(self, which: Int64 | npt.NDArray[np.bool_] | slice) -> "_Entries":
        """Return some of them, in the order given."""
        return _Entries(self.probe[which], self.scores[which], self.shard[which], self.rows[which])


def _best(every: _Entries, states: Sequence[ShardState], k: int) -> _Entries:
    """Return the best k of each probe, by score, then by subject and template id."""
    if not len(every.probe):
        return every
    entries = every.part(np.lexsort((-every.scores, every.probe)))
    tied = (np.diff(entries.probe) == 0) & (np.diff(entries.scores) == 0)
    if tied.any():
        entries = _by_name(entries, states, k)
    rank = np.arange(len(entries.probe)) - np.searchsorted(entries.probe, entries.probe)
    return entries.part(rank < k)


def _best_of_one(every: _Entries, states: Sequence[ShardState], k: int) -> _Entries:
    """Return what `_best` does where there is one probe: it has nothing to tell apart."""
    entries = every.part(np.argsort(-every.scores, kind="stable"))
    if (entries.scores[1:] == entries.scores[:-1]).any():
        entries = _by_name(entries, states, k)
    return entries.part(slice(k))


def _by_name(entries: _Entries, states: Sequence[ShardState], k: int) -> _Entries:
    """Return sorted entries with those of equal score by their ids, few more than k each."""
    probe, scores = entries.probe, entries.scores
    starts = np.searchsorted(probe, probe)
    last = np.minimum(starts + k, np.searchsorted(probe, probe, "right")) - 1
    # Whoever ties with the last may stand before it by name.
    entries = entries.part((np.arange(len(probe)) <= last) | (scores == scores[last]))
    return entries.part(
        np.lexsort((_places_by_name(entries, states), -entries.scores, entries.probe))
    )


def _places_by_name(entries: _Entries, states: Sequence[ShardState]) -> Int64:
    """Return numbers that order sorted entries of equal score by their ids; seldom any do."""
    order = np.zeros(len(entries.probe), np.int64)
    equal = (np.diff(entries.probe) == 0) & (np.diff(entries.scores) == 0)
    tied = np.flatnonzero(np.append(equal, False) | np.append(False, equal))
    names = [
        (states[at].subjects.name_of_row(row), states[at].templates[row], at, row)
        for at, row in zip(entries.shard[tied].tolist(), entries.rows[tied].tolist(), strict=True)
    ]
    order[tied[sorted(range(len(names)), key=names.__getitem__)]] = np.arange(len(names))
    return order
