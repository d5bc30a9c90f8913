"""Finds galleries: in the topology, and for one that is not there yet, in etcd."""

from typing import Final

from facegrid.clock import Clock
from facegrid.coord import keys
from facegrid.coord.port import Coordinator
from facegrid.errors import NotFoundError, UnavailableError
from facegrid.ids import GalleryName
from router.topology.snapshot import ServedGallery
from router.topology.watcher import Watcher

ASK_S: Final = 2.0


class Directory:
    """Looks galleries up by name."""

    def __init__(self, watcher: Watcher, coordinator: Coordinator, clock: Clock) -> None:
        self._watcher = watcher
        self._coordinator = coordinator
        self._clock = clock

    async def find(self, name: GalleryName, *, deadline_s: float) -> ServedGallery:
        """Return a gallery. One just created through another router is waited for.

        Raises:
            NotFoundError: there is no such gallery (GALLERY_UNKNOWN).
            UnavailableError: etcd cannot be asked whether there is.
        """
        served = self._watcher.topology.galleries.get(name)
        if served is not None:
            return served
        ends_s = min(deadline_s, self._clock.now_s() + ASK_S)
        timeout_s = ends_s - self._clock.now_s()
        if await self._coordinator.get(keys.gallery(name), timeout_s=timeout_s) is None:
            raise unknown_gallery(name)
        while name not in (topology := self._watcher.topology).galleries:
            if not await self._watcher.changed(topology, timeout_s=ends_s - self._clock.now_s()):
                raise UnavailableError(
                    f"this router does not know the gallery's map yet gallery={name}",
                    reason="MAP_UNKNOWN",
                    gallery=name,
                )
        return topology.galleries[name]


def unknown_gallery(name: GalleryName) -> NotFoundError:
    """Return the error for a gallery that does not exist."""
    return NotFoundError(
        f"there is no such gallery gallery={name}", reason="GALLERY_UNKNOWN", gallery=name
    )
