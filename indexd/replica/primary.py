"""The primary copy of a shard: claims it, writes it, flushes it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from typing_extensions import override

from facegrid import limits
from facegrid.coord import keys
from facegrid.coord.port import Guard, Put, ValueGuard
from facegrid.errors import CorruptError, FencedError, UnavailableError
from facegrid.format.records import ManifestPointer, encode_manifest_pointer
from facegrid.format.stored_gallery import StoredGallery
from facegrid.ids import ShardId
from facegrid.model import Gallery, ShardAssignment
from indexd.engine import compaction, recovery, staging
from indexd.engine import flush as flushing
from indexd.engine.coded import NamedCodebook
from indexd.engine.compaction import Run, SegmentSize
from indexd.engine.flush import Persisted
from indexd.engine.requests import LoadRequest, Outcome, WriteRequest
from indexd.engine.state import ShardState
from indexd.replica import bulk, gallery_records, hashed, trimming
from indexd.replica.committer import Committer
from indexd.replica.erasure_journal import journal_closed
from indexd.replica.fence import Fence, claim
from indexd.replica.follower import Follower
from indexd.replica.forerunners import Forerunners
from indexd.replica.shard_copy import NodePorts, Phase, ShardCopy, Trust
from indexd.replica.sweeping import Sweeper
from indexd.replica.unsettled import settle
from indexd.replica.writer import ShardWriter

CLOSE_WAIT_S = 3.0
"""How long a stop waits for commits on their way."""


class Primary(ShardCopy):
    """The copy that takes writes."""

    def __init__(
        self,
        ports: NodePorts,
        committer: Committer,
        gallery: Gallery,
        assignment: ShardAssignment,
        *,
        map_version: int = 1,
    ) -> None:
        super().__init__(ports, gallery, assignment, map_version=map_version)
        self._committer = committer
        self._fence: Fence | None = None
        self._writer: ShardWriter | None = None
        self._manifest_revision = 0
        self._flushing = asyncio.Lock()
        self.recorded: StoredGallery | None = None
        self._erased_since_s: float | None = None
        self._erased_written_count = 0
        self._heritage: ShardCopy | None = None
        self._sweeper = Sweeper(ports.readers_grace_s)
        self._settled = True
        """Whether `persisted` is what the manifest in force names. It is not while a commit may be
        carried out late that was given up for lost, nor when the rows were a follower's."""
        self.forerunners = Forerunners()
        self._handed_over = False
        self.mirrored: dict[ShardId, int] = {}
        """How far this shard was brought into others, as far as these have said."""

    @property
    @override
    def generation(self) -> int:
        """The generation claimed, 0 before."""
        return 0 if self._fence is None else self._fence.generation

    def inherit(self, copy: ShardCopy) -> None:
        """Open with the rows that this process holds as a follower, where they can be used."""
        self._heritage = copy

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
        self.caught_up_s = started_s
        if self.searched:
            self.confirmed_s = started_s
        self.forerunners.claimed(fence.generation, self.map_version, self.ports.clock.now_s())
        fence = await settle(
            self.ports.coord, self.ports.store, shard_id, fence=fence, log=self.log
        )
        self._fence = fence
        await self._load_claimed(fence, codebook)
        self._manifest_revision = fence.manifest_revision
        self._writer = ShardWriter.of(self.state, fence)
        self._committer.add(self._writer)
        self.phase = Phase.SERVING
        self._heritage = None
        if self.state.erasures_count:
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
            if not await self._take_over_rows(fence):
                await self.load(fence.manifest, fence.tip, codebook)
        except CorruptError:
            # Is it damaged, or has a newer primary flushed and deleted what was to be read here?
            await self.check_claim()
            raise
        if self.phase is not Phase.OPENING:
            shard_id = self.assignment.shard_id
            raise FencedError(
                f"the shard was let go while it was loaded shard={shard_id}", shard=shard_id
            )

    async def _take_over_rows(self, fence: Fence) -> bool:
        """Go on with the rows of the follower that this copy was; tell whether that was possible.

        A follower applies what was committed and nothing else, so what it lacks is the log behind
        it. Rows of segments that it does not know of are written anew at the next flush.
        """
        follower = self._heritage
        if not isinstance(follower, Follower):
            return False
        shard_id = self.assignment.shard_id
        manifest = await recovery.load_manifest(self.ports.store, shard_id, fence.manifest)
        async with follower.handing_over():
            if not await follower.come_to(fence.tip):
                return False
            # From here to the end of opening nothing waits, so nobody finds neither copy serving.
            follower.phase = Phase.CLOSED
            self.state, self.loaded_from = follower.state, fence.manifest
            self.persisted = follower.persisted
            if follower.loaded_from != fence.manifest:
                self.persisted = flushing.inherited(self.state, follower.persisted, manifest)
                # The manifest names segments that `persisted` does not.
                self._settled = False
        return True

    @override
    def take_map(self, gallery: Gallery, assignment: ShardAssignment, map_version: int) -> None:
        """Act by a newer map from now on: erasures wait for the copies that it names, and for
        those that it named before.
        """
        self.forerunners.moved(self.assignment, assignment, self.ports.clock.now_s())
        super().take_map(gallery, assignment, map_version)

    def claimed_by(self, claim: bytes) -> bool:
        """Tell whether a claim is the one with which this copy was opened."""
        return self._fence is not None and claim == self._fence.claim

    @override
    def vouched_for(self, trust: Trust) -> bool:
        """Tell whether whoever asks was told by etcd that this process claimed the shard last."""
        return trust.primary_boot_id == self.ports.claimant.boot_id

    @asynccontextmanager
    async def _between_flushes(self) -> AsyncIterator[None]:
        """Let no flush be under way; one that is hurries."""
        self.waiting += 1
        async with AsyncExitStack() as held:
            try:
                await held.enter_async_context(self._flushing)
            finally:
                self.waiting -= 1
            yield

    async def keep_record(self, stored: StoredGallery) -> None:
        """Keep the gallery's records in the store. The copy of the first keys also tidies up."""
        async with self._between_flushes():
            # Not behind the deletion of a dropped gallery, see abandon.
            if self.recorded == stored or self.phase not in (Phase.OPENING, Phase.SERVING):
                return
            name = await gallery_records.keep(self.ports.store, stored)
            if self.assignment.range.first == 0:
                await gallery_records.forget_older(self.ports.store, stored, name)
            self.recorded = stored

    async def keep_coming(self, present: StoredGallery | None, coming: StoredGallery) -> None:
        """Keep what etcd is about to hold of the gallery, and, before, what it holds now: a
        recovery that finds the one knows what it was to replace.
        """
        async with self._between_flushes():
            self.check_serving()
            for stored in (present, coming):
                if stored is not None:
                    await gallery_records.keep(self.ports.store, stored)

    async def write(self, request: WriteRequest) -> Outcome:
        """Commit a write; see Committer.submit for the errors."""
        return await self._committer.submit(self.writer, request)

    async def load_segments(self, request: LoadRequest) -> Outcome:
        """Commit segments that a bulk load has stored, all their rows at once.

        Cancel it only with the process: a thread may be staging rows.

        Raises:
            InvalidError, ConflictError: a segment is not fit, see `indexd.engine.loading` and
                `staging` (segment, row).
            CorruptError: a segment is missing or damaged.
            FencedError, UnavailableError: as `write`.
        """
        # Nothing is swept from the first look at the segments on.
        async with self._between_flushes():
            writer = self.writer
            done = bulk.done_before(self.state, self.persisted, request)
            if done is not None:
                return done
            segments = await bulk.fetch(self, request, partial(self._committer.check, writer))
            if request.step is not None:
                segments = [bulk.usable(one, self.state.codebook) for one in segments]
            try:
                async with self._committer.held(writer):
                    staging_work = partial(
                        staging.stage_new, self.state, request.request_id, segments
                    )
                    await self.on(self.ports.build_thread, staging_work)
                    return await self._committer.submit(writer, request)
            finally:
                if writer.in_doubt is None:
                    self.state.unstage()

    @override
    def handing_over(self) -> asyncio.Lock:
        """Return what to hold while the rows of this copy are exchanged: no flush is under way."""
        return self._flushing

    @override
    def exchange(self, state: ShardState, persisted: Persisted) -> None:
        """Go on with a state that holds the same rows under other numbers."""
        super().exchange(state, persisted)
        if self._writer is not None:
            self._writer.state = state

    @property
    def writer(self) -> ShardWriter:
        """The write end; there is one while this serves."""
        self.check_serving()
        assert self._writer is not None, "a serving replica has a writer"
        return self._writer

    @property
    def committer(self) -> Committer:
        """What commits the writes."""
        return self._committer

    def applied(self) -> bool:
        """Note that records were applied; tell whether a flush is due."""
        self.moved()
        if self._erased_since_s is None and self.state.erasures_count > self._erased_written_count:
            self._erased_since_s = self.ports.clock.now_s()
        records = self.state.position - self.persisted.position
        rows = self.state.rows_count - self.persisted.rows_count
        full = compaction.flush_rows(self.assignment.shard_id)
        return rows >= full or records >= limits.FLUSH_RECORDS

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
        written_count = self.state.erasures_count
        if flushing.not_persisted(self.state, self.persisted.rows_count):
            # Segments of loads are rewritten as soon as a manifest names them.
            await self.flush()
        await self._flush(compaction.erased_runs)
        self._erased_written_count = written_count
        later = self.state.erasures_count > written_count
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
            await bulk.unpin_committed(self.ports.store, self.state, self.persisted)
            rewritten = choose(flushing.sizes(self.state, self.persisted))
            captured = flushing.capture(self.state, self.persisted, self.generation, rewritten)
            await self.absorb_few(captured.state, captured.rows_written_last)
            coded = await self.codes(flushing.coding(captured))
            built = await self.gently(flushing.building(captured, coded))
            try:
                await self._store(built)
            except FencedError:
                await self._take_back(built)
                raise
            self.persisted, self.loaded_from = built.persisted, _pointer(built)
            flushing.forget(captured)
            self.ports.tally.flushes_count += 1
            self.log.info(
                "flushed",
                position=built.persisted.position,
                rows=captured.rows_written_count,
                segments=len(self.persisted.segments),
            )
            await self._trim()

    async def _store(self, built: flushing.Flush) -> None:
        """Store what a flush made, and commit its manifest."""
        for item in (*built.journals, *built.segments, built.manifest):
            self.check_serving()
            await hashed.put(self.ports.store, item)
        self._settled = False
        await self._commit(built)
        self._settled = True

    async def _take_back(self, built: flushing.Flush) -> None:
        """Delete what a flush stored, if its shard was dropped meanwhile. Of a shard that lives a
        successor needs it, and recovery where etcd was wiped: see RFC 0010.
        """
        shard_id, coord = self.assignment.shard_id, self.ports.coord
        claimed = await coord.get(keys.generation(shard_id)) is not None
        if claimed or not await journal_closed(self.ports.store, shard_id):
            return
        for item in (*built.segments, built.manifest):
            await self.ports.store.delete(item.name)

    async def _commit(self, built: flushing.Flush) -> None:
        """Point etcd at the new manifest, if this process still has the shard."""
        assert self._fence is not None, "a serving replica has claimed"
        shard_id = self.assignment.shard_id
        guards: list[Guard | ValueGuard] = [
            ValueGuard(keys.generation(shard_id), self._fence.claim),
            Guard(keys.manifest(shard_id), self._manifest_revision),
        ]
        value = encode_manifest_pointer(_pointer(built))
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
        await self.check_claim()
        # Still the primary: an earlier attempt that was given up for lost was carried out late.
        item = await self.ports.coord.get(keys.manifest(shard_id))
        self._manifest_revision = 0 if item is None else item.mod_revision
        if item is None or item.value != value:
            raise UnavailableError(
                f"an earlier manifest was committed late; flush again shard={shard_id}",
                reason="MANIFEST_MOVED",
                shard=shard_id,
            )

    @property
    def sweep_due(self) -> bool:
        """Whether there may be objects that have not been needed for long enough."""
        return self.phase is Phase.SERVING and self._sweeper.waiting

    async def sweep(self) -> None:
        """Delete objects that have not been needed for long enough.

        Raises:
            UnavailableError: etcd or the store cannot be reached.
            FencedError: another process has the shard.
        """
        async with self._flushing:
            if self.phase is Phase.SERVING and self._settled:
                await self._trim()

    async def _trim(self) -> None:
        """Delete what the manifest covers or does not name, once readers had time for it.

        First everything is listed, then the generation is checked, then deleted. So all that is
        deleted was there while this process was still the primary, and nobody makes it again:
        names carry a uuid or the hash of a content that states generation and position. However
        long the process stands still between two deletions, and however late a deletion is carried
        out, it cannot hit what is needed since.
        """
        unneeded = await trimming.unneeded(self, self.mirrored)
        await self.check_claim()
        for name in self._sweeper.due(unneeded, self.ports.clock.now_s()):
            await self.ports.store.delete(name)

    async def check_claim(self) -> None:
        """Raise FencedError unless this process is still the primary."""
        assert self._fence is not None, "a serving replica has claimed"
        item = await self.ports.coord.get(keys.generation(self.assignment.shard_id))
        if item is None or item.value != self._fence.claim:
            raise FencedError(
                f"another process has the shard shard={self.assignment.shard_id}",
                shard=self.assignment.shard_id,
            )

    def fence(self) -> None:
        """Stop serving: a newer process has the shard, and this copy may be behind."""
        if self.phase is Phase.FENCED or self._handed_over:
            return
        self.phase = Phase.FENCED
        self.waiting += 1
        self.moved()
        if self._writer is not None:
            self._writer.fence()
        self.log.error("fenced: another process took the shard over", generation=self.generation)

    @asynccontextmanager
    async def handed_over(self) -> AsyncIterator[None]:
        """Take no more writes, and wait for what is on its way; searches go on. Inside, the rows
        stand still, and may become another copy's; afterwards this one is closed.
        """
        self._handed_over = True
        self.waiting += 1
        if self._writer is not None:
            self._committer.remove(self._writer)
        await self._committer.quiet()
        async with self._flushing:
            yield
            self.phase = Phase.CLOSED
            self.moved()

    @override
    async def close(self) -> None:
        """Finish what is on its way, flush, and let go."""
        self.waiting += 1
        if self._writer is not None:
            await self._committer.idle(self._writer, CLOSE_WAIT_S)
            self._committer.remove(self._writer)
            # What is on its way now may yet be committed: it belongs into the flush, and it must
            # not reach the store behind the deletion of a dropped shard.
            await self._committer.quiet()
            if self.phase is Phase.SERVING:
                self._sweeper.end_grace()
                await self.flush()
                await self.sweep()
        self.phase = Phase.CLOSED

    @override
    async def abandon(self) -> None:
        """Let go without another write, since the gallery was dropped or the map names another
        primary; nothing is stored after.
        """
        self.phase = Phase.CLOSED
        self.waiting += 1
        self.moved()
        if self._writer is not None:
            self._committer.remove(self._writer)
        await self._committer.quiet()
        async with self._flushing:
            return


def _pointer(built: flushing.Flush) -> ManifestPointer:
    """Return what etcd is to say of a flush's manifest."""
    captured = built.capture
    return ManifestPointer(built.manifest.sha256, captured.position, captured.generation)
