"""On which device a shard goes, and when: decisions only."""

from collections.abc import Mapping
from typing import Final

RESERVE_SHARE: Final = 0.1
"""Of a device's memory: for the intermediate results of searches and for what others take."""

PAUSE_S: Final = 10.0
"""How long no shard comes to a device that was found full, whatever the ledger says."""
PAUSE_S_MAX: Final = 640.0
"""The same after it was full again and again: every pause is twice as long as the one before."""


class Pause:
    """Keeps shards from coming to a device that was full: where something else took its memory,
    each would be brought over in whole only to be let go of at its next search.
    """

    def __init__(self) -> None:
        self._until_s = self._lasts_s = 0.0

    def begin(self, now_s: float) -> float:
        """The device was full; return how many seconds no shard comes. One pause begins while
        another lasts where several shards fail together: that counts once.
        """
        if now_s >= self._until_s:
            self._lasts_s = min(max(2 * self._lasts_s, PAUSE_S), PAUSE_S_MAX)
            self._until_s = now_s + self._lasts_s
        return self._until_s - now_s

    def lasts(self, now_s: float) -> bool:
        """Tell whether no shard may come."""
        return now_s < self._until_s

    def forget(self, now_s: float) -> None:
        """A shard was searched there: the next pause is a short one, if none lasts."""
        if not self.lasts(now_s):
            self._lasts_s = 0.0


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
