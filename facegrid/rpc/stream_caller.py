"""Calls one method at one address over one stream: `facegrid.rpc.streams` is the other end.

For methods that only read. A request whose stream ends, for whatever reason, is made again by a
call of its own, once: its error then says what is the matter, as if there were no streams.
"""

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from facegrid import limits
from facegrid.clock import Clock
from facegrid.errors import DeadlineError, UnavailableError
from facegrid.rpc.call import call
from facegrid.rpc.status import from_call_error
from facegrid.rpc.streams import ENDING

if TYPE_CHECKING:
    # The stubs make these classes generic in two types; at run time they are generic in none.
    from grpc.aio import StreamStreamMultiCallable, UnaryUnaryMultiCallable

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

STREAM_S: Final = 7200.0
"""The deadline of a stream, which has to have one."""
RENEWED_S: Final = 3000.0
"""After this long a new stream is opened for what comes then, so that no request outlives its."""
IDLE_S: Final = 60.0
"""A stream that carried nothing for so long is ended: it takes a server's place for a call."""
UNKNOWN_S: Final = 60.0
"""How long a server is called one by one that did not know the stream, or has no place for it: it
may be replaced by a newer one at the same address.
"""
SILENT_S: Final = 1.0
"""A stream is left by which nothing came for whoever waited so long: something between may hold
it up.
"""
BROKEN_S: Final = 1.0
"""The same for a stream that ended before it carried an answer."""
WAITING_MAX: Final = 256
"""Requests on one stream without an answer; further ones get calls of their own."""
BYTES_MAX: Final = 64 * 1024
CANDIDATES_MAX: Final = 4096
"""Larger requests, and larger answers, get a call of their own: whatever a stream carries has to
wait for what was sent before, and what a call costs does not matter to them.
"""


_NO_STREAMS: Final = (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.RESOURCE_EXHAUSTED)


