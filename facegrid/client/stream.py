"""One stream of enrolments, kept going over failures.

Requests that are sent and not yet acknowledged are kept, at most WINDOW of them. When the stream
breaks these are sent again, one by one, under the same request ids, so each has the effect of
once; then a new stream goes on. One by one, because gRPC may lose acknowledgements that came just
before an error, and even the error: so it is certain which request was refused, and why.

Nothing runs in the background: `send` writes, and reads one acknowledgement first when the window
is full; `finish` reads the rest. gRPC's flow control does the waiting.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import grpc.aio

from facegrid import wire
from facegrid.api.v1.enrolment_service_pb2 import EnrolRequest, EnrolResponse
from facegrid.api.v1.enrolment_service_pb2_grpc import EnrolmentServiceStub
from facegrid.client.arguments import checked_request_id
from facegrid.client.caller import Caller, may_succeed_later
from facegrid.client.checks import Rows, check_batch, checked_rows
from facegrid.client.values import EnrolBatch
from facegrid.errors import DeadlineError, FacegridError, InvalidError, UnavailableError
from facegrid.model import Token
from facegrid.rpc.status import from_grpc

if TYPE_CHECKING:
    from grpc.aio import StreamStreamCall

    Stream = StreamStreamCall[EnrolRequest, EnrolResponse]

REQUEST_ROWS_MAX: Final = 1024
"""Rows per request: 2 MiB at 512 dimensions, large enough to be quick, small enough to flow."""
WINDOW: Final = 16
STREAM_S_MAX: Final = 1800.0
"""A stream is given this long; a longer load goes on in the next one."""
GOODBYE_S_MAX: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Pending:
    """A request not yet acknowledged, and where its rows stand in what the caller gave."""

    request: EnrolRequest
    batch: int
    first_row: int


class EnrolSession:
    """Sends batches to one gallery. Not for several tasks at once.

    `timeout_s` bounds how long the session may go without an acknowledgement that it waits for.
    """

    def __init__(self, caller: Caller, gallery: str, *, timeout_s: float) -> None:
        self._caller = caller
        self._gallery = gallery
        self._timeout_s = timeout_s
        self._pending: deque[_Pending] = deque()
        self._batches_count = 0
        self._finishing = False
        self._stream: Stream | None = None
        self._responses: AsyncIterator[EnrolResponse] | None = None
        self._target = ""
        self.token = Token()
        self.acked_rows = 0

    async def send(self, batch: EnrolBatch) -> int:
        """Check and send a batch; return the number of rows acknowledged so far.

        Raises:
            InvalidError: a row of this batch or of an earlier one was refused. Facts name the
                batch (0-based) and the row in it. What was acknowledged before stays enrolled.
        """
        for pending in self._cut(batch):
            while len(self._pending) >= WINDOW:
                await self._persist(self._acknowledge)
            self._pending.append(pending)
            await self._persist(self._write)
        return self.acked_rows

    async def step(self) -> int | None:
        """After the last batch: wait for an acknowledgement; return the rows, at the end None."""
        self._finishing = True
        if self._pending:
            await self._persist(self._acknowledge)
            return self.acked_rows
        await self._conclude()
        return None

    def close(self) -> None:
        """End the stream; what was not acknowledged may or may not be enrolled."""
        self._drop()

    async def _conclude(self) -> None:
        """Let the service see an orderly end. Everything is acknowledged: errors do not matter."""
        if self._stream is None or self._responses is None:
            return
        with suppress(TimeoutError, grpc.aio.AioRpcError):
            async with asyncio.timeout(GOODBYE_S_MAX):
                await self._stream.done_writing()
                await anext(self._responses, None)

    def _cut(self, batch: EnrolBatch) -> list[_Pending]:
        number = self._batches_count
        self._batches_count += 1
        try:
            check_batch(batch)
            rows = checked_rows(batch.template_ids, batch.subject_ids, batch.vectors)
            firsts = range(0, len(rows), REQUEST_ROWS_MAX)
            return [
                _Pending(
                    self._request(
                        rows.part(first, first + REQUEST_ROWS_MAX),
                        self._request_id(batch, part, len(firsts)),
                    ),
                    number,
                    first,
                )
                for part, first in enumerate(firsts)
            ]
        except InvalidError as error:
            raise _placed(error, number, 0) from error

    def _request_id(self, batch: EnrolBatch, part: int, parts_count: int) -> str:
        if batch.request_id is None:
            return self._caller.ambient.new_request_id()
        request_id = checked_request_id(batch.request_id)
        return request_id if parts_count == 1 else checked_request_id(f"{request_id}/{part}")

    def _request(self, rows: Rows, request_id: str) -> EnrolRequest:
        return EnrolRequest(
            gallery=self._gallery,
            request_id=request_id,
            template_ids=rows.template_ids,
            subject_ids=rows.subject_ids,
            vectors=wire.to_wire_vectors(rows.vectors),
        )

    async def _persist(self, action: "Callable[[Stream], Awaitable[None]]") -> None:
        """Carry out one action on the stream; if it breaks, settle what it left open."""
        clock = self._caller.ambient.clock
        deadline_s = clock.now_s() + self._timeout_s
        error = await self._tried(action)
        if error is None:
            return
        self._drop()
        # The time of the stream, or of a call behind it, may be over before the caller's is.
        repeatable = may_succeed_later(error) or isinstance(error, InvalidError | DeadlineError)
        if not repeatable or clock.now_s() >= deadline_s:
            raise error
        self._caller.leave(self._target)
        await self._settle(deadline_s)

    async def _tried(self, action: "Callable[[Stream], Awaitable[None]]") -> FacegridError | None:
        try:
            async with asyncio.timeout(self._timeout_s):
                with self._caller.telling_closed():
                    await action(self._opened())
        except TimeoutError:
            return DeadlineError(f"no acknowledgement came timeout_s={self._timeout_s}")
        except grpc.aio.AioRpcError as error:
            return from_grpc(error)
        except FacegridError as error:
            return error
        return None

    def _opened(self) -> "Stream":
        if self._stream is None:
            self._target = self._caller.target()
            stub = EnrolmentServiceStub(self._caller.channel(self._target))
            self._stream = stub.EnrolStream(timeout=STREAM_S_MAX)
            self._responses = aiter(self._stream)
        return self._stream

    def _drop(self) -> None:
        if self._stream is not None:
            self._stream.cancel()
        self._stream = self._responses = None

    async def _write(self, stream: "Stream") -> None:
        try:
            await stream.write(self._pending[-1].request)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # gRPC forgets the status of a stream that ends while it is written to.
            raise UnavailableError("the stream broke", reason="TRANSPORT") from None

    async def _acknowledge(self, stream: "Stream") -> None:
        assert self._responses is not None, "opened together with the stream"
        if self._finishing:
            await stream.done_writing()
        try:
            response = await anext(self._responses)
        except StopAsyncIteration:
            raise UnavailableError("the stream ended early", reason="TRANSPORT") from None
        self._take(response)

    def _take(self, response: EnrolResponse) -> None:
        done = self._pending.popleft()
        self.token |= wire.from_wire_token(response.token)
        self.acked_rows += len(done.request.template_ids)

    async def _settle(self, deadline_s: float) -> None:
        """Send what is not acknowledged again, one by one, each until it is or is refused."""
        clock = self._caller.ambient.clock
        while self._pending:
            pending = self._pending[0]
            try:
                response = await self._caller.call(
                    lambda channel: EnrolmentServiceStub(channel).Enrol,
                    pending.request,
                    timeout_s=deadline_s - clock.now_s(),
                )
            except InvalidError as error:
                raise _placed(error, pending.batch, pending.first_row) from error
            self._take(response)
            deadline_s = clock.now_s() + self._timeout_s


def _placed(error: InvalidError, batch: int, first_row: int) -> InvalidError:
    """Return the error with the batch, and the row in it, that the caller knows."""
    facts: dict[str, object] = dict(error.facts)
    message = f"{error.message} batch={batch}"
    if error.row is not None:
        facts["row"] = error.row + first_row
        message += f" batch_row={facts['row']}"
    facts["batch"] = batch
    return type(error)(message, reason=error.reason, **facts)
