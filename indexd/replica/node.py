"""What a node holds: follows the maps in etcd and opens, closes and drops shards accordingly."""

import asyncio
from collections.abc import Coroutine

from facegrid.coord import keys
from facegrid.coord.port import Delete
from facegrid.errors import (
    CorruptError,
    FacegridError,
    FencedError,
    NotFoundError,
)
from facegrid.format.records import Dropped, decode_tip
from facegrid.format.stored_gallery import StoredGallery, stored_gallery_prefix
from facegrid.ids import NodeId, ShardId
from facegrid.model import Gallery
from indexd.replica.codebooks import Codebooks
from indexd.replica.committer import Committer
from indexd.replica.follower import POLL_S, Follower
from indexd.replica.primary import Primary
from indexd.replica.shard_copy import NodePorts, Phase, ShardCopy
from indexd.replica.trainer import Trainer
from indexd.replica.view import WATCHED, Holding, View
from indexd.replica.writer import ShardWriter

RETRY_PAUSE_S = 0.5
TRAIN_TIMEOUT_S = 1800.0
REWRITE_LOOK_S = 30.0
"""How often to look for erased rows to be rewritten, where the limit is long."""
OPENING_MAX = 2
"""Shards loaded at a time; more would only compete for the same cores."""


class Node:
    """All shards of this process."""

    def __init__(
        self,
        ports: NodePorts,
        committer: Committer,
        trainer: Trainer,
        view: View,
        *,
        erased_rewrite_s: float,
    ) -> None:
        self.copies: dict[ShardId, ShardCopy] = {}
        self._leaving: dict[ShardId, ShardCopy] = {}
        self._dropped: set[ShardId] = set()
        """Deleted here, though the map of this node may not tell yet; never to be opened again."""
        self.view = view
        self._ports = ports
        self._committer = committer
        self._trainer = trainer
        self._codebooks = Codebooks(ports.store)
        self._changed = asyncio.Event()
        self._opening = asyncio.Semaphore(OPENING_MAX)
        self._busy: set[str] = set()
        self._tasks: asyncio.TaskGroup | None = None
        self._stopping = False
        self._erased_rewrite_s = erased_rewrite_s

    async def run(self) -> None:
        """Follow etcd until cancelled.

        Raises:
            FencedError: another process runs under this node's id.
        """
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            tasks.create_task(self._committer.run())
            tasks.create_task(self._follow())
            tasks.create_task(self._rewrite())
            for prefix in WATCHED:
                tasks.create_task(self._watch(prefix))
            while True:
                await self._changed.wait()
                self._changed.clear()
                if self.view.complete and not self._stopping:
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

    def applied(self, writer: ShardWriter) -> None:
        """Look after a shard that has just taken writes: code, flush, train when due."""
        primary = self.copies.get(writer.state.shard_id)
        if not isinstance(primary, Primary):
            return
        if primary.applied():
            self._start(f"flush {writer.state.shard_id}", primary.flush())
        self._absorb(primary)
        if self._train_due(primary):
            self._start(f"train {primary.gallery.name}", self._train(primary.gallery))

    def _absorb(self, copy: ShardCopy) -> None:
        """Code rows of the exact tail when there are enough."""
        if copy.absorb_due:
            self._start(f"absorb {copy.assignment.shard_id}", copy.absorb())

    def _train_due(self, primary: Primary) -> bool:
        """Whether the gallery has come to the size at which it trains by itself.

        Subjects fall evenly into the key space, so the first shard stands for all of them: no
        node need ask the others.
        """
        gallery = self.view.gallery(primary.gallery.name)
        if gallery is None or gallery.codebook or primary.assignment.range.first != 0:
            return False
        estimate = primary.state.templates_count * gallery.shards_count
        return 0 < gallery.train_at_templates_count <= estimate

    async def _train(self, gallery: Gallery) -> None:
        """Train; after a failure the next write tries again."""
        deadline_s = self._ports.clock.now_s() + TRAIN_TIMEOUT_S
        sha256, sample_count = await self._trainer.train(gallery.name, deadline_s)
        self._ports.logger.info(
            "trained by itself", gallery=gallery.name, codebook=sha256, sample=sample_count
        )

    async def _rewrite(self) -> None:
        """Now and then rewrite segments whose erased rows have lain in the store long enough."""
        while True:
            await self._ports.clock.sleep(min(REWRITE_LOOK_S, self._erased_rewrite_s / 2))
            for shard_id, copy in self.copies.items():
                if isinstance(copy, Primary) and copy.rewrite_due(self._erased_rewrite_s / 2):
                    self._start(f"flush {shard_id}", copy.rewrite())

    async def _watch(self, prefix: str) -> None:
        """Keep one prefix of the view up to date."""
        async for event in self._ports.coord.watch(prefix):
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
        for shard_id, holding in wanted.items():
            if shard_id not in self.copies and shard_id not in self._dropped:
                self.copies[shard_id] = copy = self._new_copy(holding)
                self._start(f"open {shard_id}", self._open(copy, holding))
        dropped = {record.shard_id: record for record in self.view.dropped(self._me)}
        for shard_id in [shard_id for shard_id in self.copies if shard_id not in wanted]:
            if shard_id in dropped:
                continue
            self._leaving[shard_id] = self.copies.pop(shard_id)
            self._start(f"close {shard_id}", self._let_go(shard_id))
        for shard_id, record in dropped.items():
            self._start(f"drop {shard_id}", self._drop(record))
        for copy in self.copies.values():
            self._check_fence(copy)
            self._check_codebook(copy, wanted)
            self._check_record(copy, wanted)

    def _new_copy(self, holding: Holding) -> ShardCopy:
        """Return a copy in the role that the map gives to this node."""
        if holding.assignment.primary == self._me:
            return Primary(self._ports, self._committer, holding.gallery, holding.assignment)
        return Follower(self._ports, holding.gallery, holding.assignment)

    async def _follow(self) -> None:
        """Keep followers at the committed tips, with one look at etcd for all of them."""
        while True:
            followers = [
                copy
                for copy in self.copies.values()
                if isinstance(copy, Follower) and copy.phase is Phase.SERVING
            ]
            if followers:
                await self._confirm(followers)
            await self._ports.clock.sleep(POLL_S)

    async def _confirm(self, followers: list[Follower]) -> None:
        """Read all tips and let the followers catch up with theirs."""
        asked_s = self._ports.clock.now_s()
        try:
            tips = {item.key: item for item in (await self._ports.coord.list(keys.TIPS)).items}
        except FacegridError:
            return
        for follower in followers:
            shard_id = follower.assignment.shard_id
            item = tips.get(keys.tip(shard_id))
            try:
                tip = None if item is None else decode_tip(item.value).log
                await follower.confirm(tip, asked_s)
            except CorruptError as error:
                follower.fail(error)
            except FacegridError:
                # Not confirmed: it will say so itself when that has lasted too long.
                continue
            self._absorb(follower)

    @property
    def _me(self) -> NodeId:
        """This node's id."""
        return self._ports.claimant.node_id

    def _check_fence(self, copy: ShardCopy) -> None:
        """Stop serving a shard that another process has claimed since."""
        claim = self.view.generation(copy.assignment.shard_id)
        if claim is None or not isinstance(copy, Primary):
            return
        if copy.generation == 0 or claim.generation <= copy.generation:
            return
        copy.fence()
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
        copy.gallery = holding.gallery
        if holding.gallery.codebook not in ("", copy.state.codebook):
            self._start(f"codebook {copy.assignment.shard_id}", self._use_codebook(copy))

    def _check_record(self, copy: ShardCopy, wanted: dict[ShardId, Holding]) -> None:
        """Keep the gallery's records in the store up to date, from one node."""
        holding = wanted.get(copy.assignment.shard_id)
        if holding is None or not isinstance(copy, Primary) or copy.phase is not Phase.SERVING:
            return
        stored = self._record_of(holding.gallery)
        if copy.assignment.range.first == 0 and stored not in (None, copy.recorded):
            self._start(f"record {holding.gallery.uid}", self._keep_record(copy, holding.gallery))

    async def _keep_record(self, copy: ShardCopy, gallery: Gallery) -> None:
        """Keep the gallery's records in the store, if this copy is the primary."""
        stored = self._record_of(gallery)
        if isinstance(copy, Primary) and stored is not None:
            await copy.keep_record(stored)

    def _record_of(self, gallery: Gallery) -> StoredGallery | None:
        """Return what etcd says of a gallery; None while settings and map do not match."""
        shard_map = self.view.shard_map(gallery.name)
        if shard_map is None or shard_map.gallery_uid != gallery.uid:
            return None
        return StoredGallery(gallery, shard_map)

    async def _use_codebook(self, copy: ShardCopy) -> None:
        """Load the gallery's codebook and build the index with it."""
        codebook = await self._codebooks.get(copy.gallery)
        if codebook is not None:
            await copy.use_codebook(codebook)

    async def _open(self, copy: ShardCopy, holding: Holding) -> None:
        """Open a shard; on an outage wait and try again, as long as it is wanted."""
        shard_id = holding.assignment.shard_id
        async with self._opening:
            try:
                codebook = await self._codebooks.get(holding.gallery)
                # Before anything can be acknowledged, so that no write outlives its gallery.
                await self._keep_record(copy, holding.gallery)
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
        """Close a shard that the map no longer gives to this node."""
        try:
            await self._leaving[shard_id].close()
        finally:
            del self._leaving[shard_id]

    async def _drop(self, record: Dropped) -> None:
        """Delete a dropped shard's objects, then its keys; started again until it is through."""
        store, shard_id = self._ports.store, record.shard_id
        # The map and this record come by watches of their own, in either order: a copy may be
        # writing its last segment, which must not appear behind the deletion.
        self._dropped.add(shard_id)
        copy = self.copies.pop(shard_id, None) or self._leaving.get(shard_id)
        if copy is not None:
            await copy.abandon()
        # First, and by the node of every shard: each may have stored the records once more.
        prefixes = [stored_gallery_prefix(record.gallery_uid), f"shards/{shard_id}/"]
        if shard_id.endswith(".0000"):
            prefixes.append(f"codebooks/{record.gallery_uid}/")
        for prefix in prefixes:
            for name in await store.list(prefix):
                await store.delete(name)
        await self._ports.coord.txn(
            [],
            [
                Delete(keys.generation(shard_id)),
                Delete(keys.tip(shard_id)),
                Delete(keys.manifest(shard_id)),
                Delete(keys.dropped(shard_id)),
            ],
        )
        self._ports.logger.info("dropped shard deleted", shard=shard_id)

    def _start(self, name: str, work: Coroutine[None, None, None]) -> None:
        """Run work in the background, once at a time for each name."""
        if name in self._busy or self._tasks is None:
            work.close()
            return
        self._busy.add(name)
        self._tasks.create_task(self._guarded(name, work), name=name)

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
