"""From where mates stand to efforts: which lists and rows suffice, and on what evidence.

A mate counts that exact search accepts: it scores at least the threshold, and more than the best
row of anybody else. An effort misses it if its list is not among those looked into, or if too many
rows look better. Efforts are chosen by the upper bound of the miss rate, never by the rate itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from facegrid.errors import InvalidError
from facegrid.tuning import MATES_COUNT_MIN, Effort, Profile, Step
from facegrid.vectors import Float32, Int64
from indexd.ann.miss_rate import miss_rate_bound, misses_allowed
from indexd.ann.rows import Bool, Int32

FPIR: Final = 0.003
"""Sets the threshold."""
DEPTHS: Final = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Rows of a shard to rescore, as efforts have them."""
DEPTH_UNPROVEN_MIN: Final = 256
UNPROVEN_FACTOR: Final = 4
"""Where nothing is proven, so many times the rows are rescored that missed no more than others."""
GROWTH: Final = 4
"""A gallery may grow so much before it is tuned again: the rows ahead of a mate grow with it."""
RESCORE_COST: Final = 140
"""A rescored row costs as much as so many scanned ones, measured at 512 dimensions."""
POINTS_MAX: Final = 24
STEP_SHARE: Final = 0.7
STEPS_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class Probed:
    """What was measured on the probes of one shard. Arrays have one entry for each probe."""

    mate_scores: Float32
    rival_scores: Float32
    list_places: Int32
    code_places: Int32
    pseudo: Bool
    rows_count: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """Mates that exact search accepts.

    Attributes:
        scores: float32 [n].
        list_places: int64 [n], lists nearer than the mate's.
        code_places: int64 [n], rows better by their codes, in a gallery GROWTH times as large.
        pseudo_count: how many of them were made from one template and noise.
    """

    scores: Float32
    list_places: Int64
    code_places: Int64
    pseudo_count: int

    def __len__(self) -> int:
        """Return the number of mates."""
        return len(self.scores)

    def missed(self, nprobe: int, depth: int) -> Bool:
        """Tell, bool [n], which mates an effort misses."""
        missed: Bool = (self.list_places >= nprobe) | (self.code_places >= depth)
        return missed


@dataclass(frozen=True, slots=True)
class Shape:
    """What an effort's cost follows from: lists of the codebook, rows of a shard on average."""

    nlist: int
    shard_rows: float

    def cost(self, nprobe: int, depth: int) -> float:
        """Return what a search costs, in scanned rows."""
        return self.shard_rows * nprobe / self.nlist + RESCORE_COST * depth


def threshold_of(shards: Sequence[Probed]) -> float:
    """Return the score that the best row of another subject reaches with FPIR in all shards.

    A probe met the other subjects of its own shard only. Subjects fall evenly into shards, so a
    search of all rows exceeds a score as if it were as many searches of that shard as it holds
    parts of them. Where too few probes were seen for so rare an event, the highest score seen
    stands in: lower than the threshold wanted, so that more is asked of the index, not less.
    """
    rows = sum(shard.rows_count for shard in shards)
    scores = np.concatenate([shard.rival_scores for shard in shards])
    parts = np.concatenate(
        [np.full(len(one.rival_scores), rows / max(one.rows_count, 1)) for one in shards]
    )
    order = np.argsort(-scores, kind="stable")
    # Expected false positives of a search of everything, at each score in turn.
    expected = np.cumsum(parts[order]) / len(scores)
    exceeded = np.flatnonzero(-np.expm1(-expected) > FPIR)
    first = int(exceeded[0]) if len(exceeded) else len(scores) - 1
    return float(scores[order][first])


def accepted_of(shards: Sequence[Probed], threshold: float) -> Accepted:
    """Return the mates that exact search accepts.

    Raises:
        InvalidError: they are too few to state anything (TOO_FEW_MATES).
    """
    mates = np.concatenate([shard.mate_scores for shard in shards])
    rivals = np.concatenate([shard.rival_scores for shard in shards])
    good = (mates >= threshold) & (mates > rivals)
    count = int(np.count_nonzero(good))
    if count < MATES_COUNT_MIN:
        raise InvalidError(
            f"too few mates that exact search accepts mates={count} need={MATES_COUNT_MIN}",
            reason="TOO_FEW_MATES",
            limit=MATES_COUNT_MIN,
        )
    lists = np.concatenate([shard.list_places for shard in shards]).astype(np.int64)
    codes = np.concatenate([shard.code_places for shard in shards]).astype(np.int64)
    pseudo = np.concatenate([shard.pseudo for shard in shards])
    return Accepted(
        scores=mates[good],
        list_places=lists[good],
        code_places=codes[good] * GROWTH,
        pseudo_count=int(np.count_nonzero(pseudo[good])),
    )


