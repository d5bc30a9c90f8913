"""Hedging: when a second copy is asked for what a first one has not answered, at what cost.

Two cases are told apart. A call is *slow* when it takes longer than nearly all like it did lately;
a second copy is then asked within a budget, since more work is no help to a cluster that has too
much of it. A node is *silent* when not even a health check is answered; then whatever was asked of
it is asked of others, at any cost, and it is passed over from then on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

SLOW_SHARE: Final = 0.95
"""A call is slow when it takes longer than this share of recent ones."""
SLOW_S_MIN: Final = 0.05
"""Whatever recent calls took, this is not slow."""
RECENT_MIN: Final = 20
"""Calls that must have been seen to know what is slow."""
RECENT_MAX: Final = 128
"""Calls remembered of each kind."""
CALLS_PER_HEDGE: Final = 20
"""Calls that pay for one hedge: 5 % extra."""
HEDGES_SAVED_MAX: Final = 10
"""What a calm time may save up, so that a bad one does not begin with a storm."""

QUIET_S: Final = 0.5
"""A node that has not answered for this long is asked whether it lives."""
HEALTH_S: Final = 0.5
"""Time for the answer to that."""
LOOK_AGAIN_S: Final = 1.0
"""Pause between such questions to a node that lives and takes its time, or that does not live."""

assert QUIET_S + HEALTH_S <= 1.0, "a silent node holds a search up for about a second"
assert SLOW_S_MIN < QUIET_S


def slow_after_s(recent_s: Sequence[float]) -> float | None:
    """Return how long a call may take before it is slow; None while too little is known.

    Args:
        recent_s: how long recent calls of its kind took, in any order.
    """
    if len(recent_s) < RECENT_MIN:
        return None
    ranked_s = sorted(recent_s)
    return max(SLOW_S_MIN, ranked_s[int(SLOW_SHARE * (len(ranked_s) - 1))])


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent on hedging slow calls: calls made that no hedge was paid with yet."""

    calls_count: int = 0

    def earned(self) -> "Budget":
        """Return the budget after one more call."""
        return Budget(min(self.calls_count + 1, HEDGES_SAVED_MAX * CALLS_PER_HEDGE))

    def spent(self) -> "Budget | None":
        """Return the budget after one more hedge; None where that is too much."""
        if self.calls_count < CALLS_PER_HEDGE:
            return None
        return Budget(self.calls_count - CALLS_PER_HEDGE)


def next_look_s(waited_s: float, slow_s: float | None) -> float:
    """Return after what time to look at a call again that was waited for already.

    First when it turns slow, then when the node is quiet, then now and again.
    """
    quiet_s = QUIET_S - waited_s if waited_s < QUIET_S else LOOK_AGAIN_S
    if slow_s is None or waited_s >= slow_s:
        return quiet_s
    return min(slow_s - waited_s, quiet_s)
