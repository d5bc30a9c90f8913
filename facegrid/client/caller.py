"""Calls that are made again, at another target, until they succeed or their time is over."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeVar

import grpc.aio

from facegrid.client.ambient import Ambient
from facegrid.errors import (
    DeadlineError,
    FacegridError,
    FencedError,
    OverloadedError,
    UnavailableError,
)
from facegrid.retry import Backoff
from facegrid.rpc.call import call
from facegrid.rpc.channel import TlsFiles
from facegrid.rpc.pool import ChannelPool

if TYPE_CHECKING:
    from grpc.aio import UnaryUnaryMultiCallable

Request = TypeVar("Request")
Response = TypeVar("Response")

RETRY_FIRST_S: Final = 0.05
RETRY_FACTOR: Final = 2.0
RETRY_LIMIT_S: Final = 2.0

CLOSED: Final = "CLOSED"
NEED_PEOPLE: Final = frozenset({CLOSED, "TOO_FEW_NODES"})
"""Reasons that do not pass by themselves: somebody has to do what the message says."""


def closed_error() -> UnavailableError:
    """Return what a closed client answers."""
    return UnavailableError("the client is closed", reason=CLOSED)


def may_succeed_later(error: FacegridError) -> bool:
    """Tell whether the same request, sent again with the same id, may succeed."""
    if isinstance(error, DeadlineError) or error.reason in NEED_PEOPLE:
        return False
    return isinstance(error, UnavailableError | FencedError | OverloadedError)


class Caller:
    """Holds the channels to the targets and knows which one answered last."""

    def __init__(
        self, targets: tuple[str, ...], *, tls: TlsFiles | None, ambient: Ambient
    ) -> None:
        self._targets = targets
        self._present = 0
        self._pool = ChannelPool(tls)
        self._closed = False
        self.ambient = ambient

    def target(self) -> str:
        """Return the target to ask now."""
        return self._targets[self._present]

    def channel(self, target: str) -> grpc.aio.Channel:
        """Return the channel to a target, or raise UnavailableError after closing."""
        if self._closed:
            raise closed_error()
        return self._pool.get(target)

    def leave(self, target: str) -> None:
        """Ask the next target from now on, if others have not moved on already."""
        if target == self.target():
            self._present = (self._present + 1) % len(self._targets)

    def delays(self) -> Iterator[float]:
        """Return the delays between attempts."""
        return iter(Backoff(RETRY_FIRST_S, RETRY_FACTOR, RETRY_LIMIT_S, self.ambient.rng))

    async def call(
        self,
        method_of: "Callable[[grpc.aio.Channel], UnaryUnaryMultiCallable[Request, Response]]",
        request: Request,
        *,
        timeout_s: float,
    ) -> Response:
        """Return the answer to a request, made again while that may help. Raises as `persist`."""

        async def attempt(channel: grpc.aio.Channel, _target: str, left_s: float) -> Response:
            return await call(method_of(channel), request, timeout_s=left_s)

        return await self.persist(attempt, timeout_s=timeout_s)

    async def persist(
        self,
        attempt: Callable[[grpc.aio.Channel, str, float], Awaitable[Response]],
        *,
        timeout_s: float,
    ) -> Response:
        """Return what an attempt returns, made again while that may help.

        Args:
            attempt: asks over a channel to a target, for so many seconds.
            timeout_s: for all attempts together.

        Raises:
            FacegridError: the last one met. When the time is over that is what kept the call from
                succeeding, and DeadlineError only if nothing else was heard.
        """
        clock = self.ambient.clock
        deadline_s = clock.now_s() + timeout_s
        heard: FacegridError | None = None
        for delay_s in self.delays():
            target = self.target()
            try:
                channel = self.channel(target)
                with self.telling_closed():
                    return await attempt(channel, target, deadline_s - clock.now_s())
            except DeadlineError as error:
                raise heard or error from error
            except FacegridError as error:
                if not may_succeed_later(error) or clock.now_s() + delay_s >= deadline_s:
                    raise
                heard = error
                self.leave(target)
            await clock.sleep(delay_s)
        raise AssertionError("delays do not end")

    @contextmanager
    def telling_closed(self) -> Iterator[None]:
        """Raise UnavailableError (CLOSED) where closing the channels cancels the calls inside.

        Only the caller's own cancellation passes as one.
        """
        try:
            yield
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise closed_error() from None
            raise

    def refuse(self) -> None:
        """Call nobody any more; calls in flight go on."""
        self._closed = True

    async def aclose(self) -> None:
        """Close the channels; calls in flight end as UnavailableError. Idempotent."""
        self.refuse()
        await self._pool.aclose()
