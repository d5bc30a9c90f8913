"""Finds galleries: in the topology, and where that may be behind, in etcd."""

from typing import Final

from facegrid.clock import Clock
from facegrid.coord import keys
from facegrid.coord.port import Coordinator
from facegrid.errors import CorruptError, InvalidError, NotFoundError, UnavailableError
from facegrid.format import records
from facegrid.ids import GalleryName, ShardId
from facegrid.model import Token
from router.plan.standing import Standing, not_of, standing
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
        """Return a gallery. One just created through another router is waited for, and so is a
        map that knows all shards that a token names.

        Args:
            name: which.
            deadline_s: until when.
            after: a token that a read was given; the gallery has or had all shards it names.

        Raises:
            NotFoundError: there is no such gallery (GALLERY_UNKNOWN).
            InvalidError: the token is not of this gallery (TOKEN_FOREIGN).
            UnavailableError: etcd cannot be asked whether there is.
        """
        served = self._watcher.topology.galleries.get(name)
        if served is not None and not_of(served.shard_map, after) is None:
            return served
        ends_s = min(deadline_s, self._clock.now_s() + ASK_S)
        timeout_s = ends_s - self._clock.now_s()
        found = await self._coordinator.get(keys.shard_map(name), timeout_s=timeout_s)
        if found is None:
            raise unknown_gallery(name)
        _check_token(after, found.value)
        while (
            served := (topology := self._watcher.topology).galleries.get(name)
        ) is None or not_of(served.shard_map, after) is not None:
            if not await self._watcher.changed(topology, timeout_s=ends_s - self._clock.now_s()):
                raise UnavailableError(
                    f"this router does not know the gallery's map yet gallery={name}",
                    reason="MAP_UNKNOWN",
                    gallery=name,
                )
        return served


def _check_token(token: Token, newest: bytes) -> None:
    """Raise InvalidError (TOKEN_FOREIGN) where a token names a shard that the newest map, as etcd
    has it, does not know either. One that is still pending is waited for.
    """
    try:
        shard_map = records.decode_shard_map(newest) if token.positions else None
    except CorruptError:
        # Of a newer version, or damaged: the gallery is not served here, which is told elsewhere.
        shard_map = None
    if shard_map is None:
        return
    known = {shard.shard_id for shard in shard_map.held}
    for shard_id in token.positions:
        if shard_id not in known and standing(shard_map, shard_id) is not Standing.REPLACED:
            raise _foreign_token(shard_map.gallery, shard_id)


def _foreign_token(name: GalleryName, shard_id: ShardId) -> InvalidError:
    return InvalidError(
        "token names a shard that the gallery never had: it is of another gallery, or of an"
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
