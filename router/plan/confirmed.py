"""Confirmed answers: what callers make of answers that are not, and how often copies are asked.

An answer of a copy is confirmed when no erasure acknowledged before the call can be missing from
it. A copy that cannot make sure of that refuses, or answers and says so, as the request wants it.
"""

from enum import Enum, auto
from typing import Final

UNCONFIRMED: Final = "UNCONFIRMED"
"""Reason of a copy that refuses, and of a router that therefore has no answer."""


class Unconfirmed(Enum):
    """What a caller makes of answers that cannot be confirmed.

    REFUSED: none is better.
    SPARED: taken for a shard of which no copy confirms its answer, and only a stated share of all.
    TAKEN: likewise, of any share; while the router itself does not hear etcd, taken at once.
    """

    REFUSED = auto()
    SPARED = auto()
    TAKEN = auto()


def wish(unconfirmed_max: float) -> Unconfirmed:
    """Return what a caller wants who accepts this share of the key space unconfirmed."""
    if unconfirmed_max <= 0:
        return Unconfirmed.REFUSED
    return Unconfirmed.TAKEN if unconfirmed_max >= 1 else Unconfirmed.SPARED
