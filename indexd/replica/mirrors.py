"""The shards of this node that are brought into pending ones, and holding their writes back.

What is to be brought where stands in the map: a node brings a shard of which it is the serving
primary into every pending shard that names it as a source, for as long as that is so.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Final

from facegrid import limits
from facegrid.api.shard.v1 import shard_service_pb2 as pb
from facegrid.api.shard.v1.shard_service_pb2_grpc import ShardServiceStub
from facegrid.clock import Clock
from facegrid.errors import DeadlineError, FacegridError, UnavailableError
from facegrid.ids import ShardId
from facegrid.model import ShardAssignment
from facegrid.rpc.call import call
from facegrid.rpc.pool import ChannelPool
from facegrid.telemetry.log import Logger
from indexd.replica.mirror import Mirror
from indexd.replica.primary import Primary
from indexd.replica.shard_copy import Phase, ShardCopy
from indexd.replica.view import View
from indexd.replica.writer import RecentLog, ShardWriter

PAUSE_S: Final = 0.5
"""After an error, before the next attempt."""
LOOK_S: Final = 1.0
"""How often to look whether a shard is still to be brought over, while it does not change."""
RECENT_BYTES: Final = 32 * limits.MIB
"""Log objects of a source that are kept in memory for who brings them over."""

Start = Callable[[str, Coroutine[None, None, None]], None]


@dataclass(frozen=True, slots=True, eq=False)
class Hold:
    """Writes to a shard that are held back; `until` ends that."""

    writer: ShardWriter
    until: asyncio.TimerHandle


@dataclass(frozen=True, slots=True)
class Held:
    """Where a shard stands while its writes are held back, and all of it has been brought over.

    Attributes:
        position: of its last record.
        tip_revision: of tip/<shard> in etcd; 0: there is none.
        claim: the value of gen/<shard>.
        templates_count: its live rows.
        digest: of these.
    """

    position: int
    tip_revision: int
    claim: bytes
    templates_count: int
    digest: int


class Asker:
    """Calls the primaries of pending shards, wherever they are by now."""

    def __init__(self, pool: ChannelPool, view: View) -> None:
        self._pool = pool
        self._view = view

    def pending(self, gallery: str) -> tuple[ShardAssignment, ...]:
        """Return the shards of a gallery that are being filled."""
        shard_map = self._view.shard_map(gallery)
        return () if shard_map is None else shard_map.pending

    def is_gone(self, gallery: str, shard_id: ShardId) -> bool:
        """Tell whether a shard that was pending has left the map."""
        shard_map = self._view.shard_map(gallery)
        held = () if shard_map is None else shard_map.held
        return shard_id not in {one.shard_id for one in held}

    async def ask(
        self, gallery: str, request: pb.MirrorRequest, *, timeout_s: float
    ) -> pb.MirrorResponse:
        """Return what the primary of a pending shard answers.

        Raises:
            FacegridError: what it raised; UnavailableError where it cannot be reached.
        """
        found = [one for one in self.pending(gallery) if one.shard_id == request.shard_id]
        address = self._view.address(found[0].primary) if found else None
        if address is None:
            raise UnavailableError(
                f"the primary of the pending shard is not registered shard={request.shard_id}",
                reason="NODE_UNREGISTERED",
                shard=request.shard_id,
            )
        stub = ShardServiceStub(self._pool.get(address))
        return await call(stub.Mirror, request, timeout_s=timeout_s)


class Mirrors:
    """All mirrors of a node.

    Args:
        asker: reaches the primaries of pending shards.
        clock: the node's.
        logger: the node's.
        new_id: returns what was never returned before, 8 to 40 of 0-9 and a-z.
    """

    def __init__(
        self, asker: Asker, clock: Clock, logger: Logger, new_id: Callable[[], str]
    ) -> None:
        self._asker = asker
        self._clock = clock
        self._logger = logger
        self._new_id = new_id
        self._running: dict[tuple[ShardId, ShardId], Mirror] = {}
        self._holds: dict[ShardId, Hold] = {}

    def look(self, copies: Mapping[ShardId, ShardCopy], start: Start) -> None:
        """Begin to bring over what the map says by now; what it does not say ends by itself.

        Args:
            copies: the node's.
            start: runs work in the background, once at a time for each name.
        """
        for copy in copies.values():
            if not isinstance(copy, Primary) or copy.phase is not Phase.SERVING:
                continue
            children = self._children(copy)
            if not children:
                copy.writer.recent = None
            elif copy.writer.recent is None:
                copy.writer.recent = RecentLog(RECENT_BYTES)
            for child in children.values():
                name = f"mirror {copy.assignment.shard_id} {child.shard_id}"
                start(name, self.run(copy, child))

    def is_source(self, gallery: str, shard_id: ShardId, source: ShardId) -> bool:
        """Tell whether the map says that one shard is filled from another."""
        pending = self._asker.pending(gallery)
        return any(one.shard_id == shard_id and source in one.sources for one in pending)

    def _children(self, primary: Primary) -> dict[ShardId, ShardAssignment]:
        """Return the shards that a primary's is a source of."""
        source = primary.assignment.shard_id
        pending = self._asker.pending(primary.gallery.name)
        return {one.shard_id: one for one in pending if source in one.sources}

    async def run(self, primary: Primary, child: ShardAssignment) -> None:
        """Bring a shard into another for as long as the map says so; errors only make it wait."""
        gallery, key = primary.gallery.name, (primary.assignment.shard_id, child.shard_id)
        mirror = Mirror(
            primary,
            child,
            lambda request, timeout_s: self._asker.ask(gallery, request, timeout_s=timeout_s),
            self._new_id,
        )
        self._running[key] = mirror
        try:
            while primary.phase is Phase.SERVING and child.shard_id in self._children(primary):
                await self._step(mirror, primary)
            if self._asker.is_gone(gallery, child.shard_id):
                await mirror.clean()
        finally:
            del self._running[key]

    async def _step(self, mirror: Mirror, primary: Primary) -> None:
        """Bring the next part over, or wait for one."""
        try:
            if not await mirror.step():
                until_s = self._clock.now_s() + LOOK_S
                await primary.reach(primary.state.position + 1, until_s)
        except FacegridError as error:
            if error.reason == "POSITION_NOT_REACHED":
                # Nothing was written for a while.
                return
            mirror.doubt()
            self._logger.warning(
                "not brought over yet",
                shard=primary.assignment.shard_id,
                into=mirror.child.shard_id,
                reason=error.reason,
                problem=error.message,
            )
            await self._clock.sleep(PAUSE_S)

    # Holding writes back

    async def hold(self, primary: Primary, hold_s: float) -> Held:
        """Hold writes to a shard back, until all of it has been brought into the pending shards;
        tell where it stands then. They go on by themselves when the time is over; until then they
        wait, and are not refused. Asked again meanwhile, nothing is prolonged.

        Args:
            primary: of the shard.
            hold_s: for how long at most; 0: let writes go on.

        Raises:
            UnavailableError: the shard is not brought over yet (NOT_A_SOURCE), or a commit is in
                doubt; writes go on.
            DeadlineError: not all was brought over in that time (MIRROR_BEHIND); writes go on.
        """
        shard_id = primary.assignment.shard_id
        if not hold_s:
            self._release(primary)
            return _standing(primary)
        mirrors = self._mirrors_of(primary)
        try:
            if shard_id not in self._holds:
                async with asyncio.timeout(hold_s):
                    await self._come_near(primary, mirrors)
            hold = self._begin(primary, hold_s)
            async with asyncio.timeout_at(hold.until.when()):
                await primary.committer.pause(hold.writer)
                for mirror in mirrors:
                    await mirror.reach(primary.state.position)
            if self._holds.get(shard_id) is hold:
                return _standing(primary)
        except TimeoutError:
            pass
        except FacegridError:
            self._release(primary)
            raise
        self._release(primary)
        raise DeadlineError(
            f"not all was brought into the pending shards in time shard={shard_id}",
            reason="MIRROR_BEHIND",
            shard=shard_id,
        )

    def _mirrors_of(self, primary: Primary) -> list[Mirror]:
        """Return the mirrors of a shard into all its pending shards. Of a shard that is no source
        there are none: its writes are held back while its copies are compared.

        Raises:
            UnavailableError: one of them does not run yet (NOT_A_SOURCE).
        """
        shard_id = primary.assignment.shard_id
        found = [self._running.get((shard_id, child)) for child in self._children(primary)]
        mirrors = [mirror for mirror in found if mirror is not None]
        if len(mirrors) < len(found):
            raise UnavailableError(
                f"this node does not bring the shard into others yet shard={shard_id}",
                reason="NOT_A_SOURCE",
                shard=shard_id,
            )
        return mirrors

    async def _come_near(self, primary: Primary, mirrors: list[Mirror]) -> None:
        """Wait until little is left to be brought over, and those writes are through that waited
        before: so holds that follow one another leave room for writes.
        """
        position, waiting = primary.state.position, primary.writer.waiting
        if waiting:
            await asyncio.wait([waiting[-1].future])
        for mirror in mirrors:
            await mirror.reach(position)

    def _begin(self, primary: Primary, hold_s: float) -> Hold:
        """Return the hold that there is, or a new one, which ends by itself."""
        shard_id = primary.assignment.shard_id
        hold = self._holds.get(shard_id)
        if hold is None:
            until = asyncio.get_running_loop().call_later(hold_s, self._release, primary)
            hold = self._holds[shard_id] = Hold(primary.writer, until)
        return hold

    def _release(self, primary: Primary) -> None:
        """Let writes go on."""
        hold = self._holds.pop(primary.assignment.shard_id, None)
        if hold is not None:
            hold.until.cancel()
            primary.committer.resume(hold.writer)


def _standing(primary: Primary) -> Held:
    """Return where a shard stands now."""
    writer, state = primary.writer, primary.state
    return Held(
        position=state.position,
        tip_revision=writer.tip_revision,
        claim=writer.claim,
        templates_count=state.templates_count,
        digest=state.digest,
    )
