"""The search structure of one shard replica: rows, an IVF-PQ part and an exact tail."""

import numpy as np

from facegrid import vectors
from facegrid.vectors import Float32, Int8, Int64, Probes
from indexd.ann import exact, rescore
from indexd.ann.codebook import Codebook
from indexd.ann.rescore import Hits, Ranked
from indexd.ann.rows import Bool, Int32, Rows

EXACT_SPARE = 16
"""Rows rescored beyond k in the exact part, for rows that rounding puts in the wrong order."""


class ShardIndex:
    """Rows numbered 0..n-1 as enrolled, searched by vector.

    One owner thread calls it. `append` and `erase` may run in another thread, one at a time, while
    the owner searches.
    """

    def __init__(self, dim: int) -> None:
        self._rows = Rows(dim)

    @property
    def rows_count(self) -> int:
        """Rows, erased ones included."""
        return self._rows.count

    @property
    def indexed_count(self) -> int:
        """Rows searched through the codebook: 0 to indexed_count - 1; the rest exactly."""
        return 0

    @property
    def codebook(self) -> Codebook | None:
        """What the indexed rows are coded with; None: everything is searched exactly."""
        return None

    @property
    def memory_bytes(self) -> int:
        """Bytes in use, without space set aside for later rows."""
        return self._rows.memory_bytes

    def append(self, codes: Int8, subjects: Int32) -> int:
        """Add rows, int8 [n, dim], of subjects, int32 [n]; return the first one's number.

        They are searchable at once.
        """
        return self._rows.append(codes, subjects)

    def erase(self, rows: Int64) -> None:
        """Make rows, int64 [n], never be returned again. Erasing twice is harmless."""
        self._rows.erase(rows)

    def is_erased(self, rows: Int64) -> Bool:
        """Tell which rows are erased by now."""
        return self._rows.erased(rows)

    def absorb(self) -> int:
        """Code the exact tail with the codebook, if there is one; return the rows coded."""
        return 0

    def codes(self, rows: Int64) -> Int8:
        """Return stored rows by number, int8 [n, dim]."""
        return self._rows.codes(rows)

    def compare(self, probe: Probes, rows: Int64) -> Float32:
        """Return the exact scores, float32 [n], of one probe with rows, int64 [n]."""
        assert len(probe) == 1, "one probe at a time"
        wanted = rows[None, :]
        scores = vectors.scores(probe, self._rows.codes(wanted), self._rows.norms(wanted))
        return scores.reshape(-1)

    def search(self, probes: Probes, k: int, threshold: float) -> Hits:
        """Return the best row of each of the best `k` subjects of each probe.

        Rows with a score below `threshold` and erased rows are left out. k is at least 1; there
        may be fewer than k subjects, or none.
        """
        assert k >= 1, f"k must be at least 1: {k}"
        hits = self._search(probes, k, threshold)
        # Rows erased while this searched: look again, so that their subjects' next rows take over.
        while self._rows.erased(hits.rows).any():
            hits = self._search(probes, k, threshold)
        return hits

    def _search(self, probes: Probes, k: int, threshold: float) -> Hits:
        """Search once, fetching more candidates where one subject has many of them."""
        count = self._rows.count
        answers: list[tuple[Int64, Int64, Float32]] = []
        asked = np.arange(len(probes))
        wanted = k
        while len(asked):
            part = probes.part(asked)
            candidates, exhausted = self._candidates(part, count, wanted)
            ranked = rescore.rank(self._rows, part, candidates)
            kept = rescore.keep(
                ranked,
                erased=self._rows.erased(np.maximum(ranked.rows, 0)),
                subjects=self._rows.subjects(np.maximum(ranked.rows, 0)),
                k=k,
            )
            done = exhausted | (np.count_nonzero(kept, axis=1) >= k)
            done |= _lowest(ranked) < threshold
            kept &= done[:, None] & (ranked.scores >= threshold)
            answers.append((asked[np.nonzero(kept)[0]], ranked.rows[kept], ranked.scores[kept]))
            asked = asked[~done]
            wanted *= 2
        return _gathered(answers, len(probes))

    def _candidates(self, probes: Probes, count: int, wanted: int) -> tuple[Int64, Bool]:
        """Return rows to rescore, int64 [m, c] with -1 for none, and whether these are all."""
        wanted += EXACT_SPARE
        tail = exact.scan(self._rows, 0, count, probes=probes, wanted=wanted)
        exhausted: Bool = np.count_nonzero(tail.rows >= 0, axis=1) < wanted
        return tail.rows, exhausted


def _lowest(ranked: Ranked) -> Float32:
    """Return the lowest score of each probe's candidates, +inf where it has none."""
    scores = np.where(ranked.rows >= 0, ranked.scores, np.float32(np.inf))
    lowest: Float32 = scores.min(axis=1, initial=np.float32(np.inf))
    return lowest


def _gathered(answers: list[tuple[Int64, Int64, Float32]], probes_count: int) -> Hits:
    """Return the answers, probe number with row and score, in the order of the probes."""
    probe = np.concatenate([answer[0] for answer in answers] or [np.empty(0, np.int64)])
    order = np.argsort(probe, kind="stable")
    empty = np.empty(0)
    return Hits(
        counts=np.bincount(probe, minlength=probes_count).astype(np.int32),
        rows=np.concatenate([a[1] for a in answers] or [empty.astype(np.int64)])[order],
        scores=np.concatenate([a[2] for a in answers] or [empty.astype(np.float32)])[order],
    )
