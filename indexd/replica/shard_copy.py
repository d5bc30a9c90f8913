"""What every copy of a shard can do, primary or follower: hold a state and be searched."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from facegrid.blob.port import BlobStore
from facegrid.clock import Clock
from facegrid.coord.port import Coordinator
from facegrid.errors import CorruptError, DeadlineError, FencedError, UnavailableError
from facegrid.format.log import LogRef
from facegrid.format.records import ManifestPointer
from facegrid.model import Gallery, ShardAssignment
from facegrid.telemetry.log import Logger
from indexd.engine import recovery
from indexd.engine.coded import NamedCodebook
from indexd.engine.flush import Persisted
from indexd.engine.state import ShardState
from indexd.replica.fence import Claimant

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


class ShardCopy(ABC):
    """A shard that this node holds."""

    def __init__(self, ports: NodePorts, gallery: Gallery, assignment: ShardAssignment) -> None:
        self.assignment = assignment
        self.gallery = gallery
        self.phase = Phase.OPENING
        self.problem = ""
        self.state = ShardState(assignment.shard_id, assignment.range, gallery.dim)
        self.persisted = Persisted()
        self.ports = ports
        self.log = ports.logger.bind(shard=assignment.shard_id)
        self._building = asyncio.Lock()
        self._moved: asyncio.Future[None] | None = None

    @property
    @abstractmethod
    def generation(self) -> int:
        """The generation of the primary whose records this copy has; 0: not known yet."""

    @abstractmethod
    async def open(self, map_revision: int, codebook: NamedCodebook | None) -> None:
        """Load the shard and begin to serve."""

    @abstractmethod
    async def close(self) -> None:
        """Finish what is on its way and let go."""

    @abstractmethod
    async def abandon(self) -> None:
        """Let go without another write: the gallery was dropped."""

    async def load(
        self, pointer: ManifestPointer | None, tip: LogRef | None, codebook: NamedCodebook | None
    ) -> None:
        """Bring a new state to a tip and put it in the place of the old one.

        Raises:
            CorruptError: stored bytes are damaged, or an object is missing.
        """
        store, assignment = self.ports.store, self.assignment
        manifest = await recovery.load_manifest(store, assignment.shard_id, pointer)
        shape = recovery.ShardShape(assignment.shard_id, assignment.range, self.gallery.dim)
        state, persisted = await recovery.load_segments(store, shape, manifest, codebook)
        chain = await recovery.read_chain(store, assignment.shard_id, after=state.log, tip=tip)
        recovery.replay(state, chain)
        await self.on(self.ports.search_thread, state.index.absorb)
        self.state, self.persisted = state, persisted

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
        clock = self.ports.clock
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

    def moved(self) -> None:
        """Wake those who wait for a position."""
        if self._moved is not None and not self._moved.done():
            self._moved.set_result(None)

    @property
    def absorb_due(self) -> bool:
        """Whether enough rows of the exact tail wait to be coded."""
        index = self.state.index
        return bool(self.state.codebook) and (
            index.rows_count - index.indexed_count >= ABSORB_ROWS
        )

    async def absorb(self) -> None:
        """Code the rows of the exact tail."""
        await self.on(self.ports.search_thread, self.state.index.absorb)

    async def use_codebook(self, named: NamedCodebook) -> None:
        """Build an index with a codebook while the old one serves, then swap."""
        async with self._building:
            state, index = self.state, self.state.index
            if state.codebook == named.sha256:
                return
            started_s = self.ports.clock.now_s()
            built = await self.on(self.ports.build_thread, lambda: index.rebuilt(named.codebook))
            await self.on(self.ports.search_thread, lambda: state.adopt(built, named.sha256))
            await self.on(self.ports.search_thread, index.absorb)
            self.log.info(
                "codebook in use",
                codebook=named.sha256,
                rows=index.indexed_count,
                duration_s=round(self.ports.clock.now_s() - started_s, 3),
            )

    def fail(self, error: CorruptError) -> None:
        """Give up on damaged bytes, which do not heal by trying again; the node stays up."""
        self.phase, self.problem = Phase.FAILED, error.message
        self.log.error("shard damaged", reason=error.reason, problem=error.message)

    async def on(self, thread: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        """Run work in a named thread."""
        return await asyncio.get_running_loop().run_in_executor(thread, work)
