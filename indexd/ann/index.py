"""The search structure of one shard replica: rows, an IVF-PQ part and an exact tail."""

from dataclasses import dataclass

import numpy as np

from facegrid import vectors
from facegrid.errors import InvalidError
from facegrid.vectors import Float32, Int8, Int64, Probes
from indexd.ann import exact, rescore
from indexd.ann.codebook import Codebook, rescored_count
from indexd.ann.ivfpq import EncodedRows, IvfPq, encode_rows
from indexd.ann.rescore import Hits, Ranked
from indexd.ann.rows import Bool, Int32, Rows, UInt8

EXACT_SPARE = 16
"""Rows rescored beyond k in the exact part, for rows that rounding puts in the wrong order."""


class ShardIndex:
    """Rows numbered 0..n-1 as enrolled, searched by vector.

    One owner thread calls it. `append` and `erase` may run in another thread, one call at a time,
    while the owner searches. `rebuilt` may run in a third: its result counts from `swap` on.
    """

    def __init__(self, dim: int) -> None:
        self._rows = Rows(dim)
        self._coded: IvfPq | None = None

    @property
    def rows_count(self) -> int:
        """Rows, erased ones included."""
        return self._rows.count

    @property
    def erased_count(self) -> int:
        """Rows that are erased."""
        return self._rows.erased_count

    @property
    def indexed_count(self) -> int:
        """Rows searched through the codebook: 0 to indexed_count - 1; the rest exactly."""
        return self._coded.count if self._coded else 0

    @property
    def codebook(self) -> Codebook | None:
        """What the indexed rows are coded with; None: everything is searched exactly."""
        return self._coded.codebook if self._coded else None

    @property
    def memory_bytes(self) -> int:
        """Bytes in use, without space set aside for later rows."""
        return self._rows.memory_bytes + (self._coded.memory_bytes if self._coded else 0)

    def append(self, codes: Int8, subjects: Int32) -> int:
        """Add rows, int8 [n, dim], of subjects, int32 [n]; return the first one's number.

        They are searchable at once.
        """
        return self._rows.append(codes, subjects)

    def append_encoded(self, codes: Int8, subjects: Int32, encoded: EncodedRows) -> int:
        """Add rows that were coded before with this codebook; return the first one's number.

        Raises:
            InvalidError: the coded rows do not fit the codebook or the rows (CODES_MISFIT).
        """
        assert self._coded is not None, "set a codebook first: swap(rebuilt(codebook))"
        if len(encoded) != len(codes):
            raise InvalidError("as many coded rows as rows, please", reason="CODES_MISFIT")
        self._coded.check(encoded)
        self.absorb()
        first = self._rows.append(codes, subjects)
        self._coded.add(encoded)
        return first

    def erase(self, rows: Int64) -> None:
        """Make rows, int64 [n], never be returned again. Erasing twice is harmless.

        A search that is already past its last look at the mask may still return them once; whoever
        maps rows to ids asks `is_erased` as the last thing.
        """
        self._rows.erase(rows)

    def is_erased(self, rows: Int64) -> Bool:
        """Tell which rows are erased by now."""
        return self._rows.erased(rows)

    def absorb(self, rows_max: int | None = None) -> int:
        """Code the exact tail with the codebook, if there is one; return the rows coded.

        Args:
            rows_max: stop after so many, to let searches in between; None: all.
        """
        if self._coded is None:
            return 0
        count = self._rows.count
        last = count if rows_max is None else min(count, self._coded.count + rows_max)
        return encode_rows(self._coded, self._rows, last)

    def rebuilt(self, codebook: Codebook) -> IvfPq:
        """Return all rows coded with another codebook, for `swap`.

        May run in a background thread while others append, erase and search. Rows appended after
        it began are searched exactly until absorbed.
        """
        assert codebook.dim == self._rows.dim, f"dim: {codebook.dim} {self._rows.dim}"
        coded = IvfPq(codebook)
        encode_rows(coded, self._rows, self._rows.count)
        return coded

    def swap(self, coded: IvfPq) -> None:
        """Search through what `rebuilt` returned from now on; owner thread only."""
        assert coded.count <= self._rows.count, "of another index"
        self._coded = coded

    def encoded(self, first: int, last: int) -> EncodedRows | None:
        """Return rows first to last - 1 as coded, None unless all are; owner thread only."""
        if self._coded is None or last > self._coded.count:
            return None
        return self._coded.encoded(first, last)

    def scanned(self, probes: Probes, wanted: int) -> Int64:
        """Return what the coded part finds in all its lists, int64 [m, wanted], -1 for none.

        Not an answer: neither rescored nor masked again. For tests of the engine.
        """
        assert self._coded is not None, "no codebook"
        nlist = self._coded.codebook.nlist
        return self._coded.search(probes, wanted, nprobe=nlist, live=self._live_bits())

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
        effort = 1
        while len(asked):
            part = probes.part(asked)
            fetched = self._fetch(part, count, k=k, effort=effort)
            ranked = rescore.rank(self._rows, part, fetched.rows)
            rows = np.maximum(ranked.rows, 0)
            kept = rescore.keep(
                ranked, erased=self._rows.erased(rows), subjects=self._rows.subjects(rows), k=k
            )
            done = np.count_nonzero(kept, axis=1) >= k
            done |= fetched.no_more_above(threshold, ranked)
            kept &= done[:, None] & (ranked.scores >= threshold)
            answers.append((asked[np.nonzero(kept)[0]], ranked.rows[kept], ranked.scores[kept]))
            asked = asked[~done]
            effort *= 2
        return _gathered(answers, len(probes))

    def _live_bits(self) -> UInt8 | None:
        """Return the mask for the scan; None while nothing is erased."""
        return self._rows.live_bits() if self._rows.erased_count else None

    def _fetch(self, probes: Probes, count: int, *, k: int, effort: int) -> "Fetched":
        """Return candidates of rows 0 to count - 1, more of them the greater the effort."""
        tail_first = self.indexed_count
        wanted = k * effort + EXACT_SPARE
        tail = exact.scan(self._rows, tail_first, count, probes=probes, wanted=wanted)
        tail_all: Bool = np.count_nonzero(tail >= 0, axis=1) < wanted
        if self._coded is None or not tail_first:
            return Fetched(
                tail,
                tail_first,
                coded_all=np.full(len(probes), fill_value=True),
                tail_all=tail_all,
            )
        codebook = self._coded.codebook
        wanted = min(rescored_count(codebook, k * effort), tail_first)
        nprobe = min(codebook.nprobe * effort, codebook.nlist)
        coded = self._coded.search(probes, wanted, nprobe=nprobe, live=self._live_bits())
        coded_all: Bool = (np.count_nonzero(coded >= 0, axis=1) < wanted) | (wanted == tail_first)
        coded_all &= nprobe == codebook.nlist
        rows = np.concatenate([coded, tail], axis=1)
        return Fetched(rows, tail_first, coded_all=coded_all, tail_all=tail_all)


@dataclass(frozen=True, slots=True)
class Fetched:
    """Candidates before rescoring.

    Attributes:
        rows: int64 [m, c]; -1 where there is none.
        tail_first: rows from here on come from the exact tail.
        coded_all: bool [m], whether the coded part has no others.
        tail_all: bool [m], whether the tail has no others.
    """

    rows: Int64
    tail_first: int
    coded_all: Bool
    tail_all: Bool

    def no_more_above(self, threshold: float, ranked: Ranked) -> Bool:
        """Tell, bool [m], for which probes fetching more would bring nothing at the threshold."""
        in_tail = ranked.rows >= self.tail_first
        in_coded = (ranked.rows >= 0) & ~in_tail
        coded_done = self.coded_all | _reaches_below(threshold, ranked.scores, in_coded)
        tail_done = self.tail_all | _reaches_below(threshold, ranked.scores, in_tail)
        return coded_done & tail_done


def _reaches_below(threshold: float, scores: Float32, which: Bool) -> Bool:
    """Tell, bool [m], whether one of those scores is below the threshold."""
    below: Bool = np.count_nonzero(np.logical_and(scores < threshold, which), axis=1) > 0
    return below


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
