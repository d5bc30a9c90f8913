"""Writes to primaries, which may change while a write is under way.

A write is sent to the primary that the newest map names. Where it fails because that one is gone,
or is no primary any more, or not yet, it is sent again, to the next one as soon as the map names
it: under the same request id, which has the effect of once. While the map stays as it is nobody is
held up for long: the caller may know another router, or have something else to do. Where the shard
itself was replaced by others, the write is given back to whoever cut it out of a request.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from facegrid.clock import Clock
from facegrid.errors import DeadlineError, FacegridError, FencedError, UnavailableError
from facegrid.ids import NodeId, ShardId
from facegrid.model import ShardAssignment
from router.dispatch.blame import SHARD_NOT_HERE, blamed
from router.dispatch.hedge import given_up
from router.dispatch.map_news import TOLD_S_MAX, told_version
from router.dispatch.time_left import time_for_node_s
from router.plan.hedge import LOOK_AGAIN_S, QUIET_S
from router.topology.pool import NodePool
from router.topology.snapshot import ServedGallery, Topology
from router.topology.watcher import NEWS_S, Watcher

if TYPE_CHECKING:
    from router.topology.pool import Pick

Request = TypeVar("Request")
Response = TypeVar("Response")

PATIENCE_S: Final = 1.0
"""How long a write is tried again at one primary, or waits for another."""
AGAIN_S: Final = 0.1
"""Pause before it is sent again to the same primary."""
SOON: Final = (SHARD_NOT_HERE, "SHARD_OPENING", "SHARD_PENDING", "NOT_PRIMARY_YET", "NODE_SILENT")
"""Reasons of which a moment later nothing may be left: the node has just been told that it is the
primary, or answers health checks again."""
GONE: Final = ("NODE_UNREACHABLE", "NODE_UNKNOWN")
"""Reasons after which only another primary, or another process in its place, is of use."""
SHARD_REPLACED: Final = "SHARD_REPLACED"
"""Reason of a write to a shard that other shards have taken the place of."""
REPLACED_S: Final = 0.25
"""How long a call under way may still be answered after its shard was replaced: what it did before
is counted as it was, and what it did not do fails, since its primary cannot commit any more."""


@dataclass(frozen=True, slots=True)
class Written(Generic[Response]):
    """What a primary answered, and which."""

    node_id: NodeId
    response: Response


@dataclass(frozen=True, slots=True)
class _Way:
    """Where a shard's writes go: node, address, and the process that claimed the shard last; or
    nowhere, other shards having taken its place.
    """

    node_id: NodeId
    address: str
    boot_id: str
    replaced: bool = False


class Primaries:
    """Sends writes to whoever is the primary.

    Args:
        watcher: holds the topology.
        pool: reaches the nodes.
        clock: for what is left of deadlines.
    """

    def __init__(self, watcher: Watcher, pool: NodePool, clock: Clock) -> None:
        self._watcher = watcher
        self._pool = pool
        self._clock = clock

    def newest(self, served: ServedGallery) -> ServedGallery | None:
        """Return the gallery as it is now; None where it was dropped."""
        present = self._watcher.topology.galleries.get(served.gallery.name)
        if present is None or present.gallery.uid != served.gallery.uid:
            return None
        return present

    async def send(
        self,
        served: ServedGallery,
        shard: ShardAssignment,
        pick: "Pick[Request, Response]",
        request: Request,
        *,
        deadline_s: float,
    ) -> Written[Response]:
        """Return a primary's answer to a write of one shard.

        Raises:
            FencedError: the primary lost its role, and no other one is named; or the shard was
                replaced by others (SHARD_REPLACED). Then the write may have happened, and what it
                did is in these.
            UnavailableError: it cannot be reached, is silent, or does not serve yet; names shard
                and node.
            FacegridError: what it raised.
        """
        target = _Target(served, shard)
        way: _Way | None = None
        patient_until_s = 0.0
        while True:
            topology = self._watcher.topology
            present = target.way(topology)
            if present.replaced:
                raise replaced_shard(shard.shard_id)
            if present != way:
                patience_s = NEWS_S if self._is_new(target) else PATIENCE_S
                way, patient_until_s = present, self._clock.now_s() + patience_s
            left_s = time_for_node_s(deadline_s, self._clock)
            call = self._pool.call(topology, present.node_id, pick, request, timeout_s=left_s)
            outcome = await self._outcome(target, present, call)
            if not isinstance(outcome, FacegridError):
                return Written(present.node_id, outcome)
            error = blamed(outcome, shard.shard_id, present.node_id)
            until_s = min(patient_until_s, deadline_s)
            again = await self._newer_map(target, error, deadline_s) or await self._worth_again(
                target, present, error, until_s
            )
            if not again and not target.way(self._watcher.topology).replaced:
                raise error

    async def _newer_map(self, target: "_Target", error: FacegridError, deadline_s: float) -> bool:
        """Wait for the map that a node told of, which may well send the write elsewhere; tell
        whether it came.
        """
        told = told_version([error])
        if told <= target.version(self._watcher.topology):
            return False
        timeout_s = min(TOLD_S_MAX, time_for_node_s(deadline_s, self._clock))
        name = target.served.gallery.name
        return await self._watcher.map_reaches(name, told, timeout_s=timeout_s)

    def _is_new(self, target: "_Target") -> bool:
        """Tell whether the map changed a moment ago, so that a node may not have acted on it."""
        return self._watcher.remapped_lately(target.served.gallery.name)

    async def _outcome(
        self, target: "_Target", way: _Way, call: Coroutine[Any, Any, Response]
    ) -> Response | FacegridError:
        """Return what comes of a call, unless the node falls silent or is replaced before."""
        if self._pool.silent(way.node_id):
            call.close()
            return given_up(way.node_id)

        async def kept() -> Response | FacegridError:
            try:
                return await call
            except FacegridError as error:
                return error

        async with asyncio.TaskGroup() as group:
            answer = group.create_task(kept())
            problem = [
                group.create_task(self._until_moved(target, way)),
                group.create_task(self._until_silent(way.node_id)),
            ]
            await asyncio.wait({answer, *problem}, return_when=asyncio.FIRST_COMPLETED)
            for task in (answer, *problem):
                task.cancel()
        if not answer.cancelled():
            return answer.result()
        return next(task.result() for task in problem if not task.cancelled())

    async def _until_moved(self, target: "_Target", way: _Way) -> FacegridError:
        """Wait until another node is the primary, or the node is elsewhere. A process that merely
        claimed the shard is no reason to give up a call: it may be the one that is called.
        """
        while True:
            topology = self._watcher.topology
            present = target.way(topology)
            if present.replaced:
                await self._clock.sleep(REPLACED_S)
                return replaced_shard(target.shard.shard_id)
            if (present.node_id, present.address) != (way.node_id, way.address):
                return UnavailableError(
                    f"the primary was replaced during the call node={way.node_id}",
                    reason="PRIMARY_MOVED",
                    node=way.node_id,
                )
            await self._watcher.changed(topology, timeout_s=PATIENCE_S)

    async def _until_silent(self, node_id: NodeId) -> UnavailableError:
        """Wait until a node misses two health checks in a row: a write may take long, on a slow
        store for instance, and the node be well, or too busy for one of them.
        """
        wait_s, missed = QUIET_S, 0
        while missed < 2:
            await self._clock.sleep(wait_s)
            lives = await self._pool.lives(self._watcher.topology, node_id)
            wait_s, missed = (LOOK_AGAIN_S, 0) if lives else (0.0, missed + 1)
        return given_up(node_id)

    async def _worth_again(
        self, target: "_Target", way: _Way, error: FacegridError, until_s: float
    ) -> bool:
        """Tell whether to send a write again, once it is time to."""
        if isinstance(error, DeadlineError):
            return False
        if error.reason in GONE:
            return await self._another_way(target, way, until_s - self._clock.now_s())
        is_soon = isinstance(error, FencedError) or error.reason in SOON
        if is_soon or (self._is_new(target) and isinstance(error, UnavailableError)):
            left_s = until_s - self._clock.now_s()
            return await self._another_way(target, way, min(AGAIN_S, left_s)) or left_s > AGAIN_S
        return error.reason == "PRIMARY_MOVED"

    async def _another_way(self, target: "_Target", way: _Way, timeout_s: float) -> bool:
        """Wait until writes go another way than before; tell whether they do."""
        ends_s = self._clock.now_s() + timeout_s
        while target.way(topology := self._watcher.topology) == way:
            left_s = ends_s - self._clock.now_s()
            if left_s <= 0 or not await self._watcher.changed(topology, timeout_s=left_s):
                return False
        return True


@dataclass(frozen=True, slots=True)
class _Target:
    """The shard that is written, as it was when the write began."""

    served: ServedGallery
    shard: ShardAssignment

    def way(self, topology: Topology) -> _Way:
        """Return where its writes go by a topology; by the first map, where it is in none."""
        shard = topology.shard(self.served.gallery.name, self.shard.shard_id)
        if shard is None:
            shard = self.shard
            if self.version(topology) > self.served.shard_map.version:
                return _Way(shard.primary, "", "", replaced=True)
        claim = topology.claims.get(shard.shard_id)
        return _Way(
            shard.primary,
            topology.addresses.get(shard.primary, ""),
            "" if claim is None else claim.boot_id,
        )

    def version(self, topology: Topology) -> int:
        """Return the version of the gallery's map; 0 where the gallery is gone."""
        present = topology.galleries.get(self.served.gallery.name)
        if present is None or present.gallery.uid != self.served.gallery.uid:
            return 0
        return present.shard_map.version


def replaced_shard(shard_id: ShardId) -> FencedError:
    """Return the error for a write to a shard that others have taken the place of."""
    return FencedError(
        f"the shard was split or merged, and others have its rows shard={shard_id}",
        reason=SHARD_REPLACED,
        shard=shard_id,
    )
