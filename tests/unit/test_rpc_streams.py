"""Many requests over one stream: a real server at one end, a StreamCaller at the other."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest
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
    ConflictError,
    DeadlineError,
    FacegridError,
    InvalidError,
    UnavailableError,
)
from facegrid.rpc import stream_caller, streams
from facegrid.rpc.channel import open_channel
from facegrid.rpc.context import CallContext
from facegrid.rpc.server import RpcServer
from facegrid.rpc.status import from_call_error, to_call_error
from facegrid.rpc.stream_caller import Methods, StreamCaller
from facegrid.testing.manual_clock import ManualClock
from facegrid.wire import to_wire_vectors

METHOD = "/test.Service/Identify"
LONG_S = 20.0
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
        if not self.knows_streams:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "never heard of it")
        self.calls["streams"] += 1
        await self.rpc.streams.serve(
            request_iterator,
            context,
            method=METHOD,
            frame=pb.IdentifyStreamResponse,
            handle=self.handle,
        )

    async def until(self, *ks: int) -> None:
        """Wait until these were begun."""
        await until(lambda: set(ks) <= set(self.begun))


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


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with made() as one:
        yield one


async def until(condition: Callable[[], bool]) -> None:
    """Let everybody else run until something is so, for less long than any request may take."""
    async with asyncio.timeout(LONG_S / 4):
        while not condition():
            await SystemClock().sleep(0.001)


async def refusal(work: Awaitable[object]) -> FacegridError:
    try:
        await work
    except FacegridError as error:
        return error
    raise AssertionError("nothing was refused")


async def test_requests_share_one_stream_and_are_answered_as_they_are_ready(world: World) -> None:
    slow = world.start(1)
    await world.service.until(1)
    assert [await world.ask(k) for k in (2, 3)] == [2, 3]
    world.service.gates[1].set()

    assert await slow == 1
    assert world.service.calls == {"streams": 1}


async def test_each_request_has_an_outcome_of_its_own(world: World) -> None:
    slow = world.start(1)
    await world.service.until(1)
    wrong = await refusal(world.ask(2, "refuse"))
    broken = await refusal(world.ask(3, "break"))
    world.service.gates[1].set()

    assert isinstance(wrong, InvalidError)
    assert (wrong.message, wrong.reason) == ("wrong row=3", "ROW_WRONG")
    assert wrong.facts == {"row": "3", "field": "probes"}
    assert (type(broken), broken.reason) == (FacegridError, "INTERNAL")
    assert await slow == 1
    assert world.observed == [
        (METHOD, "INVALID_ARGUMENT", "ROW_WRONG"),
        (METHOD, "INTERNAL", "INTERNAL"),
        (METHOD, "OK", ""),
    ]


async def test_who_does_not_want_to_know_any_more_ends_the_work(world: World) -> None:
    """Whether their time is over or they were cancelled; others on the stream do not notice."""
    late = await refusal(world.ask(1, "wait", SHORT_S))
    cancelled = world.start(2)
    await world.service.until(1, 2)
    cancelled.cancel()
    with suppress(asyncio.CancelledError):
        await cancelled
    assert await world.ask(3) == 3
    await until(lambda: world.service.ended["cancelled"] == 2)

    assert isinstance(late, DeadlineError)
    assert {code for _, code, _ in world.observed} <= {"CANCELLED", "DEADLINE_EXCEEDED", "OK"}
    assert isinstance(await refusal(world.ask(4, "wait", 0.0)), DeadlineError)
    assert 4 not in world.service.begun


async def test_a_deadline_holds_at_the_server_too(world: World) -> None:
    """A caller that vanishes quietly gives nothing up."""
    stream = stub_of(world).IdentifyStream(timeout=LONG_S)
    request = pb.IdentifyRequest(gallery="wait", k=1)
    await stream.write(pb.IdentifyStreamRequest(number=7, request=request, timeout_ms=20))
    await stream.write(pb.IdentifyStreamRequest(number=8, request=request))
    answers = {}
    async for answer in stream:
        answers[answer.number] = answer.error.reason
        if len(answers) == 2:
            break

    assert answers == {7: "DEADLINE_EXCEEDED", 8: "DEADLINE_MISSING"}


def stub_of(world: World) -> Any:
    return IdentificationServiceStub(open_channel(world.address))


async def test_a_server_that_knows_no_streams_is_called_one_by_one_for_a_while(
    world: World,
) -> None:
    world.service.knows_streams = False
    assert [await world.ask(k) for k in (1, 2)] == [1, 2]
    assert world.service.calls == {"alone": 2}
    world.service.knows_streams = True
    await world.clock.advance(stream_caller.UNKNOWN_S + 1)
    assert await world.ask(3) == 3

    assert world.service.calls == {"alone": 2, "streams": 1}


async def test_large_requests_get_a_call_of_their_own(world: World) -> None:
    request = pb.IdentifyRequest(gallery="g", k=1)
    request.probes.CopyFrom(to_wire_vectors(np.ones((33, 512), np.float32)))
    assert request.ByteSize() > stream_caller.BYTES_MAX
    await world.caller.call(request, timeout_s=LONG_S)

    assert world.service.calls == {"alone": 1}


async def test_a_server_that_stops_answers_what_it_has_read(world: World) -> None:
    """1. it serves one; 2. it ends its streams; 3. that one is answered, others ask anew."""
    slow = world.start(1)
    await world.service.until(1)
    world.service.rpc.streams.end()
    late = world.start(2, "g")
    world.service.gates[1].set()

    assert await slow == 1
    assert await late == 2
    assert world.service.calls == {"streams": 1, "alone": 1}
    assert await world.ask(3) == 3
    assert world.service.begun.count(3) == 1


async def test_a_server_that_dies_is_told_as_unreachable(world: World) -> None:
    slow = world.start(1)
    await world.service.until(1)
    await world.service.rpc.server.stop(0)
    error = await refusal(slow)

    assert isinstance(error, UnavailableError)
    assert error.reason == "TRANSPORT"
    assert isinstance(await refusal(world.ask(2)), UnavailableError)


async def test_a_stream_is_renewed_before_its_time_is_over(world: World) -> None:
    slow = world.start(1)
    await world.service.until(1)
    await world.clock.advance(stream_caller.RENEWED_S + 1)
    assert await world.ask(2) == 2
    assert world.service.calls == {"streams": 2}
    world.service.gates[1].set()
    assert await slow == 1
    ended = ("/facegrid.api.v1.IdentificationService/IdentifyStream", "OK", "")
    await until(lambda: ended in world.observed)


async def test_retiring_ends_the_stream_in_order(world: World) -> None:
    slow = world.start(1)
    await world.service.until(1)
    world.caller.retire()
    world.service.gates[1].set()

    assert await slow == 1
    assert await world.ask(2) == 2
    assert world.service.calls == {"streams": 2}


async def test_closing_ends_what_is_on_its_way(world: World) -> None:
    slow = world.start(1)
    await world.service.until(1)
    await world.caller.aclose()
    for error in (await refusal(slow), await refusal(world.ask(2))):
        assert isinstance(error, UnavailableError)
        assert error.reason == "CLOSED"


async def test_a_stream_serves_so_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "AT_ONCE_MAX", 2)
    async with made() as world:
        tasks = [world.start(k) for k in (1, 2, 3)]
        await world.service.until(1, 2)
        assert world.service.begun == [1, 2]
        world.service.gates[1].set()
        await world.service.until(3)
        for k in (2, 3):
            world.service.gates[k].set()

        assert [await task for task in tasks] == [1, 2, 3]


async def test_what_is_given_up_before_it_has_begun_takes_no_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "AT_ONCE_MAX", 1)

    async def frames() -> AsyncIterator[pb.IdentifyStreamRequest]:
        request = pb.IdentifyRequest(gallery="g", k=1)
        for number in range(3):
            yield pb.IdentifyStreamRequest(number=number, request=request, timeout_ms=1000)
            yield pb.IdentifyStreamRequest(number=number)
        yield pb.IdentifyStreamRequest(number=9, request=request, timeout_ms=1000)

    async with made() as world:
        written: list[pb.IdentifyStreamResponse] = []

        class Context:
            def peer(self) -> str:
                return "test"

            async def write(self, message: pb.IdentifyStreamResponse) -> None:
                written.append(message)

        context: Any = Context()
        async with asyncio.timeout(LONG_S):
            await world.service.rpc.streams.serve(
                frames(),
                context,
                method=METHOD,
                frame=pb.IdentifyStreamResponse,
                handle=world.service.handle,
            )

        assert [answer.number for answer in written] == [9]
        assert world.service.begun == [1]


async def test_a_message_that_cannot_be_read_ends_the_stream_and_harms_nobody_else(
    world: World,
) -> None:
    """Others on the same stream are told that it broke, which they may try again."""
    assert await world.ask(1) == 1
    raw: Any = open_channel(world.address).stream_stream(
        "/facegrid.api.v1.IdentificationService/IdentifyStream"
    )
    stream = raw(timeout=LONG_S)
    await stream.write(b"\xff\xff\xff")
    assert await stream.code() is grpc.StatusCode.INVALID_ARGUMENT

    assert await world.ask(2) == 2
    assert world.service.calls["alone"] == 0


ERRORS: list[Callable[[], FacegridError]] = [
    lambda: ConflictError("taken", reason="TEMPLATE_EXISTS", row=3),
    lambda: DeadlineError("late"),
    lambda: UnavailableError("gone", reason="UNCONFIRMED", node="n1"),
]


@pytest.mark.parametrize("error", ERRORS)
def test_errors_travel_in_streams_as_they_do_in_calls(
    error: Callable[[], FacegridError],
) -> None:
    sent = error()
    got = from_call_error(to_call_error(sent))
    assert type(got) is type(sent)
    assert (got.message, got.reason, got.facts) == (sent.message, sent.reason, sent.facts)
