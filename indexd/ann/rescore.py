"""From rows worth a look to the answer: exact scores, one row per subject, best first.

Where it was compiled, `indexd.ann.native` does it. In NumPy everything works on whole matrices; a
Python loop over rows would cost more than the scan.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from facegrid import vectors
from facegrid.vectors import Float32, Int64, Probes
from indexd.ann.native.library import Library, Limits, load
from indexd.ann.rows import Bool, Int32, Rows

ROW_BITS = 32
ROW_MASK = (1 << ROW_BITS) - 1
LAST = np.int64(np.iinfo(np.int64).max)
"""Sorts behind every row."""
SLICE_ROWS = 1024
"""Rows rescored at a time: keeps the float32 copies in cache."""
NATIVE, WHY_NOT = load()
"""What is compiled; None, and why, where NumPy does it."""


@dataclass(frozen=True, slots=True)
class Hits:
    """Best row per subject of each probe, best first: score descending, then row ascending.

    Attributes:
        counts: int32 [m], how many rows each probe has; the rows of all probes follow one another.
        rows: int64 [sum of counts].
        scores: float32 [sum of counts].
        scanned: int64 [m], rows that were looked at: those of the lists looked into and of the
            exact tail.
        rows_count: rows that there were, erased ones too.
    """

    counts: Int32
    rows: Int64
    scores: Float32
    scanned: Int64
    rows_count: int


@dataclass(frozen=True, slots=True)
class Ranked:
    """Candidates by falling score, then rising row.

    Attributes:
        rows: int64 [m, c]; -1 behind the last.
        scores: float32 [m, c]; -inf there.
    """

    rows: Int64
    scores: Float32


@dataclass(frozen=True, slots=True)
class Best:
    """The best row of each of the best subjects of each probe, best first.

    Attributes:
        counts: int32 [m], entries of each probe; 0 where it is not done.
        rows: int64 [m, k]; what stands behind the last entry means nothing.
        scores: float32 [m, k], likewise.
        done: bool [m]: whether no other candidates would have brought anything better.
    """

    counts: Int32
    rows: Int64
    scores: Float32
    done: Bool

    def put(self, probes: Int64, other: "Best") -> None:
        """Take what another search found for some probes, int64 [n]."""
        self.counts[probes] = other.counts
        self.rows[probes] = other.rows
        self.scores[probes] = other.scores
        self.done[probes] = other.done


def best(
    rows: Rows,
    probes: Probes,
    candidates: Int64,
    limits: Limits,
    *,
    native: Library | None = NATIVE,
) -> Best:
    """Return the best of candidates, int64 [m, c] with -1 for none, by exact scores.

    Erased rows and scores below the threshold are left out.
    """
    if native is not None:
        return Best(*native.answer(rows.placed, probes, candidates, limits))
    keys = keys_of(rows, probes, candidates, native=None)
    keys.sort(axis=1)
    return best_of(rows, keys, limits)


def best_of(rows: Rows, keys: Int64, limits: Limits) -> Best:
    """Return the best of candidates given as sorted keys, int64 [m, c]."""
    found = ranked(keys)
    at = np.maximum(found.rows, 0)
    kept = keep(found, erased=rows.erased(at), subjects=rows.subjects(at), k=limits.k)
    below = (found.scores < limits.threshold) & (found.rows >= 0)
    in_tail = found.rows >= limits.tail_first
    done = limits.whole[0] | (below & ~in_tail).any(axis=1)
    done &= limits.whole[1] | (below & in_tail).any(axis=1)
    done |= np.count_nonzero(kept, axis=1) >= limits.k
    kept &= done[:, None] & (found.scores >= limits.threshold)
    counts = np.count_nonzero(kept, axis=1).astype(np.int32)
    entries = np.arange(limits.k) < counts[:, None]
    answer = Best(
        counts=counts,
        rows=np.full(entries.shape, -1, np.int64),
        scores=np.zeros(entries.shape, np.float32),
        done=done,
    )
    answer.rows[entries], answer.scores[entries] = found.rows[kept], found.scores[kept]
    return answer


def rank(rows: Rows, probes: Probes, candidates: Int64) -> Ranked:
    """Return candidates, int64 [m, c] with -1 for none, with exact scores and in order."""
    keys = keys_of(rows, probes, candidates)
    keys.sort(axis=1)
    return ranked(keys)


def keys_of(
    rows: Rows, probes: Probes, candidates: Int64, *, native: Library | None = NATIVE
) -> Int64:
    """Return numbers, int64 [m, c], that sort as candidates do by their exact scores.

    Args:
        rows: where the candidates are.
        probes: m probes.
        candidates: int64 [m, c]; -1 for none, whose number is LAST.
        native: what does it; None: NumPy.
    """
    if native is not None:
        return native.keys(rows.placed, probes, candidates)
    scores = np.empty(candidates.shape, np.float32)
    step = max(1, SLICE_ROWS // max(1, candidates.shape[1]))
    for begin in range(0, len(probes), step):
        part = slice(begin, begin + step)
        wanted = np.maximum(candidates[part], 0)
        scores[part] = vectors.scores(probes.part(part), rows.codes(wanted), rows.norms(wanted))
    return sort_keys(scores, candidates)


def sort_keys(scores: Float32, candidates: Int64) -> Int64:
    """Return what candidates of these scores sort by; LAST for none."""
    return np.where(candidates < 0, LAST, _keys(scores, candidates))


def ranked(keys: Int64) -> Ranked:
    """Return sorted keys, int64 [m, c], as candidates again."""
    present = keys != LAST
    return Ranked(
        rows=np.where(present, keys & ROW_MASK, -1),
        scores=np.where(present, _scores(keys), np.float32(-np.inf)),
    )


def keep(ranked: Ranked, *, erased: Bool, subjects: Int32, k: int) -> Bool:
    """Mark the first row of each of the first `k` subjects, bool [m, c], leaving out erased ones.

    Args:
        ranked: candidates in order.
        erased: bool [m, c], rows not to return.
        subjects: int32 [m, c], whose they are.
        k: subjects wanted.
    """
    usable = (ranked.rows >= 0) & ~erased
    place = np.arange(ranked.rows.shape[1], dtype=np.int64)
    grouped = np.where(usable, (subjects.astype(np.int64) << ROW_BITS) | place, LAST)
    grouped.sort(axis=1)
    heads = grouped != LAST
    heads[:, 1:] &= (grouped[:, 1:] >> ROW_BITS) != (grouped[:, :-1] >> ROW_BITS)
    probe, column = np.nonzero(heads)
    first = np.zeros(ranked.rows.shape, np.bool_)
    first[probe, grouped[probe, column] & ROW_MASK] = True
    kept: Bool = first & (np.cumsum(first, axis=1) <= k)
    return kept


def _keys(scores: Float32, rows: Int64) -> Int64:
    """Return numbers that sort by falling score, then rising row."""
    # Adding zero makes -0.0 into 0.0, so that equal scores have equal bits.
    bits = (scores + np.float32(0.0)).view(np.int32).astype(np.int64)
    # Bits of a float rise with it when positive and fall when negative.
    rising = np.where(bits < 0, np.int64(-(2**31)) - bits, bits)
    keys: Int64 = (-rising << ROW_BITS) | rows
    return keys


def _scores(keys: Int64) -> Float32:
    """Return the scores that went into the keys."""
    rising = -(keys >> ROW_BITS)
    bits = np.where(rising < 0, np.int64(-(2**31)) - rising, rising).astype(np.int32)
    scores: npt.NDArray[np.float32] = bits.view(np.float32)
    return scores
