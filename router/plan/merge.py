"""Merge: the answers of all nodes become one candidate list per probe.

The order is by falling score, then by subject id, then by template id. Ids are compared only where
scores are equal, which is rare, so the bulk of the work is numeric: scores become integers that
sort the other way round. The first rows of each part's list tell which score is certainly good
enough for the best k; what is worse is never sorted. Short answers to one probe are merged row by
row, in the same order. An id stays in its message until somebody asks for it: making strings of
ids costs more than all the rest.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import getitem
from typing import Final, overload

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from facegrid.errors import CorruptError

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

NO_THRESHOLD: Final = -2.0
"""Below every score: nothing is left out."""

FEW_ROWS_MAX: Final = 512
"""Rows of one probe that are merged one by one; with somewhat more NumPy becomes faster."""

_MAGNITUDE: Final = np.int32(0x7FFF_FFFF)
_PAD: Final = np.iinfo(np.int32).max
"""Sorts behind every real candidate: no finite score has this key."""
_KEY_BITS: Final = 32
_FRONT_SHARE: Final = 3
"""How many times as many rows as wanted are looked at to find a score that is good enough."""


@dataclass(frozen=True, slots=True)
class Part:
    """The answer of one node in columns: the list of probe i has counts[i] rows, lists follow one
    another. `scores` is float32 [sum of counts]; the ids are as many.
    """

    counts: Int64
    scores: Float32
    subject_ids: Sequence[str]
    template_ids: Sequence[str]


class Picked(Sequence[str]):
    """Strings picked out of some columns, each of them made when it is asked for.

    Args:
        columns: of the messages, which make a string each time.
        column_of: for each string the column that it is in.
        row_of: and its place there.
    """

    __slots__ = ("_column_of", "_columns", "_row_of")

    def __init__(
        self, columns: Sequence[Sequence[str]], column_of: list[int], row_of: list[int]
    ) -> None:
        self._columns = columns
        self._column_of = column_of
        self._row_of = row_of

    @override
    def __len__(self) -> int:
        return len(self._row_of)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    @override
    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            columns = map(self._columns.__getitem__, self._column_of[at])
            return list(map(getitem, columns, self._row_of[at]))
        return self._columns[self._column_of[at]][self._row_of[at]]


@dataclass(frozen=True, slots=True)
class Merged:
    """Candidate lists in columns, best first; list i is rows starts[i] to starts[i + 1] - 1."""

    starts: list[int]
    scores: Float32
    subject_ids: Sequence[str]
    template_ids: Sequence[str]

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
        names = self.names(first, lists_count)
        base = self.starts[first]
        for probe in range(first, first + lists_count):
            rows += [
                row
                for row in range(self.starts[probe] - base, self.starts[probe + 1] - base)
                if names[row] not in gone
            ]
            starts.append(len(rows))
        return Merged(
            starts,
            self.scores[base:][rows],
            [names[row][0] for row in rows],
            [names[row][1] for row in rows],
        )

    def names(self, first: int, lists_count: int) -> list[tuple[str, str]]:
        """Return subject and template of all candidates of some of the lists."""
        rows = slice(self.starts[first], self.starts[first + lists_count])
        return list(zip(self.subject_ids[rows], self.template_ids[rows], strict=True))


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
    if probes_count == 1 and sum(widths) <= FEW_ROWS_MAX:
        return _few(parts, k=k, threshold=threshold)
    scores = np.concatenate([part.scores for part in parts])
    keys = _keys(parts, widths, _key_of(scores))
    worst = np.minimum(
        _good_enough(keys, widths, k), _key_of(np.array([threshold], np.float32))[0]
    )
    # Padding is above every key, so it is never among them.
    found = np.flatnonzero(keys <= worst[:, None])
    probes, columns = np.divmod(found, keys.shape[1])
    table = _Table.of(parts, widths)
    order = _order(keys.ravel()[found], probes, columns, table)
    probes, columns = probes[order], columns[order]
    firsts = np.searchsorted(probes, np.arange(probes_count))
    kept = np.arange(len(probes)) - firsts[probes] < k
    probes, columns = probes[kept], columns[kept]
    places = table.places(probes, columns)
    subject_ids, template_ids = table.picked(places)
    return Merged(
        np.searchsorted(probes, np.arange(probes_count + 1)).tolist(),
        scores[places.rows],
        subject_ids,
        template_ids,
    )


def _few(parts: Sequence[Part], *, k: int, threshold: float) -> Merged:
    """Merge the lists of one probe where they are short: row by row, as what NumPy takes for each
    step, however few the rows are, would be most of it.
    """
    least = float(np.float32(threshold))
    rows = [
        (-score, number, row)
        for number, part in enumerate(parts)
        for row, score in enumerate(part.scores.tolist())
        if score >= least
    ]
    rows.sort()
    if len(rows) > k:
        # Also whoever ties with the last: ids decide between them.
        rows = [one for one in rows if one[0] <= rows[k - 1][0]]
    if any(one[0] == other[0] for one, other in pairwise(rows)):
        rows.sort(
            key=lambda one: (
                one[0],
                parts[one[1]].subject_ids[one[2]],
                parts[one[1]].template_ids[one[2]],
            )
        )
    del rows[k:]
    column_of, row_of = [one[1] for one in rows], [one[2] for one in rows]
    return Merged(
        [0, len(rows)],
        np.array([-one[0] for one in rows], np.float32),
        Picked([part.subject_ids for part in parts], column_of, row_of),
        Picked([part.template_ids for part in parts], column_of, row_of),
    )


@dataclass(frozen=True, slots=True)
class _Places:
    """Where candidates are: `rows` in the rows of all parts, one part after the other; `parts` and
    `rows_of` in their own part.
    """

    rows: Int64
    parts: Int64
    rows_of: Int64


@dataclass(frozen=True, slots=True)
class _Table:
    """Finds a candidate by probe and column: the parts stand side by side.

    Attributes:
        parts: the answers.
        offsets: the first column of each part.
        starts: [parts, probes]: the first row of each list in its part.
        firsts: the first row of each part among the rows of all.
    """

    parts: Sequence[Part]
    offsets: Int64
    starts: Int64
    firsts: Int64

    @staticmethod
    def of(parts: Sequence[Part], widths: Sequence[int]) -> "_Table":
        """Return the table of some parts whose longest lists have these widths."""
        lengths = np.array([len(part.scores) for part in parts], np.int64)
        return _Table(
            parts,
            np.cumsum([0, *widths[:-1]]),
            np.stack([np.cumsum(part.counts) - part.counts for part in parts]),
            np.cumsum(lengths) - lengths,
        )

    def places(self, probes: Int64, columns: Int64) -> _Places:
        """Return where the candidates are, for each pair of probe and column."""
        parts: Int64 = np.searchsorted(self.offsets, columns, side="right") - 1
        rows_of = self.starts[parts, probes] + columns - self.offsets[parts]
        return _Places(self.firsts[parts] + rows_of, parts, rows_of)

    def picked(self, places: _Places) -> tuple[Picked, Picked]:
        """Return subjects and templates at some places."""
        column_of, row_of = places.parts.tolist(), places.rows_of.tolist()
        return (
            Picked([part.subject_ids for part in self.parts], column_of, row_of),
            Picked([part.template_ids for part in self.parts], column_of, row_of),
        )


def _key_of(scores: Float32) -> Int32:
    """Return integers of 32 bits that rise as scores fall and are equal where those are.

    The bits of floats order like integers once the magnitude of negative ones is turned round.
    """
    bits = (scores + np.float32(0.0)).view(np.int32)  # adding 0 makes -0.0 and 0.0 one
    rising = bits ^ ((bits >> 31) & _MAGNITUDE)
    return ~rising


def _keys(parts: Sequence[Part], widths: Sequence[int], keys: Int32) -> Int32:
    """Return int32 [probes, columns]: the keys of all parts side by side, padded."""
    probes_count = len(parts[0].counts)
    table = np.full((probes_count, sum(widths)), _PAD, np.int32)
    row, column = 0, 0
    for part, width in zip(parts, widths, strict=True):
        block = table[:, column : column + width]
        mine = keys[row : row + len(part.scores)]
        if mine.size == block.size:
            block[:] = mine.reshape(probes_count, width)
        else:
            block[np.arange(width) < part.counts[:, None]] = mine
        row, column = row + len(part.scores), column + width
    return table


def _good_enough(keys: Int32, widths: Sequence[int], k: int) -> Int32:
    """Return for each probe a key that at least k of its candidates reach, or all that it has.

    Lists are in order, so their first rows have nearly all of the best k. Were they in no order at
    all, the key would only be less sharp.
    """
    if keys.shape[1] <= k:
        return np.full(len(keys), _PAD - 1, np.int32)
    front = -(-_FRONT_SHARE * k // len(widths))
    offsets = np.cumsum([0, *widths[:-1]]).tolist()
    fronts = [
        keys[:, offset : offset + min(front, width)]
        for offset, width in zip(offsets, widths, strict=True)
    ]
    near = np.concatenate(fronts, axis=1)
    if near.shape[1] <= k:
        near = keys
    # A list too short is filled up with padding, which nothing real is worse than.
    return np.minimum(np.partition(near, k - 1, axis=1)[:, k - 1], _PAD - 1)


def _order(keys: Int32, probes: Int64, columns: Int64, table: _Table) -> Int64:
    """Return the order of candidates: by probe, by key, and by ids where keys are equal."""
    joint = (probes << _KEY_BITS) + keys
    order = np.argsort(joint, kind="stable")
    ranked = joint[order]
    same = ranked[1:] == ranked[:-1]
    if not same.any():
        return order
    tied = np.flatnonzero(np.append(same, False) | np.insert(same, 0, False))
    at = order[tied]
    subject_ids, template_ids = (
        picked[:] for picked in table.picked(table.places(probes[at], columns[at]))
    )
    values = ranked[tied].tolist()
    by_name = sorted(
        range(len(tied)), key=lambda one: (values[one], subject_ids[one], template_ids[one])
    )
    order[tied] = at[by_name]
    return order
