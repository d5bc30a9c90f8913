"""Many requests over one stream: a real server at one end, a StreamCaller at the other."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import grpc
import numpy as np
import pytest

from facegrid.api.v1 import identification_service_pb2 as pb
from facegrid.api.v1.identification_service_pb2_grpc import (
    IdentificationServiceStub,
)
from facegrid.clock import SystemClock
from facegrid.errors import (
    ConflictError,
    DeadlineError,
    FacegridError,
    InvalidError,
    OverloadedError,
    UnavailableError,
)
from facegrid.rpc import stream_caller, streams
from facegrid.rpc.channel import open_channel
from facegrid.rpc.status import from_call_error, to_call_error
from facegrid.rpc.stream_caller import Methods, StreamCaller
from facegrid.wire import to_wire_vectors
from tests.fakes.stream_world import LONG_S, METHOD, SHORT_S, SOON_S, World, made, refusal
from tests.fakes.waiting import until


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with made() as one:
        yield one


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
    mistaken = await refusal(world.ask(4, "mistake"))
    world.service.gates[1].set()

    assert isinstance(wrong, InvalidError)
    assert (wrong.message, wrong.reason) == ("wrong row=3", "ROW_WRONG")
    assert wrong.facts == {"row": "3", "field": "probes"}
    for bug in (broken, mistaken):
        assert (type(bug), bug.reason) == (FacegridError, "INTERNAL")
    assert await slow == 1
    assert world.observed == [
        (METHOD, "INVALID_ARGUMENT", "ROW_WRONG"),
        (METHOD, "INTERNAL", "INTERNAL"),
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
    await until(lambda: world.service.ended["cancelled"] == 2, SOON_S)

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
    assert await world.ask(1) == 1
    await world.clock.advance(stream_caller.BROKEN_S + 1)
    assert await world.ask(2) == 2
    assert world.service.calls == {"streams": 1, "alone": 2}
    world.service.knows_streams = True
    await world.clock.advance(stream_caller.UNKNOWN_S)
    assert await world.ask(3) == 3

    assert world.service.calls == {"streams": 2, "alone": 2}


async def test_a_server_with_no_place_for_a_stream_is_called_one_by_one_for_a_while(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "STREAMS_MAX", 0)
    assert await world.ask(1) == 1
    await world.clock.advance(stream_caller.BROKEN_S + 1)
    assert await world.ask(2) == 2

    assert world.service.calls == {"streams": 1, "alone": 2}


async def test_a_peer_that_reads_nothing_is_hung_up_and_takes_no_place(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. it asks on and on and no answer can be written; 2. its stream ends; 3. others are served,
    meanwhile too.
    """
    monkeypatch.setattr(streams, "AT_ONCE_MAX", 2)
    monkeypatch.setattr(streams, "UNREAD_MAX", 4)
    monkeypatch.setattr(streams, "REQUESTS_MAX", 3)
    told: list[int] = []

    async def frames() -> AsyncIterator[pb.IdentifyStreamRequest]:
        request = pb.IdentifyRequest(gallery="g", k=1)
        for number in range(100):
            told.append(await world.ask(number + 1))
            yield pb.IdentifyStreamRequest(number=number, request=request, timeout_ms=1000)

    with pytest.raises(BaseExceptionGroup) as ended:
        await served(world, frames(), reads=False)

    assert [error.reason for error in ended.value.exceptions] == ["UNREAD"]
    assert told == [1, 2, 3, 4, 5]
    await until(lambda: world.service.rpc.streams.requests_count == 0, SOON_S)


@pytest.mark.parametrize(
    ("rows", "dim", "k", "way"),
    [
        (16, 512, 10, "streams"),
        (1, 512, 2048, "streams"),
        (33, 512, 10, "alone"),
        (64, 128, 2048, "alone"),
    ],
)
async def test_large_requests_and_answers_get_calls_of_their_own(
    world: World, rows: int, dim: int, k: int, way: str
) -> None:
    request = pb.IdentifyRequest(gallery="g", k=k)
    request.probes.CopyFrom(to_wire_vectors(np.ones((rows, dim), np.float32)))
    await world.caller.call(request, timeout_s=LONG_S)

    assert world.service.calls == {way: 1}


@pytest.mark.parametrize(
    ("limit", "reason"), [("AT_ONCE_MAX", "REQUESTS"), ("REQUESTS_MAX", "REQUESTS")]
)
async def test_too_many_requests_are_refused_and_giving_up_is_still_heard(
    world: World, monkeypatch: pytest.MonkeyPatch, limit: str, reason: str
) -> None:
    """1. two are served; 2. a third is refused; 3. one of the two is given up, behind the third;
    4. there is room.
    """
    monkeypatch.setattr(streams, limit, 2)
    tasks = [world.start(k) for k in (1, 2)]
    await world.service.until(1, 2)
    refused = await refusal(world.ask(3))
    tasks[0].cancel()
    await until(lambda: world.service.ended["cancelled"] == 1, SOON_S)

    assert (type(refused), refused.reason) == (OverloadedError, reason)
    assert await world.ask(4) == 4
    world.service.gates[2].set()
    assert await tasks[1] == 2
    await until(lambda: world.service.rpc.streams.requests_count == 0, SOON_S)


async def test_what_is_given_up_before_it_has_begun_takes_no_place(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "AT_ONCE_MAX", 1)

    async def frames() -> AsyncIterator[pb.IdentifyStreamRequest]:
        request = pb.IdentifyRequest(gallery="g", k=1)
        for number in range(3):
            yield pb.IdentifyStreamRequest(number=number, request=request, timeout_ms=1000)
            yield pb.IdentifyStreamRequest(number=number)
        await until(lambda: world.service.rpc.streams.requests_count == 0, SOON_S)
        yield pb.IdentifyStreamRequest(number=9, request=request, timeout_ms=1000)

    written = await served(world, frames())
    assert [answer.number for answer in written] == [9]
    assert world.service.begun == [1]


