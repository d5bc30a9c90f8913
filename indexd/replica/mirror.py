"""Brings one shard into a pending one: its rows at one position, then its log from there on.

The pending shard's primary says how far it is, and takes only what follows that. So whatever is
lost, repeated, or sent by two processes, each record has its effect once; and whoever begins, also
after a takeover of either shard, asks first. docs/rfcs/0009-resharding.md has the protocol.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from facegrid import limits
from facegrid.api.shard.v1 import shard_service_pb2 as pb
from facegrid.coord import keys
from facegrid.errors import CorruptError, FencedError, InvalidError
from facegrid.format.checks import sha256_hex
from facegrid.format.load_pin import LoadPin, encode_pin, parse_pin_name, pin_name, pin_prefix
from facegrid.format.log import EnrolRecord, EraseRecord, LoadedSegment, LoadRecord, encode_record
from facegrid.format.segment import segment_name
from facegrid.format.sources import InheritedRequest, SourcePosition
from facegrid.model import ShardAssignment
from facegrid.steps import Steps
from indexd.engine import flush, recovery, reshape
from indexd.engine.flush import StoredObject
from indexd.engine.reshape import BuiltSegment, Target
from indexd.replica import hashed
from indexd.replica.erasure_journal import journal_closed
from indexd.replica.log_reader import LogReader
from indexd.replica.primary import Primary

CALL_TIMEOUT_S: Final = 5.0
"""Of a call that brings records: they are committed in a moment, or not now."""
LOAD_TIMEOUT_S: Final = 900.0
"""Of a call that brings segments: the primary reads and checks all of their rows."""
BATCH_RECORDS: Final = 2048
"""Records of one call, but for those of one log object, which stay together."""
UNKNOWN: Final = -1
"""Asked as the position before, it fits nothing: the answer tells the present one."""


Ask = Callable[[pb.MirrorRequest, float], Awaitable[pb.MirrorResponse]]
"""Calls Mirror on the primary of a pending shard, with a time limit in seconds; raises the
FacegridError that this raised, or UnavailableError where it cannot be reached."""


@dataclass(frozen=True, slots=True)
class BuiltBase:
    """The rows of a source as segments of a child: the source is as far there, then, as `step`."""

    segments: tuple[BuiltSegment, ...]
    step: SourcePosition
    request_id: str
    inherited: tuple[InheritedRequest, ...]


class Mirror:
    """Brings the shard of a primary into one pending shard.

    Args:
        primary: of the source.
        child: the pending shard.
        ask: calls its primary.
        new_id: returns what was never returned before, 8 to 40 of 0-9 and a-z.
    """

    def __init__(
        self, primary: Primary, child: ShardAssignment, ask: Ask, new_id: Callable[[], str]
    ) -> None:
        self.child = child
        self._primary = primary
        self._source = primary.assignment.shard_id
        self._ask = ask
        self._new_id = new_id
        self._reader: LogReader | None = None
        self._pending: list[LoadRecord] = []
        """A bulk load that was read, and comes when all before it has been brought over."""
        self._base: BuiltBase | None = None
        """Stored, and not loaded yet."""
        self._made: list[str] = []
        """Names of all that was stored for the child."""
        self._advanced = asyncio.Event()
        self.cursor: int | None = None
        """How far the child has the source, as it said last; None: not asked yet."""

    async def step(self) -> bool:
        """Bring the next part over; tell whether there was any.

        Raises:
            UnavailableError, FencedError: now it cannot be done. Call `doubt`, and try again.
            CorruptError: something stored is damaged.
        """
        self._primary.check_serving()
        if self.cursor is None:
            self._reached(await self._tell(pb.MirrorRequest(after_position=UNKNOWN)))
            return True
        if self._primary.state.position <= self.cursor:
            return False
        if self.cursor == 0:
            await self._bring_base()
        else:
            await self._bring_log(self.cursor)
        return True

    def doubt(self) -> None:
        """Forget how far the child is: something went wrong, and may have had its effect."""
        self.cursor, self._reader, self._pending = None, None, []

    async def reach(self, position: int) -> None:
        """Return once the child has the source up to a position."""
        while self.cursor is None or self.cursor < position:
            await self._advanced.wait()

    async def clean(self) -> None:
        """Delete what was stored for a child that is none any more, and was deleted: some of it
        may have come after that. That no map speaks of it is not enough, see `Dropping.clear`.

        Raises:
            UnavailableError: etcd or the store cannot be reached.
        """
        ports, shard_id = self._primary.ports, self.child.shard_id
        if await ports.coord.get(keys.dropped(shard_id)) is None:
            claim = await ports.coord.get(keys.generation(shard_id))
            if claim is not None or not await journal_closed(ports.store, shard_id):
                return
        for name in self._made:
            await ports.store.delete(name)

    # The rows

    async def _bring_base(self) -> None:
        """Store what lives now as segments of the child, and let it load them."""
        if self._base is None:
            self._base = await self._build_base()
        base = self._base
        # Who has claimed the shard before now may have trimmed its log beyond this position. Who
        # claims it from here on knows of the child, and keeps what it needs.
        await self._primary.check_claim()
        try:
            await self._load(
                base.segments, base.step, request_id=base.request_id, inherited=base.inherited
            )
        except (CorruptError, InvalidError):
            # There is something wrong with it.
            self._base = None
            raise
        self._base = None
        self._primary.log.info(
            "base brought into a pending shard",
            into=self.child.shard_id,
            position=base.step.position,
            rows=sum(one.rows_count for one in base.segments),
        )

    async def _build_base(self) -> BuiltBase:
        """Store what lives now as segments of the child."""
        primary = self._primary
        await primary.flush()
        await primary.absorb()
        base = reshape.base_of(primary.state)
        target = self._target()
        built: list[BuiltSegment] = []
        for rows in base.pieces():
            primary.check_serving()
            coded = await primary.codes(flush.Coding(base.state, [rows]))
            steps = reshape.base_segment(base.state, rows, coded[0], target)
            built += await self._stored(steps, target)
        step = SourcePosition(self._source, base.position)
        request_id = f"base-{target.load_id}"
        return BuiltBase(tuple(built), step, request_id, tuple(base.carried_out))

    async def unpin(self) -> None:
        """Take the pins away of what was loaded, and of attempts before, whoever made them: the
        child sweeps what it does not need.
        """
        store = self._primary.ports.store
        for name in await store.list(pin_prefix(self.child.shard_id)):
            pin = parse_pin_name(name)
            if pin is not None and pin.load_id.startswith(self._load_prefix):
                await store.delete(name)

    @property
    def _load_prefix(self) -> str:
        """What begins the ids of all loads that bring this source into a shard."""
        return f"from{self._source.rpartition('.')[2]}x"

    def _target(self) -> Target:
        """Return what a new load is for."""
        return Target(
            self.child.shard_id, self.child.range, f"{self._load_prefix}{self._new_id()}"
        )

    async def _stored(
        self, steps: Steps[BuiltSegment | None], target: Target
    ) -> list[BuiltSegment]:
        """Build one segment beside searches; pin and store it. Return it without its bytes."""
        built = await self._primary.gently(steps)
        if built is None:
            return []
        stored = built.stored
        pin = LoadPin(target.shard_id, target.load_id, stored.sha256)
        data = encode_pin(pin)
        await self._put(StoredObject(pin_name(pin), sha256_hex(data), data))
        await self._put(stored)
        return [BuiltSegment(StoredObject(stored.name, stored.sha256, b""), built.rows_count)]

    async def _put(self, item: StoredObject) -> None:
        """Store an object, and remember that it was."""
        self._made.append(item.name)
        await hashed.put(self._primary.ports.store, item)

    async def _load(
        self,
        built: Sequence[BuiltSegment],
        step: SourcePosition,
        *,
        request_id: str,
        inherited: Sequence[InheritedRequest] = (),
    ) -> None:
        """Let the child load segments: the source is as far there, then, as the step says."""
        record: LoadRecord | EnrolRecord
        if built:
            loaded = [LoadedSegment(one.stored.sha256, one.rows_count) for one in built]
            record = LoadRecord(
                step.position, request_id, bytes(16), 0, loaded, step, inherited=inherited
            )
        else:
            record = EnrolRecord(
                position=step.position,
                request_id=request_id,
                request_digest=bytes(16),
                written_unix_ms=0,
                template_ids=[],
                subject_ids=[],
                codes=np.empty((0, self._primary.state.dim), np.int8),
                source=step,
                inherited=inherited,
            )
        await self._bring([encode_record(record)], step.position, timeout_s=LOAD_TIMEOUT_S)
        await self.unpin()

    # The log

    async def _bring_log(self, cursor: int) -> None:
        """Bring the records over that follow, as many as fit into one call."""
        if self._pending:
            await self._bring_load(self._pending.pop())
            return
        if self._reader is None:
            self._reader = LogReader(self._object, self._source, cursor)
        records: list[bytes] = []
        count, last = 0, cursor
        while count < BATCH_RECORDS and sum(map(len, records)) < limits.LOG_GROUP_BYTES_MAX:
            group = await self._reader.next(self._primary.state.log)
            if group is None:
                break
            work = partial(
                reshape.carried,
                group,
                cursor,
                of=self._primary.assignment.range,
                into=self.child.range,
            )
            carried = await asyncio.to_thread(work)
            # A load is alone in its object.
            self._pending = [one for one in carried if isinstance(one, LoadRecord)]
            if self._pending:
                break
            records += [
                encode_record(one) for one in carried if isinstance(one, EnrolRecord | EraseRecord)
            ]
            count, last = count + len(carried), group.last_position
        if last > cursor:
            await self._bring(records, last, timeout_s=CALL_TIMEOUT_S)

    async def _bring_load(self, record: LoadRecord) -> None:
        """Bring a bulk load of the source over: of its segments the rows in the child's range."""
        assert record.source is not None, "what is carried has its source"
        store, target = self._primary.ports.store, self._target()
        built: list[BuiltSegment] = []
        for loaded in record.segments:
            if loaded.unchanged_count == loaded.rows_count:
                continue
            name = segment_name(self._source, loaded.sha256)
            data = await recovery.fetch(store, name, loaded.sha256)
            steps = reshape.loaded_segment(data, loaded, target)
            built += await self._stored(steps, target)
        await self._load(built, record.source, request_id=record.request_id)

    async def _object(self, name: str) -> bytes:
        """Return a log object of the source: from memory if it was committed just now."""
        recent = self._primary.writer.recent_object(name)
        return recent or await recovery.fetch_unchecked(self._primary.ports.store, name)

    # The child

    async def _bring(self, records: list[bytes], last: int, *, timeout_s: float) -> None:
        """Bring records over, up to a position of the source.

        Raises:
            FencedError: the child has another position: somebody else brings records, too.
        """
        assert self.cursor is not None, "asked before anything is brought"
        request = pb.MirrorRequest(after_position=self.cursor, last_position=last, records=records)
        told = await self._tell(request, timeout_s=timeout_s)
        if told != last:
            raise FencedError(
                f"the pending shard is elsewhere by now shard={self.child.shard_id}"
                f" source={self._source} position={told} expected={last}",
                reason="MIRROR_ELSEWHERE",
                shard=self.child.shard_id,
            )
        self._reached(told)

    async def _tell(self, request: pb.MirrorRequest, *, timeout_s: float = CALL_TIMEOUT_S) -> int:
        """Call the child's primary; return how far it has the source."""
        request.shard_id, request.source_shard_id = self.child.shard_id, self._source
        return (await self._ask(request, timeout_s)).source_position

    def _reached(self, position: int) -> None:
        """Note how far the child is: it does not need the source's log up to there any more."""
        self.cursor = position
        self._primary.mirrored[self.child.shard_id] = position
        advanced, self._advanced = self._advanced, asyncio.Event()
        advanced.set()
