"""How long a probe waits: arrivals at random moments, served in batches, computed and not drawn.

The nodes take what waits as one batch when the batch before is done, whichever routers it came
from. So the state of the queue when a batch is done is a Markov chain: the next batch is what
waits, at most BATCH_MAX probes, or the next probe that arrives where nobody waits; while it is
under way, a Poisson number of probes arrives. This is the bulk queue of N. T. J. Bailey, "On
queueing processes with bulk service", Journal of the Royal Statistical Society B 16 (1954). Its
stationary state is found by iteration; then each probe waits for what is left of the batch under
way, and for its own. What it spends in a router keeps no other probe from the nodes.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from fgctl.plan.calibration import Float64
from fgctl.plan.service import BATCH_MAX, Spread, Weighted

STEPS_MAX: Final = 2000
SETTLED: Final = 1e-9
TAIL_DEVIATIONS: Final = 8
MOMENTS: Final = 12
"""Points of time within a batch at which a probe may arrive."""
DURATIONS: Final = 10
"""Quantiles that stand for the durations of batches where many numbers are multiplied."""
STATES_MAX: Final = 40
"""States that stand for all where latencies are put together."""
NEGLIGIBLE: Final = 1e-7


@dataclass(frozen=True, slots=True)
class Latency:
    """What a probe sees.

    Attributes:
        p50_s, p99_s: of the time from when it is sent until it is answered.
        batch_mean: probes in a batch, on average over batches.
        busy_share: share of the time that full batches would need for all probes.
    """

    p50_s: float
    p99_s: float
    batch_mean: float
    busy_share: float


@dataclass(frozen=True, slots=True, eq=False)
class Beside:
    """What a probe sees beside the queue of one node.

    Attributes:
        slowest: how the slowest of the nodes spreads, cell by cell as one node does.
        outside_s: float64 [b], median time of a batch of 1 to b probes that keeps no other batch
            from the nodes; it spreads as one node does, and is slow when the nodes are.
    """

    slowest: Spread
    outside_s: Float64


def busy_share(batches_s: Float64, rate: float, spread: Spread) -> float:
    """Return the share of the time that batches of the most efficient size would need.

    Args:
        batches_s: float64 [b], median time of a batch of 1 to b probes.
        rate: probes a second.
        spread: how the durations of batches spread.
    """
    each_s = batches_s / np.arange(1, len(batches_s) + 1)
    best = int(np.argmin(each_s))
    return float(rate * each_s[best]) * spread.mean(float(batches_s[best]))


def latency(
    batches_s: Float64, rate: float, spread: Spread, beside: Beside | None = None
) -> Latency:
    """Return what probes see that arrive at random moments.

    Args:
        batches_s: float64 [b], median time of a batch of 1 to b probes in a node, rising.
        rate: probes a second; the busy share that follows must be below 1.
        spread: how the durations of batches spread around their median.
        beside: what a probe sees beside; None: nothing.
    """
    if beside is None:
        beside = Beside(spread, np.zeros_like(batches_s))
    busy = busy_share(batches_s, rate, spread)
    assert busy < 1, f"no queue settles at this rate: {busy}"
    grid = _coarse(spread, DURATIONS)
    probabilities = _stationary(batches_s, rate, grid)
    coarse = Beside(_coarse(beside.slowest, DURATIONS), beside.outside_s)
    waiting = _waiting(batches_s, rate, (grid, coarse), probabilities)
    own_s = beside.slowest.of(batches_s[0]) + spread.of(beside.outside_s[0])
    found = Weighted(
        np.concatenate([own_s, waiting.values]),
        np.concatenate([probabilities[0] * spread.factors.weights, waiting.weights]),
    )
    counts = np.clip(np.arange(len(probabilities)), 1, len(batches_s))
    return Latency(
        p50_s=found.quantile(0.50),
        p99_s=found.quantile(0.99),
        batch_mean=float(np.average(counts, weights=probabilities)),
        busy_share=busy,
    )


def _stationary(batches_s: Float64, rate: float, grid: Spread) -> Float64:
    """Return the probability that so many probes wait when a batch returns, float64 [states]."""
    longest = rate * float(grid.of(batches_s[-1]).max())
    batch = len(batches_s)
    # Beyond these many, nobody waits: a batch of them all would bring fewer.
    settled = _settled_count(batches_s, rate, grid)
    room = min(longest, settled) if settled < batch else longest
    states = int(2 + room + TAIL_DEVIATIONS * np.sqrt(room + 4))
    states = max(states, min(batch, states)) + (batch if settled >= batch else 0)
    begun = np.clip(np.arange(states), 1, batch)
    left = np.maximum(np.arange(states) - batch, 0)
    moves = np.zeros((states, states))
    arriving = _arrivals(batches_s, rate, grid, states)
    for state in range(states):
        kept = states - left[state]
        moves[state, left[state] :] = arriving[begun[state] - 1, :kept]
    moves[:, -1] += np.maximum(0.0, 1 - moves.sum(axis=1))
    now = np.zeros(states)
    now[0] = 1.0
    for _ in range(STEPS_MAX):
        following = now @ moves
        if np.abs(following - now).sum() < SETTLED:
            break
        # Halfway: a chain that jumps to and fro settles too.
        now = (now + following) / 2
    settled_state: Float64 = now / now.sum()
    return settled_state


def _settled_count(batches_s: Float64, rate: float, grid: Spread) -> float:
    """Return how many probes at most arrive during a batch of as many; the largest if none."""
    counts = np.arange(1, len(batches_s) + 1)
    stable = np.flatnonzero(rate * grid.of(batches_s).max(axis=1) <= counts)
    return float(counts[stable[0]]) if len(stable) else float(len(batches_s))


def _arrivals(batches_s: Float64, rate: float, grid: Spread, states: int) -> Float64:
    """Return how many probes arrive during a batch, float64 [batch sizes, states]."""
    counts = np.arange(states)
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, states)))])
    sizes = batches_s[: min(len(batches_s), states)]
    means = rate * grid.of(sizes)
    total = np.zeros((len(sizes), states))
    for column, weight in enumerate(grid.factors.weights / grid.factors.weights.sum()):
        mean = means[:, column, None]
        total += weight * np.exp(counts * np.log(mean) - mean - factorials)
    return total


def _waiting(
    batches_s: Float64, rate: float, spreads: tuple[Spread, Beside], probabilities: Float64
) -> Weighted:
    """Return the times of probes that wait for what is left of the batch under way and then for
    their own, with their weights.
    """
    grid, beside = spreads
    slowest, cells = beside.slowest, grid.factors.weights
    batch = len(batches_s)
    values, weights = [], []
    moments = (np.arange(MOMENTS) + 0.5) / MOMENTS
    for state, share in _standing_for(probabilities):
        median_s = batches_s[min(max(state, 1), batch) - 1]
        mean = rate * grid.of(median_s)
        ahead = max(state - batch, 0)
        for middle, part in _poisson_cells():
            others = np.maximum(mean + middle * np.sqrt(mean), 0)
            # A queue beyond one batch waits for further ones; on average it stands half way.
            beyond = np.floor((ahead + others / 2) / batch) * float(batches_s[-1])
            size = np.minimum(ahead + others + 1, batch)
            own = slowest.of(np.interp(size, _sizes(batch), batches_s))
            own += grid.of(np.interp(size, _sizes(batch), beside.outside_s))
            rest = (1 - moments)[:, None] * slowest.of(median_s) + beyond
            whole = rest[:, :, None] + own[None, :, :]
            weight = (mean * cells)[None, :, None] * cells[None, None, :]
            values.append(whole.reshape(-1))
            weights.append(
                np.broadcast_to(weight * share * part / MOMENTS, whole.shape).reshape(-1)
            )
    return Weighted(np.concatenate(values), np.concatenate(weights))


def _sizes(batch: int) -> Float64:
    return np.arange(1, batch + 1, dtype=np.float64)


def _poisson_cells() -> list[tuple[float, float]]:
    """Return how many deviations off the mean a number of arrivals is, with probabilities."""
    # Gauss-Hermite with three points: exact for the mean, the variance and the skew.
    return [(-np.sqrt(3.0), 1 / 6), (0.0, 2 / 3), (np.sqrt(3.0), 1 / 6)]


def _standing_for(probabilities: Float64) -> list[tuple[int, float]]:
    """Return states that stand for all, at most STATES_MAX, with the probability of each."""
    used = np.flatnonzero(probabilities > NEGLIGIBLE)
    cells = np.array_split(used, min(STATES_MAX, len(used)))
    found = []
    for cell in cells:
        share = float(probabilities[cell].sum())
        middle = round(float(np.average(cell, weights=probabilities[cell])))
        found.append((middle, share))
    return found


def _coarse(spread: Spread, count: int) -> Spread:
    """Return a distribution by fewer values: means of cells that hold the same probability, and of
    a small one at the far end.
    """
    order = np.argsort(spread.factors.values, kind="stable")
    values, weights = spread.factors.values[order], spread.factors.weights[order]
    reached = np.cumsum(weights) / weights.sum()
    edges = np.concatenate([np.linspace(0, 0.97, count - 1), [0.99]])
    cell = np.searchsorted(edges, reached - weights / weights.sum() / 2, side="right") - 1
    total = np.bincount(cell, weights, minlength=count)
    means = np.bincount(cell, weights * values, minlength=count)
    filled = total > 0
    factors = Weighted(means[filled] / total[filled], total[filled] / total.sum())
    return Spread(factors, spread.at_s)


assert BATCH_MAX >= 1
