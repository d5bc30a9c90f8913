"""A node that fails is passed over a while, longer each time, until it answers."""

import asyncio

import pytest

from facegrid.api.shard.v1 import shard_service_pb2 as pb
from facegrid.clock import SystemClock
from facegrid.errors import DeadlineError, UnavailableError
from facegrid.ids import KEY_LAST, GalleryName, NodeId, ShardId
from facegrid.model import Gallery, HashRange, NodeInfo, ShardAssignment, ShardMap
from facegrid.rpc.pool import ChannelPool
from facegrid.testing.fake_shard import FakeNode
from facegrid.testing.manual_clock import ManualClock
from facegrid.testing.memory_coord import MemoryCoordinator
from router.plan.hedge import LOOK_AGAIN_S
from router.topology.pool import FAILING_S_MAX, HUNG_S, LATENCY_HALF_S, NodePool
from router.topology.snapshot import ServedGallery, Topology

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


async def test_a_node_that_answers_no_health_check_is_passed_over_until_it_does() -> None:
    clock, system = ManualClock(), SystemClock()
    channels = ChannelPool()
    pool = NodePool(channels, clock)
    async with FakeNode("n1", MemoryCoordinator(system), system) as node:
        there = Topology(addresses={N1: node.address})
        away = Topology(addresses={N1: "127.0.0.1:1"})
        lives = [await pool.lives(there, N1), await pool.lives(away, N1)]
        silent = [pool.silent(N1)]
        await clock.advance(10 * FAILING_S_MAX)
        silent.append(pool.loads()[N1].failing)
        lives.append(await pool.lives(there, N1))
        silent += [pool.silent(N1), pool.loads()[N1].failing]
        unknown = await pool.lives(Topology(), N1)
    await channels.aclose()

    assert lives == [True, False, True]
    assert silent == [True, True, False, False]
    assert not unknown


async def test_a_pool_looks_after_silent_nodes_by_itself() -> None:
    clock, system = ManualClock(), SystemClock()
    channels = ChannelPool()
    pool = NodePool(channels, clock)
    async with FakeNode("n1", MemoryCoordinator(system), system) as node:
        known = Topology(addresses={N1: "127.0.0.1:1"})
        await pool.lives(known, N1)
        known = Topology(addresses={N1: node.address})  # it has been started elsewhere
        async with asyncio.TaskGroup() as group, asyncio.timeout(20):
            running = group.create_task(pool.run(lambda: known))
            while pool.silent(N1):
                await clock.advance(LOOK_AGAIN_S)
                await asyncio.wait([running], timeout=0.01)
            running.cancel()
    await channels.aclose()


async def test_a_node_that_was_slow_once_is_tried_again_after_a_while() -> None:
    clock, system = ManualClock(), SystemClock()
    channels = ChannelPool()
    pool = NodePool(channels, clock)
    async with FakeNode("n1", MemoryCoordinator(system), system) as node:
        there = Topology(addresses={N1: node.address})
        node.mischief.hold["Search"] = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            # Another copy was quicker, so this call is given up: it took 4 s at least.
            call = group.create_task(pool.search(there, N1, pb.SearchRequest(), timeout_s=60))
            while not node.searches:
                await asyncio.wait([call], timeout=0.001)
            await clock.advance(4)
            call.cancel()
        latencies_s = [pool.loads()[N1].latency_s]
        await clock.advance(3 * LATENCY_HALF_S)
        latencies_s.append(pool.loads()[N1].latency_s)
    await channels.aclose()

    assert latencies_s == [4.0, 0.5]


async def test_connections_are_kept_as_long_as_a_node_is_registered_or_a_map_names_it() -> None:
    """1 n1 is called; 2 it is registered at another address; 3 it is looked twice; 4 it is not
    registered, but holds a shard.
    """
    clock = SystemClock()
    channels = ChannelPool()
    pool = NodePool(channels, clock)
    info = NodeInfo(N1, "b1", "127.0.0.1:1")
    shard = ShardAssignment(ShardId("g.1f00aa23.0000"), HashRange(0, KEY_LAST), (N1,))
    name = GalleryName("g")
    held = ServedGallery(
        Gallery(name, "1f00aa23", 8, "x@1", 1, 1, 0), ShardMap(name, "1f00aa23", 1, (shard,))
    )
    async with FakeNode("n1", MemoryCoordinator(clock), clock) as node:
        there = Topology(addresses={N1: node.address}, nodes={N1: info})
        before = Topology(addresses={N1: "127.0.0.1:1"}, nodes={N1: info})
        reasons = [await status(pool, one) for one in (before, there)]
        counts = [len(channels)]
        for topology in (there, there):
            await pool.tidy(topology)
            counts.append(len(channels))
        reasons.append(await status(pool, there))
        for topology in (
            Topology(addresses={N1: node.address}, galleries={name: held}),
            Topology(addresses={N1: node.address}, galleries={name: held}),
            Topology(addresses={N1: node.address}),
            Topology(addresses={N1: node.address}),
        ):
            await pool.tidy(topology)
            counts.append(len(channels))
        reasons.append(await status(pool, there))
    await channels.aclose()

    assert reasons == ["NODE_UNREACHABLE", "n1", "n1", "n1"]
    assert counts == [2, 2, 1, 1, 1, 1, 0]


async def test_a_call_on_its_way_ends_though_its_connection_is_let_go() -> None:
    clock = SystemClock()
    channels = ChannelPool()
    pool = NodePool(channels, clock)
    async with (
        FakeNode("n1", MemoryCoordinator(clock), clock) as node,
        asyncio.TaskGroup() as tasks,
    ):
        there = Topology(addresses={N1: node.address})
        node.mischief.hold["Status"] = asyncio.Event()
        calling = tasks.create_task(status(pool, there))
        while "Status" not in node.calls:
            await clock.sleep(0.01)
        await pool.tidy(Topology())
        going = tasks.create_task(pool.tidy(Topology()))
        while len(channels):
            await clock.sleep(0)
        node.mischief.hold["Status"].set()
        assert await calling == "n1"
        await going
