"""How much may wait for the log of a node whose store does not answer."""

import asyncio
from dataclasses import replace

import pytest
from typing_extensions import override

from facegrid import limits
from facegrid.errors import OverloadedError
from facegrid.testing.memory_blob import MemoryBlobStore
from tests.unit.test_replica import World, enrol, found, world

__all__ = ["world"]

ROWS = 4096


class HeldStore(MemoryBlobStore):
    """A store that never answers a put."""

    @override
    async def put_new(self, name: str, data: bytes) -> None:
        await asyncio.Event().wait()


async def test_writes_beyond_the_queue_are_told_to_slow_down_and_reads_go_on(world: World) -> None:
    """1 the store does not answer; 2 as much waits as may; 3 one more write is refused."""
    world.store = HeldStore()
    one = enrol(1, rows=ROWS)
    fitting = limits.WRITE_QUEUE_BYTES_MAX // one.size_bytes
    async with world.primary("b1") as primary, asyncio.TaskGroup() as tasks:
        waiting = [
            tasks.create_task(primary.write(replace(one, request_id=f"r-{number}")))
            for number in range(fitting)
        ]
        await primary.ports.clock.sleep(0)
        with pytest.raises(OverloadedError) as refused:
            await primary.write(replace(one, request_id="r-more"))

        assert (refused.value.reason, found(primary, enrol(2))) == ("WRITE_QUEUE_FULL", [])
        for task in waiting:
            task.cancel()
