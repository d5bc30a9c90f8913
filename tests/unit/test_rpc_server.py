"""A real loopback server behind the boundary interceptor, asked over a real channel."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs

from facegrid import limits
from facegrid.clock import SystemClock
from facegrid.errors import (
    ConflictError,
    DeadlineError,
    FacegridError,
    InvalidError,
    OverloadedError,
    UnavailableError,
)
from facegrid.rpc.call import call
from facegrid.rpc.channel import open_channel
from facegrid.rpc.context import CallContext, call_context
from facegrid.rpc.pool import ChannelPool
from facegrid.rpc.server import RpcServer
from facegrid.rpc.status import from_grpc

SERVICE = "test.Echo"
Behaviour = Callable[..., Any]


def as_is(data: bytes) -> bytes:
    return data


@asynccontextmanager
async def serving(*, dev: bool = False, **behaviours: Behaviour) -> AsyncIterator[str]:
    """Serve handlers named unary_unary, ... under test.Echo/<kind>; yield the address."""
    server = RpcServer(SystemClock(), structlog.get_logger().bind(), dev=dev)
    handlers = {
        kind: getattr(grpc, f"{kind}_rpc_method_handler")(
            behaviour, request_deserializer=as_is, response_serializer=as_is
        )
        for kind, behaviour in behaviours.items()
    }
    generic = grpc.method_handlers_generic_handler(SERVICE, handlers)
    server.server.add_generic_rpc_handlers((generic,))
    server.publish([SERVICE])
    port = await server.start("127.0.0.1:0")
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def stub(channel: grpc.aio.Channel, kind: str) -> Any:
    build = getattr(channel, kind)
    return build(f"/{SERVICE}/{kind}", request_serializer=as_is, response_deserializer=as_is)


async def refusal(ask: Callable[[], Awaitable[object]]) -> FacegridError:
    try:
        await ask()
    except grpc.aio.AioRpcError as error:
        return from_grpc(error)
    except FacegridError as error:
        return error
    raise AssertionError("nothing was refused")


async def fail(_request: object, _context: object) -> bytes:
    raise ConflictError("taken row=3", reason="TEMPLATE_EXISTS", row=3)


async def fail_late(_request: object, _context: object) -> AsyncIterator[bytes]:
    yield b"one"
    raise ConflictError("taken row=3", reason="TEMPLATE_EXISTS", row=3)


async def drain(items: AsyncIterator[bytes]) -> list[bytes]:
    return [item async for item in items]


async def one_by_one(*messages: bytes) -> AsyncIterator[bytes]:
    for message in messages:
        yield message


async def test_an_error_arrives_as_what_was_raised_from_each_kind_of_handler() -> None:
    async with (
        serving(
            unary_unary=fail, stream_unary=fail, unary_stream=fail_late, stream_stream=fail_late
        ) as address,
        open_channel(address) as channel,
    ):
        errors = [
            await refusal(lambda: stub(channel, "unary_unary")(b"x", timeout=5)),
            await refusal(lambda: stub(channel, "stream_unary")(one_by_one(b"x"), timeout=5)),
            await refusal(lambda: drain(stub(channel, "unary_stream")(b"x", timeout=5))),
            await refusal(
                lambda: drain(stub(channel, "stream_stream")(one_by_one(b"x"), timeout=5))
            ),
        ]
    assert [(type(e), e.message, e.reason, e.facts) for e in errors] == [
        (ConflictError, "taken row=3", "TEMPLATE_EXISTS", {"row": "3"})
    ] * 4


async def test_answers_pass_through_each_kind_of_handler() -> None:
    async def joined(request: Any, _context: object) -> bytes:
        return request if isinstance(request, bytes) else b"".join(await drain(request))

    async def twice(request: Any, _context: object) -> AsyncIterator[bytes]:
        for item in [request] if isinstance(request, bytes) else await drain(request):
            yield item
            yield item

    async def written(request: bytes, context: Any) -> None:
        await context.write(request)

    async with (
        serving(
            unary_unary=joined, stream_unary=joined, unary_stream=written, stream_stream=twice
        ) as address,
        open_channel(address) as channel,
    ):
        assert await stub(channel, "unary_unary")(b"x", timeout=5) == b"x"
        assert await stub(channel, "stream_unary")(one_by_one(b"x", b"y"), timeout=5) == b"xy"
        assert await drain(stub(channel, "unary_stream")(b"x", timeout=5)) == [b"x"]
        streamed = stub(channel, "stream_stream")(one_by_one(b"x", b"y"), timeout=5)
        assert await drain(streamed) == [b"x", b"x", b"y", b"y"]


async def test_a_call_without_a_deadline_is_refused_before_the_handler() -> None:
    async def never(_request: bytes, _context: object) -> bytes:
        raise AssertionError("must not be reached")

    async with serving(unary_unary=never) as address, open_channel(address) as channel:
        error = await refusal(lambda: stub(channel, "unary_unary")(b"x"))
    assert (type(error), error.reason) == (InvalidError, "DEADLINE_MISSING")


@pytest.mark.parametrize("kind", ["unary_unary", "stream_stream"])
async def test_a_message_beyond_the_limit_is_refused_with_its_size(kind: str) -> None:
    async def take(request: Any, _context: object) -> bytes:
        return request if isinstance(request, bytes) else b""

    async def take_each(requests: AsyncIterator[bytes], _context: object) -> AsyncIterator[bytes]:
        async for _ in requests:
            yield b"ok"

    message = bytes(limits.MESSAGE_BYTES_MAX + 1)
    async with (
        serving(unary_unary=take, stream_stream=take_each) as address,
        open_channel(address) as channel,
    ):
        if kind == "unary_unary":
            error = await refusal(lambda: stub(channel, kind)(message, timeout=5))
        else:
            error = await refusal(
                lambda: drain(stub(channel, kind)(one_by_one(message), timeout=5))
            )
    assert (type(error), error.reason) == (InvalidError, "MESSAGE_TOO_LARGE")


async def test_a_message_beyond_the_channel_is_refused_as_too_large() -> None:
    async with serving(unary_unary=fail) as address, open_channel(address) as channel:
        message = bytes(limits.CHANNEL_BYTES_MAX + 1)
        error = await refusal(lambda: call(stub(channel, "unary_unary"), message, timeout_s=5))
    assert (type(error), error.reason) == (InvalidError, "MESSAGE_TOO_LARGE")


async def test_a_bug_is_told_as_internal_and_logged_once_without_contents() -> None:
    async def broken(_request: bytes, _context: object) -> bytes:
        raise KeyError("secret-subject")

    with capture_logs() as logs:
        async with serving(unary_unary=broken) as address, open_channel(address) as channel:
            error = await refusal(lambda: call(stub(channel, "unary_unary"), b"x", timeout_s=5))
    assert (type(error), error.message) == (FacegridError, "internal error kind=KeyError")
    assert [(line["event"], line["log_level"]) for line in logs] == [
        ("handler broke", "error"),
        ("call served", "error"),
    ]
    assert logs[1]["method"] == f"/{SERVICE}/unary_unary"
    assert logs[1]["code"] == "INTERNAL"


async def test_a_group_of_known_errors_counts_as_its_first() -> None:
    async def torn(_request: bytes, _context: object) -> bytes:
        raise ExceptionGroup("two", [OverloadedError("slow"), UnavailableError("away")])

    async def mixed(_request: bytes, _context: object) -> AsyncIterator[bytes]:
        raise ExceptionGroup("two", [OverloadedError("slow"), KeyError("bug")])
        yield b""

    async with (
        serving(unary_unary=torn, unary_stream=mixed) as address,
        open_channel(address) as channel,
    ):
        known = await refusal(lambda: call(stub(channel, "unary_unary"), b"x", timeout_s=5))
        bug = await refusal(lambda: drain(stub(channel, "unary_stream")(b"x", timeout=5)))
    assert (type(known), known.message) == (OverloadedError, "slow")
    assert type(bug) is FacegridError


async def test_a_handler_knows_its_method_its_caller_and_the_time_left() -> None:
    seen: list[CallContext] = []
    clock = SystemClock()

    async def look(request: bytes, context: Any) -> bytes:
        seen.append(call_context(context, clock))
        assert 0 < seen[0].remaining_s(clock) < 7.5, "gRPC rounds up"
        return request

    async with serving(unary_unary=look) as address, open_channel(address) as channel:
        await call(stub(channel, "unary_unary"), b"x", timeout_s=7)
    assert seen[0].method == f"/{SERVICE}/unary_unary"
    assert seen[0].caller.startswith("ipv4:127.0.0.1:")


async def test_a_call_that_takes_too_long_ends_at_its_deadline_and_is_cancelled() -> None:
    cancelled = asyncio.Event()

    async def hang(_request: bytes, _context: object) -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return b""

    async with serving(unary_unary=hang) as address, open_channel(address) as channel:
        error = await refusal(lambda: call(stub(channel, "unary_unary"), b"x", timeout_s=0.05))
        await asyncio.wait_for(cancelled.wait(), 5)
    assert type(error) is DeadlineError


async def test_a_call_with_no_time_left_is_not_made() -> None:
    async with open_channel("127.0.0.1:1") as channel:
        error = await refusal(lambda: call(stub(channel, "unary_unary"), b"x", timeout_s=0))
    assert type(error) is DeadlineError


async def test_nobody_listening_is_unavailable() -> None:
    async with open_channel("127.0.0.1:1") as channel:
        error = await refusal(lambda: call(stub(channel, "unary_unary"), b"x", timeout_s=5))
    assert (type(error), error.reason) == (UnavailableError, "TRANSPORT")


async def test_an_unknown_method_is_invalid() -> None:
    async with serving(stream_stream=fail) as address, open_channel(address) as channel:
        error = await refusal(lambda: call(stub(channel, "unary_unary"), b"x", timeout_s=5))
    assert (type(error), error.reason) == (InvalidError, "UNIMPLEMENTED")


async def test_a_taken_port_is_an_error_naming_the_address() -> None:
    async with serving(unary_unary=fail) as address:
        server = RpcServer(SystemClock(), structlog.get_logger().bind(), dev=False)
        error = await refusal(lambda: server.start(address))
        await server.stop(0)
    assert (type(error), error.reason, error.facts) == (
        UnavailableError,
        "LISTEN_FAILED",
        {"address": address},
    )


async def test_health_is_told_without_a_deadline_and_follows_drain_and_stop() -> None:
    """1. watch: SERVING. 2. drain: NOT_SERVING. 3. stop: the watch ends within the grace."""
    server = RpcServer(SystemClock(), structlog.get_logger().bind(), dev=False)
    server.publish([SERVICE])
    port = await server.start("127.0.0.1:0")
    states = health_pb2.HealthCheckResponse
    async with open_channel(f"127.0.0.1:{port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        assert (await health.Check(request)).status == states.SERVING
        watch = health.Watch(request)
        assert (await watch.read()).status == states.SERVING
        server.drain()
        assert (await watch.read()).status == states.NOT_SERVING
        await asyncio.wait_for(server.stop(60), 5)
        assert await watch.read() == grpc.aio.EOF


async def test_health_does_not_know_services_that_were_not_published() -> None:
    async with serving(unary_unary=fail) as address, open_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="test.Other")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health.Check(request)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("dev", [True, False])
async def test_reflection_lists_services_under_dev_only(dev: bool) -> None:  # noqa: FBT001 - pytest
    async with serving(dev=dev, unary_unary=fail) as address, open_channel(address) as channel:
        stubs = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = stubs.ServerReflectionInfo()
        if not dev:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asked.read()
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            return
        await asked.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        answer = await asked.read()
        await asked.done_writing()
        names = [service.name for service in answer.list_services_response.service]
    assert SERVICE in names


async def test_a_pool_opens_one_channel_per_address_and_refuses_after_closing() -> None:
    pool = ChannelPool()
    assert pool.get("127.0.0.1:1") is pool.get("127.0.0.1:1")
    assert pool.get("127.0.0.1:1") is not pool.get("127.0.0.1:2")
    await pool.aclose()
    await pool.aclose()
    with pytest.raises(UnavailableError, match="closed"):
        pool.get("127.0.0.1:1")


async def test_a_name_of_which_another_process_has_an_address_is_refused() -> None:
    """Else gRPC takes the other address of the name, and half of the callers go elsewhere."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = RpcServer(SystemClock(), structlog.get_logger().bind(), dev=False)
        with pytest.raises(UnavailableError) as refused:
            await server.start(f"localhost:{port}")
        await server.stop(0)

    assert refused.value.reason == "LISTEN_FAILED"
