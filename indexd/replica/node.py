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
    UnavailableError,
)
from facegrid.format.records import Dropped
from facegrid.ids import NodeId, ShardId
from facegrid.model import Gallery
from indexd.replica.codebooks import Codebooks
from indexd.replica.committer import Committer
from indexd.replica.replica import NodePorts, Phase, Replica
from indexd.replica.trainer import Trainer
from indexd.replica.view import WATCHED, Holding, View
from indexd.replica.writer import ShardWriter

RETRY_PAUSE_S = 0.5
TRAIN_TIMEOUT_S = 1800.0
OPENING_MAX = 2
"""Shards loaded at a time; more would only compete for the same cores."""


class Node:
    """All shards of this process."""

    def __init__(
        self, ports: NodePorts, committer: Committer, trainer: Trainer, view: View
    ) -> None:
        self.replicas: dict[ShardId, Replica] = {}
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

    async def run(self) -> None:
        """Follow etcd until cancelled.

        Raises:
            FencedError: another process runs under this node's id.
        """
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            tasks.create_task(self._committer.run())
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
        for replica in list(self.replicas.values()):
            try:
                await replica.close()
            except FacegridError as error:
                self._ports.logger.warning(
                    "not flushed on stop", shard=replica.assignment.shard_id, reason=error.reason
                )

    def replica(self, shard_id: str) -> Replica:
        """Return a shard that this node holds.

        Raises:
            NotFoundError: it does not (SHARD_NOT_HERE).
        """
        replica = self.replicas.get(ShardId(shard_id))
        if replica is None:
            raise NotFoundError(
                f"this node does not hold the shard shard={shard_id}",
                reason="SHARD_NOT_HERE",
                shard=shard_id,
                node=self._ports.claimant.node_id,
            )
        return replica

    def applied(self, writer: ShardWriter) -> None:
        """Look after a shard that has just taken writes: code, flush, train when due."""
        replica = self.replicas.get(writer.state.shard_id)
        if replica is None:
            return
        shard_id = replica.assignment.shard_id
        if replica.applied():
            self._start(f"flush {shard_id}", replica.flush())
        if replica.absorb_due:
            self._start(f"absorb {shard_id}", replica.absorb())
        if self._train_due(replica):
            self._start(f"train {replica.gallery.name}", self._train(replica.gallery))

    def _train_due(self, replica: Replica) -> bool:
        """Whether the gallery has come to the size at which it trains by itself.

        Subjects fall evenly into the key space, so the first shard stands for all of them: no
        node need ask the others.
        """
        gallery = self.view.gallery(replica.gallery.name)
        if gallery is None or gallery.codebook or replica.assignment.range.first != 0:
            return False
        estimate = replica.state.templates_count * gallery.shards_count
        return 0 < gallery.train_at_templates_count <= estimate

    async def _train(self, gallery: Gallery) -> None:
        """Train; after a failure the next write tries again."""
        deadline_s = self._ports.clock.now_s() + TRAIN_TIMEOUT_S
        sha256, sample_count = await self._trainer.train(gallery.name, deadline_s)
        self._ports.logger.info(
            "trained by itself", gallery=gallery.name, codebook=sha256, sample=sample_count
        )

    async def _watch(self, prefix: str) -> None:
        """Keep one prefix of the view up to date."""
        async for event in self._ports.coord.watch(prefix):
            try:
                changed = self.view.take(prefix, event)
            except CorruptError as error:
                self._ports.logger.error(  # noqa: TRY400 - the record is named; a trace adds nothing
                    "record not understood", prefix=prefix, problem=error.message
                )
                continue
            if changed:
                self._changed.set()

    def _reconcile(self) -> None:
        """Start whatever makes this node hold what the maps say."""
        wanted = self.view.holdings(self._ports.claimant.node_id)
        for shard_id, holding in wanted.items():
            if shard_id not in self.replicas:
                replica = Replica(
                    self._ports, self._committer, holding.gallery, holding.assignment
                )
                self.replicas[shard_id] = replica
                self._start(f"open {shard_id}", self._open(replica, holding))
        dropped = {record.shard_id: record for record in self.view.dropped(self._me)}
        for shard_id in [shard_id for shard_id in self.replicas if shard_id not in wanted]:
            if shard_id in dropped:
                continue
            replica = self.replicas.pop(shard_id)
            if self.view.gallery(replica.gallery.name) is None:
                self._start(f"abandon {shard_id}", replica.abandon())
            else:
                self._start(f"close {shard_id}", replica.close())
        for shard_id, record in dropped.items():
            self._start(f"drop {shard_id}", self._drop(record))
        for replica in self.replicas.values():
            self._check_fence(replica)
            self._check_codebook(replica, wanted)

    @property
    def _me(self) -> NodeId:
        """This node's id."""
        return self._ports.claimant.node_id

    def _check_fence(self, replica: Replica) -> None:
        """Stop serving a shard that another process has claimed since."""
        claim = self.view.generation(replica.assignment.shard_id)
        if claim is None or replica.generation == 0 or claim.generation <= replica.generation:
            return
        replica.fence()
        if claim.node_id == self._me and claim.boot_id != self._ports.claimant.boot_id:
            raise FencedError(
                f"another process runs under this node's id node={self._me}"
                f" boot={claim.boot_id}; this one stops",
                reason="NODE_ID_TAKEN",
                node=self._me,
            )

    def _check_codebook(self, replica: Replica, wanted: dict[ShardId, Holding]) -> None:
        """Let a shard change over to its gallery's codebook."""
        holding = wanted.get(replica.assignment.shard_id)
        if holding is None or replica.phase is not Phase.SERVING:
            return
        replica.gallery = holding.gallery
        if holding.gallery.codebook not in ("", replica.state.codebook):
            self._start(f"codebook {replica.assignment.shard_id}", self._use_codebook(replica))

    async def _use_codebook(self, replica: Replica) -> None:
        """Load the gallery's codebook and build the index with it."""
        codebook = await self._codebooks.get(replica.gallery)
        if codebook is not None:
            await replica.use_codebook(codebook)

    async def _open(self, replica: Replica, holding: Holding) -> None:
        """Open a shard; on an outage wait and try again, as long as it is wanted."""
        shard_id = holding.assignment.shard_id
        async with self._opening:
            try:
                codebook = await self._codebooks.get(holding.gallery)
                await replica.open(holding.map_revision, codebook)
            except (UnavailableError, FencedError) as error:
                replica.problem = error.message
                self._ports.logger.warning(
                    "shard not opened yet",
                    shard=shard_id,
                    reason=error.reason,
                    problem=error.message,
                )
                await self._ports.clock.sleep(RETRY_PAUSE_S)
                if self.replicas.get(shard_id) is replica:
                    del self.replicas[shard_id]
            except CorruptError as error:
                replica.fail(error)
        self._changed.set()

    async def _drop(self, record: Dropped) -> None:
        """Delete a dropped shard's objects, then its keys; started again until it is through."""
        store, shard_id = self._ports.store, record.shard_id
        replica = self.replicas.pop(shard_id, None)
        if replica is not None:
            await replica.abandon()
        prefixes = [f"shards/{shard_id}/"]
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