def choose_efforts(
    accepted: Accepted, shape: Shape, miss_rate_max: float
) -> dict[Profile, Effort]:
    """Return the effort of each profile: the cheapest that is proven, else all lists.

    `exhaustive` always looks into all lists.
    """
    return {
        profile: _choose(accepted, shape, profile, profile.miss_rate_max(miss_rate_max))
        for profile in Profile
    }


def _choose(accepted: Accepted, shape: Shape, profile: Profile, rate_max: float) -> Effort:
    allowed = misses_allowed(rate_max, len(accepted))
    pairs: list[tuple[int, int]] = []
    for depth in DEPTHS:
        nprobe = _nprobe(accepted, depth, shape.nlist, allowed)
        if nprobe is not None:
            pairs.append((shape.nlist if profile is Profile.EXHAUSTIVE else nprobe, depth))
    if not pairs:
        return effort_at(accepted, shape, shape.nlist, _deep(accepted, shape))
    nprobe, depth = min(pairs, key=lambda pair: shape.cost(*pair))
    chosen = replace(effort_at(accepted, shape, nprobe, depth), proven=True)
    if profile is Profile.EXHAUSTIVE:
        return chosen
    return replace(chosen, steps=_steps(accepted, chosen, rate_max))


def _nprobe(accepted: Accepted, depth: int, nlist: int, allowed: int) -> int | None:
    """Return the fewest lists that miss no more mates than allowed; None where all lists do."""
    deep = accepted.code_places >= depth
    left = allowed - int(np.count_nonzero(deep))
    if left < 0:
        return None
    counts = np.bincount(np.minimum(accepted.list_places[~deep], nlist - 1), minlength=nlist)
    behind = counts[::-1].cumsum()[::-1]  # mates in the list at this place, or behind it
    return int(np.count_nonzero(behind[1:] > left)) + 1


def _deep(accepted: Accepted, shape: Shape) -> int:
    """Return how many rows to rescore where nothing is proven."""
    missed = [np.count_nonzero(accepted.missed(shape.nlist, depth)) for depth in DEPTHS]
    least = DEPTHS[int(np.argmin(missed))]
    return min(max(least * UNPROVEN_FACTOR, DEPTH_UNPROVEN_MIN), DEPTHS[-1])


def effort_at(accepted: Accepted, shape: Shape, nprobe: int, depth: int) -> Effort:
    """Return an effort with what was measured of it."""
    misses = int(np.count_nonzero(accepted.missed(nprobe, depth)))
    return Effort(
        nprobe=nprobe,
        depth=depth,
        misses_count=misses,
        extra_fnir_max=miss_rate_bound(misses, len(accepted)),
        scanned_share=nprobe / shape.nlist,
    )


def _steps(accepted: Accepted, effort: Effort, rate_max: float) -> tuple[Step, ...]:
    """Return how many lists suffice for falling scores.

    A step never misses a mate that the effort itself finds, and is left out where too few mates
    score that high to show the rate. The last one is the effort, at the lowest accepted score.
    """
    found = ~accepted.missed(effort.nprobe, effort.depth)
    order = np.argsort(-accepted.scores, kind="stable")
    scores, places = accepted.scores[order], accepted.list_places[order]
    misses = np.cumsum(~found[order])
    needed = np.maximum.accumulate(np.where(found[order], places, 0)) + 1
    steps = [Step(float(scores[-1]), effort.nprobe)]
    count = int(len(scores) * STEP_SHARE)
    while count > 0 and len(steps) < STEPS_MAX:
        if misses[count - 1] > misses_allowed(rate_max, count):
            break
        step = Step(float(scores[count - 1]), int(needed[count - 1]))
        # Of several scores with the same need, the lowest says it all.
        if step.nprobe < steps[-1].nprobe and step.score > steps[-1].score:
            steps.append(step)
        count = int(count * STEP_SHARE)
    return tuple(reversed(steps))


def curve_of(accepted: Accepted, shape: Shape) -> tuple[Effort, ...]:
    """Return the efforts than which no cheaper one misses as little, by rising cost."""
    nprobes = {1, shape.nlist}
    nprobes |= {min(round(2 ** (power / 2)), shape.nlist) for power in range(25)}
    pairs = [(nprobe, depth) for nprobe in nprobes for depth in DEPTHS]
    points: list[tuple[int, int]] = []
    least = len(accepted) + 1
    for nprobe, depth in sorted(pairs, key=lambda pair: shape.cost(*pair)):
        misses = int(np.count_nonzero(accepted.missed(nprobe, depth)))
        if misses < least:
            points.append((nprobe, depth))
            least = misses
    if len(points) > POINTS_MAX:
        kept = np.unique(np.linspace(0, len(points) - 1, POINTS_MAX).round().astype(int))
        points = [points[number] for number in kept]
    return tuple(effort_at(accepted, shape, *pair) for pair in points)
