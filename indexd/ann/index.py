"""The search structure of one shard replica: rows, an IVF-PQ part and an exact tail."""

from collections import deque
from dataclasses import dataclass

from facegrid import vectors
from facegrid.errors import InvalidError
from facegrid.tuning import Effort, Profile
from facegrid.vectors import BITS_DEFAULT, Float32, Int8, Int64, Probes, UInt8
from indexd.ann import exact, rescore, together
from indexd.ann.codebook import Codebook
from indexd.ann.effort import effort_of
from indexd.ann.ivfpq import EncodedRows, IvfPq, add_rows, encode_rows
from indexd.ann.looking import Coded, Looking, Wanted
from indexd.ann.rescore import Hits, Ranked
from indexd.ann.rows import Bool, Int32, Rows


class ShardIndex:
    """Rows numbered 0..n-1 as enrolled, searched by vector.

    One owner thread calls it. `append` and `erase` may run in another thread, one call at a time,
    while the owner searches. `rebuilt` and `coded_ahead` may run in further ones: what they return
    counts from `swap` on, and from `add_coded` on.
    """

    def __init__(self, dim: int, bits: int = BITS_DEFAULT) -> None:
        self._rows = Rows(dim, bits)
        self._coded: IvfPq | None = None
        self._known: deque[KnownCodes] = deque()

    @property
    def rows(self) -> Rows:
        """The rows, to read."""
        return self._rows

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

    def stage(self, at: int, codes: Int8, subjects: Int32, erased: Bool) -> None:
        """Write rows where they will be, `at` rows behind the last, unseen until `publish`.

        May run in another thread as long as nobody appends.
        """
        self._rows.stage(at, codes, subjects, erased)

    def publish(self, count: int) -> None:
        """Make staged rows searchable, `count` of them, all at once."""
        self._rows.publish(count)

    def unstage(self) -> None:
        """Forget what was staged."""
        self._rows.unstage()

    def fits(self, encoded: EncodedRows) -> bool:
        """Tell whether rows coded elsewhere could be of the codebook in use."""
        return self._coded is not None and self._coded.fits(encoded)

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

    def know(self, first: int, encoded: EncodedRows) -> None:
        """Take the codes of rows that are there from `first` on, coded before with this codebook.

        They are used when the rows are absorbed, and forgotten with the codebook. Rows of which
        the codes cannot be of the codebook are coded like any others.
        """
        if self._coded is not None and self._coded.fits(encoded):
            self._known.append(KnownCodes(first, encoded, self._coded.codebook))

    def erase(self, rows: Int64) -> None:
        """Make rows, int64 [n], never be returned again. Erasing twice is harmless.

        A search that is already past its last look at the mask may still return them once; whoever
        maps rows to ids asks `is_erased` as the last thing.
        """
        self._rows.erase(rows)

    def is_erased(self, rows: Int64) -> Bool:
        """Tell which rows are erased by now."""
        return self._rows.erased(rows)

    def coded_ahead(self, rows_max: int) -> "KnownCodes | None":
        """Return the next rows of the exact tail, at most so many, coded for `add_coded`.

        None: there are none, or it is known already how they are coded. May run in another thread
        while others append, erase, absorb and search.
        """
        coded = self._coded
        if coded is None:
            return None
        first = coded.count
        last = min(self._rows.count, first + rows_max)
        for known in tuple(self._known):
            if known.codebook is coded.codebook and known.last > first:
                last = min(last, known.first)
                break
        if last <= first:
            return None
        return KnownCodes(first, encode_rows(coded, self._rows, first, last), coded.codebook)

    def add_coded(self, ahead: "KnownCodes | None", rows_max: int) -> None:
        """Add the next rows, at most so many, if it is known how they are coded; code none.

        Args:
            ahead: what `coded_ahead` returned. It counts for nothing if another codebook came
                meanwhile, or if the rows were added by somebody else.
            rows_max: to let searches in between.
        """
        coded = self._coded
        if coded is None:
            return
        first = coded.count
        self._forget(coded)
        for known in (ahead, self._known[0] if self._known else None):
            if known is not None and known.has(first, coded.codebook):
                coded.add(known.part(first, min(known.last, first + rows_max)))
                self._forget(coded)
                return

    def _forget(self, coded: IvfPq) -> None:
        """Forget codes of rows that are added, and those by another codebook."""
        while self._known and not self._known[0].ahead_of(coded):
            self._known.popleft()

    def absorb(self, rows_max: int | None = None) -> int:
        """Code the exact tail with the codebook, if there is one; return the rows coded.

        Args:
            rows_max: stop after so many, to let searches in between; None: all.
        """
        if self._coded is None:
            return 0
        count = self._rows.count
        last = count if rows_max is None else min(count, self._coded.count + rows_max)
        first = self._coded.count
        while self._coded.count < last:
            self._absorb_to(self._coded, last)
        return last - first

    def _absorb_to(self, coded: IvfPq, last: int) -> None:
        """Add the next rows, some or all up to `last`, with the codes that they have if any."""
        known = self._known[0] if self._known else None
        if known is None or known.first >= last:
            add_rows(coded, self._rows, last)
        elif known.codebook is not coded.codebook or known.last <= coded.count:
            self._known.popleft()
        elif known.first > coded.count:
            add_rows(coded, self._rows, known.first)
        else:
            coded.add(known.part(coded.count, min(last, known.last)))

    def rebuilt(self, codebook: Codebook) -> IvfPq:
        """Return all rows coded with another codebook, for `swap`.

        May run in a background thread while others append, erase and search. Rows appended after
        it began are searched exactly until absorbed.
        """
        assert codebook.dim == self._rows.dim, f"dim: {codebook.dim} {self._rows.dim}"
        coded = IvfPq(codebook)
        add_rows(coded, self._rows, self._rows.count)
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

    def ranked(self, probes: Probes, first: int, last: int, *, wanted: int) -> Ranked:
        """Return the `wanted` best of rows first to last - 1 that are not erased, found exactly.

        Whosever they are. May run in any thread, beside all else.
        """
        return rescore.rank(
            self._rows, probes, exact.scan(self._rows, first, last, probes=probes, wanted=wanted)
        )

    def search(
        self, probes: Probes, k: int, threshold: float, effort: Effort | None = None
    ) -> Hits:
        """Return the best row of each of the best `k` subjects of each probe.

        Rows with a score below `threshold` and erased rows are left out. k is at least 1; there
        may be fewer than k subjects, or none.

        Args:
            probes: m probes.
            k: longest list wanted.
            threshold: lowest score wanted.
            effort: how hard to search the indexed rows; None: as training found.
        """
        assert k >= 1, f"k must be at least 1: {k}"
        asked = together.Asked(self, effort)
        return together.search([asked], Wanted(probes, k, threshold))[0]

    @property
    def coded(self) -> IvfPq | None:
        """The part that has codes; None: there is no codebook."""
        return self._coded

    def effort(self, wanted: Effort | None) -> Effort | None:
        """Return how hard to search, as wanted or as training found; None: exactly."""
        if self._coded is None:
            return None
        return wanted or effort_of(self._coded.codebook, "", Profile.BALANCED, None)

    def looking(
        self,
        wanted: Wanted,
        nearest: Int64,
        effort: Effort | None,
        *,
        rows_count: int,
        share: float,
    ) -> Looking:
        """Return a search that has not begun, of the first rows. See `indexd.ann.together`."""
        coded = None
        if self._coded is not None and effort is not None:
            coded = Coded(self._coded, effort, share)
        return Looking(self._rows, coded, wanted, nearest, rows_count=rows_count)

    def _live_bits(self) -> UInt8 | None:
        """Return the mask for the scan; None while nothing is erased."""
        return self._rows.live_bits() if self._rows.erased_count else None


@dataclass(frozen=True, slots=True)
class KnownCodes:
    """The codes of consecutive rows of the exact tail, by a codebook."""

    first: int
    encoded: EncodedRows
    codebook: Codebook

    @property
    def last(self) -> int:
        """The number behind the last row."""
        return self.first + len(self.encoded)

    def has(self, row: int, codebook: Codebook) -> bool:
        """Tell whether the code of a row is among them, by this codebook."""
        return self.codebook is codebook and self.first <= row < self.last

    def ahead_of(self, coded: IvfPq) -> bool:
        """Tell whether any of the rows are still to be added, by the codebook in use."""
        return self.codebook is coded.codebook and self.last > coded.count

    def part(self, first: int, last: int) -> EncodedRows:
        """Return the codes of rows first to last - 1."""
        taken = slice(first - self.first, last - self.first)
        return EncodedRows(self.encoded.lists[taken], self.encoded.codes[taken])
