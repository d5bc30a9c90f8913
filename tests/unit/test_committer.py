"""What a committer writes into the log beside what it was given."""

import itertools

from typing_extensions import override

from facegrid.clock import SystemClock
from facegrid.format.log import decode_log
from tests.unit.test_replica import World, enrol
from tests.unit.test_replica import world as world  # noqa: PLC0414 - a fixture


class BackwardClock(SystemClock):
    """A wall clock that goes back by an hour at every look."""

    def __init__(self) -> None:
        self._looks = itertools.count()

    @override
    def unix_ms(self) -> int:
        return 1_800_000_000_000 - 3_600_000 * next(self._looks)


async def test_what_is_written_later_says_so_though_the_wall_clock_goes_back(world: World) -> None:
    """Who recovers without etcd takes the later of two objects that follow the same one."""
    async with world.primary("b1", clock=BackwardClock()) as primary:
        for number in range(3):
            await primary.write(enrol(number))

    names = sorted(name for name in world.of_shard() if "/log/" in name)
    written = [decode_log(world.store.objects[name]).records[-1].written_unix_ms for name in names]
    assert len(set(written)) == 3
    assert written == sorted(written)
