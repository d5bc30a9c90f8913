"""Makes an erasure certain on followers before it is acknowledged."""

import asyncio

from facegrid.api.shard.v1 import shard_service_pb2 as pb
from facegrid.api.shard.v1.shard_service_pb2_grpc import ShardServiceStub
from facegrid.clock import Clock
from facegrid.errors import FacegridError
from facegrid.model import ShardAssignment
from facegrid.rpc.call import call
from facegrid.rpc.pool import ChannelPool
from indexd.replica.follower import STALENESS_S
from indexd.replica.view import View

MARGIN_S = 0.5
"""For clocks of two machines that do not run equally fast."""


class Spread:
    """Waits until no follower can return what was erased at a position."""

    def __init__(self, pool: ChannelPool, clock: Clock, view: View) -> None:
        self._pool = pool
        self._clock = clock
        self._view = view

    async def wait(self, assignment: ShardAssignment, position: int) -> None:
        """Return once every follower has applied the position or has lost the right to serve."""
        since_s = self._clock.now_s()
        async with asyncio.TaskGroup() as tasks:
            for node_id in assignment.node_ids[1:]:
                # A node that was started anew may have an old process that still stands around.
                addresses: list[str | None] = [*self._view.addresses(node_id)]
                for address in addresses or [None]:
                    tasks.create_task(self._wait_for(address, assignment, position, since_s))

    async def _wait_for(
        self, address: str | None, assignment: ShardAssignment, position: int, since_s: float
    ) -> None:
        """Ask one process; if it does not answer, wait until it may no longer serve."""
        until_s = since_s + STALENESS_S + MARGIN_S
        if address is not None:
            stub = ShardServiceStub(self._pool.get(address))
            request = pb.ReachRequest(shard_id=assignment.shard_id, position=position)
            try:
                await call(stub.Reach, request, timeout_s=until_s - self._clock.now_s())
            except FacegridError:
                pass
            else:
                return
        await self._clock.sleep(max(0.0, until_s - self._clock.now_s()))
