"""A node that fails is passed over a while, longer each time, until it answers."""

from facegrid.api.shard.v1 import shard_service_pb2 as pb
from facegrid.clock import SystemClock
from facegrid.errors import UnavailableError
from facegrid.ids import NodeId
from facegrid.rpc.pool import ChannelPool
from facegrid.testing.fake_shard import FakeNode
from facegrid.testing.manual_clock import ManualClock
from facegrid.testing.memory_coord import MemoryCoordinator
from router.topology.pool import NodePool
from router.topology.snapshot import Topology

N1 = NodeId("n1")


async def status(pool: NodePool, topology: Topology) -> str:
    """Return the reason of the error, or what node it was."""
    try:
        answer = await pool.call(
            topology, N1, lambda stub: stub.Status, pb.StatusRequest(), timeout_s=5
        )
    except UnavailableError as error:
        return error.reason
    return answer.node_id


async def test_a_node_that_fails_again_is_passed_over_for_longer() -> None:
    clock, system = ManualClock(), SystemClock()
    channels = ChannelPool()
    pool = NodePool(channels, clock)
    async with FakeNode("n1", MemoryCoordinator(system), system) as node:
        there = Topology(addresses={N1: node.address})
        away = Topology(addresses={N1: "127.0.0.1:1"})
        reasons, failing = [], []
        for topology, later_s in [(away, 0.9), (away, 0.2), (away, 1.9), (away, 0.2), (there, 0)]:
            reasons.append(await status(pool, topology))
            await clock.advance(later_s)
            failing.append(pool.loads()[N1].failing)
        unknown = await status(pool, Topology())
    await channels.aclose()

    assert reasons == ["NODE_UNREACHABLE"] * 4 + ["n1"]
    assert failing == [True, False, True, False, False]
    assert unknown == "NODE_UNKNOWN"
