"""A node that fails is passed over a while, longer each time, until it answers."""

import asyncio

import pytest

from facegrid.api.shard.v1 import shard_service_pb2 as pb
from facegrid.clock import SystemClock
from facegrid.errors import DeadlineError, UnavailableError
from facegrid.ids import NodeId
from facegrid.rpc.pool import ChannelPool
from facegrid.testing.fake_shard import FakeNode
from facegrid.testing.manual_clock import ManualClock
from facegrid.testing.memory_coord import MemoryCoordinator
from router.topology.pool import HUNG_S, NodePool
from router.topology.snapshot import Topology

N1 = NodeId("n1")


async def status(pool: NodePool, topology: Topology, *, timeout_s: float = 5) -> str:
    """Return the reason of the error, or what node it was."""
    try:
        answer = await pool.call(
            topology, N1, lambda stub: stub.Status, pb.StatusRequest(), timeout_s=timeout_s
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


async def test_only_a_node_that_hangs_without_need_fails() -> None:
    clock = SystemClock()
    channels = ChannelPool()
    pool = NodePool(channels, clock)
    failing, messages = [], []
    async with FakeNode("n1", MemoryCoordinator(clock), clock) as node:
        there = Topology(addresses={N1: node.address})
        node.mischief.hold["Search"] = asyncio.Event()
        for timeout_s, may_wait in [(0.1, False), (HUNG_S, True), (HUNG_S, False)]:
            with pytest.raises(DeadlineError) as caught:
                await pool.search(
                    there, N1, pb.SearchRequest(), timeout_s=timeout_s, may_wait=may_wait
                )
            failing.append(pool.loads()[N1].failing)
            messages.append(caught.value.message.partition(" node=")[0])
    await channels.aclose()

    plain = "node did not answer in the time given"
    assert failing == [False, False, True]
    assert messages == [
        plain,
        f"{plain}, waiting for a position it was not seen to have reached",
        plain,
    ]


async def test_a_stream_that_breaks_once_the_time_is_over_was_not_answered_in_time() -> None:
    clock, system = ManualClock(), SystemClock()
    channels = ChannelPool()
    pool = NodePool(channels, clock)
    reasons = []
    async with FakeNode("n1", MemoryCoordinator(system), system) as node:
        there = Topology(addresses={N1: node.address})
        for passed_s in (0.0, 30.0):
            node.mischief.hold["Status"] = asyncio.Event()
            node.calls.clear()
            async with asyncio.TaskGroup() as group:
                reason = group.create_task(status(pool, there, timeout_s=30))
                while not node.calls:
                    await asyncio.wait([reason], timeout=0.001)
                await clock.advance(passed_s)
                await node.crash()
            reasons.append(reason.result())
            await node.listen(node.address)
    await channels.aclose()

    assert reasons == ["NODE_UNREACHABLE", "DEADLINE_EXCEEDED"]
