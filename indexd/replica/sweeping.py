"""When objects that nothing names any more are deleted: after the grace that readers have."""

from collections.abc import Iterable

READERS_GRACE_S_MAX = 10.0
"""How long unneeded objects are left for those who read them; less where erased rows must go."""
LOOK_S_MAX = 30.0
"""How often to look for erased rows to be rewritten, where the limit is long."""
PARTS = 8
"""Of the time within which bytes of erased rows must be gone, half passes before they are
rewritten; looking for that, the grace, and looking for its end take one part in eight each."""


def readers_grace_s(erased_rewrite_s: float) -> float:
    """Return how long unneeded objects are left, where erased rows must be gone within a time."""
    return min(READERS_GRACE_S_MAX, erased_rewrite_s / PARTS)


def look_s(erased_rewrite_s: float) -> float:
    """Return how often to look for what is to be rewritten or deleted, likewise."""
    return min(LOOK_S_MAX, erased_rewrite_s / PARTS)


class Sweeper:
    """Remembers since when objects are not needed.

    A follower, a snapshot or a start that has just read which objects make up a shard gets time to
    read them. Whoever is slower finds some missing, and begins again.

    Args:
        grace_s: how long an object is left after it was first found not to be needed.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._since_s: dict[str, float] = {}
        self.waiting = True
        """Whether there may be something to delete; at first nobody has looked."""

    def end_grace(self) -> None:
        """Delete at once from now on: whoever stops must not leave erased bytes to nobody."""
        self._grace_s = 0.0

    def due(self, unneeded: Iterable[str], now_s: float) -> list[str]:
        """Return which of all that is not needed now has not been for long enough."""
        self._since_s = {name: self._since_s.get(name, now_s) for name in unneeded}
        due = [name for name, at_s in self._since_s.items() if now_s - at_s >= self._grace_s]
        self.waiting = len(due) < len(self._since_s)
        return due
