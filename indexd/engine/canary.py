"""Canaries: live probes that are searched for once more, exactly, to see what an index misses.

Here is what needs neither a thread nor a clock: which probes to take, in which pieces to go
through the rows, and what counts as a miss. `indexd.replica.canaries` drives it.

A mate is whom exact search has at rank 1 with at least the threshold, among the rows that there
were when the probe was searched for. It is missed if the answer lacked it, though it had room for
it: an answer that begins with a score as high is as good, and one whose best has been erased since
was better.
"""

import enum
import math
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Generic, TypeVar

import numpy as np

from facegrid.ids import ShardId
from facegrid.tuning import Profile
from facegrid.vectors import Float32, Int64, prepare_probes
from indexd.ann.exact import NO_ROW, NOTHING
from indexd.engine.alarms import TuningId
from indexd.engine.search import Found
from indexd.engine.state import ShardState

PIECE_ROWS: Final = 2048
"""Rows looked at in one go: some 10 ms of a core with 64 probes."""
KEPT: Final = 16
"""Best rows kept for each probe, since some may be erased before they are looked at."""
NO_SCORE: Final = -2.0
"""Below every score: of an answer without candidates."""

T = TypeVar("T")


class Reservoir(Generic[T]):
    """A random sample of fixed size of a stream of unknown length, each element at most once.

    Algorithm L of Li, "Reservoir-Sampling Algorithms of Time Complexity O(n(1 + log(N/n)))", ACM
    TOMS 20 (1994): it says in advance how many elements to let pass, which costs nothing.

    Args:
        size: elements kept.
        rng: where chance comes from.
    """

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self._size = size
        self._rng = rng
        self._kept: dict[int, T] = {}
        self._seen = 0
        self._next = 0
        self._weight = 1.0

    def __len__(self) -> int:
        """Return how many elements are kept."""
        return len(self._kept)

    @property
    def is_full(self) -> bool:
        """Whether there are as many as wanted."""
        return len(self._kept) == self._size

    @property
    def kept(self) -> Sequence[T]:
        """What is kept, in no order."""
        return [*self._kept.values()]

    def picks(self, count: int) -> list[tuple[int, int]]:
        """Return which of the next `count` elements to put, by number from 0, and where to."""
        first, self._seen = self._seen, self._seen + count
        found: list[tuple[int, int]] = []
        while self._next < self._seen:
            fills = self._next < self._size
            place = self._next if fills else int(self._rng.integers(self._size))
            found.append((self._next - first, place))
            self._advance()
        return found

    def put(self, place: int, element: T) -> None:
        """Keep an element that was picked, in the place of what was there."""
        self._kept[place] = element

    def take(self) -> list[T]:
        """Return what is kept, and begin anew."""
        taken = [*self._kept.values()]
        self._kept, self._seen, self._next, self._weight = {}, 0, 0, 1.0
        return taken

    def _advance(self) -> None:
        if self._next + 1 < self._size:
            self._next += 1
            return
        self._weight *= math.exp(math.log(self._chance()) / self._size)
        passed = math.log(self._chance()) / math.log1p(-max(self._weight, 1e-300))
        self._next += math.floor(passed) + 1

    def _chance(self) -> float:
        """Return a number above 0 and up to 1, but not quite: its logarithm divides."""
        return float(min(1.0 - self._rng.random(), 1.0 - 1e-16))


@dataclass(frozen=True, slots=True, eq=False)
class MetShard:
    """A shard that probes met.

    Attributes:
        shard_id: which.
        state: its rows; not held here, since a copy may let go of them meanwhile.
    """

    shard_id: ShardId
    state: "weakref.ref[ShardState]"


@dataclass(frozen=True, slots=True, eq=False)
class Searched:
    """A shard as it was when a probe was searched for.

    Attributes:
        shard: which.
        rows_count: rows that there were.
    """

    shard: MetShard
    rows_count: int

    @staticmethod
    def of(state: ShardState, rows_count: int) -> "Searched":
        """Return a shard that had at least so many rows."""
        return Searched(MetShard(state.shard_id, weakref.ref(state)), rows_count)


@dataclass(frozen=True, slots=True, eq=False)
class Canary:
    """A live probe to be searched for once more.

    Attributes:
        x: the probe, float32 [1, dim].
        profile: what it was searched with.
        tuning: likewise.
        threshold: score from which on somebody is a mate.
        shards: what was searched.
        subject_ids: who was found.
        score: of the best of them; NO_SCORE without any.
    """

    x: Float32
    profile: Profile
    tuning: TuningId
    threshold: float
    shards: tuple[Searched, ...]
    subject_ids: frozenset[str]
    score: float


