"""Merge: the answers of all nodes become one candidate list per probe.

The order is by falling score, then by subject id, then by template id. Ids are compared only where
scores are equal, which is rare, so the bulk of the work is one numeric partition per probe: scores
become integers that sort the other way round, with their column below them.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from facegrid.errors import CorruptError

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

NO_THRESHOLD: Final = -2.0
"""Below every score: nothing is left out."""

_COLUMN_BITS: Final = 31
_MAGNITUDE: Final = np.int32(0x7FFF_FFFF)
_PAD: Final = np.iinfo(np.int64).max
"""Sorts behind every real candidate: no finite score has this key."""


@dataclass(frozen=True, slots=True)
class Part:
    """The answer of one node in columns: the list of probe i has counts[i] rows, lists follow one
    another. `scores` is float32 [sum of counts]; the ids are as many.
    """

    counts: Int64
    scores: Float32
    subject_ids: Sequence[str]
    template_ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class Merged:
    """Candidate lists in columns, best first; list i is rows starts[i] to starts[i + 1] - 1."""

    starts: list[int]
    scores: Float32
    subject_ids: list[str]
    template_ids: list[str]

    def count(self, probe: int, *, k: int, threshold: float) -> int:
        """Return how many rows of one list are among the first k and reach the threshold."""
        first = self.starts[probe]
        last = min(self.starts[probe + 1], first + k)
        if threshold <= NO_THRESHOLD:
            return last - first
        # Scores fall, so their negatives rise, as searchsorted wants them.
        falling = -self.scores[first:last]
        return int(np.searchsorted(falling, -np.float32(threshold), side="right"))

    def without(self, gone: Container[tuple[str, str]], first: int, lists_count: int) -> "Merged":
        """Return some of the lists, without candidates whose subject and template are gone."""
        starts, rows = [0], []
        for probe in range(first, first + lists_count):
            rows += [
                row
                for row in range(self.starts[probe], self.starts[probe + 1])
                if (self.subject_ids[row], self.template_ids[row]) not in gone
            ]
            starts.append(len(rows))
        return Merged(
            starts,
            self.scores[rows],
            [self.subject_ids[row] for row in rows],
            [self.template_ids[row] for row in rows],
        )


def check_part(part: Part, *, probes_count: int) -> None:
    """Raise CorruptError (ANSWER_MALFORMED) unless the columns fit each other and the question."""
    total = int(part.counts.sum())
    lengths = (len(part.scores), len(part.subject_ids), len(part.template_ids))
    if len(part.counts) != probes_count or lengths != (total, total, total):
        raise CorruptError(
            "the columns of an answer do not fit"
            f" probes={probes_count} lists={len(part.counts)} rows={total} columns={lengths}",
            reason="ANSWER_MALFORMED",
        )
    if not np.isfinite(part.scores).all():
        raise CorruptError("an answer has a score that is not finite", reason="ANSWER_MALFORMED")


def merge(parts: Sequence[Part], *, probes_count: int, k: int, threshold: float) -> Merged:
    """Return for each probe the best k candidates of all parts that reach the threshold.

    Parts must come from disjoint ranges, so that no subject is in two of them: the tile check sees
    to that.
    """
    widths = [int(part.counts.max(initial=0)) for part in parts]
    if sum(widths) == 0:
        return Merged([0] * (probes_count + 1), np.empty(0, np.float32), [], [])
    offsets = np.cumsum([0, *widths])
    starts = np.stack([np.cumsum(part.counts) - part.counts for part in parts])
    table = _Table(parts, offsets, starts)
    keys = _keys(parts, widths, probes_count)
    best = _best(keys, table, k)

    kept = best <= ((_key_of(np.array([threshold], np.float32))[0] + 1) << _COLUMN_BITS) - 1
    probe_of, _ = np.nonzero(kept)
    columns = best[kept] & ((1 << _COLUMN_BITS) - 1)
    scores, subject_ids, template_ids = table.rows(probe_of, columns)
    ends = np.cumsum(kept.sum(axis=1))
    return Merged([0, *ends.tolist()], scores, subject_ids, template_ids)


@dataclass(frozen=True, slots=True)
class _Table:
    """Finds a candidate by probe and column: the parts stand side by side."""

    parts: Sequence[Part]
    offsets: Int64
    starts: Int64

    def place(self, probes: Int64, columns: Int64) -> tuple[Int64, Int64]:
        """Return the part and the row in it, for each pair of probe and column."""
        part_of: Int64 = np.searchsorted(self.offsets, columns, side="right") - 1
        return part_of, self.starts[part_of, probes] + columns - self.offsets[part_of]

    def rows(self, probes: Int64, columns: Int64) -> tuple[Float32, list[str], list[str]]:
        """Return scores, subject ids and template ids, in the order given."""
        part_of, row_of = self.place(probes, columns)
        score_starts = np.cumsum([0, *(len(part.scores) for part in self.parts)])
        scores = np.concatenate([part.scores for part in self.parts])[
            score_starts[part_of] + row_of
        ]
        # Ids are picked one by one: columns of messages give a string only when asked for it.
        places = list(zip(part_of.tolist(), row_of.tolist(), strict=True))
        subjects = [part.subject_ids for part in self.parts]
        templates = [part.template_ids for part in self.parts]
        return (
            scores,
            [subjects[part][row] for part, row in places],
            [templates[part][row] for part, row in places],
        )


def _key_of(scores: Float32) -> Int64:
    """Return integers of 32 bits that rise as scores fall and are equal where those are.

    The bits of floats order like integers once the magnitude of negative ones is turned round.
    """
    bits = (scores + np.float32(0.0)).view(np.int32)  # adding 0 makes -0.0 and 0.0 one
    rising = bits ^ ((bits >> 31) & _MAGNITUDE)
    return (~rising).astype(np.int64)


def _keys(parts: Sequence[Part], widths: Sequence[int], probes_count: int) -> Int64:
    """Return int64 [probes, columns]: the key of the score above the number of the column."""
    blocks = []
    for part, width in zip(parts, widths, strict=True):
        keys = _key_of(part.scores)
        if keys.size == probes_count * width:
            blocks.append(keys.reshape(probes_count, width) << _COLUMN_BITS)
            continue
        block = np.full((probes_count, width), _PAD, np.int64)
        block[np.arange(width) < part.counts[:, None]] = keys << _COLUMN_BITS
        blocks.append(block)
    table = np.concatenate(blocks, axis=1)
    table |= np.arange(table.shape[1], dtype=np.int64)
    return table


def _best(keys: Int64, table: _Table, k: int) -> Int64:
    """Return the k smallest keys of each row in order, with equal scores put in order of ids."""
    width = keys.shape[1]
    if width > k + 1:
        # One more than wanted, to see whether the score at the cut goes on behind it.
        keys_near = np.partition(keys, k, axis=1)[:, : k + 1]
        keys_near.sort(axis=1)
    else:
        keys_near = np.sort(keys, axis=1)
    score_keys = keys_near >> _COLUMN_BITS
    equal = (score_keys[:, 1:] == score_keys[:, :-1]) & (
        score_keys[:, 1:] < (_PAD >> _COLUMN_BITS)
    )
    best = keys_near[:, :k]
    for probe in np.flatnonzero(equal.any(axis=1)).tolist():
        ordered = _ordered(keys[probe], probe, table, score_keys[probe, best.shape[1] - 1])
        room = min(best.shape[1], len(ordered))
        best[probe, :room] = ordered[:room]
    return best


def _ordered(keys: Int64, probe: int, table: _Table, key_last: int) -> Int64:
    """Return one probe's keys up to a score's key, without padding, ordered by score and ids."""
    near = keys[((keys >> _COLUMN_BITS) <= key_last) & (keys != _PAD)]
    columns = near & ((1 << _COLUMN_BITS) - 1)
    _, subject_ids, template_ids = table.rows(np.full(len(near), probe), columns)
    score_keys = (near >> _COLUMN_BITS).tolist()
    order = sorted(
        range(len(near)), key=lambda i: (score_keys[i], subject_ids[i], template_ids[i])
    )
    ordered: Int64 = near[order]
    return ordered
