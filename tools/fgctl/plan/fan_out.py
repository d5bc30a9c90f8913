"""Simulated: many nodes, slow ones among them, with hedging and without.

Nobody here has a hundred nodes. What is drawn is what was measured: how the durations of calls to
one node spread around their median. What is computed is what a router does with them: it waits for
the slowest node, and asks a second copy for what is slow, for at most one in twenty calls. The
rule and its numbers are the router's, `router/plan/hedge.py`. Queues are left out: every probe
finds an idle cluster.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from fgctl.plan.calibration import Float64

SLOW_SHARE: Final = 0.95
SLOW_S_MIN: Final = 0.05
CALLS_PER_HEDGE: Final = 20
HEDGES_SAVED_MAX: Final = 10
SEARCHES: Final = 10_000
WARM_SEARCHES: Final = 200
"""Searches from which the router learns what is slow; they do not count."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """The nodes of a simulation.

    Attributes:
        nodes: that every search asks.
        call_s: median time of a call to one of them.
        router_s: what the router adds to each search.
        spread: quantiles of the duration of a call over the median, equally far apart.
        slow_nodes: nodes that are slow all the time.
        slow_factor: how many times as slow.
    """

    nodes: int
    call_s: float
    router_s: float
    spread: tuple[float, ...]
    slow_nodes: int = 0
    slow_factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Tail:
    """Times of searches, in seconds, and how many calls were made twice.

    Attributes:
        p50_s, p99_s, p999_s: quantiles.
        hedged_share: hedges for each call.
    """

    p50_s: float
    p99_s: float
    p999_s: float
    hedged_share: float


@dataclass(frozen=True, slots=True)
class Simulated:
    """The same searches without hedging and with it."""

    plain: Tail
    hedged: Tail


def simulated(crowd: Crowd, *, seed: int, searches: int = SEARCHES) -> Simulated:
    """Return the tails of so many searches; the same seed gives the same ones."""
    rng = np.random.default_rng(seed)
    total = searches + WARM_SEARCHES
    first_s = _calls(crowd, rng, total, turn=0)
    # The second copy of a node's shards lies on its neighbour, which may be slow too.
    second_s = _calls(crowd, rng, total, turn=1)
    late_s = max(SLOW_S_MIN, float(np.quantile(first_s[:WARM_SEARCHES], SLOW_SHARE)))
    hedged_s, hedges = _hedged(first_s, second_s, late_s)
    counted = slice(WARM_SEARCHES, None)
    calls = searches * crowd.nodes
    return Simulated(
        plain=_tail(first_s[counted].max(axis=1) + crowd.router_s, 0.0),
        hedged=_tail(
            hedged_s[counted].max(axis=1) + crowd.router_s, hedges[counted].sum() / calls
        ),
    )


def _calls(crowd: Crowd, rng: np.random.Generator, searches: int, *, turn: int) -> Float64:
    """Draw the durations of calls, float64 [searches, nodes]; slow nodes come first, by `turn`."""
    known = np.linspace(0, 1, len(crowd.spread))
    drawn = np.interp(rng.random((searches, crowd.nodes)), known, crowd.spread)
    factors = np.ones(crowd.nodes)
    factors[: min(crowd.slow_nodes, crowd.nodes)] = crowd.slow_factor
    times: Float64 = drawn * crowd.call_s * np.roll(factors, turn)
    return times


def _hedged(first_s: Float64, second_s: Float64, late_s: float) -> tuple[Float64, Float64]:
    """Return what calls take where late ones are asked of a second copy within the budget, and how
    many such calls each search made.
    """
    better_s = np.minimum(first_s, late_s + second_s)
    answered_s = first_s.copy()
    hedges = np.zeros(len(first_s))
    earned, most = 0, CALLS_PER_HEDGE * HEDGES_SAVED_MAX
    for number, calls_s in enumerate(first_s):
        earned = min(earned + len(calls_s), most)
        late = np.flatnonzero(calls_s > late_s)
        taken = late[: earned // CALLS_PER_HEDGE]
        answered_s[number, taken] = better_s[number, taken]
        hedges[number] = len(taken)
        earned -= CALLS_PER_HEDGE * len(taken)
    return answered_s, hedges


def _tail(times_s: Float64, hedged_share: float) -> Tail:
    p50, p99, p999 = np.quantile(times_s, [0.50, 0.99, 0.999], method="inverted_cdf")
    return Tail(float(p50), float(p99), float(p999), float(hedged_share))