def is_small(request: Any) -> bool:
    """Tell whether a question, with probes and k, is small enough for a stream."""
    probes = request.probes
    # Of two bytes for a component at least.
    rows_max = len(probes.data) // max(1, 2 * probes.dim)
    return len(probes.data) <= BYTES_MAX and rows_max * request.k <= CANDIDATES_MAX


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
        clock: for deadlines and the age of streams.
    """

    def __init__(self, methods: Methods[Request, Response], clock: Clock) -> None:
        self._methods = methods
        self._clock = clock
        self._lines: set[_Line] = set()
        self._present: _Line | None = None
        self._alone_until_s = -math.inf
        self._closed = False
        self._retired = False

    @property
    def idle(self) -> bool:
        """Whether there is no stream."""
        return not self._lines

    async def call(self, request: Request, *, timeout_s: float) -> Response:
        """Return the answer to a request.

        Raises:
            FacegridError: what the other side raised, or what became of the connection.
            DeadlineError: no answer came in time; at once when no time is left.
            UnavailableError: this was closed (CLOSED).
        """
        ends_s = self._clock.now_s() + timeout_s
        line = self._line_for(request) if timeout_s > 0 else None
        if line is not None:
            try:
                response: Response = await line.ask(request, ends_s)
            except DeadlineError:
                if line.silent:
                    self._pause(UNKNOWN_S)
                raise
            except _NotServedError as error:
                self._pause(error.pause_s)
                if self._retired:
                    raise UnavailableError("the stream broke", reason="TRANSPORT") from error
            else:
                return response
        return await call(self._methods.alone, request, timeout_s=ends_s - self._clock.now_s())

    def _pause(self, pause_s: float) -> None:
        """Call one by one for a while."""
        self._alone_until_s = max(self._alone_until_s, self._clock.now_s() + pause_s)

    def _line_for(self, request: Request) -> "_Line | None":
        """Return the stream that a request goes by; None: it gets a call of its own."""
        if self._closed:
            raise _closed_error()
        now_s = self._clock.now_s()
        if now_s < self._alone_until_s or not is_small(request):
            return None
        line = self._present
        if line is not None and now_s - line.opened_s >= RENEWED_S:
            line.hang_up()
        if line is None or line.leaving:
            line = self._present = _Line(self._methods, self._clock)
            self._lines.add(line)
            line.task.add_done_callback(partial(self._forget, line))
        return None if line.waiting_count >= WAITING_MAX else line

    def _forget(self, line: "_Line", _task: asyncio.Task[None]) -> None:
        self._lines.discard(line)

    def retire(self) -> None:
        """Let streams end once all is answered. Nothing is called any more: the channel may be
        closed next.
        """
        self._retired = True
        for line in self._lines:
            line.hang_up()

    async def aclose(self) -> None:
        """End streams; calls on their way end as UnavailableError (CLOSED). Idempotent."""
        self._closed = True
        tasks = [line.task for line in self._lines]
        for line in self._lines:
            line.close()
        if tasks:
            await asyncio.wait(tasks)


def _closed_error() -> UnavailableError:
    return UnavailableError("connections are closed", reason="CLOSED")


class _NotServedError(Exception):
    """A stream ended, or refused: whoever asked asks again without one.

    Args:
        pause_s: how long nobody should ask by a stream.
    """

    def __init__(self, pause_s: float = 0.0) -> None:
        super().__init__(f"pause_s={pause_s}")
        self.pause_s = pause_s


@dataclass(slots=True)
class _Asked:
    """A request that waits for its answer."""

    request: Message
    ends_s: float
    answer: asyncio.Future[Any]
    written: bool = False


class _Line:
    """One stream, with tasks of its own that write and read: gRPC ends the whole stream when
    somebody who writes or reads is cancelled.
    """

    def __init__(self, methods: Methods[Any, Any], clock: Clock) -> None:
        self.opened_s = clock.now_s()
        self._heard_s = -math.inf
        """When something came last."""
        self.silent = False
        """Whether nothing came for somebody who waited long enough."""
        self.leaving = False
        """Whether it takes nothing more."""
        self._clock = clock
        self._frame = methods.frame
        self._waiting: dict[int, _Asked] = {}
        self._outgoing: asyncio.Queue[int] = asyncio.Queue()
        """Numbers of requests to write; negative ones are of requests to give up; 0 is the end."""
        self._last_number = 0
        self._closed = False
        self._pause_s = BROKEN_S
        self._stream = methods.together(timeout=STREAM_S)
        loop = asyncio.get_running_loop()
        # Owned by whoever opened the line, which waits for it in `aclose`; no task group lasts as
        # long as a client does.
        self.task = loop.create_task(self._run())
        self.task.add_done_callback(self._ended)
        self._idle = loop.call_later(IDLE_S, self._look, 0)

    @property
    def waiting_count(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    async def ask(self, request: Message, ends_s: float) -> Any:
        """Return the answer to a request.

        Raises:
            _NotServedError: the stream ended without one.
        """
        self._last_number += 1
        number = self._last_number
        asked = _Asked(request, ends_s, asyncio.get_running_loop().create_future())
        self._waiting[number] = asked
        self._outgoing.put_nowait(number)
        asked_s = self._clock.now_s()
        limit = asyncio.timeout(ends_s - asked_s)
        try:
            async with limit:
                return await asked.answer
        except TimeoutError:
            if not limit.expired():
                raise
            self._leave_if_silent(asked_s)
            raise DeadlineError("the call was not answered in time") from None
        finally:
            del self._waiting[number]
            if asked.written and asked.answer.cancelled():
                self._outgoing.put_nowait(-number)
            self._part()

    def hang_up(self) -> None:
        """Take nothing more; the stream ends once nobody waits."""
        self.leaving = True
        self._part()

    def close(self) -> None:
        """End at once."""
        self._closed = True
        self.task.cancel()

    def _leave_if_silent(self, since_s: float) -> None:
        if self._heard_s < since_s and self._clock.now_s() - since_s >= SILENT_S:
            self.silent = True
            self.hang_up()

    def _part(self) -> None:
        if self.leaving and not self._waiting:
            self._outgoing.put_nowait(0)

    def _look(self, last_number: int) -> None:
        """End the stream if nothing was asked since the last look."""
        if not self._waiting and self._last_number == last_number:
            self.hang_up()
        else:
            loop = asyncio.get_running_loop()
            self._idle = loop.call_later(IDLE_S, self._look, self._last_number)

    def _ended(self, _task: asyncio.Task[None]) -> None:
        """Tell those that still wait."""
        self.leaving = True
        self._idle.cancel()
        self._stream.cancel()
        for asked in self._waiting.values():
            if not asked.answer.done():
                problem = _closed_error() if self._closed else _NotServedError(self._pause_s)
                asked.answer.set_exception(problem)

    async def _run(self) -> None:
        """Write and read until the stream ends."""
        async with asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(self._write())
            await self._read()
            writing.cancel()

    async def _write(self) -> None:
        # What became of a stream that cannot be written to is read from it.
        with suppress(grpc.aio.AioRpcError, grpc.aio.InternalError, asyncio.InvalidStateError):
            while number := await self._outgoing.get():
                frame = self._next(number)
                if frame is not None:
                    await self._stream.write(frame)
            await self._stream.done_writing()

    def _next(self, number: int) -> Any:
        """Return what to write for a number; None for a request that was given up before."""
        if number < 0:
            return self._frame(number=-number)
        asked = self._waiting.get(number)
        if asked is None:
            return None
        asked.written = True
        left_s = min(max(asked.ends_s - self._clock.now_s(), 0.001), limits.DEADLINE_S_MAX)
        return self._frame(
            number=number, request=asked.request, timeout_ms=math.ceil(left_s * 1000)
        )

    async def _read(self) -> None:
        """Hand out answers."""
        try:
            async for frame in self._stream:
                if frame is None:
                    return  # It could not be decoded.
                self._pause_s = 0.0
                self._heard_s = self._clock.now_s()
                self._take(frame)
        except grpc.aio.AioRpcError as error:
            if error.code() in _NO_STREAMS:
                self._pause_s = UNKNOWN_S

    def _take(self, frame: Any) -> None:
        asked = self._waiting.get(frame.number)
        if asked is None or asked.answer.done():
            return
        match frame.WhichOneof("outcome"):
            case "response":
                asked.answer.set_result(frame.response)
            case "error" if frame.error.reason != ENDING:
                asked.answer.set_exception(from_call_error(frame.error))
            case _:
                # The server stops, or is newer and says what this does not know.
                self.leaving = True
                asked.answer.set_exception(_NotServedError())
