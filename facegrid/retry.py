"""How long to wait before trying again."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


class Uniform(Protocol):
    """The part of `random.Random` that is needed."""

    def uniform(self, a: float, b: float) -> float:
        """Return a number between a and b."""
        ...


@dataclass(frozen=True, slots=True)
class Backoff:
    """Endless delays in seconds with full jitter: uniform between 0 and a growing bound.

    The bound starts at `first_s`, grows by `factor` and ends at `limit_s`. Full jitter spreads
    callers that failed together better than any other scheme tried in "Exponential Backoff And
    Jitter" (AWS Architecture Blog, 2015).
    """

    first_s: float
    factor: float
    limit_s: float
    rng: Uniform

    def __post_init__(self) -> None:
        """Refuse settings that would not grow."""
        assert 0 < self.first_s <= self.limit_s, "the first delay must not be above the limit"
        assert self.factor >= 1, "delays must not shrink"

    def __iter__(self) -> Iterator[float]:
        """Yield delays; every iteration starts anew."""
        bound_s = self.first_s
        while True:
            yield self.rng.uniform(0, bound_s)
            bound_s = min(bound_s * self.factor, self.limit_s)
