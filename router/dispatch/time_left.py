"""Deadlines on their way down: a node gets a little less time than its caller waits."""

from typing import Final

from facegrid.clock import Clock

MARGIN_S_MAX: Final = 0.05
MARGIN_SHARE: Final = 0.05


def time_for_node_s(deadline_s: float, clock: Clock) -> float:
    """Return how long a node may take, so that an answer or an error still reaches the caller."""
    left_s = deadline_s - clock.now_s()
    return left_s - min(MARGIN_S_MAX, max(left_s, 0.0) * MARGIN_SHARE)
