"""Calls to etcd over several endpoints: whom to ask, when to ask another, what errors mean."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from facegrid.api.etcd.v3 import etcd_pb2 as pb
from facegrid.clock import Clock
from facegrid.errors import (
    CorruptError,
    DeadlineError,
    FacegridError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from facegrid.rpc.channel import TlsFiles, open_channel

Code = grpc.StatusCode
Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
T = TypeVar("T")

HAS_LEADER: Final = (("hasleader", "true"),)
"""Asks a member that has lost the majority to say so, instead of letting us wait for nothing."""

_SILENT: Final = {
    Code.UNAVAILABLE,
    Code.DEADLINE_EXCEEDED,
    Code.CANCELLED,
    Code.INTERNAL,
    Code.UNKNOWN,
}
"""Codes after which another member may do better. etcd answers UNKNOWN while it stops, and gRPC
INTERNAL when a stream is reset."""

_ELECTING: Final = {"etcdserver: no leader", "etcdserver: leader changed"}
"""What members say while they choose a leader, which takes them seconds and ends by itself."""

_ELECTION_PAUSE_S: Final = 0.1

_KINDS: Final[dict[grpc.StatusCode, tuple[type[FacegridError], str]]] = {
    Code.NOT_FOUND: (NotFoundError, "LEASE_ENDED"),
    Code.INVALID_ARGUMENT: (InvalidError, "ETCD_REFUSED"),
    Code.FAILED_PRECONDITION: (InvalidError, "ETCD_REFUSED"),
    Code.UNAUTHENTICATED: (InvalidError, "ETCD_AUTHENTICATION"),
    Code.PERMISSION_DENIED: (InvalidError, "ETCD_PERMISSION"),
    Code.RESOURCE_EXHAUSTED: (UnavailableError, "ETCD_EXHAUSTED"),
    Code.DATA_LOSS: (CorruptError, "ETCD_CORRUPT"),
    Code.DEADLINE_EXCEEDED: (DeadlineError, "DEADLINE_EXCEEDED"),
}


@dataclass(frozen=True, slots=True)
class Method(Generic[Request, Response]):
    """A method of etcd by its path, with the messages that go in and come out."""

    path: str
    request: type[Request]
    response: type[Response]

    def unary(self, channel: grpc.aio.Channel) -> Callable[..., Any]:
        """Return the callable for one request and one answer."""
        return channel.unary_unary(
            self.path,
            request_serializer=self.request.SerializeToString,
            response_deserializer=self.response.FromString,
        )

    def stream(self, channel: grpc.aio.Channel) -> Callable[..., Any]:
        """Return the callable for a stream each way."""
        return channel.stream_stream(
            self.path,
            request_serializer=self.request.SerializeToString,
            response_deserializer=self.response.FromString,
        )


STATUS: Final = Method("/etcdserverpb.Maintenance/Status", pb.StatusRequest, pb.StatusResponse)


class EtcdTransport:
    """Keeps one channel per endpoint and remembers which one answered last.

    Args:
        endpoints: host:port of each member.
        clock: measures deadlines.
        tls: our certificate, and whom to trust; None: no TLS.
    """

    def __init__(
        self, endpoints: Sequence[str], *, clock: Clock, tls: TlsFiles | None = None
    ) -> None:
        if not endpoints or any(":" not in name or "/" in name for name in endpoints):
            raise InvalidError(
                f"etcd endpoints must be host:port endpoints={','.join(endpoints)!r}",
                reason="ENDPOINT_MALFORMED",
                field="etcd",
            )
        self.endpoints = tuple(endpoints)
        self._clock = clock
        self._tls = tls
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._current = 0

    @property
    def endpoint(self) -> str:
        """The endpoint that is asked next."""
        return self.endpoints[self._current]

    def channel(self, endpoint: str) -> grpc.aio.Channel:
        """Return the channel to an endpoint; it opens when first used, in a running loop."""
        if endpoint not in self._channels:
            self._channels[endpoint] = open_channel(endpoint, tls=self._tls)
        return self._channels[endpoint]

    def leave(self, endpoint: str) -> None:
        """Ask the next endpoint from now on, unless somebody has moved on already."""
        if self.endpoint == endpoint:
            self._current = (self._current + 1) % len(self.endpoints)

    async def read(
        self, method: Method[Request, Response], request: Request, *, timeout_s: float
    ) -> Response:
        """Call a method that may be carried out twice: endpoints are asked in turn.

        Raises:
            UnavailableError: none of them answered.
        """

        async def attempt(channel: grpc.aio.Channel, share_s: float) -> Response:
            return await _unary(channel, method, request, share_s)

        return await self.anywhere(attempt, timeout_s=timeout_s)

    async def anywhere(
        self,
        attempt: Callable[[grpc.aio.Channel, float], Awaitable[T]],
        *,
        timeout_s: float,
    ) -> T:
        """Try an idempotent exchange on each endpoint, each with its share of the time left.

        While a member says that a leader is being chosen, all are asked again until time is up.
        """
        ends_s = self._clock.now_s() + timeout_s
        while True:
            try:
                return await self._round(attempt, ends_s)
            except _ElectionError as election:
                if self._clock.now_s() + _ELECTION_PAUSE_S >= ends_s:
                    raise election.problem from election
                await self._clock.sleep(_ELECTION_PAUSE_S)

    async def _round(
        self, attempt: Callable[[grpc.aio.Channel, float], Awaitable[T]], ends_s: float
    ) -> T:
        """Ask each endpoint once."""
        problem: FacegridError = DeadlineError("no time left for etcd")
        electing = False
        for endpoints_left_count in range(len(self.endpoints), 0, -1):
            endpoint = self.endpoint
            share_s = (ends_s - self._clock.now_s()) / endpoints_left_count
            if share_s <= 0:
                break
            try:
                return await attempt(self.channel(endpoint), share_s)
            except grpc.aio.AioRpcError as error:
                problem = self.translated(error)
                if error.code() not in _SILENT:
                    raise problem from error
                electing = electing or error.details() in _ELECTING
                self.leave(endpoint)
        if electing:
            raise _ElectionError(problem)
        raise problem

    async def write(
        self, method: Method[Request, Response], request: Request, *, timeout_s: float
    ) -> Response:
        """Call a method that must not be carried out twice.

        Another endpoint is asked only while the request was surely not sent.

        Raises:
            UnavailableError: with reason COORDINATOR_UNREACHABLE nothing was sent; with any other
                the outcome is unknown.
        """
        ends_s = self._clock.now_s() + timeout_s
        for endpoints_left_count in range(len(self.endpoints), 0, -1):
            endpoint = self.endpoint
            left_s = ends_s - self._clock.now_s()
            if left_s > 0 and await self._connected(endpoint, left_s / endpoints_left_count):
                return await self._send(method, request, ends_s - self._clock.now_s())
            self.leave(endpoint)
        raise UnavailableError(
            f"etcd cannot be reached endpoints={','.join(self.endpoints)}",
            reason="COORDINATOR_UNREACHABLE",
        )

    async def _send(
        self, method: Method[Request, Response], request: Request, timeout_s: float
    ) -> Response:
        """Send a write to the current endpoint, once."""
        endpoint = self.endpoint
        if timeout_s <= 0:
            raise DeadlineError("no time left for etcd")
        try:
            return await _unary(self.channel(endpoint), method, request, timeout_s)
        except grpc.aio.AioRpcError as error:
            if error.code() in _SILENT:
                self.leave(endpoint)
            raise self.translated(error) from error

    async def _connected(self, endpoint: str, timeout_s: float) -> bool:
        """Tell whether a member can be reached and knows a leader.

        Where the connection stands that is taken for granted. Else a harmless request finds out:
        were the write itself the first one, its failure would not say whether it had been sent.
        """
        channel = self.channel(endpoint)
        if channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY:
            return True
        try:
            status = await _unary(channel, STATUS, pb.StatusRequest(), timeout_s)
        except grpc.aio.AioRpcError:
            return False
        return status.leader != 0

    def translated(self, error: grpc.aio.AioRpcError) -> FacegridError:
        """Return what a failed call means to the caller."""
        details = error.details() or error.code().name
        names = ",".join(self.endpoints)
        if error.code() in _KINDS:
            kind, reason = _KINDS[error.code()]
            return kind(f"etcd answers: {details} endpoints={names}", reason=reason)
        if error.code() in _SILENT:
            return UnavailableError(
                f"etcd cannot be reached: {details} endpoints={names}", reason="COORDINATOR_SILENT"
            )
        return FacegridError(f"etcd answers: {details} endpoints={names}", reason="ETCD_ERROR")

    async def aclose(self) -> None:
        """Close all channels."""
        channels = list(self._channels.values())
        self._channels.clear()
        for channel in channels:
            await channel.close()


class _ElectionError(Exception):
    """No member answered, and one said that a leader is being chosen."""

    def __init__(self, problem: FacegridError) -> None:
        super().__init__(str(problem))
        self.problem = problem


async def _unary(
    channel: grpc.aio.Channel,
    method: Method[Request, Response],
    request: Request,
    timeout_s: float,
) -> Response:
    response = await method.unary(channel)(request, timeout=timeout_s, metadata=HAS_LEADER)
    assert isinstance(response, method.response)
    return response
