"""On which device a shard goes: decisions only."""

from collections.abc import Mapping
from typing import Final

RESERVE_SHARE: Final = 0.1
"""Of a device's memory: for the intermediate results of searches and for what others take."""


class Ledger:
    """What is taken of one device's memory: accounted before it is taken.

    Args:
        total_bytes: that the device has for shards.
    """

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = int(total_bytes * (1 - RESERVE_SHARE))
        self._taken: dict[int, int] = {}

    @property
    def taken_bytes(self) -> int:
        """Bytes promised to shards."""
        return sum(self._taken.values())

    @property
    def free_bytes(self) -> int:
        """Bytes that may still be promised."""
        return self.total_bytes - self.taken_bytes

    def promised_bytes(self, holder: int) -> int:
        """Return what a holder was promised."""
        return self._taken.get(holder, 0)

    def take(self, holder: int, size: int) -> bool:
        """Promise bytes to a holder, in place of what it had; tell whether that is possible."""
        if size - self._taken.get(holder, 0) > self.free_bytes:
            return False
        self._taken[holder] = size
        return True

    def give_back(self, holder: int) -> None:
        """Take back what a holder had, if anything."""
        self._taken.pop(holder, None)


def choose(free: Mapping[str, int], size: int) -> str | None:
    """Return the device with the most free memory, by name among equals; None: it fits nowhere."""
    able = [name for name, free_bytes in free.items() if free_bytes >= size]
    return min(able, key=lambda name: (-free[name], name), default=None)
