"""What the client takes from the world, in one place, so that tests can own it."""

import random  # noqa: TID251 - the edge: the client makes its own jitter
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from facegrid.clock import Clock, SystemClock
from facegrid.retry import Uniform


def new_request_id() -> str:
    """Return a request id that nobody had before."""
    return uuid.uuid4().hex  # noqa: TID251 - the edge: request ids are made here


@dataclass(frozen=True, slots=True)
class Ambient:
    """Time, chance and names. The defaults are the real ones."""

    clock: Clock = field(default_factory=SystemClock)
    rng: Uniform = field(default_factory=random.Random)
    new_request_id: Callable[[], str] = new_request_id
