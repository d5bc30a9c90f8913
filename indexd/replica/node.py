"""What a node holds: follows the maps in etcd and opens, closes and drops shards accordingly."""

import asyncio
from collections.abc import Coroutine

from facegrid import limits
from facegrid.errors import (
    CorruptError,
    FacegridError,
    FencedError,
    NotFoundError,
)
from facegrid.format.records import GenerationClaim
from facegrid.ids import NodeId, ShardId
from facegrid.model import Gallery
from indexd.engine.requests import LoadRequest, Outcome
from indexd.replica import bulk
from indexd.replica.codebooks import Codebooks
from indexd.replica.committer import Committer
from indexd.replica.confirmation import Confirmation
from indexd.replica.dropping import Dropping
from indexd.replica.follower import Follower
from indexd.replica.keeping import keep_view
from indexd.replica.mirrors import Mirrors
from indexd.replica.policy import NodePolicy
from indexd.replica.primary import Primary
from indexd.replica.repacking import Repacker
from indexd.replica.shard_copy import NodePorts, Phase, ShardCopy
from indexd.replica.succession import Succession
from indexd.replica.sweeping import look_s
from indexd.replica.tending import Tended, Tending
from indexd.replica.trainer import Trainer
from indexd.replica.tuner import Tuner
from indexd.replica.view import WATCHED, DropOrder, Holding, View
from indexd.replica.writer import ShardWriter

RETRY_PAUSE_S = 0.5
OPENING_MAX = 2
"""Shards loaded at a time; more would only compete for the same cores."""


