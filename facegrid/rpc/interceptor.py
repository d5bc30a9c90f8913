"""The edge of a process: every call enters and leaves through here.

It refuses calls without a deadline and messages that are too large, turns errors into status, and
lets the journal know. A broad `except` is right here, as in `facegrid.rpc.streams`: whatever a
handler lets escape must become an answer and a log line, and must not end the process.
"""

import inspect
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from typing_extensions import override

from facegrid import limits
from facegrid.errors import InvalidError
from facegrid.rpc.context import CURRENT_METHOD
from facegrid.rpc.journal import Journal
from facegrid.rpc.status import to_grpc

EXEMPT: Final = ("/grpc.health.", "/grpc.reflection.")
"""Services asked by tools that set no deadline."""

# What gRPC hands around is typed for synchronous servers only, so these are open.
Context = Any
Handler = Any
Accept = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class _Refused:
    """Takes the place of a message that was not read; raised where the handler would get it."""

    message: str
    reason: str


class BoundaryInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler of a server, whichever of the four kinds of call it serves.

    Handlers take requests as arguments or iterators, never by `context.read()`. They raise
    FacegridError for what the caller is to know; a group of such errors counts as its first one.
    Anything else that escapes is a bug: logged with its traceback, told to the caller as INTERNAL.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    @override
    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Return the handler, wrapped unless its service is exempt."""
        method = handler_call_details.method
        handler = await continuation(handler_call_details)
        if handler is None or method.startswith(EXEMPT):
            return handler
        kind = (
            f"{'stream' if handler.request_streaming else 'unary'}"
            f"_{'stream' if handler.response_streaming else 'unary'}"
        )
        wrap = self._streaming if handler.response_streaming else self._unary
        accept = _accept_each if handler.request_streaming else _accept
        build = getattr(grpc, f"{kind}_rpc_method_handler")
        return build(
            wrap(method, getattr(handler, kind), accept),
            request_deserializer=_guarded(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )

    def _unary(self, method: str, behaviour: Callable[..., Any], accept: Accept) -> Handler:
        async def answer(request: Any, context: Context) -> Any:
            async with self._boundary(method, context):
                return await behaviour(accept(request), context)

        return answer

    def _streaming(self, method: str, behaviour: Callable[..., Any], accept: Accept) -> Handler:
        async def answers(request: Any, context: Context) -> AsyncGenerator[Any, None]:
            async with self._boundary(method, context):
                produced = behaviour(accept(request), context)
                if inspect.isawaitable(produced):  # a handler that answers by context.write()
                    await produced
                    return
                async with aclosing(produced) as items:
                    async for item in items:
                        yield item

        return answers

    @asynccontextmanager
    async def _boundary(self, method: str, context: Context) -> AsyncIterator[None]:
        """End the call made inside with the status of its error, and log it."""
        CURRENT_METHOD.set(method)
        with self._journal.entry(method, context.peer()) as entry:
            try:
                _check_deadline(context)
                yield
                entry.code = "OK"
            except grpc.aio.AbortError:
                entry.code = context.code().name
                raise
            except Exception as error:  # noqa: BLE001 - whatever escapes a handler ends here
                status = to_grpc(entry.failed(error))
                await context.abort(status.code, status.message, status.trailing_metadata)


def _check_deadline(context: Context) -> None:
    if context.time_remaining() is None:
        raise InvalidError("the call has no deadline", reason="DEADLINE_MISSING")


def _guarded(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Return a deserializer that leaves a message that is too large alone, and never raises.

    What a deserializer raises becomes an INTERNAL that says nothing.
    """

    def guarded(data: bytes) -> Any:
        if len(data) > limits.MESSAGE_BYTES_MAX:
            return _Refused(
                f"message is too large bytes={len(data)} limit={limits.MESSAGE_BYTES_MAX}",
                "MESSAGE_TOO_LARGE",
            )
        try:
            return deserialize(data)
        except DecodeError:
            return _Refused("message cannot be decoded", "MESSAGE_MALFORMED")

    return guarded


def _accept(message: Any) -> Any:
    if isinstance(message, _Refused):
        raise InvalidError(message.message, reason=message.reason, field="message")
    return message


async def _accept_each(messages: AsyncIterable[Any]) -> AsyncGenerator[Any, None]:
    async for message in messages:
        yield _accept(message)
