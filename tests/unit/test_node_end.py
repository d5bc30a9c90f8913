"""How a node ends: what is cancelled with it may not begin anything."""

import asyncio

from tests.fakes.mirror_rig import N1, S, rigged


async def test_work_that_ends_with_the_node_begins_no_other() -> None:
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
        await rig.kill(process)

        assert process.running.cancelled()
        assert begun == []
