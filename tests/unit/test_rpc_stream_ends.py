"""How streams end: by either end, in order or not; nobody waits longer than for a call."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from facegrid.clock import SystemClock
from facegrid.errors import DeadlineError, UnavailableError
from facegrid.rpc import stream_caller
from tests.fakes.stream_world import SOON_S, World, made, refusal
from tests.fakes.waiting import until


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with made() as one:
        yield one


async def test_a_server_that_stops_answers_what_it_has_and_refuses_the_rest_at_once(
    world: World,
) -> None:
    """1. it serves one; 2. it ends its streams; 3. others ask anew and do not wait for the one."""
    slow = world.start(1)
    await world.service.until(1)
    world.service.rpc.streams.end()
    assert [await world.ask(k) for k in (2, 3)] == [2, 3]
    assert not slow.done()
    world.service.gates[1].set()

    assert await slow == 1
    assert world.service.calls["alone"] == 2
    assert world.service.begun == [1, 2, 3]


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
    await until(lambda: ended in world.observed, SOON_S)


async def test_retiring_ends_the_stream_in_order(world: World) -> None:
    slow = world.start(1)
    await world.service.until(1)
    world.caller.retire()
    world.service.gates[1].set()

    assert await slow == 1
    await until(lambda: world.caller.idle, SOON_S)
    assert world.service.calls == {"streams": 1}


async def test_closing_ends_what_is_on_its_way(world: World) -> None:
    slow = world.start(1)
    await world.service.until(1)
    await world.caller.aclose()
    for error in (await refusal(slow), await refusal(world.ask(2))):
        assert isinstance(error, UnavailableError)
        assert error.reason == "CLOSED"


@pytest.mark.parametrize("server", ["knows no streams", "stops"])
async def test_many_who_ask_at_once_are_all_answered_however_the_stream_ends(
    world: World, server: str
) -> None:
    """Who still writes to a stream may not learn from gRPC how it ended."""
    world.service.knows_streams = server == "stops"
    if world.service.knows_streams:
        world.service.rpc.streams.end()
    ks = range(1, 51)
    tasks = [world.start(k, "g") for k in ks]

    assert [await task for task in tasks] == [*ks]
    assert world.service.calls["alone"] == len(ks)


async def test_closing_before_a_stream_has_begun_is_told_at_once(world: World) -> None:
    first = world.start(1)
    await SystemClock().sleep(0)
    await world.caller.aclose()
    error = await refusal(first)

    assert (type(error), error.reason) == (UnavailableError, "CLOSED")


async def test_a_stream_that_carries_nothing_ends(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_caller, "IDLE_S", 0.01)
    slow = world.start(1)
    await world.service.until(1)
    await SystemClock().sleep(0.05)
    assert not world.caller.idle
    world.service.gates[1].set()
    assert await slow == 1
    await until(lambda: world.caller.idle, SOON_S)

    assert await world.ask(2) == 2
    assert world.service.calls == {"streams": 2}


async def test_giving_up_is_heard_on_a_stream_that_takes_nothing_more(world: World) -> None:
    slow = world.start(1)
    await world.service.until(1)
    world.caller.retire()
    slow.cancel()
    await until(lambda: world.service.ended["cancelled"] == 1, SOON_S)
    await until(lambda: world.caller.idle, SOON_S)


async def test_a_stream_by_which_nothing_comes_is_left(world: World) -> None:
    """Something between holds it up, and lets calls through."""

    async def hold(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    world.service.rpc.streams.serve = hold  # type: ignore[method-assign]  # something between
    late = asyncio.get_running_loop().create_task(world.ask(1, "g", 1.0))
    await until(lambda: world.service.calls["streams"] == 1, SOON_S)
    await world.clock.advance(stream_caller.SILENT_S)
    error = await refusal(late)

    assert isinstance(error, DeadlineError)
    assert await world.ask(2) == 2
    assert world.service.calls == {"streams": 1, "alone": 1}
