"""The primary copy of a shard: claims it, writes it, flushes it."""

import asyncio

from typing_extensions import override

from facegrid import limits
from facegrid.coord import keys
from facegrid.coord.port import Guard, Put, ValueGuard
from facegrid.errors import ConflictError, FencedError, UnavailableError
from facegrid.format.log import log_prefix, parse_log_name
from facegrid.format.manifest import manifest_prefix
from facegrid.format.records import ManifestPointer, encode_manifest_pointer
from facegrid.format.segment import segment_prefix
from facegrid.format.stored_gallery import StoredGallery
from facegrid.model import Gallery, ShardAssignment
from indexd.engine import flush as flushing
from indexd.engine import recovery
from indexd.engine.coded import NamedCodebook
from indexd.engine.flush import StoredObject
from indexd.engine.requests import Outcome, WriteRequest
from indexd.replica import gallery_records
from indexd.replica.committer import Committer
from indexd.replica.fence import Fence, claim
from indexd.replica.shard_copy import NodePorts, Phase, ShardCopy
from indexd.replica.unsettled import settle
from indexd.replica.writer import ShardWriter


class Primary(ShardCopy):
    """The copy that takes writes."""

    def __init__(
        self, ports: NodePorts, committer: Committer, gallery: Gallery, assignment: ShardAssignment
    ) -> None:
        super().__init__(ports, gallery, assignment)
        self._committer = committer
        self._fence: Fence | None = None
        self._writer: ShardWriter | None = None
        self._manifest_revision = 0
        self._flushing = asyncio.Lock()
        self.recorded: StoredGallery | None = None

    @property
    @override
    def generation(self) -> int:
        """The generation claimed, 0 before."""
        return 0 if self._fence is None else self._fence.generation

    @override
    async def open(self, map_revision: int, codebook: NamedCodebook | None) -> None:
        """Claim the shard, load it and begin to serve.

        Raises:
            FencedError: somebody else claimed it meanwhile; look at the map again.
            UnavailableError: etcd or the store cannot be reached; try again.
            CorruptError: stored bytes are damaged, or etcd is behind the store (ETCD_BEHIND).
        """
        started_s = self.ports.clock.now_s()
        shard_id = self.assignment.shard_id
        fence = await claim(
            self.ports.coord,
            shard_id,
            claimant=self.ports.claimant,
            gallery=self.gallery.name,
            map_revision=map_revision,
        )
        fence = await settle(
            self.ports.coord, self.ports.store, shard_id, fence=fence, log=self.log
        )
        await self.load(fence.manifest, fence.tip, codebook)
        self._fence = fence
        self._manifest_revision = fence.manifest_revision
        self._writer = ShardWriter.of(self.state, fence)
        self._committer.add(self._writer)
        self.phase = Phase.SERVING
        self.log.info(
            "shard serving",
            generation=fence.generation,
            position=self.state.position,
            templates=self.state.templates_count,
            segments=len(self.persisted.segments),
            duration_s=round(self.ports.clock.now_s() - started_s, 3),
        )

    async def keep_record(self, stored: StoredGallery) -> None:
        """Keep the gallery's records in the store. The copy of the first keys also tidies up."""
        async with self._flushing:
            # Not behind the deletion of a dropped gallery, see abandon.
            if self.recorded == stored or self.phase not in (Phase.OPENING, Phase.SERVING):
                return
            name = await gallery_records.keep(self.ports.store, stored)
            if self.assignment.range.first == 0:
                await gallery_records.forget_older(self.ports.store, stored, name)
            self.recorded = stored

    async def write(self, request: WriteRequest) -> Outcome:
        """Commit a write; see Committer.submit for the errors."""
        self.check_serving()
        assert self._writer is not None, "a serving replica has a writer"
        return await self._committer.submit(self._writer, request)

    def applied(self) -> bool:
        """Note that records were applied; tell whether a flush is due."""
        self.moved()
        return self.state.rows_count - self.persisted.rows_count >= limits.FLUSH_ROWS

    async def flush(self) -> None:
        """Write what is only in the log as a segment, commit the manifest, trim the log.

        Raises:
            UnavailableError: etcd or the store cannot be reached; the log still has everything.
            FencedError: another process has the shard.
        """
        async with self._flushing:
            if self.phase is not Phase.SERVING or self.state.position == self.persisted.position:
                return
            captured = flushing.capture(self.state, self.persisted, self.generation)
            coded = await self.on(self.ports.search_thread, lambda: flushing.coded_rows(captured))
            built = await self.on(self.ports.build_thread, lambda: flushing.build(captured, coded))
            for item in (*built.segments, built.manifest):
                self.check_serving()
                await self._put(item)
            await self._commit(built)
            self.persisted = built.persisted
            self.log.info(
                "flushed",
                position=built.persisted.position,
                rows=len(captured.new_rows),
                segments=len(self.persisted.segments),
            )
            await self._trim(captured.position, built.manifest.name)

    async def _commit(self, built: flushing.Flush) -> None:
        """Point etcd at the new manifest, if this process still has the shard."""
        assert self._fence is not None, "a serving replica has claimed"
        shard_id = self.assignment.shard_id
        captured = built.capture
        pointer = ManifestPointer(built.manifest.sha256, captured.position, captured.generation)
        guards: list[Guard | ValueGuard] = [
            ValueGuard(keys.generation(shard_id), self._fence.claim),
            Guard(keys.manifest(shard_id), self._manifest_revision),
        ]
        value = encode_manifest_pointer(pointer)
        try:
            result = await self.ports.coord.txn(guards, [Put(keys.manifest(shard_id), value)])
        except UnavailableError:
            # The answer was lost: what stands there decides.
            item = await self.ports.coord.get(keys.manifest(shard_id))
            if item is None or item.value != value:
                raise
            self._manifest_revision = item.mod_revision
            return
        if not result.succeeded:
            raise FencedError(
                f"manifest refused: another process has the shard shard={shard_id}",
                shard=shard_id,
            )
        self._manifest_revision = result.revision

    async def _trim(self, position: int, manifest_name: str) -> None:
        """Delete log objects that the manifest covers, and manifests and segments it replaced."""
        store, shard_id = self.ports.store, self.assignment.shard_id
        for name in await store.list(log_prefix(shard_id)):
            parsed = parse_log_name(name)
            if parsed is not None and parsed[1] <= position:
                await store.delete(name)
        for name in await store.list(manifest_prefix(shard_id)):
            if name != manifest_name:
                await store.delete(name)
        kept = {segment.sha256 for segment in self.persisted.segments}
        for name in await store.list(segment_prefix(shard_id)):
            if name.rsplit("/", 1)[1] not in kept:
                await store.delete(name)

    async def _put(self, item: StoredObject) -> None:
        """Store an object named by its hash; one that is there already must be the same."""
        try:
            await self.ports.store.put_new(item.name, item.data)
        except (ConflictError, UnavailableError):
            if await recovery.fetch(self.ports.store, item.name, item.sha256) != item.data:
                raise

    def fence(self) -> None:
        """Stop serving: a newer process has the shard, and this copy may be behind."""
        if self.phase is Phase.FENCED:
            return
        self.phase = Phase.FENCED
        if self._writer is not None:
            self._writer.fence()
        self.log.error("fenced: another process took the shard over", generation=self.generation)

    @override
    async def close(self) -> None:
        """Finish what is on its way, flush, and let go."""
        if self._writer is not None:
            await self._committer.idle(self._writer)
            self._committer.remove(self._writer)
            if self.phase is Phase.SERVING:
                await self.flush()
        self.phase = Phase.CLOSED

    @override
    async def abandon(self) -> None:
        """Let go without another write, since the gallery was dropped; nothing is stored after."""
        self.phase = Phase.CLOSED
        if self._writer is not None:
            self._committer.remove(self._writer)
        await self._committer.quiet()
        async with self._flushing:
            return
