"""How a node ends: what is cancelled with it may not begin anything."""

import asyncio
from collections.abc import Callable, Coroutine

import pytest

from facegrid.errors import FencedError
from tests.fakes.mirror_rig import N1, Process, Rig, S, rigged


async def killed(rig: Rig, process: Process) -> None:
    await rig.kill(process)
    assert process.running.cancelled()


async def failed(_rig: Rig, process: Process) -> None:
    async def fail() -> None:
        raise FencedError("another process runs under this id")

    assert process.node._tasks is not None
    process.node._tasks.create_task(fail())
    with pytest.raises(ExceptionGroup) as errors:
        await process.running
    assert errors.group_contains(FencedError)
    assert not errors.group_contains(RuntimeError)


@pytest.mark.parametrize("end", [killed, failed])
async def test_work_that_ends_with_the_node_begins_no_other(
    end: Callable[[Rig, Process], Coroutine[None, None, None]],
) -> None:
    async with rigged() as rig:
        process = await rig.start(N1)
        primary = await rig.serving(S)
        started = asyncio.Event()
        begun: list[str] = []

        async def other() -> None:
            begun.append("other")

        async def work() -> None:
            try:
                started.set()
                await asyncio.Event().wait()
            finally:
                process.node._start("other", other())
                process.node.applied(primary)

        process.node._start("work", work())
        await started.wait()
        await end(rig, process)

        assert begun == []