async def served(
    world: World, frames: AsyncIterator[pb.IdentifyStreamRequest], *, reads: bool = True
) -> list[pb.IdentifyStreamResponse]:
    """Serve a stream without a connection; return what was written."""
    written: list[pb.IdentifyStreamResponse] = []
    taken = asyncio.Event()
    if reads:
        taken.set()

    class Context:
        def peer(self) -> str:
            return "test"

        async def write(self, message: pb.IdentifyStreamResponse) -> None:
            await taken.wait()
            written.append(message)

    context: Any = Context()
    async with asyncio.timeout(LONG_S):
        await world.service.rpc.streams.serve(
            frames,
            context,
            method=METHOD,
            frame=pb.IdentifyStreamResponse,
            handle=world.service.handle,
        )
    return written


async def test_beyond_so_many_that_wait_requests_get_calls_of_their_own(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that those who wait for long do not keep others from asking."""
    monkeypatch.setattr(stream_caller, "WAITING_MAX", 2)
    tasks = [world.start(k) for k in (1, 2)]
    await world.service.until(1, 2)

    assert await world.ask(3) == 3
    assert world.service.calls == {"streams": 1, "alone": 1}
    for k in (1, 2):
        world.service.gates[k].set()
    assert [await task for task in tasks] == [1, 2]


async def test_what_nobody_waits_for_any_more_is_not_written() -> None:
    """1. a stream takes one request and no more for now; 2. two more are asked and given up; 3. it
    takes more again.
    """
    gate = asyncio.Event()
    written: list[pb.IdentifyStreamRequest] = []
    ended = asyncio.Event()

    class Stream:
        async def write(self, frame: pb.IdentifyStreamRequest) -> None:
            written.append(frame)
            await gate.wait()

        async def done_writing(self) -> None:
            ended.set()

        def cancel(self) -> None:
            ended.set()

        async def __aiter__(self) -> AsyncIterator[pb.IdentifyStreamResponse]:
            await ended.wait()
            for nothing in ():
                yield nothing

    nobody: Any = None
    methods: Methods[pb.IdentifyRequest, pb.IdentifyResponse] = Methods(
        nobody, lambda **_: Stream(), pb.IdentifyStreamRequest
    )
    caller = StreamCaller(methods, SystemClock())
    loop = asyncio.get_running_loop()
    tasks = [
        loop.create_task(caller.call(pb.IdentifyRequest(k=k), timeout_s=LONG_S)) for k in (1, 2, 3)
    ]
    await until(lambda: len(written) == 1, SOON_S)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    gate.set()
    caller.retire()
    await until(lambda: caller.idle, SOON_S)

    assert [(frame.number, frame.HasField("request")) for frame in written] == [
        (1, True),
        (1, False),
    ]
    assert 0 < written[0].timeout_ms <= LONG_S * 1000


async def test_an_outcome_that_is_not_known_is_no_answer(world: World) -> None:
    """An empty list of candidates would read as: nobody resembles them."""
    real = world.service.rpc.streams.serve

    async def unknown(*frames: Any, **how: Any) -> None:
        await real(*frames, **{**how, "frame": lambda number, **_: empty(number=number)})

    empty = pb.IdentifyStreamResponse
    world.service.rpc.streams.serve = unknown  # type: ignore[method-assign]  # a newer server

    assert await world.ask(1) == 1
    assert world.service.calls == {"streams": 1, "alone": 1}


async def test_work_that_is_broken_off_inside_is_told(world: World) -> None:
    """Not by the caller: something that the handler waited for was cancelled."""
    world.service.gates[1] = cancelled = asyncio.Event()

    async def wait() -> bool:
        raise asyncio.CancelledError

    cancelled.wait = wait  # type: ignore[method-assign]  # as a future that somebody cancelled
    error = await refusal(world.ask(1, "wait"))

    assert (type(error), error.reason) == (UnavailableError, "TRANSPORT")


async def test_a_message_that_cannot_be_read_ends_the_stream(world: World) -> None:
    raw: Any = open_channel(world.address).stream_stream(
        "/facegrid.api.v1.IdentificationService/IdentifyStream"
    )
    stream = raw(timeout=LONG_S)
    await stream.write(b"\xff\xff\xff")

    assert await stream.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_answer_that_cannot_be_read_is_called_for(world: World) -> None:
    """1. one waits on a stream; 2. nonsense comes; 3. both it and the next one are answered."""
    stub = IdentificationServiceStub(open_channel(world.address))

    def undecodable(data: bytes) -> pb.IdentifyStreamResponse:
        return pb.IdentifyStreamResponse.FromString(b"\xff" + data)

    channel = open_channel(world.address)
    together: Any = channel.stream_stream(
        "/facegrid.api.v1.IdentificationService/IdentifyStream",
        request_serializer=pb.IdentifyStreamRequest.SerializeToString,
        response_deserializer=undecodable,
    )
    methods: Any = Methods(stub.Identify, together, pb.IdentifyStreamRequest)
    caller: Any = StreamCaller(methods, world.clock)
    request = pb.IdentifyRequest(gallery="g", k=7)
    answers = [await caller.call(request, timeout_s=LONG_S) for _ in range(2)]
    await caller.aclose()

    assert [answer.map_version for answer in answers] == [7, 7]
    assert world.service.calls["alone"] == 2


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
