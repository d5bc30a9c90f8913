"""Maps that move on while something is under way: what nodes tell of them, and waiting for them.

A node that does not hold a shard any more tells which version of the gallery's map it knows. If
that is newer than the router's, the router waits for it, and begins again on the new map. The
other way round, for a moment after a map has changed nodes may not have acted on it: then it helps
to ask again.
"""

from collections.abc import Iterable
from typing import Final

from facegrid.clock import Clock
from facegrid.errors import DeadlineError, FacegridError, FencedError, UnavailableError
from router.dispatch.time_left import time_for_node_s
from router.topology.snapshot import ServedGallery, Topology
from router.topology.watcher import Watcher

MAP_VERSION: Final = "map_version"
"""Fact of an error: the version of the gallery's map that the node knows."""
REFRESH_S_MAX: Final = 0.25
"""How long to wait for a newer topology before what failed is asked for again."""
REFRESH_SHARE: Final = 0.25
"""The same, as a share of the time left."""
TOLD_S_MAX: Final = 5.0
"""How long to wait for a map that a node told of. Watches are that late only where etcd is."""
TOLD_SHARE: Final = 0.5
"""The same, as a share of the time left."""
PASSES_MAX: Final = 16
"""Times that something is asked for. Beyond two it takes a newer map, or one that is new."""


def told_version(errors: Iterable[FacegridError]) -> int:
    """Return the newest version of the map that nodes told of; 0: none did."""
    versions = (error.facts.get(MAP_VERSION, "") for error in errors)
    return max((int(text) for text in versions if text.isascii() and text.isdecimal()), default=0)


class MapNews:
    """Waits for newer maps.

    Args:
        watcher: holds the topology.
        clock: for what is left of deadlines.
    """

    def __init__(self, watcher: Watcher, clock: Clock) -> None:
        self._watcher = watcher
        self._clock = clock

    def hopeful(self, served: ServedGallery, errors: Iterable[FacegridError]) -> bool:
        """Tell whether what failed by a gallery's map may do better soon: a node knows a newer
        one, this router has one, or the map changed a moment ago.
        """
        return told_version(errors) > served.shard_map.version or self.settling(served)

    def settling(self, served: ServedGallery) -> bool:
        """Tell whether a gallery has another map than this, or has this since a moment only."""
        present = self._watcher.topology.galleries.get(served.gallery.name)
        if present is None or present.gallery.uid != served.gallery.uid:
            return False
        return present.shard_map != served.shard_map or self._watcher.remapped_lately(
            served.gallery.name
        )

    async def wait(
        self,
        served: ServedGallery,
        since: Topology,
        errors: Iterable[FacegridError],
        *,
        deadline_s: float,
    ) -> None:
        """Wait for the map that a node told of, else a moment for any news.

        Args:
            served: the gallery, with the map by which something failed.
            since: the topology of then.
            errors: what came of it.
            deadline_s: until when the caller waits.
        """
        left_s = time_for_node_s(deadline_s, self._clock)
        told = told_version(errors)
        if told > served.shard_map.version:
            wait_s = min(TOLD_S_MAX, left_s * TOLD_SHARE)
            await self._watcher.map_reaches(served.gallery.name, told, timeout_s=wait_s)
        else:
            wait_s = min(REFRESH_S_MAX, left_s * REFRESH_SHARE)
            await self._watcher.changed(since, timeout_s=wait_s)

    async def next_map(
        self, served: ServedGallery, error: FacegridError, *, deadline_s: float
    ) -> ServedGallery | None:
        """Return the gallery as it is to be tried again after an error; None: that is no use."""
        again = isinstance(error, UnavailableError | FencedError)
        if not again or isinstance(error, DeadlineError) or not self.hopeful(served, [error]):
            return None
        topology = self._watcher.topology
        present = topology.galleries.get(served.gallery.name)
        if present is None or present.shard_map == served.shard_map:
            await self.wait(served, topology, [error], deadline_s=deadline_s)
            present = self._watcher.topology.galleries.get(served.gallery.name)
        same = present is not None and present.gallery.uid == served.gallery.uid
        return present if same else None
