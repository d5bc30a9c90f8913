"""What one part did while another was halfway: erasures, tips, loads anew and takeovers."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from typing_extensions import override

from facegrid.api.shard.v1 import shard_service_pb2 as pb
from facegrid.clock import SystemClock
from facegrid.coord import keys
from facegrid.coord.port import (
    Changed,
    Delete,
    Guard,
    KeyValue,
    Listing,
    Put,
    TxnResult,
    ValueGuard,
)
from facegrid.errors import UnavailableError
from facegrid.format.log import LogRef
from facegrid.format.records import decode_shard_map, decode_tip, encode_node, encode_shard_map
from facegrid.ids import NodeId
from facegrid.limits import STALENESS_S
from facegrid.model import NodeInfo, ShardAssignment, ShardMap
from facegrid.rpc.pool import ChannelPool
from facegrid.succession import succeeded
from facegrid.telemetry.log import get_logger
from facegrid.testing.manual_clock import ManualClock
from facegrid.testing.skipping_clock import SkippingClock
from fgctl.bulk.publish import LoadStore
from indexd.engine.requests import EraseRequest
from indexd.replica.committer import Committer, CommitterPorts
from indexd.replica.confirmation import Confirmation
from indexd.replica.fence import Claimant
from indexd.replica.follower import POLL_S, Follower
from indexd.replica.node import Node
from indexd.replica.policy import NodePolicy
from indexd.replica.shard_copy import Phase, Trust
from indexd.replica.spread import Spread
from indexd.replica.succession import Succession
from indexd.replica.takeover import Absences, Rules, Standing, decide
from indexd.replica.view import View
from indexd.service.shard_service import ServicePorts, ShardService
from tests.fakes.waiting import until
from tests.unit.test_replica import GALLERY, SHARD, FlakyCoordinator, World, enrol, found
from tests.unit.test_replica import world as world  # noqa: PLC0414 - a fixture
from tests.unit.test_replica_load import LOAD, built, load_request, rows
from tests.unit.test_replica_races import Gate, GatedStore

N1, N2 = NodeId("n1"), NodeId("n2")


class SlowCoordinator(FlakyCoordinator):
    """The answer to the commit of a record comes when the test says, or transactions fail."""

    def __init__(self, former: FlakyCoordinator) -> None:
        super().__init__(SystemClock())
        self._items, self._revision = former._items, former._revision
        self.tips = Gate()
        self.refusing = False

    @override
    async def txn(
        self,
        guards: Sequence[Guard | ValueGuard],
        operations: Sequence[Put | Delete],
        *,
        timeout_s: float = 5.0,
    ) -> TxnResult:
        if self.refusing:
            raise UnavailableError("etcd is away", reason="TRANSPORT")
        result = await super().txn(guards, operations, timeout_s=timeout_s)
        if operations[0].key.startswith(keys.TIPS):
            await self.tips.pass_through()
        return result


class Caller:
    """The context of a call without a deadline."""

    def time_remaining(self) -> None:
        return None

    def peer(self) -> str:
        return "test"


CALLER: Any = Caller()


class Services(ChannelPool):
    """Reaches the services of some addresses; at all others nobody answers."""

    def __init__(self, services: dict[str, ShardService]) -> None:
        super().__init__()
        self.services = services
        self.asked: list[str] = []

    @override
    def get(self, address: str) -> Any:
        return Line(self, address)


class Line:
    """A channel to one of them."""

    def __init__(self, pool: Services, address: str) -> None:
        self._pool = pool
        self._address = address

    def unary_stream(self, _path: str, **_rest: Any) -> None:
        """Streams are asked for by nobody here."""

    stream_stream = unary_stream

    def unary_unary(self, _path: str, **_rest: Any) -> Callable[..., Awaitable[Any]]:
        async def method(request: Any, **_rest: Any) -> Any:
            self._pool.asked.append(self._address)
            if self._address not in self._pool.services:
                raise UnavailableError("no answer", reason="TRANSPORT")
            return await self._pool.services[self._address].Reach(request, CALLER)

        return method


def node_of(world: World, node: str, boot: str) -> Node:
    """Return a node that nobody runs yet."""
    ports = world.ports(node, boot)
    committer = Committer(
        CommitterPorts(
            world.coord, world.store, ports.clock, lambda: f"u{next(world.uuids)}", ports.logger
        ),
        lambda _: None,
    )
    no_trainer: Any = None
    return Node(ports, committer, no_trainer, View(), policy=NodePolicy(600.0))


def service_of(world: World, node: Node, spread: Spread, claimant: Claimant) -> ShardService:
    """Return what a node answers with."""
    no_trainer: Any = None
    no_streams: Any = None
    ports = ServicePorts(claimant, SystemClock(), world.threads[0], spread, streams=no_streams)
    return ShardService(ports, node, no_trainer)


async def committed(world: World) -> LogRef:
    """Return the tip that etcd has."""
    item = await world.coord.get(keys.tip(SHARD.shard_id))
    assert item is not None, "there were writes"
    return decode_tip(item.value).log


@pytest.mark.parametrize(
    "after",
    [succeeded(SHARD, N2), replace(SHARD, node_ids=(N1,))],
    ids=["n2 succeeds", "n2 follows no more"],
)
async def test_an_erasure_committed_while_the_map_moves_waits_for_who_followed_before(
    world: World, after: ShardAssignment
) -> None:
    """1 n2 follows, and was just confirmed; 2 n1 commits an erasure, whose answer is on its way;
    3 n1 hears that the map has changed, n2 does not; 4 n1 hears that its commit is through.
    """
    world.coord = coord = SlowCoordinator(world.coord)
    for name in (N1, N2):
        info = encode_node(NodeInfo(name, "b1", f"{name}:1"))
        await coord.txn([], [Put(keys.node(name, "b1"), info)])
    node, clock = node_of(world, "n1", "b1"), SkippingClock()
    pool = Services({})
    spread = Spread(pool, clock, node.view)
    service = service_of(world, node, spread, Claimant(N1, "b1"))
    pool.services["n1:1"] = service
    running = asyncio.get_running_loop().create_task(node.run())
    shard_id = SHARD.shard_id
    await until(lambda: shard_id in node.copies and node.copies[shard_id].phase is Phase.SERVING)
    await until(lambda: bool(node.view.addresses(N2)))
    primary: Any = node.copies[shard_id]
    await primary.write(enrol(1))
    follower = Follower(world.ports("n2", "b1"), GALLERY, SHARD)
    await follower.open(0, None)

    coord.tips.closed = True
    request = pb.EraseRequest(shard_id=shard_id, request_id="e-1", subject_ids=["s-1-0"])
    erasing = asyncio.get_running_loop().create_task(service.Erase(request, CALLER))
    await coord.tips.reached.wait()
    moved = ShardMap(GALLERY.name, GALLERY.uid, 2, (after,))
    await coord.txn([], [Put(keys.shard_map(GALLERY.name), encode_shard_map(moved))])
    await until(lambda: primary.assignment == after)
    coord.tips.open.set()
    await erasing
    running.cancel()

    assert found(follower, enrol(1)) == ["s-1-0", "s-1-1"], "n2 has not heard of the erasure"
    assert "n2:1" in pool.asked
    assert clock.skipped_s > STALENESS_S, "nor is it confirmed any more"


async def test_a_tip_read_before_a_follower_loaded_anew_does_not_fail_it(world: World) -> None:
    """1 a follower has a bulk load ahead; 2 a loaded row is erased, and its segment rewritten; 3
    the follower asks for its tip; 4 more is written; 5 it finds the segment gone, and loads anew;
    6 the answer of 3 arrives.
    """
    async with world.primary("b1") as primary:
        await primary.write(enrol(1))
        follower = Follower(world.ports("n2", "b1"), GALLERY, SHARD)
        await follower.open(0, None)
        segments, store = built(rows(2, 4)), LoadStore(world.store, LOAD)
        for one in segments:
            await store.put(one)
        await primary.load_segments(load_request(segments))
        clock = follower.ports.clock
        with pytest.raises(UnavailableError) as ahead:
            await follower.confirm(await committed(world), clock.now_s())
        assert ahead.value.reason == "LOAD_AHEAD"
        await store.unpin([one.named for one in segments])
        await primary.write(EraseRequest("e-1", [], ["s-2-0"]))
        await primary.flush()
        await primary.rewrite()
        asked_s, tip = clock.now_s(), await committed(world)
        await primary.write(enrol(9))
        await follower.take_load()
        assert follower.state.position == primary.state.position, "it has loaded anew"

        await follower.confirm(tip, asked_s)
        await follower.confirm(await committed(world), clock.now_s())

        assert follower.state.digest == primary.state.digest


async def test_an_erasure_does_not_count_on_what_a_cold_start_guessed(world: World) -> None:
    """1 etcd goes away; an erasure is stored, and its commit in doubt; 2 a follower starts without
    etcd, and finds it; 3 etcd is back; the follower asks for its tip, and begins to load what was
    committed; 4 the erasure is committed after all, and told; 5 the follower has loaded what was
    committed at 3, and is confirmed.
    """
    world.coord = coord = SlowCoordinator(world.coord)
    world.store = store = GatedStore()
    node, clock = node_of(world, "n2", "b2"), SkippingClock()
    pool = Services({})
    spread = Spread(pool, clock, node.view)
    pool.services["n2:1"] = service = service_of(world, node, spread, Claimant(N2, "b2"))
    item = KeyValue(keys.node(N2, "b2"), encode_node(NodeInfo(N2, "b2", "n2:1")), 7)
    node.view.take(keys.NODES, Changed("put", item.key, item, 7))
    async with world.primary("b1") as primary:
        await primary.write(enrol(1))
        coord.refusing = True
        erasure = EraseRequest("e-1", [], ["s-1-0"])
        with pytest.raises(UnavailableError) as told:
            await primary.write(erasure)
        assert told.value.reason == "COMMIT_IN_DOUBT"
        follower = Follower(world.ports("n2", "b2"), GALLERY, SHARD)
        await follower.open_without_etcd(None)
        node.copies[SHARD.shard_id] = follower
        assert follower.state.position == 2, "it has found the erasure in the store"
        asked_s, tip = follower.ports.clock.now_s(), await committed(world)
        store.gets.closed = True
        confirming = asyncio.get_running_loop().create_task(follower.confirm(tip, asked_s))
        await store.gets.reached.wait()
        coord.refusing = False
        await until(lambda: primary.state.position == 2)
        outcome = await primary.write(erasure)
        since_s = clock.skipped_s
        await spread.wait(primary, outcome.position, SHARD)
        waited_s = clock.skipped_s - since_s
        store.gets.open.set()
        await confirming

        assert follower.check_answering(Trust()), "confirmed, as of 3"
        assert found(follower, enrol(1)) == ["s-1-0", "s-1-1"]
        assert waited_s > STALENESS_S
        await follower.confirm(await committed(world), follower.ports.clock.now_s())
        request = pb.ReachRequest(shard_id=SHARD.shard_id, position=outcome.position)
        assert (await service.Reach(request, CALLER)).position == outcome.position


async def test_a_follower_that_loads_anew_leaves_the_others_of_its_node_confirmed(
    world: World,
) -> None:
    """1 a follower must load anew, and reads for long; 2 more time passes than a confirmation is
    good for.
    """
    world.store = store = GatedStore()
    clock = ManualClock()
    slow, other = (Follower(world.ports("n2", "b1"), GALLERY, SHARD) for _ in range(2))
    async with world.primary("b1") as primary:
        await primary.write(enrol(1))
        await slow.open(0, None)
        await primary.write(enrol(2))
        await other.open(0, None)
        await primary.flush()
        for copy in (slow, other):
            copy.ports = _with_clock(world, clock)
            copy.caught_up_s = copy.confirmed_s = clock.now_s()
        # The second stands for a follower of another shard.
        copies: Any = {"a": slow, "b": other}
        confirmation = Confirmation(
            slow.ports,
            copies,
            superseded=lambda *_: None,
            caught_up=lambda _: None,
            load_ahead=lambda _: None,
        )
        store.gets.closed = True
        running = asyncio.get_running_loop().create_task(confirmation.run())
        await store.gets.reached.wait()
        await clock.advance(STALENESS_S + 10 * POLL_S)
        confirmed = (slow.confirmed, other.confirmed)
        running.cancel()

    assert confirmed == (False, True)


def _with_clock(world: World, clock: ManualClock) -> Any:
    return replace(world.ports("n2", "b1"), clock=clock)


async def test_nobody_takes_over_from_a_primary_that_is_back_unheard_of(world: World) -> None:
    """1 n1 dies, and its lease ends; 2 it is back as another process, of which n2 has not heard
    yet; 3 n2 proposes itself.
    """
    view = View()
    for prefix in (keys.GALLERIES, keys.MAPS):
        view.take(prefix, Listing(await world.coord.list(prefix)))
    item = KeyValue(keys.node(N1, "b1"), encode_node(NodeInfo(N1, "b1", "n1:1")), 3)
    view.take(keys.NODES, Changed("put", item.key, item, 3))
    view.take(keys.NODES, Changed("delete", item.key, None, 4))
    again = encode_node(NodeInfo(N1, "b2", "n1:2"))
    await world.coord.txn([], [Put(keys.node(N1, "b2"), again)])
    absences = Absences(Rules(5.0, 10.0), 0.0, {N1: 100.0}, seen={N1})
    verdict = decide(Standing(N2, view.maps(), [N2], [SHARD.shard_id]), absences, 105.0)
    (proposal,) = verdict.proposals

    await Succession(N2, view, None, list)._propose(proposal, world.coord, get_logger("test"))
    while_there = await _named_primary(world)
    await world.coord.txn([], [Delete(keys.node(N1, "b2"))])
    await Succession(N2, view, None, list)._propose(proposal, world.coord, get_logger("test"))

    assert (while_there, await _named_primary(world)) == (N1, N2)


async def _named_primary(world: World) -> NodeId:
    """Return the primary that etcd's map names."""
    item = await world.coord.get(keys.shard_map(GALLERY.name))
    assert item is not None, "the gallery was created"
    return decode_shard_map(item.value).shards[0].primary
