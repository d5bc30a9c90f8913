"""One shard on this node: opened, searched, written, flushed, closed."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from facegrid import limits
from facegrid.blob.port import BlobStore
from facegrid.clock import Clock
from facegrid.coord import keys
from facegrid.coord.port import Coordinator, Guard, Put
from facegrid.errors import (
    ConflictError,
    CorruptError,
    DeadlineError,
    FencedError,
    UnavailableError,
)
from facegrid.format.log import log_prefix, parse_log_name
from facegrid.format.manifest import manifest_prefix
from facegrid.format.records import ManifestPointer, encode_manifest_pointer
from facegrid.format.segment import segment_prefix
from facegrid.model import Gallery, ShardAssignment
from facegrid.telemetry.log import Logger
from indexd.engine import flush as flushing
from indexd.engine import recovery
from indexd.engine.coded import NamedCodebook
from indexd.engine.flush import Persisted, StoredObject
from indexd.engine.requests import Outcome, WriteRequest
from indexd.engine.state import ShardState
from indexd.replica.committer import Committer
from indexd.replica.fence import Claimant, Fence, claim
from indexd.replica.writer import ShardWriter

T = TypeVar("T")

ABSORB_ROWS = 4096
"""Rows of the exact tail that are worth coding together."""


class Phase(Enum):
    """Where a replica is in its life."""

    OPENING = "opening"
    SERVING = "serving"
    FENCED = "fenced"
    FAILED = "failed"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class NodePorts:
    """What replicas need of their node."""

    claimant: Claimant
    coord: Coordinator
    store: BlobStore
    clock: Clock
    logger: Logger
    search_thread: ThreadPoolExecutor
    """Owns every index of the node: all searches and all changes of index structures."""
    build_thread: ThreadPoolExecutor
    """Long work that must not hold up searches: segments, new indexes."""


class Replica:
    """A shard that this node holds as its primary."""

    def __init__(
        self, ports: NodePorts, committer: Committer, gallery: Gallery, assignment: ShardAssignment
    ) -> None:
        self.assignment = assignment
        self.gallery = gallery
        self.phase = Phase.OPENING
        self.problem = ""
        self.state = ShardState(assignment.shard_id, assignment.range, gallery.dim)
        self._ports = ports
        self._committer = committer
        self._fence: Fence | None = None
        self._writer: ShardWriter | None = None
        self._persisted = Persisted()
        self._manifest_revision = 0
        self._flushing = asyncio.Lock()
        self._building = asyncio.Lock()
        self._moved: asyncio.Future[None] | None = None
        self._log = ports.logger.bind(shard=assignment.shard_id)

    @property
    def generation(self) -> int:
        """The generation claimed, 0 before."""
        return 0 if self._fence is None else self._fence.generation

    @property
    def segments_count(self) -> int:
        """Segments in the manifest."""
        return len(self._persisted.segments)

    @property
    def writer(self) -> ShardWriter | None:
        """The write end, once open."""
        return self._writer

    async def open(self, map_revision: int, codebook: NamedCodebook | None) -> None:
        """Claim the shard, load it and begin to serve.

        Raises:
            FencedError: somebody else claimed it meanwhile; look at the map again.
            UnavailableError: etcd or the store cannot be reached; try again.
            CorruptError: stored bytes are damaged.
        """
        started_s = self._ports.clock.now_s()
        shard_id = self.assignment.shard_id
        fence = await claim(
            self._ports.coord,
            shard_id,
            claimant=self._ports.claimant,
            gallery=self.gallery.name,
            map_revision=map_revision,
        )
        await self._load(fence, codebook)
        self._fence = fence
        self._manifest_revision = fence.manifest_revision
        self._writer = ShardWriter.of(self.state, fence)
        self._committer.add(self._writer)
        self.phase = Phase.SERVING
        self._log.info(
            "shard serving",
            generation=fence.generation,
            position=self.state.position,
            templates=self.state.templates_count,
            segments=self.segments_count,
            duration_s=round(self._ports.clock.now_s() - started_s, 3),
        )

    async def _load(self, fence: Fence, codebook: NamedCodebook | None) -> None:
        """Bring the state to the committed tip."""
        store, assignment = self._ports.store, self.assignment
        manifest = await recovery.load_manifest(store, assignment.shard_id, fence.manifest)
        shape = recovery.ShardShape(assignment.shard_id, assignment.range, self.gallery.dim)
        state, self._persisted = await recovery.load_segments(store, shape, manifest, codebook)
        chain = await recovery.read_chain(
            store, assignment.shard_id, after=state.log, tip=fence.tip
        )
        recovery.replay(state, chain)
        await self._on(self._ports.search_thread, state.index.absorb)
        self.state = state

    async def write(self, request: WriteRequest) -> Outcome:
        """Commit a write; see Committer.submit for the errors."""
        self.check_serving()
        assert self._writer is not None, "a serving replica has a writer"
        return await self._committer.submit(self._writer, request)

    def check_serving(self) -> None:
        """Raise unless the shard can answer now."""
        shard_id = self.assignment.shard_id
        match self.phase:
            case Phase.SERVING:
                return
            case Phase.OPENING:
                raise UnavailableError(
                    f"shard is being opened shard={shard_id}",
                    reason="SHARD_OPENING",
                    shard=shard_id,
                )
            case Phase.FENCED | Phase.CLOSED:
                raise FencedError(
                    f"another process serves this shard shard={shard_id}", shard=shard_id
                )
            case Phase.FAILED:
                raise CorruptError(
                    f"shard is not served: {self.problem} shard={shard_id}", shard=shard_id
                )

    async def reach(self, position: int, deadline_s: float) -> None:
        """Wait until the shard has come to a position.

        Raises:
            DeadlineError: it did not in the time given.
        """
        clock = self._ports.clock
        while self.state.position < position:
            if self._moved is None or self._moved.done():
                self._moved = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(max(0.0, deadline_s - clock.now_s())):
                    await asyncio.shield(self._moved)
            except TimeoutError:
                raise DeadlineError(
                    f"shard has not come to the position asked for"
                    f" shard={self.assignment.shard_id} position={position}"
                    f" reached={self.state.position}",
                    reason="POSITION_NOT_REACHED",
                    shard=self.assignment.shard_id,
                ) from None

    def applied(self) -> bool:
        """Note that records were applied; tell whether a flush is due."""
        if self._moved is not None and not self._moved.done():
            self._moved.set_result(None)
        return self.state.rows_count - self._persisted.rows_count >= limits.FLUSH_ROWS

    @property
    def absorb_due(self) -> bool:
        """Whether enough rows of the exact tail wait to be coded."""
        index = self.state.index
        return bool(self.state.codebook) and (
            index.rows_count - index.indexed_count >= ABSORB_ROWS
        )

    async def absorb(self) -> None:
        """Code the rows of the exact tail."""
        await self._on(self._ports.search_thread, self.state.index.absorb)

    async def use_codebook(self, named: NamedCodebook) -> None:
        """Build an index with a codebook while the old one serves, then swap."""
        async with self._building:
            state, index = self.state, self.state.index
            if state.codebook == named.sha256:
                return
            started_s = self._ports.clock.now_s()
            built = await self._on(self._ports.build_thread, lambda: index.rebuilt(named.codebook))
            await self._on(self._ports.search_thread, lambda: index.swap(built))
            state.codebook = named.sha256
            await self._on(self._ports.search_thread, index.absorb)
            self._log.info(
                "codebook in use",
                codebook=named.sha256,
                rows=index.indexed_count,
                duration_s=round(self._ports.clock.now_s() - started_s, 3),
            )

    async def flush(self) -> None:
        """Write what is only in the log as a segment, commit the manifest, trim the log.

        Raises:
            UnavailableError: etcd or the store cannot be reached; the log still has everything.
            FencedError: another process has the shard.
        """
        async with self._flushing:
            if self.phase is not Phase.SERVING or self.state.position == self._persisted.position:
                return
            captured = flushing.capture(self.state, self._persisted, self.generation)
            coded = await self._on(
                self._ports.search_thread, lambda: flushing.coded_rows(captured)
            )
            built = await self._on(
                self._ports.build_thread, lambda: flushing.build(captured, coded)
            )
            if built.segment is not None:
                await self._put(built.segment)
            await self._put(built.manifest)
            await self._commit(built)
            self._persisted = built.persisted
            self._log.info(
                "flushed",
                position=built.persisted.position,
                rows=len(captured.new_rows),
                segments=self.segments_count,
            )
            await self._trim(captured.position, built.manifest.name)

    async def _commit(self, built: flushing.Flush) -> None:
        """Point etcd at the new manifest, if this process still has the shard."""
        assert self._fence is not None, "a serving replica has claimed"
        shard_id = self.assignment.shard_id
        captured = built.capture
        pointer = ManifestPointer(built.manifest.sha256, captured.position, captured.generation)
        guards = [
            Guard(keys.generation(shard_id), self._fence.gen_revision),
            Guard(keys.manifest(shard_id), self._manifest_revision),
        ]
        value = encode_manifest_pointer(pointer)
        try:
            result = await self._ports.coord.txn(guards, [Put(keys.manifest(shard_id), value)])
        except UnavailableError:
            # The answer was lost: what stands there decides.
            item = await self._ports.coord.get(keys.manifest(shard_id))
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
        store, shard_id = self._ports.store, self.assignment.shard_id
        for name in await store.list(log_prefix(shard_id)):
            parsed = parse_log_name(name)
            if parsed is not None and parsed[1] <= position:
                await store.delete(name)
        for name in await store.list(manifest_prefix(shard_id)):
            if name != manifest_name:
                await store.delete(name)
        kept = {segment.sha256 for segment in self._persisted.segments}
        for name in await store.list(segment_prefix(shard_id)):
            if name.rsplit("/", 1)[1] not in kept:
                await store.delete(name)

    async def _put(self, item: StoredObject) -> None:
        """Store an object named by its hash; one that is there already must be the same."""
        try:
            await self._ports.store.put_new(item.name, item.data)
        except (ConflictError, UnavailableError):
            if await recovery.fetch(self._ports.store, item.name, item.sha256) != item.data:
                raise

    def fail(self, error: CorruptError) -> None:
        """Give up on damaged bytes, which do not heal by trying again; the node stays up."""
        self.phase, self.problem = Phase.FAILED, error.message
        self._log.error("shard damaged", reason=error.reason, problem=error.message)

    def fence(self) -> None:
        """Stop serving: a newer process has the shard, and this copy may be behind."""
        if self.phase is Phase.FENCED:
            return
        self.phase = Phase.FENCED
        if self._writer is not None:
            self._writer.fence()
        self._log.error("fenced: another process took the shard over", generation=self.generation)

    async def close(self) -> None:
        """Finish what is on its way, flush, and let go."""
        if self._writer is not None:
            await self._committer.idle(self._writer)
            self._committer.remove(self._writer)
            if self.phase is Phase.SERVING:
                await self.flush()
        self.phase = Phase.CLOSED

    async def abandon(self) -> None:
        """Let go without another write, since the gallery was dropped; nothing is stored after."""
        self.phase = Phase.CLOSED
        if self._writer is not None:
            self._committer.remove(self._writer)
        await self._committer.quiet()
        async with self._flushing:
            return

    async def _on(self, thread: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        """Run work in a named thread."""
        return await asyncio.get_running_loop().run_in_executor(thread, work)
