"""What every copy of a shard can do, primary or follower: hold a state and be searched."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import TypeVar

from facegrid import limits
from facegrid.blob.port import BlobStore
from facegrid.clock import Clock
from facegrid.coord.port import Coordinator
from facegrid.errors import CorruptError, DeadlineError, FencedError, UnavailableError
from facegrid.format.log import LogRef
from facegrid.format.records import ManifestPointer
from facegrid.model import Gallery, ShardAssignment
from facegrid.steps import Steps, finished
from facegrid.telemetry.log import Logger
from indexd.engine import recovery
from indexd.engine.coded import NamedCodebook
from indexd.engine.flush import CodedRows, Coding, Persisted
from indexd.engine.loading import ShardShape
from indexd.engine.state import ShardState
from indexd.replica.fence import Claimant
from indexd.replica.tally import Tally

T = TypeVar("T")

ABSORB_ROWS = 512
"""Rows of the exact tail that are worth coding together. With 4,096 a search beside enrolment took
twice as long: half of it was for the tail.
"""
ABSORB_ROWS_AT_ONCE = 1024
"""Rows that are coded, and then added while no search comes in between."""
FLUSH_ABSORB_ROWS_MAX = 16_384
"""A flush codes no more rows than these before it stores them: others wait for it, some of them
with writes held.
"""

REST_TIMES = 2.0
"""How many times as long as a step of long work took the rest after it is."""
REST_S_MAX = 0.02


class Phase(Enum):
    """Where a replica is in its life."""

    OPENING = "opening"
    SERVING = "serving"
    FENCED = "fenced"
    FAILED = "failed"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Trust:
    """What whoever asks knows of the shard, and makes of an answer that cannot be confirmed.

    Attributes:
        primary_boot_id: the process that claimed the shard last, as etcd told within
            limits.STALENESS_S; empty: not known.
        unconfirmed_accepted: an unconfirmed answer is better than none.
    """

    primary_boot_id: str = ""
    unconfirmed_accepted: bool = False


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
    coding_thread: ThreadPoolExecutor
    """Codes rows of exact tails, which grow meanwhile, and takes steps of long work: nothing in it
    takes long.
    """
    readers_grace_s: float = 0.0
    """How long objects that are not needed any more are left for those who read them."""
    tally: Tally = field(default_factory=Tally)
    """What this process has done so far."""


class ShardCopy(ABC):
    """A shard that this node holds."""

    def __init__(
        self,
        ports: NodePorts,
        gallery: Gallery,
        assignment: ShardAssignment,
        *,
        map_version: int = 1,
    ) -> None:
        self.assignment = assignment
        self.gallery = gallery
        self.map_version = map_version
        """Version of the gallery's map that `assignment` is of: this copy acts by it."""
        self.phase = Phase.OPENING
        self.problem = ""
        self.state = ShardState(self.shape)
        self.persisted = Persisted()
        self.loaded_from: ManifestPointer | None = None
        """The manifest that `persisted` describes."""
        self.caught_up_s = float("-inf")
        """When etcd was asked that last confirmed that this copy has all there is to have."""
        self.confirmed_s = float("-inf")
        """Likewise, where it confirmed as well that the map has this copy searched."""
        self.ports = ports
        self.log = ports.logger.bind(shard=assignment.shard_id)
        self.waiting = 0
        """How many wait for the end of long work: while any do, it takes no rests."""
        self.building = asyncio.Lock()
        """Held while another index or another state is built in the place of the present one."""
        self.repacks = True
        """Whether erased rows leave the memory; not any more once that went wrong."""
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

    @abstractmethod
    def handing_over(self) -> asyncio.Lock:
        """Return what to hold while the rows of this copy are exchanged, or become another's."""

    def exchange(self, state: ShardState, persisted: Persisted) -> None:
        """Go on with a state that holds the same rows under other numbers."""
        self.state, self.persisted = state, persisted

    def give_up_repacking(self, error: CorruptError) -> None:
        """Keep the state, though rows copied from it are others: either of the two is wrong.

        The next start reads from the store, and checks.
        """
        self.repacks = False
        self.log.error("not repacked", reason=error.reason, problem=error.message)

    async def load(
        self, pointer: ManifestPointer | None, tip: LogRef | None, codebook: NamedCodebook | None
    ) -> None:
        """Bring a new state to a tip and put it in the place of the old one.

        Raises:
            CorruptError: stored bytes are damaged, or an object is missing.
        """
        store, assignment = self.ports.store, self.assignment
        manifest = await recovery.load_manifest(store, assignment.shard_id, pointer)
        state, persisted = await recovery.load_segments(self.loads, self.shape, manifest, codebook)
        chain = await recovery.read_chain(store, assignment.shard_id, after=state.log, tip=tip)
        await recovery.replay_unseen(state, chain, self.loads)
        await self.absorb(state)
        self.state, self.persisted, self.loaded_from = state, persisted, pointer

    @property
    def shape(self) -> ShardShape:
        """What its state is made for: its gallery's rows, in the range that it was assigned."""
        gallery, assignment = self.gallery, self.assignment
        return ShardShape(
            assignment.shard_id, assignment.range, gallery.dim, gallery.component_bits
        )

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

    def check_answering(self, trust: Trust) -> bool:
        """Tell whether an answer given now would be confirmed; raise where there can be none.

        The invariant: no confirmed answer to a search that began after an erasure was acknowledged
        contains what was erased. It holds since whoever acknowledges an erasure waits until every
        other copy has applied it, or was last confirmed more than limits.STALENESS_S ago.

        Raises:
            UnavailableError: it cannot be confirmed, and that is not accepted (UNCONFIRMED).
        """
        self.check_serving()
        if self.confirmed or (self.searched and self.vouched_for(trust)):
            return True
        if trust.unconfirmed_accepted:
            return False
        raise UnavailableError(
            f"copy may be behind shard={self.assignment.shard_id}",
            reason="UNCONFIRMED",
            shard=self.assignment.shard_id,
        )

    def take_map(self, gallery: Gallery, assignment: ShardAssignment, map_version: int) -> None:
        """Act by a newer map from now on, in the same role."""
        self.gallery, self.assignment, self.map_version = gallery, assignment, map_version

    @property
    def searched(self) -> bool:
        """Whether the map has this copy answer clients: it does not while the copy joins, nor
        while its shard is being filled.
        """
        assignment = self.assignment
        return not assignment.sources and self.ports.claimant.node_id in assignment.node_ids

    @property
    def confirmed(self) -> bool:
        """Whether this copy serves, and etcd confirmed lately that it has everything, by a map in
        which it is searched.
        """
        return self.searched and self._lately(self.confirmed_s)

    @property
    def caught_up(self) -> bool:
        """Whether etcd confirmed lately that this copy has everything, searched or not."""
        return self._lately(self.caught_up_s)

    def _lately(self, asked_s: float) -> bool:
        """Tell whether this copy serves, and what etcd said when asked at a time still counts."""
        age_s = self.ports.clock.now_s() - asked_s
        return self.phase is Phase.SERVING and age_s <= limits.STALENESS_S

    def vouched_for(self, trust: Trust) -> bool:
        """Tell whether whoever asks knows that this copy has everything. Of primaries only."""
        del trust
        return False

    async def reach(self, position: int, deadline_s: float) -> None:
        """Wait until the shard has come to a position.

        Raises:
            DeadlineError: it did not in the time given.
            FencedError: it is not served here any more.
        """
        clock = self.ports.clock
        while self.state.position < position:
            # This copy may have been let go, and another have gone on with its rows.
            self.check_serving()
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

    async def absorb(self, state: ShardState | None = None, last: int | None = None) -> None:
        """Code rows of the exact tail, in parts and beside searches.

        Somebody else may do so meanwhile: then some are coded twice, and added once.

        Args:
            state: whose; None: the present one's.
            last: code those before this one; None: all that are there now.
        """
        index, rows = (state or self.state).index, ABSORB_ROWS_AT_ONCE
        wanted = index.rows_count if last is None else last
        while True:
            coded = index.codebook is not None
            code = partial(index.coded_ahead, rows)
            ahead = await self.on(self.ports.coding_thread, code) if coded else None
            await self.on(self.ports.search_thread, partial(index.add_coded, ahead, rows))
            if index.codebook is None or index.indexed_count >= wanted:
                return

    async def absorb_few(self, state: ShardState, last: int) -> None:
        """Code the rows before this one that a flush is about to write: what is stored without
        codes is coded again at every start. Unless too many wait, as after a load.
        """
        index = state.index
        waiting_count = last - index.indexed_count
        if index.codebook is not None and 0 < waiting_count <= FLUSH_ABSORB_ROWS_MAX:
            await self.absorb(state, last)

    async def codes(self, coding: Coding) -> list[CodedRows | None]:
        """Take codes out of an index, in steps and beside searches."""
        while await self.on(self.ports.search_thread, coding.step):
            pass
        return coding.found

    async def use_codebook(self, named: NamedCodebook) -> None:
        """Build an index with a codebook while the old one serves, then swap."""
        async with self.building:
            state, index = self.state, self.state.index
            if state.codebook == named.sha256:
                return
            started_s = self.ports.clock.now_s()
            built = await self.on(self.ports.build_thread, lambda: index.rebuilt(named.codebook))
            await self.on(self.ports.search_thread, lambda: state.adopt(built, named.sha256))
            await self.absorb(state)
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

    @property
    def loads(self) -> recovery.Loads:
        """Where segments come from: the store, made ready in the build thread."""
        return recovery.Loads(
            self.ports.store, lambda work: self.on(self.ports.build_thread, work)
        )

    async def gently(self, steps: Steps[T]) -> T:
        """Carry out long work with rests between its steps, so that searches find the cores and
        the interpreter free; the rest of it at once when somebody waits for its end.
        """
        clock, found = self.ports.clock, list[T]()
        thread = self.ports.coding_thread
        while not self.waiting:
            worked_s = await self.on(thread, partial(_step, steps, found, clock))
            if found:
                return found[0]
            if not self.waiting:
                await clock.sleep(min(REST_S_MAX, REST_TIMES * worked_s))
        return await self.on(thread, partial(finished, steps))

    async def on(self, thread: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        """Run work in a named thread."""
        return await asyncio.get_running_loop().run_in_executor(thread, work)


def _step(steps: Steps[T], found: list[T], clock: Clock) -> float:
    """Take one step, and put what the last one returns into `found`; return the seconds taken."""
    began_s = clock.now_s()
    try:
        next(steps)
    except StopIteration as end:
        found.append(end.value)
    return clock.now_s() - began_s
