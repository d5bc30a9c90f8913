"""Calls one method at one address over one stream: `facegrid.rpc.streams` is the other end.

Nothing is retried here but what surely was not begun: what a server leaves open that stops, or
does not know the stream yet, gets a call of its own, whose error tells what is the matter.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from facegrid import limits
from facegrid.clock import Clock
from facegrid.errors import DeadlineError, FacegridError, OverloadedError, UnavailableError
from facegrid.rpc.call import call
from facegrid.rpc.status import from_call_error, from_grpc

if TYPE_CHECKING:
    # The stubs make these classes generic in two types; at run time they are generic in none.
    from grpc.aio import StreamStreamMultiCallable, UnaryUnaryMultiCallable

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

STREAM_S: Final = 7200.0
"""The deadline of a stream, which has to have one."""
RENEWED_S: Final = 3000.0
"""After this long a new stream is opened for what comes then, so that no request outlives its."""
UNKNOWN_S: Final = 60.0
"""How long a server is called one by one that did not know the stream: it may be replaced by a
newer one at the same address.
"""
BYTES_MAX: Final = 64 * 1024
"""Larger requests get a call of their own: whatever a stream carries has to wait for what was sent
before, and what a call costs does not matter to them.
"""


@dataclass(frozen=True, slots=True)
class Methods(Generic[Request, Response]):
    """The two ways to call.

    Attributes:
        alone: the method that takes one request.
        together: the method that takes a stream of them.
        frame: the message of that stream, with fields number, request and timeout_ms.
    """

    alone: "UnaryUnaryMultiCallable[Request, Response]"
    together: "StreamStreamMultiCallable[Any, Any]"
    frame: Callable[..., Any]


class StreamCaller(Generic[Request, Response]):
    """Calls, over a stream where that is possible. Close it before the channel.

    Args:
        methods: what to call.
        clock: for the age of streams.
    """

    def __init__(self, methods: Methods[Request, Response], clock: Clock) -> None:
        self._methods = methods
        self._clock = clock
        self._lines: set[_Line] = set()
        self._present: _Line | None = None
        self._alone_until_s = -math.inf
        self._closed = False

    async def call(self, request: Request, *, timeout_s: float) -> Response:
        """Return the answer to a request.

        Raises:
            FacegridError: what the other side raised, or what became of the connection.
            DeadlineError: no answer came in time; at once when no time is left.
            UnavailableError: this was closed (CLOSED).
        """
        ends_s = self._clock.now_s() + timeout_s
        if self._fits(request) and timeout_s > 0:
            try:
                response: Response = await self._line().ask(request, timeout_s)
            except _NotServedError as error:
                if error.unknown:
                    self._alone_until_s = self._clock.now_s() + UNKNOWN_S
            else:
                return response
        return await call(self._methods.alone, request, timeout_s=ends_s - self._clock.now_s())

    def _fits(self, request: Request) -> bool:
        return self._clock.now_s() >= self._alone_until_s and request.ByteSize() <= BYTES_MAX

    def _line(self) -> "_Line":
        """Return the stream for what comes now."""
        if self._closed:
            raise UnavailableError("connections are closed", reason="CLOSED")
        line = self._present
        if line is not None and self._clock.now_s() - line.opened_s >= RENEWED_S:
            line.hang_up()
            line = None
        if line is None or line.ended:
            line = _Line(self._methods, self._clock.now_s())
            self._lines.add(line)
            line.task.add_done_callback(partial(self._forget, line))
            self._present = line
        return line

    def _forget(self, line: "_Line", _task: asyncio.Task[None]) -> None:
        self._lines.discard(line)

    def retire(self) -> None:
        """Let the stream end once all is answered; a later call opens a new one."""
        if self._present is not None:
            self._present.hang_up()
            self._present = None

    async def aclose(self) -> None:
        """End streams; calls on their way end as UnavailableError (CLOSED). Idempotent."""
        self._closed = True
        tasks = [line.task for line in self._lines]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


class _NotServedError(Exception):
    """A request was not begun: the server stops, or does not know the stream."""

    def __init__(self, *, unknown: bool) -> None:
        super().__init__("unknown" if unknown else "ended")
        self.unknown = unknown


class _Line:
    """One stream, with tasks of its own that write and read: gRPC ends the whole stream when
    somebody who writes or reads is cancelled.
    """

    def __init__(self, methods: Methods[Any, Any], opened_s: float) -> None:
        self.opened_s = opened_s
        self.ended = False
        self._frame = methods.frame
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._outgoing: asyncio.Queue[Any] = asyncio.Queue()
        self._stream = methods.together(timeout=STREAM_S)
        # Owned by whoever opened the line, which waits for it in `aclose`; no task group lasts as
        # long as a client does.
        self.task = asyncio.get_running_loop().create_task(self._run())

    async def ask(self, request: Message, timeout_s: float) -> Any:
        """Return the answer to a request."""
        number = next(self._numbers)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        timeout_ms = math.ceil(min(timeout_s, limits.DEADLINE_S_MAX) * 1000)
        self._outgoing.put_nowait(
            self._frame(number=number, request=request, timeout_ms=timeout_ms)
        )
        limit = asyncio.timeout(timeout_s)
        try:
            async with limit:
                return await answer
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineError("the call was not answered in time") from None
        finally:
            del self._waiting[number]
            if answer.cancelled():
                self._outgoing.put_nowait(self._frame(number=number))

    def hang_up(self) -> None:
        """Ask nothing more; the stream ends once all is answered."""
        self._outgoing.put_nowait(None)

    async def _run(self) -> None:
        """Write and read until the stream ends, and tell those that still wait."""
        problem: Exception = UnavailableError("connections are closed", reason="CLOSED")
        try:
            async with asyncio.TaskGroup() as tasks:
                writing = tasks.create_task(self._write())
                problem = await self._read()
                writing.cancel()
        finally:
            self.ended = True
            self._stream.cancel()
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(problem)
                    # Whoever waited may be gone by now.
                    answer.exception()

    async def _write(self) -> None:
        # What became of a stream that cannot be written to is read from it.
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while (frame := await self._outgoing.get()) is not None:
                await self._stream.write(frame)
            await self._stream.done_writing()

    async def _read(self) -> Exception:
        """Hand out answers; return why there are no more."""
        try:
            async for frame in self._answers():
                answer = self._waiting.get(frame.number)
                if answer is None or answer.done():
                    continue
                if frame.HasField("error"):
                    answer.set_exception(from_call_error(frame.error))
                else:
                    answer.set_result(frame.response)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                return _NotServedError(unknown=True)
            return _broken(from_grpc(error))
        return _NotServedError(unknown=False)

    def _answers(self) -> AsyncIterator[Any]:
        return aiter(self._stream)


def _broken(error: FacegridError) -> FacegridError:
    """Return what the end of a stream means for those that it carried, who did nothing wrong."""
    if isinstance(error, UnavailableError | OverloadedError):
        return error
    return UnavailableError(f"the stream broke: {error.message}", reason="TRANSPORT")
