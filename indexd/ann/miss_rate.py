"""What a number of misses among a number of trials says about the miss rate."""

import math
from functools import lru_cache
from typing import Final

import numpy as np

CONFIDENCE: Final = 0.95
"""Of the claim that a miss rate is below its bound."""
_HALVINGS: Final = 50


def miss_rate_bound(misses: int, trials: int) -> float:
    """Return the largest miss rate that agrees with what was seen, at CONFIDENCE; at most 1.

    The exact upper limit of a Poisson mean: no miss among n trials bounds the rate by 3 / n, so
    few trials prove little.
    """
    return min(poisson_limit(misses) / trials, 1.0) if trials else 1.0


def miss_rate_min(misses: int, trials: int) -> float:
    """Return the least miss rate that agrees with what was seen, at CONFIDENCE.

    The exact lower limit of a Poisson mean: so many misses or more come by chance less often than
    in one of twenty cases where the rate is below it.
    """
    if not misses:
        return 0.0
    low, high = 0.0, float(misses)
    for _ in range(_HALVINGS):
        mean = (low + high) / 2
        below = sum(
            math.exp(i * math.log(mean) - mean - math.lgamma(i + 1)) for i in range(misses)
        )
        low, high = (mean, high) if below > CONFIDENCE else (low, mean)
    return low / trials


@lru_cache(maxsize=4096)
def poisson_limit(seen: int) -> float:
    """Return the largest mean with which so few events are no rarer than 1 - CONFIDENCE."""
    numbers = np.arange(seen + 1)
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, seen + 1)))])
    low, high = float(seen), seen + 10.0 * math.sqrt(seen + 1.0)
    for _ in range(_HALVINGS):
        mean = (low + high) / 2
        below = float(np.exp(numbers * math.log(mean) - mean - log_factorials).sum())
        low, high = (mean, high) if below > 1 - CONFIDENCE else (low, mean)
    return high


def misses_allowed(rate_max: float, trials: int) -> int:
    """Return how many misses among so many trials still show a rate of at most `rate_max`; -1
    where not even none does.
    """
    low, high = -1, int(rate_max * trials)
    while low < high:
        middle = (low + high + 1) // 2
        if miss_rate_bound(middle, trials) <= rate_max:
            low = middle
        else:
            high = middle - 1
    return low
