"""Finding the best settings of a system: the same search for all.

On a ladder of rising effort the lowest rung that misses few enough mates is found by bisection,
and of all ladders' answers the fastest counts. Where no rung suffices, the one that misses least.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.peers.peer import Settings
from indexd.ann.miss_rate import miss_rate_bound

EXTRA_FNIR_MAX = 1e-3


@dataclass(frozen=True, slots=True)
class Try:
    """One rung, as far as it was looked at.

    Attributes:
        settings: of the search.
        misses: mates missed among the `asked` first.
        asked: accepted mated probes asked; fewer than there are once too many were missed.
        enough: whether few enough were missed.
    """

    settings: Settings
    misses: int
    asked: int
    enough: bool

    @property
    def missed_share(self) -> float:
        """Misses per accepted mate asked."""
        return self.misses / self.asked


def misses_allowed(mated_count: int) -> int:
    """Return the most misses whose upper bound is still EXTRA_FNIR_MAX; -1: none would do."""
    misses = -1
    while miss_rate_bound(misses + 1, mated_count) <= EXTRA_FNIR_MAX:
        misses += 1
    return misses


def climb(
    ladder: Sequence[Settings], attempt: Callable[[Settings], Try], has_time: Callable[[], bool]
) -> list[Try]:
    """Return the rungs tried, the best last: the lowest that suffices, or the top one.

    Args:
        ladder: by rising effort.
        attempt: tries one rung.
        has_time: whether another may be begun; the top one is tried in any case.
    """
    tries = [attempt(ladder[-1])]
    if not tries[0].enough:
        return tries
    best = tries[0]
    low, high = 0, len(ladder) - 1
    while low < high and has_time():
        middle = (low + high) // 2
        tries.append(attempt(ladder[middle]))
        if tries[-1].enough:
            best, high = tries[-1], middle
        else:
            low = middle + 1
    return [*(one for one in tries if one is not best), best]
