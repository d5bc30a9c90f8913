"""Commits the writes of all primaries of a node, in rounds: one object per shard, one transaction.

A round takes what waits in the queues, stores one log object for each shard, and commits them all
with one transaction in etcd: that is the moment a write is acknowledged. The next round collects
while this one is on its way, so groups grow with the load and a lone write waits for nobody.

Nothing here retries blindly. A transaction whose outcome is unknown leaves its group *in doubt*:
callers are told UNAVAILABLE at once, and the same guarded transaction is sent again until etcd
answers. Its guard is the old tip, so it can take effect at most once.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from facegrid import limits
from facegrid.blob.port import BlobStore
from facegrid.clock import Clock
from facegrid.coord import keys
from facegrid.coord.port import Coordinator
from facegrid.errors import (
    ConflictError,
    FacegridError,
    FencedError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)
from facegrid.format.log import LogGroup, LogRef, encode_log, log_name, log_ref
from facegrid.telemetry.log import Logger
from indexd.engine.group import form_group
from indexd.engine.requests import LoadRequest, Outcome, WriteRequest
from indexd.replica.writer import PendingGroup, ShardWriter, WriteTicket

COMMIT_TIMEOUT_S = 1.0
DOUBT_TIMEOUT_S = 0.5
"""Of each further attempt. What etcd's leader was given is lost when it dies: short attempts
find its successor sooner; one that takes effect after all is found by reading."""
DOUBT_PAUSE_S = 0.25
RESOLVE_TIMEOUT_S = 3.0
"""Of the read that tells whether an attempt took effect, for an etcd that is slow."""


@dataclass(frozen=True, slots=True)
class CommitterPorts:
    """What the committer needs of the world."""

    coord: Coordinator
    store: BlobStore
    clock: Clock
    new_uuid: Callable[[], str]
    logger: Logger


class Committer:
    """The one place of a node where writes become durable."""

    def __init__(self, ports: CommitterPorts, on_applied: Callable[[ShardWriter], None]) -> None:
        self._ports = ports
        self._on_applied = on_applied
        self._writers: list[ShardWriter] = []
        self._wake = asyncio.Event()
        self._queued_bytes = 0
        self._rounds = asyncio.Lock()
        self._written_ms = 0

    def add(self, writer: ShardWriter) -> None:
        """Take on a primary."""
        self._writers.append(writer)

    def remove(self, writer: ShardWriter) -> None:
        """Let a primary go; its waiting writes are refused."""
        writer.closed = True
        writer.refuse_waiting(_closing(writer))
        if writer in self._writers:
            self._writers.remove(writer)

    def check(self, writer: ShardWriter) -> None:
        """Raise FencedError or UnavailableError where a write would be refused at once."""
        if writer.fenced:
            raise writer.fenced_error()
        if writer.closed:
            raise _closing(writer)
        if writer.in_doubt is not None:
            raise _doubtful(writer)

    async def submit(self, writer: ShardWriter, request: WriteRequest) -> Outcome:
        """Return what the write did, once it is durable and searchable.

        Raises:
            InvalidError: the request contradicts itself, or what is stored (ConflictError).
            FencedError: another process has the shard.
            UnavailableError: etcd or the store cannot be reached; the outcome may be open, and the
                same request id finds it out.
            OverloadedError: too much is waiting.
        """
        self.check(writer)
        if self._queued_bytes + request.size_bytes > limits.WRITE_QUEUE_BYTES_MAX:
            raise OverloadedError(
                f"too many writes wait for the log limit={limits.WRITE_QUEUE_BYTES_MAX}",
                reason="WRITE_QUEUE_FULL",
                limit=limits.WRITE_QUEUE_BYTES_MAX,
            )
        ticket = WriteTicket(request, asyncio.get_running_loop().create_future())
        if isinstance(request, LoadRequest):
            # Staged for the rows that there are now: before all that waits.
            writer.waiting.appendleft(ticket)
            writer.held = False
        else:
            writer.waiting.append(ticket)
        self._queued_bytes += request.size_bytes
        self._wake.set()
        try:
            return await ticket.future
        finally:
            self._queued_bytes -= request.size_bytes

    @asynccontextmanager
    async def held(self, writer: ShardWriter) -> AsyncIterator[None]:
        """Let a shard's writes wait inside, until a bulk load is submitted: its rows are staged
        for what there is now. Searches go on.

        Raises:
            UnavailableError: a commit is in doubt, so what there is now is not known.
        """
        assert not writer.held, "one load of a shard at a time"
        writer.held = True
        try:
            await self.quiet()
            if writer.in_doubt is not None:
                raise _doubtful(writer)
            yield
        finally:
            writer.held = False
            self._wake.set()

    async def pause(self, writer: ShardWriter) -> None:
        """Let a shard's writes wait until `resume`; return once none is on its way.

        Raises:
            UnavailableError: a commit is in doubt, so what was committed is not known.
        """
        writer.paused = True
        await self.quiet()
        if writer.in_doubt is not None:
            self.resume(writer)
            raise _doubtful(writer)

    def resume(self, writer: ShardWriter) -> None:
        """Let a shard's writes go on."""
        writer.paused = False
        self._wake.set()

    async def run(self) -> None:
        """Commit rounds until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while ready := [writer for writer in self._writers if writer.busy]:
                async with self._rounds:
                    await self._round(ready[: limits.ETCD_TXN_SHARDS_MAX])
                # Those served go to the back, so that many shards share the rounds fairly.
                self._writers.sort(key=ready[: limits.ETCD_TXN_SHARDS_MAX].__contains__)
                if any(writer.in_doubt for writer in self._writers):
                    await self._ports.clock.sleep(DOUBT_PAUSE_S)

    async def idle(self, writer: ShardWriter, timeout_s: float) -> None:
        """Wait until nothing of this writer is on its way, or the time is over.

        While etcd is away a commit may stay in doubt for long. Leaving it costs nothing: whether
        it took effect stands in etcd, and whoever opens the shard next reads it there.
        """
        end_s = self._ports.clock.now_s() + timeout_s
        while writer.busy and not writer.fenced and self._ports.clock.now_s() < end_s:
            self._wake.set()
            await self._ports.clock.sleep(0.01)

    async def quiet(self) -> None:
        """Wait for the end of the round on its way: later ones are without removed writers."""
        async with self._rounds:
            return

    async def _round(self, writers: Sequence[ShardWriter]) -> None:
        """Store and commit one group of each writer."""
        groups: list[PendingGroup] = []
        async with asyncio.TaskGroup() as tasks:
            for writer in writers:
                if writer.in_doubt is not None:
                    groups.append(writer.in_doubt)
                else:
                    tasks.create_task(self._prepare(writer, groups))
        live = [group for group in groups if not group.writer.fenced]
        if live:
            await self._commit(live)

    def _next_ms(self) -> int:
        """Return the time to write into the next group.

        It rises from group to group though the wall clock may go back: of two log objects that
        follow the same one, whoever recovers without etcd takes the one written last.
        """
        self._written_ms = max(self._ports.clock.unix_ms(), self._written_ms + 1)
        return self._written_ms

    async def _prepare(self, writer: ShardWriter, groups: list[PendingGroup]) -> None:
        """Form a group, encode and store it; a group that could not be stored fails as a whole."""
        formed = form_group(
            writer.state,
            writer.waiting,
            bytes_max=limits.LOG_GROUP_BYTES_MAX,
            unix_ms=self._next_ms(),
        )
        for result, ticket in formed.settled:
            ticket.settle(result)
        if not formed.records:
            return
        body = LogGroup(
            shard_id=writer.state.shard_id,
            generation=writer.generation,
            predecessor=writer.tip,
            records=[record for record, _ in formed.records],
        )
        data, ref = await asyncio.to_thread(_encode, body, self._ports.new_uuid())
        group = PendingGroup(
            writer, formed.records, log_name(writer.state.shard_id, ref), data, ref
        )
        try:
            await self._store(group)
        except FacegridError as error:
            group.settle_all(error)
            if error.reason == "STORE_SYNC_FAILED":
                # The kernel may have dropped what it could not write: only a restart, which reads
                # everything back, knows what is there.
                raise
            self._ports.logger.warning(
                "log object not stored", shard=writer.state.shard_id, reason=error.reason
            )
        else:
            groups.append(group)

    async def _store(self, group: PendingGroup) -> None:
        """Put the object; when the answer is lost, read back whether it is there."""
        store = self._ports.store
        try:
            await store.put_new(group.name, group.data)
        except (ConflictError, UnavailableError) as open_outcome:
            # The name carries a fresh uuid: if it exists, then it is this attempt's.
            try:
                there = await store.get(group.name)
            except (NotFoundError, UnavailableError):
                raise open_outcome from None
            if there != group.data:
                raise open_outcome from None

    async def _commit(self, groups: list[PendingGroup]) -> None:
        """Commit groups together; when that is refused, find out which one was, by itself."""
        guards = [guard for group in groups for guard in group.guards()]
        puts = [group.put() for group in groups]
        again = any(group.writer.in_doubt is group for group in groups)
        timeout_s = DOUBT_TIMEOUT_S if again else COMMIT_TIMEOUT_S
        try:
            result = await self._ports.coord.txn(guards, puts, timeout_s=timeout_s)
        except UnavailableError as error:
            for group in groups:
                self._doubt(group, error)
            return
        if result.succeeded:
            for group in groups:
                self._committed(group, result.revision)
        elif len(groups) > 1:
            for group in groups:
                await self._commit([group])
        else:
            await self._resolve(groups[0])

    async def _resolve(self, group: PendingGroup) -> None:
        """A guard failed: an earlier attempt took effect, or somebody else has the shard."""
        shard_id = group.writer.state.shard_id
        try:
            tip = await self._ports.coord.get(keys.tip(shard_id), timeout_s=RESOLVE_TIMEOUT_S)
        except UnavailableError as error:
            self._doubt(group, error)
            return
        if tip is not None and tip.value == group.put().value:
            self._committed(group, tip.mod_revision)
            return
        group.settle_all(group.writer.fenced_error())
        group.writer.fence()
        self._ports.logger.error(
            "fenced: another process took the shard over",
            shard=shard_id,
            generation=group.writer.generation,
        )

    def _doubt(self, group: PendingGroup, error: UnavailableError) -> None:
        """Keep the group until its outcome is known; callers need not wait for that."""
        if group.writer.in_doubt is None:
            self._ports.logger.warning(
                "commit in doubt", shard=group.writer.state.shard_id, reason=error.reason
            )
        group.writer.in_doubt = group
        group.writer.doubt = error.message
        group.settle_all(_doubtful(group.writer))
        group.writer.refuse_waiting(_doubtful(group.writer))

    def _committed(self, group: PendingGroup, revision: int) -> None:
        """Apply a committed group and acknowledge it."""
        writer = group.writer
        if writer.in_doubt is group:
            writer.in_doubt = None
            self._ports.logger.info("commit in doubt settled", shard=writer.state.shard_id)
        writer.tip, writer.tip_revision = group.ref, revision
        if writer.recent is not None:
            writer.recent.keep(group.name, group.data)
        for record, ticket in group.records:
            ticket.settle(writer.state.apply(record, group.ref))
        self._on_applied(writer)


def _encode(body: LogGroup, uuid: str) -> tuple[bytes, LogRef]:
    """Return a log object and the reference that names it; for a thread, since it hashes."""
    data = encode_log(body)
    return data, log_ref(body, uuid, data)


def _doubtful(writer: ShardWriter) -> UnavailableError:
    """Return the error for writes while etcd does not answer."""
    return UnavailableError(
        "etcd did not confirm the write; retry with the same request id"
        f" shard={writer.state.shard_id} problem={writer.doubt!r}",
        reason="COMMIT_IN_DOUBT",
        shard=writer.state.shard_id,
    )


def _closing(writer: ShardWriter) -> FencedError:
    """Return the error for writes to a shard that this node lets go."""
    return FencedError(
        f"the node no longer serves this shard shard={writer.state.shard_id}",
        reason="SHARD_CLOSED",
        shard=writer.state.shard_id,
    )
