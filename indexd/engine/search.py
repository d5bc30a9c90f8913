"""Searches several shards for the same probes and merges what they found, in columns."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from facegrid.vectors import Float32, Int64, Probes
from indexd.engine.state import ShardState


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Candidates of m probes, best first: the list of probe i has counts[i] entries.

    Attributes:
        counts: uint32 [m].
        scores: float32 [sum of counts].
        subject_ids: one for each score.
        template_ids: one for each score.
        places: one for each score: number of the shard searched, and row in it.
    """

    counts: npt.NDArray[np.uint32]
    scores: Float32
    subject_ids: list[str]
    template_ids: list[str]
    places: list[tuple[int, int]]

    def stale(self, states: Sequence[ShardState]) -> bool:
        """Tell whether any of it has been erased since. For the event loop, where rows change."""
        return any(states[at].is_erased(row) for at, row in self.places)


def search(states: Sequence[ShardState], probes: Probes, *, k: int, threshold: float) -> Found:
    """Return the best `k` subjects of each probe over all shards, by score, then subject id.

    For the thread that owns the index. A subject lies in one shard, so no subject comes twice.
    """
    hits = [state.index.search(probes, k, threshold) for state in states]
    numbers = np.arange(len(probes))
    probe = np.concatenate([np.repeat(numbers, hit.counts) for hit in hits])
    scores = np.concatenate([hit.scores for hit in hits])
    rows = np.concatenate([hit.rows for hit in hits])
    shard = np.repeat(np.arange(len(hits)), [len(hit.rows) for hit in hits])
    order = np.lexsort((-scores, probe))
    order = order[_within(probe[order], scores[order], k)]
    entries = _named(states, order=order, probe=probe, scores=scores, places=(shard, rows))
    return _cut(entries, k, len(probes))


def _within(probe: Int64, scores: Float32, k: int) -> npt.NDArray[np.bool_]:
    """Tell which sorted entries are among the first `k` of their probe, or tie with the last."""
    if len(probe) == 0:
        return np.zeros(0, np.bool_)
    starts = np.searchsorted(probe, probe)
    rank = np.arange(len(probe)) - starts
    last = np.minimum(starts + k - 1, np.searchsorted(probe, probe, "right") - 1)
    within: npt.NDArray[np.bool_] = (rank < k) | (scores == scores[last])
    return within


Entry = tuple[int, float, str, str, tuple[int, int]]
"""Probe, score with its sign changed, subject, template, place: sorts as answers are sorted."""


def _named(
    states: Sequence[ShardState],
    *,
    order: Int64,
    probe: Int64,
    scores: Float32,
    places: tuple[Int64, Int64],
) -> list[Entry]:
    """Return entries with their ids, sorted, so that equal scores stand by subject id."""
    where = zip(places[0][order].tolist(), places[1][order].tolist(), strict=True)
    numbers, values = probe[order].tolist(), scores[order].tolist()
    return sorted(
        (
            number,
            -score,
            states[at].subjects.name_of_row(row),
            states[at].templates[row],
            (at, row),
        )
        for number, score, (at, row) in zip(numbers, values, where, strict=True)
    )


def _cut(entries: list[Entry], k: int, probes_count: int) -> Found:
    """Return the first `k` entries of each probe in columns."""
    counts = [0] * probes_count
    kept: list[Entry] = []
    for entry in entries:
        if counts[entry[0]] < k:
            counts[entry[0]] += 1
            kept.append(entry)
    return Found(
        counts=np.array(counts, np.uint32),
        scores=np.array([-entry[1] for entry in kept], np.float32),
        subject_ids=[entry[2] for entry in kept],
        template_ids=[entry[3] for entry in kept],
        places=[entry[4] for entry in kept],
    )
