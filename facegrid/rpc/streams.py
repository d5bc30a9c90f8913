"""Serves streams that carry many requests, each with a number, a time and an outcome of its own.

A message of a stream takes Python a fraction of what a call takes (`python -m bench.hop`), so who
asks often uses one. What a call would bring along is made here: a deadline for each request,
cancellation, a status, an entry in the journal under the name of the method that serves one.
"""

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

import grpc.aio
from google.protobuf.message import Message

from facegrid import limits
from facegrid.errors import DeadlineError, InvalidError, OverloadedError, UnavailableError
from facegrid.rpc.context import CallContext
from facegrid.rpc.journal import Journal
from facegrid.rpc.status import to_call_error

STREAMS_MAX: Final = 2048
"""Streams open at once: each takes a place of those that gRPC has for calls, and the rest is for
calls.
"""
AT_ONCE_MAX: Final = 1024
"""Requests of one stream that are served at once, with those whose answers wait to be read."""
REQUESTS_MAX: Final = 4096
"""The same of all streams of a server together."""
UNREAD_MAX: Final = 2 * AT_ONCE_MAX
"""The same of one stream with refusals. Beyond it the peer asks on and reads nothing: it is hung
up.
"""
ENDING: Final = "STREAM_ENDS"
"""Reason of a refusal by a server that stops: nothing was done."""

# Each service has messages of its own for this, with the same fields: number, request and
# timeout_ms one way, number and either response or error the other.
Frame = Any
Context = grpc.aio.ServicerContext[Any, Any]
Handle = Callable[[Any, CallContext], Awaitable[Message]]


class Streams:
    """All streams of one server.

    Args:
        journal: told of every request.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._open: set[_Stream] = set()
        self._ending = False
        self.requests_count = 0
        """Requests that are served."""

    async def serve(
        self,
        frames: AsyncIterable[Frame],
        context: Context,
        *,
        method: str,
        frame: Callable[..., Frame],
        handle: Handle,
    ) -> None:
        """Serve one stream to its end.

        Args:
            frames: what comes in.
            context: of the call that the stream is.
            method: full name of the method that serves one request, for the journal.
            frame: the message that goes out.
            handle: serves one request; raises FacegridError for what the caller is to know.

        Raises:
            InvalidError: a message is too large or cannot be decoded; it ends the stream.
            OverloadedError: too many streams are open, or the caller reads nothing.
        """
        if self._ending:
            return
        if len(self._open) >= STREAMS_MAX:
            raise OverloadedError(
                f"too many streams are open limit={STREAMS_MAX}",
                reason="STREAMS",
                limit=STREAMS_MAX,
            )
        stream = _Stream(self, self._journal, context, method, frame=frame, handle=handle)
        self._open.add(stream)
        try:
            await stream.run(frames)
        finally:
            self._open.discard(stream)

    def end(self) -> None:
        """Refuse what comes from now on; streams end once all else is answered."""
        self._ending = True
        for stream in self._open:
            stream.end()


class _Stream:
    """One stream. What comes in is always read at once, so that whoever gives up is heard."""

    def __init__(
        self,
        streams: Streams,
        journal: Journal,
        context: Context,
        method: str,
        *,
        frame: Callable[..., Frame],
        handle: Handle,
    ) -> None:
        self._streams = streams
        self._journal = journal
        self._context = context
        self._caller = context.peer()
        self._method = method
        self._frame = frame
        self._handle = handle
        self._writing = asyncio.Lock()
        self._working: dict[int, asyncio.Task[None]] = {}
        """Requests that can still be given up."""
        self._open_count = 0
        """Requests whose answers are not written yet."""
        self._ending = False
        self._reading: asyncio.Task[None] | None = None

    async def run(self, frames: AsyncIterable[Frame]) -> None:
        """Answer until the caller has closed its side, or `end`."""
        async with asyncio.TaskGroup() as tasks:
            self._reading = tasks.create_task(self._read(frames, tasks))

    def end(self) -> None:
        """Refuse what comes, and read no more once all is answered."""
        self._ending = True
        self._end_if_idle()

    def _end_if_idle(self) -> None:
        if self._ending and not self._open_count and self._reading is not None:
            self._reading.cancel()

    async def _read(self, frames: AsyncIterable[Frame], tasks: asyncio.TaskGroup) -> None:
        async for frame in frames:
            working = self._working.get(frame.number)
            if frame.HasField("request"):
                if self._open_count >= UNREAD_MAX:
                    raise OverloadedError("answers are not read", reason="UNREAD")
                refusal = self._refusal()
                accepted = int(refusal is None)
                self._count(1, accepted)
                task = tasks.create_task(self._serve(frame, refusal))
                # Not in the task: who is given up before it has begun never comes to its end.
                task.add_done_callback(partial(self._uncount, accepted))
                self._working[frame.number] = task
            elif working is not None:
                del self._working[frame.number]
                working.cancel()

    def _count(self, step: int, accepted: int) -> None:
        self._open_count += step
        self._streams.requests_count += accepted
        self._end_if_idle()

    def _uncount(self, accepted: int, _task: asyncio.Task[None]) -> None:
        self._count(-1, -accepted)

    def _refusal(self) -> UnavailableError | OverloadedError | None:
        """Return why a request is not served, if it is not."""
        if self._ending:
            return UnavailableError("the server stops; ask another one", reason=ENDING)
        for count, most in (
            (self._open_count, AT_ONCE_MAX),
            (self._streams.requests_count, REQUESTS_MAX),
        ):
            if count >= most:
                return OverloadedError(
                    f"too many requests are served limit={most}", reason="REQUESTS", limit=most
                )
        return None

    async def _serve(self, frame: Frame, refusal: Exception | None) -> None:
        """Serve or refuse one request. Once its answer is written it cannot be given up any more:
        gRPC does not take half of a message back.
        """
        try:
            answer = await self._answer(frame, refusal)
        finally:
            if self._working.get(frame.number) is asyncio.current_task():
                del self._working[frame.number]
        # Where the caller is gone nobody is left to hear; gRPC ends the stream then.
        with suppress(grpc.aio.BaseError):
            async with self._writing:
                await self._context.write(answer)

    async def _answer(self, frame: Frame, refusal: Exception | None) -> Frame:
        with self._journal.entry(self._method, self._caller) as entry:
            try:
                response = await self._in_time(frame, refusal)
                answer = self._frame(number=frame.number, response=response)
            except Exception as error:  # noqa: BLE001 - whatever escapes a handler ends here
                return self._frame(number=frame.number, error=to_call_error(entry.failed(error)))
            entry.code = "OK"
            return answer

    async def _in_time(self, frame: Frame, refusal: Exception | None) -> Message:
        if refusal is not None:
            raise refusal
        if frame.timeout_ms == 0:
            raise InvalidError("the request has no timeout_ms", reason="DEADLINE_MISSING")
        timeout_s = min(frame.timeout_ms / 1000, limits.DEADLINE_S_MAX)
        call = CallContext(self._method, self._caller, self._journal.clock.now_s() + timeout_s)
        limit = asyncio.timeout(timeout_s)
        try:
            async with limit:
                return await self._handle(frame.request, call)
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineError("the time given for the request is over") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Something that the handler waited for was, not the request.
            raise UnavailableError("the work was broken off", reason="TRANSPORT") from None