class Node:
    """All shards of this process."""

    def __init__(  # noqa: PLR0913 - what a node is made of
        self,
        ports: NodePorts,
        committer: Committer,
        trainer: Trainer,
        view: View,
        *,
        policy: NodePolicy,
        mirrors: Mirrors | None = None,
        tuner: Tuner | None = None,
    ) -> None:
        self.copies: dict[ShardId, ShardCopy] = {}
        self._leaving: dict[ShardId, ShardCopy] = {}
        self._heirs: dict[ShardId, ShardCopy] = {}
        """Copies that are about to take the place of another."""
        self._unable: dict[ShardId, int] = {}
        """Shards whose follower goes on serving, since it could not become what a map says."""
        self._lingering: dict[ShardId, float] = {}
        """Until when copies that the map has taken away go on answering."""
        self._dropped: set[ShardId] = set()
        """Deleted here, though the map of this node may not tell yet; never to be opened again."""
        self.view = view
        self._ports = ports
        self._committer = committer
        self._codebooks = Codebooks(ports.store)
        self._changed = asyncio.Event()
        self._opening = asyncio.Semaphore(OPENING_MAX)
        self._busy: set[str] = set()
        self._tasks: asyncio.TaskGroup | None = None
        self._stopping = False
        self._policy = policy
        self.mirrors = mirrors
        self._repacker = Repacker()
        tended = Tended(trainer, tuner, ports.clock, ports.logger)
        self._tending = Tending(tended, self._start, self._changed.set)
        self._dropping = Dropping(ports, view, policy.dropping)
        self._confirmation = Confirmation(
            ports,
            self.copies,
            superseded=self._superseded,
            caught_up=self._tidy,
            load_ahead=lambda one: self._start(
                f"load {one.assignment.shard_id}", self._take_load(one)
            ),
        )
        self._succession = Succession(
            ports.claimant.node_id, view, policy.takeover, self._followed
        )

    async def run(self) -> None:
        """Follow etcd until cancelled.

        Raises:
            FencedError: another process runs under this node's id.
        """
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            tasks.create_task(self._committer.run())
            tasks.create_task(self._confirmation.run())
            tasks.create_task(self._rewrite())
            tasks.create_task(self._dropping.run(self._changed.set))
            tasks.create_task(self._succession.run(self._ports))
            for prefix in WATCHED:
                tasks.create_task(self._watch(prefix))
            if self._policy.state_dir is not None:
                folder, logger = self._policy.state_dir, self._ports.logger
                tasks.create_task(keep_view(self.view, folder, self._ports.clock, logger))
            if self.view.restored:
                self._changed.set()
            while True:
                await self._changed.wait()
                self._changed.clear()
                if (self.view.complete or self.view.restored) and not self._stopping:
                    self._reconcile()

    async def close(self) -> None:
        """Flush and let go of every shard; etcd or the store being away only costs a replay."""
        self._stopping = True
        async with asyncio.TaskGroup() as tasks:
            for copy in self.copies.values():
                tasks.create_task(self._close(copy))

    async def _close(self, copy: ShardCopy) -> None:
        """Close one shard."""
        try:
            await copy.close()
        except FacegridError as error:
            self._ports.logger.warning(
                "not flushed on stop", shard=copy.assignment.shard_id, reason=error.reason
            )

    def copy(self, shard_id: str) -> ShardCopy:
        """Return a shard that this node holds.

        Raises:
            NotFoundError: it does not (SHARD_NOT_HERE).
        """
        copy = self.copies.get(ShardId(shard_id))
        if copy is None:
            raise NotFoundError(
                f"this node does not hold the shard shard={shard_id}",
                reason="SHARD_NOT_HERE",
                shard=shard_id,
                node=self._me,
            )
        return copy

    async def load_segments(self, primary: Primary, request: LoadRequest) -> Outcome:
        """Carry a bulk load out in a task of the node: it goes on when the caller gives up."""
        if self._tasks is None or self._stopping:
            raise bulk.node_stops()
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        work = bulk.settle(future, lambda: primary.load_segments(request))
        try:
            self._tasks.create_task(work)
        except RuntimeError:
            # The group is being cancelled: the node was fenced off, and ends.
            work.close()
            raise bulk.node_stops() from None
        return await future

    def applied(self, writer: ShardWriter) -> None:
        """Look after a shard that has just taken writes: code, flush, train when due."""
        primary = self.copies.get(writer.state.shard_id)
        if not isinstance(primary, Primary):
            return
        if primary.applied():
            self._start(f"flush {writer.state.shard_id}", primary.flush())
        self._tidy(primary)
        gallery = self.view.gallery(primary.gallery.name)
        self._tending.look(gallery, primary, written=True)

    def _tidy(self, copy: ShardCopy) -> None:
        """Code rows of the exact tail, and let go of what is not needed, when there is enough."""
        if copy.absorb_due:
            self._start(f"absorb {copy.assignment.shard_id}", copy.absorb())
        if self._repacker.due(copy):
            self._start(f"repack {copy.assignment.shard_id}", self._repacker.repack(copy))
        if isinstance(copy, Follower) and copy.forget_due:
            self._start(f"forget {copy.assignment.shard_id}", copy.forget_journalled())

    async def _rewrite(self) -> None:
        """Now and then rewrite segments whose erased rows have lain in the store long enough, and
        delete what was not needed for long enough.
        """
        limit_s = self._policy.erased_rewrite_s
        while True:
            await self._ports.clock.sleep(look_s(limit_s))
            for shard_id, copy in self.copies.items():
                if not isinstance(copy, Primary):
                    continue
                if copy.rewrite_due(limit_s / 2):
                    self._start(f"flush {shard_id}", copy.rewrite())
                elif copy.sweep_due:
                    self._start(f"flush {shard_id}", copy.sweep())

    async def _watch(self, prefix: str) -> None:
        """Keep one prefix of the view up to date."""
        async for event in self._ports.coord.watch(prefix):
            self.view.heard_s[prefix] = self._ports.clock.now_s()
            known = dict(self.view.refused)
            if self.view.take(prefix, event):
                self._changed.set()
            for key, problem in self.view.refused.items() - known.items():
                self._ports.logger.error("record not understood", key=key, problem=problem)

    def _reconcile(self) -> None:
        """Start whatever makes this node hold what the maps say."""
        wanted = self.view.holdings(self._ports.claimant.node_id)
        # What the map has given up once never comes back: shard ids are used once.
        self._dropped &= wanted.keys()
        self._unable = {s: at for s, at in self._unable.items() if s in wanted}
        self._lingering = {s: until for s, until in self._lingering.items() if s not in wanted}
        for shard_id, holding in wanted.items():
            copy = self.copies.get(shard_id)
            # Work of this name may be for a copy that was taken away; it looks here again then. So
            # does one that still closes.
            opening = f"open {shard_id}" in self._busy or shard_id in self._leaving
            if copy is None and shard_id not in self._dropped and not opening:
                self.copies[shard_id] = copy = self._new_copy(holding)
                self._start(f"open {shard_id}", self._open(copy, holding))
            elif copy is not None and self._is_outdated(copy, holding):
                self._start(f"open {shard_id}", self._replace(copy, holding))
        self._dropping.held |= self.copies.keys()
        dropped = {order.record.shard_id: order for order in self._dropping.mine()}
        for shard_id in [shard_id for shard_id in self.copies if shard_id not in wanted]:
            if shard_id not in dropped:
                self._part_with(shard_id)
        for shard_id, order in dropped.items():
            self._start(f"drop {shard_id}", self._drop(order))
        for shard_id in self._dropping.gone(self._kept()):
            self._start(f"clear {shard_id}", self._dropping.clear(shard_id))
        for copy in self.copies.values():
            self._take_map(copy, wanted)
            self._check_fence(copy)
            self._check_codebook(copy, wanted)
            self._check_record(copy, wanted)
            self._tending.look(self.view.gallery(copy.gallery.name), copy)
        if self.mirrors is not None:
            self.mirrors.look(self.copies, self._start)

    def _is_outdated(self, copy: ShardCopy, holding: Holding) -> bool:
        """Tell whether the map gives this node another role than its copy has, or the one that the
        copy has lost.
        """
        if copy.phase is Phase.OPENING or not self.view.complete:
            return False
        if self._unable.get(holding.assignment.shard_id) == holding.map_revision:
            return False
        if holding.assignment.primary == self._me:
            return isinstance(copy, Follower) or copy.phase in (Phase.FENCED, Phase.CLOSED)
        return isinstance(copy, Primary)

    async def _replace(self, copy: ShardCopy, holding: Holding) -> None:
        """Put a copy in the role that the map gives in the place of one, with its rows where that
        can be. A follower is searched until the primary serves.
        """
        shard_id = holding.assignment.shard_id
        self._heirs[shard_id] = heir = self._new_copy(holding)
        try:
            if isinstance(copy, Primary):
                if isinstance(heir, Follower) and copy.phase is not Phase.OPENING:
                    await self._step_down(copy, heir)
                    return
                await copy.abandon()
            heir.inherit(copy)
            codebook = await self._codebooks.get(holding.gallery)
            await self._keep_record(heir, holding.gallery)
            await heir.open(holding.map_revision, codebook)
        except CorruptError as error:
            heir.fail(error)
            if isinstance(copy, Follower) and copy.phase is Phase.SERVING:
                # It is searched as well as before, until the map says something else.
                copy.problem = error.message
                self._unable[shard_id] = holding.map_revision
                return
        finally:
            del self._heirs[shard_id]
            self._changed.set()
        if self.copies.get(shard_id) is copy:
            self.copies[shard_id] = heir
        else:
            # Dropped or taken away meanwhile.
            await heir.abandon()
        self._changed.set()

    async def _step_down(self, primary: Primary, heir: Follower) -> None:
        """Let a follower go on with the rows of a primary. One of them can be searched all along,
        also while a flush comes to its end.
        """
        shard_id = primary.assignment.shard_id
        codebook = await self._codebooks.get(primary.gallery)
        async with primary.handed_over():
            if self.copies.get(shard_id) is primary:
                heir.go_on(primary, codebook)
                self.copies[shard_id] = heir

    def _part_with(self, shard_id: ShardId) -> None:
        """Let go of a shard that the map no longer gives to this node: when it has been searched
        for a moment longer by routers that have not heard, unless its gallery is gone.
        """
        copy, now_s = self.copies[shard_id], self._ports.clock.now_s()
        shard_map = self.view.shard_map(copy.gallery.name)
        lives = shard_map is not None and shard_map.gallery_uid == copy.gallery.uid
        until_s = self._lingering.setdefault(shard_id, now_s + limits.LINGER_S)
        if lives and copy.phase in (Phase.SERVING, Phase.FENCED) and now_s < until_s:
            if isinstance(copy, Primary):
                heir = Follower(
                    self._ports, copy.gallery, copy.assignment, map_version=copy.map_version
                )
                self._start(f"open {shard_id}", self._step_down(copy, heir))
            self._start(f"linger {shard_id}", self._linger(until_s - now_s))
            return
        del self._lingering[shard_id]
        self._leaving[shard_id] = self.copies.pop(shard_id)
        self._start(f"close {shard_id}", self._let_go(shard_id))

    async def _linger(self, duration_s: float) -> None:
        """Look again in a while."""
        await self._ports.clock.sleep(duration_s)
        self._changed.set()

    def _take_map(self, copy: ShardCopy, wanted: dict[ShardId, Holding]) -> None:
        """Let a copy that serves act by the map as it is now."""
        holding = wanted.get(copy.assignment.shard_id)
        if holding is not None and copy.phase is Phase.SERVING:
            copy.take_map(holding.gallery, holding.assignment, holding.map_version)

    def _new_copy(self, holding: Holding) -> Primary | Follower:
        """Return a copy in the role that the map gives to this node. While etcd was not heard of
        nobody can claim, so all copies follow.
        """
        gallery, assignment, version = holding.gallery, holding.assignment, holding.map_version
        if self.view.complete and assignment.primary == self._me:
            return Primary(self._ports, self._committer, gallery, assignment, map_version=version)
        return Follower(self._ports, gallery, assignment, map_version=version)

    def _followed(self) -> list[ShardId]:
        """Return the shards that this node follows, and could go on with."""
        return [
            shard_id
            for shard_id, copy in self.copies.items()
            if isinstance(copy, Follower) and copy.caught_up
        ]

    async def _take_load(self, follower: Follower) -> None:
        """Let a follower bring a bulk load in."""
        try:
            await follower.take_load()
        except CorruptError as error:
            follower.fail(error)

    @property
    def _me(self) -> NodeId:
        """This node's id."""
        return self._ports.claimant.node_id

    def _check_fence(self, copy: ShardCopy) -> None:
        """Stop serving a shard that another process has claimed since."""
        claim = self.view.generation(copy.assignment.shard_id)
        if claim is not None and isinstance(copy, Primary):
            self._superseded(copy, claim)

    def _superseded(self, primary: Primary, claim: GenerationClaim) -> None:
        """Fence a primary whose shard was claimed by a newer generation.

        Raises:
            FencedError: by another process under this node's id.
        """
        if primary.generation == 0 or claim.generation <= primary.generation:
            return
        primary.fence()
        if claim.node_id == self._me and claim.boot_id != self._ports.claimant.boot_id:
            raise FencedError(
                f"another process runs under this node's id node={self._me}"
                f" boot={claim.boot_id}; this one stops",
                reason="NODE_ID_TAKEN",
                node=self._me,
            )

    def _check_codebook(self, copy: ShardCopy, wanted: dict[ShardId, Holding]) -> None:
        """Let a shard change over to its gallery's codebook."""
        holding = wanted.get(copy.assignment.shard_id)
        if holding is None or copy.phase is not Phase.SERVING:
            return
        if holding.gallery.codebook not in ("", copy.state.codebook):
            self._start(f"codebook {copy.assignment.shard_id}", self._use_codebook(copy))

    def _check_record(self, copy: ShardCopy, wanted: dict[ShardId, Holding]) -> None:
        """Keep the gallery's records in the store up to date, from one node."""
        holding = wanted.get(copy.assignment.shard_id)
        if holding is None or not isinstance(copy, Primary) or copy.phase is not Phase.SERVING:
            return
        stored = self.view.stored_gallery(holding.gallery)
        if copy.assignment.range.first == 0 and stored not in (None, copy.recorded):
            self._start(f"record {holding.gallery.uid}", self._keep_record(copy, holding.gallery))

    async def _keep_record(self, copy: ShardCopy, gallery: Gallery) -> None:
        """Keep the gallery's records in the store, if this copy is the primary."""
        stored = self.view.stored_gallery(gallery)
        if isinstance(copy, Primary) and stored is not None:
            await copy.keep_record(stored)

    async def _use_codebook(self, copy: ShardCopy) -> None:
        """Load the gallery's codebook and build the index with it."""
        codebook = await self._codebooks.get(copy.gallery)
        if codebook is not None:
            await copy.use_codebook(codebook)
            self._changed.set()

    async def _open(self, copy: ShardCopy, holding: Holding) -> None:
        """Open a shard; on an outage wait and try again, as long as it is wanted."""
        shard_id = holding.assignment.shard_id
        async with self._opening:
            try:
                codebook = await self._codebooks.get(holding.gallery)
                # Before anything can be acknowledged, so that no write outlives its gallery.
                await self._keep_record(copy, holding.gallery)
                if isinstance(copy, Follower) and not self.view.complete:
                    await copy.open_without_etcd(codebook)
                else:
                    await copy.open(holding.map_revision, codebook)
            except CorruptError as error:
                copy.fail(error)
            except FacegridError as error:
                copy.problem = error.message
                self._ports.logger.warning(
                    "shard not opened yet",
                    shard=shard_id,
                    reason=error.reason,
                    problem=error.message,
                )
                await self._ports.clock.sleep(RETRY_PAUSE_S)
                if self.copies.get(shard_id) is copy:
                    del self.copies[shard_id]
        self._changed.set()

    async def _let_go(self, shard_id: ShardId) -> None:
        """Let go of a shard that the map no longer gives to this node. Nothing is written: others
        have it now, or its gallery was dropped.
        """
        try:
            await self._leaving[shard_id].abandon()
        finally:
            del self._leaving[shard_id]
            self._changed.set()

    async def _drop(self, order: DropOrder) -> None:
        """Let go of a dropped shard and delete it; started again until it is through."""
        shard_id = order.record.shard_id
        # The map and this record come by watches of their own, in either order: a copy may be
        # writing its last segment, which must not appear behind the deletion.
        self._dropped.add(shard_id)
        copies = [self.copies.pop(shard_id, None), self._leaving.get(shard_id)]
        for copy in (*copies, self._heirs.get(shard_id)):
            if copy is not None:
                await copy.abandon()
        await self._dropping.delete(order)

    def _kept(self) -> set[ShardId]:
        """Return the shards of which this node has a copy, opens one or closes one."""
        opening = {ShardId(name.removeprefix("open ")) for name in self._busy}
        return {*self.copies, *self._leaving, *opening}

    def _start(self, name: str, work: Coroutine[None, None, None]) -> None:
        """Run work in the background, once at a time for each name."""
        if name in self._busy or self._tasks is None:
            work.close()
            return
        guarded = self._guarded(name, work)
        try:
            task = self._tasks.create_task(guarded, name=name)
        except RuntimeError:
            # What ends with the node wants to begin other work: there is no place for it.
            guarded.close()
            work.close()
            return
        self._busy.add(name)
        task.add_done_callback(lambda _: work.close())  # cancelled before it ever began

    async def _guarded(self, name: str, work: Coroutine[None, None, None]) -> None:
        """Log what the world broke and look again later; what a bug broke ends the process."""
        try:
            await work
        except FacegridError as error:
            self._ports.logger.warning(
                "background work failed", work=name, reason=error.reason, problem=error.message
            )
            await self._ports.clock.sleep(RETRY_PAUSE_S)
            self._changed.set()
        finally:
            self._busy.discard(name)
