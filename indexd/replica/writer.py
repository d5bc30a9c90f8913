"""The write end of a primary: its queue, its place in the log, a commit not yet settled."""

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from facegrid.coord import keys
from facegrid.coord.port import Guard, Put, ValueGuard
from facegrid.errors import FacegridError, FencedError
from facegrid.format.log import LogRecord, LogRef
from facegrid.format.records import Tip, encode_tip
from indexd.engine.requests import Outcome, WriteRequest
from indexd.engine.state import ShardState
from indexd.replica.fence import Fence


@dataclass(slots=True, eq=False)
class WriteTicket:
    """A write that waits for its outcome."""

    request: WriteRequest
    future: asyncio.Future[Outcome]

    def settle(self, result: Outcome | FacegridError) -> None:
        """Tell the caller, unless it has gone."""
        if self.future.done():
            return
        if isinstance(result, Outcome):
            self.future.set_result(result)
        else:
            self.future.set_exception(result)


@dataclass(slots=True, eq=False)
class PendingGroup:
    """Records on their way: one log object of one shard."""

    writer: "ShardWriter"
    records: list[tuple[LogRecord, WriteTicket]]
    name: str
    data: bytes
    ref: LogRef

    def guards(self) -> list[Guard | ValueGuard]:
        """Return what must hold for the commit: same generation, same tip."""
        writer = self.writer
        shard_id = writer.state.shard_id
        return [
            ValueGuard(keys.generation(shard_id), writer.claim),
            Guard(keys.tip(shard_id), writer.tip_revision),
        ]

    def put(self) -> Put:
        """Return the write that commits it."""
        return Put(keys.tip(self.writer.state.shard_id), encode_tip(Tip(self.ref)))

    def settle_all(self, error: FacegridError) -> None:
        """Tell every caller of the group that it failed."""
        for _, ticket in self.records:
            ticket.settle(error)


class RecentLog:
    """The last log objects that a primary committed, by name, as far as there is room.

    Args:
        bytes_max: room; the oldest go first.
    """

    def __init__(self, bytes_max: int) -> None:
        self._objects: OrderedDict[str, bytes] = OrderedDict()
        self._bytes_max = bytes_max
        self._bytes = 0

    def keep(self, name: str, data: bytes) -> None:
        """Keep an object that was just committed."""
        self._objects[name] = data
        self._bytes += len(data)
        while self._bytes > self._bytes_max:
            self._bytes -= len(self._objects.popitem(last=False)[1])

    def get(self, name: str) -> bytes | None:
        """Return an object, or None where it is not kept any more."""
        return self._objects.get(name)


@dataclass(slots=True, eq=False)
class ShardWriter:
    """What the committer knows of one primary."""

    state: ShardState
    generation: int
    claim: bytes
    tip: LogRef | None
    tip_revision: int
    waiting: deque[WriteTicket] = field(default_factory=deque)
    in_doubt: PendingGroup | None = None
    doubt: str = ""
    """What etcd, or the way to it, said last when it did not confirm a commit."""
    fenced: bool = False
    closed: bool = False
    held: bool = False
    """Nothing is taken from the queue: a bulk load is being brought into the rows."""
    paused: bool = False
    """Likewise, while other shards are about to take this one's place."""
    recent: RecentLog | None = None
    """Kept for who brings this shard's log into others; None: nobody does."""

    @classmethod
    def of(cls, state: ShardState, fence: Fence) -> "ShardWriter":
        """Return the writer for a state recovered under a fence."""
        return cls(
            state=state,
            generation=fence.generation,
            claim=fence.claim,
            tip=fence.tip,
            tip_revision=fence.tip_revision,
        )

    @property
    def busy(self) -> bool:
        """Whether there is something to commit or to find out."""
        waits = self.held or self.paused
        return (bool(self.waiting) and not waits) or self.in_doubt is not None

    def recent_object(self, name: str) -> bytes | None:
        """Return a log object that was committed a moment ago, if it is kept."""
        return None if self.recent is None else self.recent.get(name)

    def fence(self) -> None:
        """Lose the right to write: everyone who waits is told, and whoever comes later."""
        self.fenced = True
        self.refuse_waiting(self.fenced_error())
        if self.in_doubt is not None:
            self.in_doubt = None

    def refuse_waiting(self, error: FacegridError) -> None:
        """Empty the queue with an error."""
        while self.waiting:
            self.waiting.popleft().settle(error)

    def fenced_error(self) -> FencedError:
        """Return the error that says so."""
        shard_id = self.state.shard_id
        return FencedError(
            f"another process took the shard over shard={shard_id} generation={self.generation}",
            shard=shard_id,
        )
