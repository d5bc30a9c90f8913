"""Both ends of streams: a real server whose answers a test holds back, and who asks it."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import structlog
from typing_extensions import override

from facegrid.api.v1 import identification_service_pb2 as pb
from facegrid.api.v1.identification_service_pb2_grpc import (
    IdentificationServiceServicer,
    IdentificationServiceStub,
    add_IdentificationServiceServicer_to_server,
)
from facegrid.clock import SystemClock
from facegrid.errors import (
    FacegridError,
    InvalidError,
)
from facegrid.rpc.channel import open_channel
from facegrid.rpc.context import CallContext
from facegrid.rpc.server import RpcServer
from facegrid.rpc.stream_caller import Methods, StreamCaller
from facegrid.testing.manual_clock import ManualClock
from tests.fakes.waiting import until

METHOD = "/test.Service/Identify"
LONG_S = 20.0
SOON_S = LONG_S / 4
"""Waited for what must come before any time that was given is over."""
SHORT_S = 0.05


@dataclass
class Service(IdentificationServiceServicer):
    """Answers with the k that was asked for, as the version of the map; what it does before is
    said by the gallery's name.
    """

    rpc: RpcServer
    knows_streams: bool = True
    begun: list[int] = field(default_factory=list)
    ended: Counter[str] = field(default_factory=Counter)
    gates: dict[int, asyncio.Event] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)

    async def handle(self, request: pb.IdentifyRequest, call: CallContext) -> pb.IdentifyResponse:
        self.begun.append(request.k)
        gate = self.gates.setdefault(request.k, asyncio.Event())
        try:
            if request.gallery == "wait":
                await gate.wait()
            if request.gallery == "refuse":
                raise InvalidError("wrong row=3", reason="ROW_WRONG", row=3, field="probes")
            if request.gallery == "break":
                raise ZeroDivisionError
            if request.gallery == "mistake":
                mistaken: Any = pb.VerifyResponse()
                return mistaken
            assert call.remaining_s(SystemClock()) <= LONG_S
        except asyncio.CancelledError:
            self.ended["cancelled"] += 1
            raise
        return pb.IdentifyResponse(map_version=request.k)

    @override
    async def Identify(self, request: pb.IdentifyRequest, context: Any) -> pb.IdentifyResponse:
        self.calls["alone"] += 1
        return await self.handle(request, CallContext("", "", SystemClock().now_s() + 1))

    @override
    async def IdentifyStream(  # type: ignore[override]  # as the real one
        self, request_iterator: AsyncIterator[pb.IdentifyStreamRequest], context: Any
    ) -> None:
        self.calls["streams"] += 1
        if not self.knows_streams:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "never heard of it")
        await self.rpc.streams.serve(
            request_iterator,
            context,
            method=METHOD,
            frame=pb.IdentifyStreamResponse,
            handle=self.handle,
        )

    async def until(self, *ks: int) -> None:
        """Wait until these were begun."""
        await until(lambda: set(ks) <= set(self.begun), SOON_S)


@dataclass
class World:
    """Both ends."""

    service: Service
    caller: StreamCaller[pb.IdentifyRequest, pb.IdentifyResponse]
    clock: ManualClock
    observed: list[tuple[str, str, str]]
    address: str

    async def ask(self, k: int, gallery: str = "g", timeout_s: float = LONG_S) -> int:
        request = pb.IdentifyRequest(gallery=gallery, k=k)
        return int((await self.caller.call(request, timeout_s=timeout_s)).map_version)

    def start(self, k: int, gallery: str = "wait") -> "asyncio.Task[int]":
        return asyncio.get_running_loop().create_task(self.ask(k, gallery))


@asynccontextmanager
async def made() -> AsyncIterator[World]:
    observed: list[tuple[str, str, str]] = []
    clock = ManualClock()
    rpc = RpcServer(
        SystemClock(),
        structlog.get_logger().bind(),
        dev=False,
        observe=lambda method, code, reason, _: observed.append((method, code, reason)),
    )
    service = Service(rpc)
    add_IdentificationServiceServicer_to_server(service, rpc.server)
    address = f"127.0.0.1:{await rpc.start('127.0.0.1:0')}"
    channel = open_channel(address)
    stub = IdentificationServiceStub(channel)
    caller: Any = StreamCaller(
        Methods(stub.Identify, stub.IdentifyStream, pb.IdentifyStreamRequest), clock
    )
    try:
        yield World(service, caller, clock, observed, address)
    finally:
        await caller.aclose()
        await channel.close()
        await rpc.stop(0)


async def refusal(work: Awaitable[object]) -> FacegridError:
    try:
        await work
    except FacegridError as error:
        return error
    raise AssertionError("nothing was refused")
