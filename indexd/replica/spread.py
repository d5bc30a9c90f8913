"""Makes an erasure certain on every other copy before it is acknowledged."""

import asyncio
from collections.abc import Sequence

from facegrid import limits
from facegrid.api.shard.v1 import shard_service_pb2 as pb
from facegrid.api.shard.v1.shard_service_pb2_grpc import ShardServiceStub
from facegrid.clock import Clock
from facegrid.errors import FacegridError
from facegrid.ids import NodeId, ShardId
from facegrid.model import ShardAssignment
from facegrid.rpc.call import call
from facegrid.rpc.pool import ChannelPool
from indexd.replica.primary import Primary
from indexd.replica.view import View


class Spread:
    """Waits until no other copy can return what was erased, as a confirmed answer."""

    def __init__(self, pool: ChannelPool, clock: Clock, view: View) -> None:
        self._pool = pool
        self._clock = clock
        self._view = view

    async def wait(self, primary: Primary, position: int, asked: ShardAssignment) -> None:
        """Return once every other copy has applied the position or can no longer be confirmed, and
        neither can a process that was the primary before: it, or a router, may have been told by
        etcd that the shard was its own just before it was claimed here.

        Copies that join count like others, since by the next map they may be searched, and copies
        that the map has given up lately: they may not have heard.

        Args:
            primary: the copy that committed.
            position: of the erasure.
            asked: the assignment when the erasure was asked for. While it was committed another
                node may have become the primary, which was a follower a moment ago.
        """
        shard_id, since_s = primary.assignment.shard_id, self._clock.now_s()
        others = dict.fromkeys(self._holders(primary, asked), since_s + limits.CONFIRMATION_OVER_S)
        others = primary.forerunners.until_s | others
        others.pop(primary.ports.claimant.node_id, None)
        async with asyncio.TaskGroup() as tasks:
            for node_id, until_s in others.items():
                # A node that was started anew may have an old process that still stands around.
                addresses: list[str | None] = [*self._view.addresses(node_id)]
                for address in addresses or [None]:
                    tasks.create_task(self._wait_for(address, shard_id, position, until_s))
            tasks.create_task(
                self._clock.sleep(max(0.0, primary.forerunners.alone_from_s - since_s))
            )

    def _holders(self, primary: Primary, asked: ShardAssignment) -> Sequence[NodeId]:
        """Return the nodes that hold a copy, or did when the erasure was asked for."""
        return (*primary.assignment.holders, *asked.holders)

    async def _wait_for(
        self, address: str | None, shard_id: ShardId, position: int, until_s: float
    ) -> None:
        """Ask one process; if it does not answer, wait until it can no longer be confirmed."""
        if until_s <= self._clock.now_s():
            return
        if address is not None:
            stub = ShardServiceStub(self._pool.get(address))
            request = pb.ReachRequest(shard_id=shard_id, position=position)
            try:
                await call(stub.Reach, request, timeout_s=until_s - self._clock.now_s())
            except FacegridError:
                pass
            else:
                return
        await self._clock.sleep(max(0.0, until_s - self._clock.now_s()))
