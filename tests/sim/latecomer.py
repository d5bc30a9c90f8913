"""Clients of runs with splits and merges: what comes late, and what comes in parts."""

from dataclasses import replace

from typing_extensions import override

from facegrid.ids import KEY_LAST
from facegrid.model import HashRange, ShardAssignment
from indexd.engine.requests import EnrolRequest, WriteRequest
from tests.sim.client import Client, Told

WIDE_SHARE = 0.4
"""Share of the enrolments that may have rows for every shard."""
LATE_SHARE = 0.25
"""Share of the enrolments that are copies of one that was sent before."""
KEPT = 15
"""Of how many a copy may come late."""


class Latecomer(Client):
    """Enrols into several shards at once, and sends some enrolments again, long after."""

    _sent: tuple[tuple[ShardAssignment, EnrolRequest], ...] = ()

    @override
    async def enrol(self, shard: ShardAssignment | None = None) -> Told | None:
        """Enrol into one shard or several, or send what was sent before."""
        rng = self.world.rng
        if shard is None and self._sent and rng.random() < LATE_SHARE:
            self.world.count("late copies")
            return await self.write(*rng.choice(self._sent))
        if shard is None and rng.random() < WIDE_SHARE:
            shard = replace(rng.choice(self.router.shards), range=HashRange(0, KEY_LAST))
        return await super().enrol(shard)

    @override
    async def write(self, shard: ShardAssignment, request: WriteRequest) -> Told | None:
        """Send a write, and remember an enrolment."""
        if isinstance(request, EnrolRequest):
            self._sent = (*self._sent, (shard, request))[-KEPT:]
        return await super().write(shard, request)