def canary(  # noqa: PLR0913 - what was asked, of whom, and what came of it
    x: Float32,
    number: int,
    found: Found,
    shards: tuple[Searched, ...],
    *,
    profile: Profile,
    tuning: TuningId,
    threshold: float,
) -> Canary:
    """Return probe `number` of those that were searched, float32 [m, dim], as a canary."""
    begin = int(np.sum(found.counts[:number], dtype=np.int64))
    end = begin + int(found.counts[number])
    return Canary(
        x=x[number : number + 1].copy(),
        profile=profile,
        tuning=tuning,
        threshold=threshold,
        shards=shards,
        subject_ids=frozenset(found.subject_ids[begin:end]),
        score=float(found.scores[begin]) if end > begin else NO_SCORE,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Rows to be looked at in one go.

    Attributes:
        shard: whose rows.
        place: number of that shard in the comparison.
        first: the first row.
        last: the number behind the last.
        members: int64 [c], for which probes of the batch.
    """

    shard: "MetShard"
    place: int
    first: int
    last: int
    members: Int64


class Verdict(enum.Enum):
    """What a comparison shows."""

    STRANGER = enum.auto()
    """Nobody reaches the threshold."""
    FOUND = enum.auto()
    MISSED = enum.auto()
    UNKNOWN = enum.auto()
    """Too much was erased meanwhile."""


class Comparison:
    """Searches exactly for a batch of canaries, piece by piece.

    Args:
        canaries: at least one, all of one gallery.
    """

    def __init__(self, canaries: Sequence[Canary]) -> None:
        self.canaries = canaries
        self._probes = prepare_probes(np.concatenate([one.x for one in canaries]))
        # By identity: there is one reference to each state, and it outlives the state.
        shards = {id(one.shard.state): one.shard for c in canaries for one in c.shards}
        self.shards: Sequence[MetShard] = [*shards.values()]
        shape = (len(canaries), KEPT)
        self._scores = np.full(shape, NOTHING, np.float32)
        self._rows = np.full(shape, NO_ROW, np.int64)
        self._places = np.zeros(shape, np.int64)
        self._gone: set[int] = set()

    def pieces(self) -> Iterator[Piece]:
        """Yield all rows of all shards in pieces, each for the probes that met them."""
        for place, shard in enumerate(self.shards):
            met = [
                (number, searched.rows_count)
                for number, one in enumerate(self.canaries)
                for searched in one.shards
                if searched.shard.state is shard.state
            ]
            lasts = {rows_count for _, rows_count in met}
            bounds = sorted({0, *range(0, max(lasts), PIECE_ROWS), *lasts})
            for first, last in pairwise(bounds):
                members = [number for number, rows_count in met if rows_count >= last]
                yield Piece(shard, place, first, last, np.array(members, np.int64))

    def look(self, piece: Piece, state: ShardState) -> None:
        """Look at the rows of a piece. For a thread of its own, while others search and write."""
        at = piece.members
        ranked = state.index.ranked(self._probes.part(at), piece.first, piece.last, wanted=KEPT)
        rows = np.concatenate([self._rows[at], ranked.rows], axis=1)
        scores = np.concatenate([self._scores[at], ranked.scores], axis=1)
        places = np.concatenate([self._places[at], np.full_like(ranked.rows, piece.place)], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :KEPT]
        self._rows[at] = np.take_along_axis(rows, order, axis=1)
        self._scores[at] = np.take_along_axis(scores, order, axis=1)
        self._places[at] = np.take_along_axis(places, order, axis=1)

    def give_up(self, shard: MetShard) -> None:
        """Leave out all probes that met a shard: other rows have taken the place of these."""
        self._gone |= {
            number
            for number, one in enumerate(self.canaries)
            if any(searched.shard.state is shard.state for searched in one.shards)
        }

    @property
    def is_over(self) -> bool:
        """Whether no probe is left."""
        return len(self._gone) == len(self.canaries)

    def verdicts(self) -> list[Verdict]:
        """Return what each probe shows, after all pieces. On the event loop, where rows change."""
        return [
            Verdict.UNKNOWN if number in self._gone else self._verdict(number)
            for number in range(len(self.canaries))
        ]

    def _verdict(self, number: int) -> Verdict:
        one = self.canaries[number]
        for row, score, place in zip(
            self._rows[number].tolist(),
            self._scores[number].tolist(),
            self._places[number].tolist(),
            strict=True,
        ):
            if row == NO_ROW or score < one.threshold:
                return Verdict.STRANGER
            state = self.shards[place].state()
            if state is None:
                return Verdict.UNKNOWN
            if state.is_erased(row):
                continue
            found = state.subjects.name_of_row(row) in one.subject_ids or one.score >= score
            return Verdict.FOUND if found else Verdict.MISSED
        return Verdict.UNKNOWN
