"""Repacking: a state like another, but without its erased rows.

Rows are numbered densely and never move, so an erased row stays in memory: its ids, its vector and
its codes. Once there are many of them the live rows are copied, in their order, into a new state,
step by step while the old one serves and changes, and the new state takes its place. Rows keep
their order and their codes, so answers stay what they were.

`indexd.replica.repacking` drives this: what the event loop changes is looked at there, copying is
for a thread, and codes come from the thread that owns the index.
"""

from dataclasses import dataclass

import numpy as np

from facegrid import limits
from facegrid.errors import CorruptError
from indexd.ann.ivfpq import EncodedRows
from indexd.engine.coded import NamedCodebook
from indexd.engine.columns import in_order_met
from indexd.engine.flush import Persisted, StoredSegment
from indexd.engine.loading import Bool, LoadedRows
from indexd.engine.state import Int64, ShardState


def due(state: ShardState) -> bool:
    """Tell whether enough rows are erased for the copying to be worth it."""
    share = int(state.rows_count * limits.REPACK_ERASED_SHARE)
    return state.erased_count > max(limits.REPACK_ERASED_MIN, share)


@dataclass(frozen=True, slots=True)
class Step:
    """Rows first to last - 1 of the old state, to be copied next; either all are coded or none."""

    first: int
    last: int
    coded: bool


class Repack:
    """One repacking of a state, from its beginning, in a thread, to the moment of the exchange."""

    def __init__(self, source: ShardState) -> None:
        self._source = source
        self._packed = ShardState(source.shape)
        codebook = source.index.codebook
        if codebook is not None:
            self._packed.use_codebook(NamedCodebook(source.codebook, codebook))
        self._coded_count = source.index.indexed_count
        self._seen_count = 0
        self._kept: list[Int64] = []
        """Which rows of the source were copied: row i here is the i-th of them."""

    def of(self, state: ShardState) -> bool:
        """Tell whether the outcome may take the place of a state. For the event loop.

        Not of another one, nor once the codebook is another, nor while a bulk load is about to be
        committed, whose rows nobody sees yet.
        """
        same = state is self._source and state.codebook == self._packed.codebook
        return same and state.staged is None

    def next_step(self, behind_max: int = 0) -> Step | None:
        """Return what to copy next, None once at most `behind_max` rows are left.

        For the event loop, where rows are added.
        """
        first, count = self._seen_count, self._source.rows_count
        if count - first <= behind_max:
            return None
        last = min(count, first + limits.REPACK_STEP_ROWS)
        coded = first < self._coded_count
        return Step(first, min(last, self._coded_count) if coded else last, coded=coded)

    def encoded(self, step: Step) -> EncodedRows | None:
        """Return the codes of a step's rows. For the owner thread of the index."""
        return self._source.index.encoded(step.first, step.last) if step.coded else None

    def copy(self, step: Step, encoded: EncodedRows | None) -> None:
        """Copy those rows of a step that are not erased by now. For a thread."""
        source, packed = self._source, self._packed
        rows = np.arange(step.first, step.last, dtype=np.int64)
        rows = rows[~source.erased_mask(rows)]
        self._seen_count = step.last
        self._kept.append(rows)
        if len(rows) == 0:
            return
        templates = source.templates.take(rows)
        distinct, places = in_order_met(source.subjects.numbers_of(rows))
        names = source.subjects.names.take(distinct)
        subjects = [names[place] for place in places.tolist()]
        codes = source.index.codes(rows)
        if encoded is None:
            packed.add_rows(templates, subjects, codes)
            return
        numbers = packed.register(templates, subjects, codes)
        at = rows - step.first
        packed.index.append_encoded(
            codes, numbers, EncodedRows(encoded.lists[at], encoded.codes[at])
        )

    def erase(self) -> None:
        """Erase what was erased since it was copied. For a thread, or the event loop."""
        copied = np.arange(self._packed.rows_count, dtype=np.int64)
        gone = self._source.erased_mask(self._kept_rows()) & ~self._packed.erased_mask(copied)
        self._packed.erase_rows(np.flatnonzero(gone))

    def finish(self) -> ShardState:
        """Return the new state, level with the old one at this moment. For the event loop.

        Quick when little is left: what came since the last step is copied here.

        Raises:
            CorruptError: it does not hold the same rows; keep the old one (REPACK_MISMATCH).
        """
        source, packed = self._source, self._packed
        assert self.of(source), "ask before"
        while (step := self.next_step()) is not None:
            self.copy(Step(step.first, step.last, coded=False), None)
        self.erase()
        counts = (packed.templates_count, source.templates_count)
        if packed.digest != source.digest or counts[0] != counts[1]:
            raise CorruptError(
                f"repacked rows are not the same shard={source.shard_id}"
                f" templates={counts[0]} expected={counts[1]}",
                reason="REPACK_MISMATCH",
                shard=source.shard_id,
            )
        packed.requests, packed.erasures = source.requests, source.erasures
        packed.sources, packed.inherited = source.sources, source.inherited
        packed.position, packed.log = source.position, source.log
        packed.dropped_count = source.dropped_count + source.rows_count - packed.rows_count
        return packed

    def persisted(self, before: Persisted) -> Persisted:
        """Return what is persisted, by the row numbers of the new state. Call it after `finish`.

        A stored segment keeps its erased rows until it is rewritten, in memory or not.
        """
        renumbering = self._renumbering()
        segments = {one.sha256: renumbering.of(one.rows) for one in before.segments}
        self._packed.loaded = [
            _loaded(one, renumbering, segments.get(one.sha256)) for one in self._source.loaded
        ]
        return Persisted(
            tuple(StoredSegment(sha256, rows) for sha256, rows in segments.items()),
            int(renumbering.before[before.rows_count]),
            before.position,
            before.journal,
        )

    def _renumbering(self) -> "_Renumbering":
        kept = np.zeros(self._source.rows_count + 1, np.bool_)
        kept[self._kept_rows()] = True
        before = np.zeros(len(kept), np.int64)
        np.cumsum(kept[:-1], out=before[1:])
        return _Renumbering(kept, before)

    def _kept_rows(self) -> Int64:
        """Return the rows of the source that were copied, in order."""
        self._kept = [np.concatenate([np.empty(0, np.int64), *self._kept])]
        return self._kept[0]


@dataclass(frozen=True, slots=True, eq=False)
class _Renumbering:
    """For each row of the old state whether it was copied, and how many before it were.

    One entry more than there are rows: for what lies behind the last one.
    """

    kept: Bool
    before: Int64

    def of(self, rows: Int64) -> Int64:
        """Return numbers of rows, as StoredSegment has them, in the new state."""
        there = rows >= 0
        old = np.where(there, rows, ~rows)
        new = self.before[old]
        return np.where(there & self.kept[old], new, ~new)


def _loaded(one: LoadedRows, renumbering: _Renumbering, persisted: Int64 | None) -> LoadedRows:
    """Return where loaded rows are in the new state; `persisted`: the same, if it is known."""
    first, last = (int(renumbering.before[row]) for row in (one.first, one.last))
    if one.repacked is None and last - first == one.last - one.first:
        return LoadedRows(one.sha256, first, last)
    numbers = renumbering.of(one.numbers()) if persisted is None else persisted
    return LoadedRows(one.sha256, first, last, numbers)
