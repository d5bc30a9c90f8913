"""The primary copy of a shard: claims it, writes it, flushes it."""

import asyncio
from collections.abc import Callable, Sequence

from typing_extensions import override

from facegrid import limits
from facegrid.coord import keys
from facegrid.coord.port import Guard, Put, ValueGuard
from facegrid.errors import (
    ConflictError,
    CorruptError,
    FencedError,
    NotFoundError,
    UnavailableError,
)
from facegrid.format.log import log_prefix, parse_log_name
from facegrid.format.manifest import manifest_prefix
from facegrid.format.records import ManifestPointer, encode_manifest_pointer
from facegrid.format.segment import segment_name, segment_prefix
from facegrid.format.stored_gallery import StoredGallery
from facegrid.model import Gallery, ShardAssignment
from indexd.engine import compaction
from indexd.engine import flush as flushing
from indexd.engine.coded import NamedCodebook
from indexd.engine.compaction import Run, SegmentSize
from indexd.engine.flush import StoredObject
from indexd.engine.requests import Outcome, WriteRequest
from indexd.replica import gallery_records
from indexd.replica.committer import Committer
from indexd.replica.fence import Fence, claim
from indexd.replica.shard_copy import NodePorts, Phase, ShardCopy
from indexd.replica.unsettled import settle
from indexd.replica.writer import ShardWriter

CLOSE_WAIT_S = 3.0
"""How long a stop waits for commits on their way."""


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
        self._erased_since_s: float | None = None
        self._erased_written_count = 0

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
        # From now on the node notices a newer claim, also while this loads.
        self._fence = fence
        fence = await settle(
            self.ports.coord, self.ports.store, shard_id, fence=fence, log=self.log
        )
        self._fence = fence
        await self._load_claimed(fence, codebook)
        self._manifest_revision = fence.manifest_revision
        self._writer = ShardWriter.of(self.state, fence)
        self._committer.add(self._writer)
        self.phase = Phase.SERVING
        if self.state.erased_count:
            # Nobody remembers for how long these have lain in the store: long enough.
            self._erased_since_s = float("-inf")
        self.log.info(
            "shard serving",
            generation=fence.generation,
            position=self.state.position,
            templates=self.state.templates_count,
            segments=len(self.persisted.segments),
            duration_s=round(self.ports.clock.now_s() - started_s, 3),
        )

    async def _load_claimed(self, fence: Fence, codebook: NamedCodebook | None) -> None:
        """Load what the claim found, unless the shard is lost or let go meanwhile."""
        try:
            await self.load(fence.manifest, fence.tip, codebook)
        except CorruptError:
            # Is it damaged, or has a newer primary flushed and deleted what was to be read here?
            await self._check_generation()
            raise
        if self.phase is not Phase.OPENING:
            shard_id = self.assignment.shard_id
            raise FencedError(
                f"the shard was let go while it was loaded shard={shard_id}", shard=shard_id
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
        if self._erased_since_s is None and self.state.erased_count > self._erased_written_count:
            self._erased_since_s = self.ports.clock.now_s()
        return self.state.rows_count - self.persisted.rows_count >= limits.FLUSH_ROWS

    def rewrite_due(self, erased_rewrite_s: float) -> bool:
        """Whether bytes of erased rows have lain in the store for as long as they may."""
        since_s = self._erased_since_s
        if self.phase is not Phase.SERVING:
            return False
        return since_s is not None and self.ports.clock.now_s() - since_s >= erased_rewrite_s

    async def rewrite(self) -> None:
        """Flush, and rewrite every segment that has an erased row: its bytes leave the store.

        Raises:
            UnavailableError, FencedError: as `flush`; what was erased stays masked either way.
        """
        written_count = self.state.erased_count
        await self._flush(compaction.erased_runs)
        self._erased_written_count = written_count
        later = self.state.erased_count > written_count
        self._erased_since_s = self.ports.clock.now_s() if later else None

    async def flush(self) -> None:
        """Write what is only in the log as a segment, and join small segments that add up.

        Raises:
            UnavailableError: etcd or the store cannot be reached; the log still has everything.
            FencedError: another process has the shard.
        """
        if self.state.position != self.persisted.position:
            await self._flush(compaction.small_runs)

    async def _flush(self, choose: Callable[[Sequence[SegmentSize]], list[Run]]) -> None:
        """Store segments and manifest, commit the manifest, trim the log.

        `choose` tells which segments to rewrite on this occasion.
        """
        async with self._flushing:
            if self.phase is not Phase.SERVING:
                return
            rewritten = choose(flushing.sizes(self.state, self.persisted))
            captured = flushing.capture(self.state, self.persisted, self.generation, rewritten)
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
                rows=captured.rows_written_count,
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
        if result.succeeded:
            self._manifest_revision = result.revision
            return
        await self._check_generation()
        # Still the primary: an earlier attempt that was given up for lost was carried out late.
        item = await self.ports.coord.get(keys.manifest(shard_id))
        self._manifest_revision = 0 if item is None else item.mod_revision
        if item is None or item.value != value:
            raise UnavailableError(
                f"an earlier manifest was committed late; flush again shard={shard_id}",
                reason="MANIFEST_MOVED",
                shard=shard_id,
            )

    async def _trim(self, position: int, manifest_name: str) -> None:
        """Delete what the manifest covers or does not name.

        First everything is listed, then the generation is checked, then deleted. So all that is
        deleted was there while this process was still the primary, and nobody makes it again:
        names carry a uuid or the hash of a content that states generation and position. However
        long the process stands still between two deletions, and however late a deletion is carried
        out, it cannot hit what is needed since.
        """
        store, shard_id = self.ports.store, self.assignment.shard_id
        kept = {segment_name(shard_id, segment.sha256) for segment in self.persisted.segments}
        kept.add(manifest_name)
        names = [
            *await store.list(segment_prefix(shard_id)),
            *await store.list(manifest_prefix(shard_id)),
        ]
        unneeded = [name for name in names if name not in kept]
        for name in await store.list(log_prefix(shard_id)):
            parsed = parse_log_name(name)
            if parsed is not None and parsed[1] <= position:
                unneeded.append(name)
        await self._check_generation()
        for name in unneeded:
            await store.delete(name)

    async def _check_generation(self) -> None:
        """Raise FencedError unless this process is still the primary."""
        assert self._fence is not None, "a serving replica has claimed"
        item = await self.ports.coord.get(keys.generation(self.assignment.shard_id))
        if item is None or item.value != self._fence.claim:
            raise FencedError(
                f"another process has the shard shard={self.assignment.shard_id}",
                shard=self.assignment.shard_id,
            )

    async def _put(self, item: StoredObject) -> None:
        """Store an object named by its hash; one that is there already must be the same."""
        try:
            await self.ports.store.put_new(item.name, item.data)
        except (ConflictError, UnavailableError) as open_outcome:
            try:
                there = await self.ports.store.get(item.name)
            except (NotFoundError, UnavailableError):
                raise open_outcome from None
            if there != item.data:
                raise CorruptError(
                    f"object does not match its hash name={item.name}",
                    reason="OBJECT_DAMAGED",
                    name=item.name,
                ) from open_outcome

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
            await self._committer.idle(self._writer, CLOSE_WAIT_S)
            self._committer.remove(self._writer)
            # What is on its way now may yet be committed: it belongs into the flush, and it must
            # not reach the store behind the deletion of a dropped shard.
            await self._committer.quiet()
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
