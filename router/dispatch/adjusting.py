"""Settings of galleries that can be changed, and tuning: how hard their searches try."""

import dataclasses
from typing import Final

from facegrid.api.shard.v1 import shard_service_pb2 as shard_pb2
from facegrid.clock import Clock
from facegrid.coord import keys
from facegrid.coord.port import Coordinator, Guard, Put
from facegrid.errors import FacegridError, FencedError, InvalidError, UnavailableError
from facegrid.format import records
from facegrid.ids import GalleryName
from facegrid.model import Gallery
from facegrid.tuning import Profile
from facegrid.tuning_messages import from_tuning_message
from router.dispatch.blame import blamed
from router.dispatch.time_left import time_for_node_s
from router.topology.directory import Directory, unknown_gallery
from router.topology.pool import NodePool
from router.topology.watcher import Watcher

ETCD_S: Final = 5.0
"""Time for etcd to answer."""
ATTEMPTS_MAX: Final = 3
"""Times a transaction is tried when others change the same gallery."""


class Adjusting:
    """Changes how galleries are searched.

    Args:
        coordinator: where galleries lie.
        watcher: holds the topology.
        pool: reaches the nodes.
        clock: for deadlines.
    """

    def __init__(
        self, coordinator: Coordinator, watcher: Watcher, pool: NodePool, clock: Clock
    ) -> None:
        self._coordinator = coordinator
        self._watcher = watcher
        self._pool = pool
        self._clock = clock
        self._directory = Directory(watcher, coordinator, clock)

    async def update(
        self,
        name: GalleryName,
        *,
        profile: Profile | None,
        miss_rate_max: float | None,
        deadline_s: float,
    ) -> Gallery:
        """Change the settings that are given; return the gallery.

        Raises:
            NotFoundError: there is no such gallery.
            UnavailableError: etcd cannot be reached, or others keep changing the gallery.
        """
        key = keys.gallery(name)
        for _ in range(ATTEMPTS_MAX):
            left_s = min(ETCD_S, time_for_node_s(deadline_s, self._clock))
            found = await self._coordinator.get(key, timeout_s=left_s)
            if found is None:
                raise unknown_gallery(name)
            before = records.decode_gallery(found.value)
            after = dataclasses.replace(
                before,
                profile=profile or before.profile,
                miss_rate_max=before.miss_rate_max if miss_rate_max is None else miss_rate_max,
            )
            if after == before:
                return self._described(after)
            result = await self._coordinator.txn(
                [Guard(key, found.mod_revision)],
                [Put(key, records.encode_gallery(after))],
                timeout_s=left_s,
            )
            if result.succeeded:
                return self._described(after)
        raise UnavailableError(
            f"others keep changing the gallery gallery={name}", reason="CONTENDED", gallery=name
        )

    async def tune(self, name: GalleryName, *, mates_count_max: int, deadline_s: float) -> Gallery:
        """Have a gallery tuned; return it with its tuning.

        Raises:
            NotFoundError: there is no such gallery.
            InvalidError: it is searched exactly (NOT_TRAINED), or nothing could be stated
                (TOO_FEW_MATES).
            UnavailableError: a node cannot be reached.
        """
        served = await self._directory.find(name, deadline_s=deadline_s)
        shard = served.shard_map.shards[0]
        try:
            response = await self._pool.call(
                self._watcher.topology,
                shard.primary,
                lambda stub: stub.Tune,
                shard_pb2.TuneRequest(gallery=name, mates_count_max=mates_count_max),
                timeout_s=time_for_node_s(deadline_s, self._clock),
            )
        except FacegridError as error:
            raise blamed(error, shard.shard_id, shard.primary) from error
        tuning = from_tuning_message(response.tuning)
        found = self._watcher.topology.galleries.get(name, served)
        return dataclasses.replace(found.described, codebook=tuning.codebook, tuning=tuning)

    async def tuned(self, gallery: Gallery, *, deadline_s: float) -> Gallery:
        """Return a gallery that was just trained with its tuning; as it is where it cannot be had.

        Its node tries again by itself, so what goes wrong here costs searches some time at most.
        """
        try:
            return await self.tune(gallery.name, mates_count_max=0, deadline_s=deadline_s)
        except (InvalidError, UnavailableError, FencedError):
            return gallery

    def _described(self, gallery: Gallery) -> Gallery:
        """Return a gallery with the number of shards that there are."""
        served = self._watcher.topology.galleries.get(gallery.name)
        if served is None or served.gallery.uid != gallery.uid:
            return gallery
        return dataclasses.replace(gallery, shards_count=served.described.shards_count)
