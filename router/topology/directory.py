"""Finds galleries: in the topology, and where that may be behind, in etcd."""

from typing import Final

from facegrid.clock import Clock
from facegrid.coord import keys
from facegrid.coord.port import Coordinator
from facegrid.errors import InvalidError, NotFoundError, UnavailableError
from facegrid.format import records
from facegrid.ids import GalleryName, ShardId
from facegrid.model import ShardMap, Token
from router.topology.snapshot import ServedGallery
from router.topology.watcher import Watcher

ASK_S: Final = 2.0
NO_TOKEN: Final = Token()


class Directory:
    """Looks galleries up by name."""

    def __init__(self, watcher: Watcher, coordinator: Coordinator, clock: Clock) -> None:
        self._watcher = watcher
        self._coordinator = coordinator
        self._clock = clock

    async def find(
        self, name: GalleryName, *, deadline_s: float, after: Token = NO_TOKEN
    ) -> ServedGallery:
        """Return a gallery. One just created through another router is waited for.

        Args:
            name: which.
            deadline_s: until when.
            after: a token that a read was given; all shards it names are the gallery's.

        Raises:
            NotFoundError: there is no such gallery (GALLERY_UNKNOWN).
            InvalidError: the token is not of this gallery (TOKEN_FOREIGN).
            UnavailableError: etcd cannot be asked whether there is.
        """
        served = self._watcher.topology.galleries.get(name)
        if served is not None and foreign_shard(after, served.shard_map) is None:
            return served
        ends_s = min(deadline_s, self._clock.now_s() + ASK_S)
        timeout_s = ends_s - self._clock.now_s()
        found = await self._coordinator.get(keys.shard_map(name), timeout_s=timeout_s)
        if found is None:
            raise unknown_gallery(name)
        if after.positions:
            foreign = foreign_shard(after, records.decode_shard_map(found.value))
            if foreign is not None:
                raise _foreign_token(name, foreign)
        while (
            served := (topology := self._watcher.topology).galleries.get(name)
        ) is None or foreign_shard(after, served.shard_map) is not None:
            if not await self._watcher.changed(topology, timeout_s=ends_s - self._clock.now_s()):
                raise UnavailableError(
                    f"this router does not know the gallery's map yet gallery={name}",
                    reason="MAP_UNKNOWN",
                    gallery=name,
                )
        return served


def foreign_shard(token: Token, shard_map: ShardMap) -> ShardId | None:
    """Return a shard that a token speaks of and a gallery does not have."""
    if not token.positions:
        return None
    ours = {shard.shard_id for shard in shard_map.shards}
    return next((shard_id for shard_id in token.positions if shard_id not in ours), None)


def _foreign_token(name: GalleryName, shard_id: ShardId) -> InvalidError:
    return InvalidError(
        "token names a shard that the gallery does not have: it is of another gallery, or of an"
        f" earlier one of the name gallery={name} shard={shard_id}",
        reason="TOKEN_FOREIGN",
        field="after",
        gallery=name,
        shard=shard_id,
    )


def unknown_gallery(name: GalleryName) -> NotFoundError:
    """Return the error for a gallery that does not exist."""
    return NotFoundError(
        f"there is no such gallery gallery={name}", reason="GALLERY_UNKNOWN", gallery=name
    )
