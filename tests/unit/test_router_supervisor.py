"""Work that a router owns: none is lost, not even what never began."""

import asyncio
import inspect

import pytest

from facegrid.errors import UnavailableError
from router.dispatch.supervisor import Broken, Done, Supervisor


async def works(result: int) -> int:
    if not result:
        raise ValueError("nothing")
    return result


async def test_the_outcome_is_given_and_no_error_ends_another() -> None:
    supervisor = Supervisor()
    running = asyncio.get_running_loop().create_task(supervisor.run())
    await asyncio.wait([running], timeout=0)

    done, broken = supervisor.start(works(1)), supervisor.start(works(0))
    found = await done, await broken
    running.cancel()
    await asyncio.wait([running])

    assert found[0] == Done(1)
    assert isinstance(found[1], Broken)
    assert isinstance(found[1].error, ValueError)


async def test_work_that_is_cancelled_before_it_began_is_closed() -> None:
    supervisor = Supervisor()
    running = asyncio.get_running_loop().create_task(supervisor.run())
    await asyncio.wait([running], timeout=0)

    work = works(1)
    task = supervisor.start(work)
    task.cancel()
    await asyncio.wait([task])
    state = inspect.getcoroutinestate(work)
    running.cancel()
    await asyncio.wait([running])

    assert state == inspect.CORO_CLOSED


async def test_a_router_that_does_not_run_takes_no_work() -> None:
    work = works(1)

    with pytest.raises(UnavailableError):
        Supervisor().start(work)

    assert inspect.getcoroutinestate(work) == inspect.CORO_CLOSED
