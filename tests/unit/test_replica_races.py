"""Races that the simulation found, each by itself: what a process meets that was slow."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from typing_extensions import override

from facegrid.clock import SystemClock
from facegrid.coord import keys
from facegrid.coord.port import (
    Changed,
    Delete,
    Guard,
    KeyValue,
    Listing,
    Put,
    Snapshot,
    TxnResult,
    ValueGuard,
)
from facegrid.errors import FencedError, UnavailableError
from facegrid.format.records import (
    Dropped,
    decode_shard_map,
    encode_dropped,
    encode_node,
    encode_shard_map,
)
from facegrid.ids import NodeId
from facegrid.limits import STALENESS_S
from facegrid.model import NodeInfo
from facegrid.rpc.pool import ChannelPool
from facegrid.testing.memory_blob import MemoryBlobStore
from facegrid.testing.memory_coord import MemoryCoordinator
from facegrid.testing.skipping_clock import SkippingClock
from indexd.engine.requests import EnrolRequest, EraseRequest, Outcome
from indexd.replica.committer import Committer, CommitterPorts
from indexd.replica.dropping import DropRules
from indexd.replica.follower import Follower
from indexd.replica.node import Node
from indexd.replica.policy import NodePolicy
from indexd.replica.primary import Primary
from indexd.replica.shard_copy import Phase
from indexd.replica.spread import Spread
from indexd.replica.view import WATCHED, View
from tests.fakes.waiting import until
from tests.unit.test_replica import GALLERY, SHARD, FlakyCoordinator, World, enrol, found
from tests.unit.test_replica import world as world  # noqa: PLC0414 - a fixture


class Gate:
    """Holds up the first call that comes once it is closed, until it is opened."""

    def __init__(self) -> None:
        self.closed = False
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

    async def pass_through(self) -> None:
        if self.closed:
            self.closed = False
            self.reached.set()
            await self.open.wait()


class GatedStore(MemoryBlobStore):
    """Reads and puts wait at gates."""

    def __init__(self) -> None:
        super().__init__()
        self.gets = Gate()
        self.puts = Gate()
        self.failing = False

    @override
    async def get(self, name: str) -> bytes:
        await self.gets.pass_through()
        return await super().get(name)

    @override
    async def put_new(self, name: str, data: bytes) -> None:
        await self.puts.pass_through()
        if self.failing:
            raise UnavailableError("the store is away", reason="STORE_UNREACHABLE")
        await super().put_new(name, data)


def unopened(world: World, boot: str) -> Primary:
    """Return a primary that has not claimed yet; nobody runs its committer."""
    ports = world.ports("n1", boot)
    committer = Committer(
        CommitterPorts(world.coord, world.store, ports.clock, lambda: boot, ports.logger),
        lambda _: None,
    )
    return Primary(ports, committer, GALLERY, SHARD)


async def test_a_primary_superseded_while_it_loads_is_fenced_and_finds_no_damage(
    world: World,
) -> None:
    """1 b2 claims and begins to load; 2 b3 claims, flushes and trims; 3 b2 goes on."""
    world.store = store = GatedStore()
    async with world.primary("b1") as first:
        await first.write(enrol(1))
    second = unopened(world, "b2")
    store.gets.closed = True
    async with asyncio.TaskGroup() as tasks:
        opening = tasks.create_task(refused(second.open(world.map_revision, None)))
        await store.gets.reached.wait()
        assert second.generation == 2, "the node must see which claim it is that loads"
        async with world.primary("b3") as third:
            await third.flush()
        store.gets.open.set()
        await opening

    assert second.phase is Phase.OPENING


async def test_a_primary_fenced_while_it_loads_does_not_serve(world: World) -> None:
    """1 b2 claims and begins to load; 2 the node hears of a newer claim; 3 b2 has loaded."""
    world.store = store = GatedStore()
    async with world.primary("b1") as first:
        await first.write(enrol(1))
    second = unopened(world, "b2")
    store.gets.closed = True
    async with asyncio.TaskGroup() as tasks:
        opening = tasks.create_task(refused(second.open(world.map_revision, None)))
        await store.gets.reached.wait()
        second.fence()
        store.gets.open.set()
        await opening

    assert second.phase is Phase.FENCED


async def refused(work: Awaitable[None]) -> None:
    """Await what must be fenced."""
    with pytest.raises(FencedError):
        await work


async def test_closing_waits_for_the_commit_on_its_way(world: World) -> None:
    """1 a write's log object is being stored; 2 the shard is closed; 3 the object is stored."""
    world.store = store = GatedStore()
    async with world.primary("b1") as primary, asyncio.TaskGroup() as tasks:
        store.puts.closed = True
        write = tasks.create_task(primary.write(enrol(1)))
        await store.puts.reached.wait()
        closing = tasks.create_task(primary.close())
        for _ in range(20):
            await primary.ports.clock.sleep(0)
        assert not closing.done()
        store.puts.open.set()
        outcome = await write
        await closing

    assert outcome == Outcome(1, enrolled_count=2)
    assert sorted({name.split("/")[2] for name in store.objects}) == ["manifests", "segments"]


class LateCoordinator(FlakyCoordinator):
    """The next manifest's transaction is given up for lost, and carried out when the test says."""

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.losing = False
        self._late: list[tuple[Sequence[Any], Sequence[Any]]] = []

    @override
    async def txn(
        self,
        guards: Sequence[Guard | ValueGuard],
        operations: Sequence[Put | Delete],
        *,
        timeout_s: float = 5.0,
    ) -> TxnResult:
        if self.losing and operations[0].key.startswith(keys.MANIFESTS):
            self.losing = False
            self._late.append((guards, operations))
            raise UnavailableError("no answer", reason="TRANSPORT")
        return await super().txn(guards, operations, timeout_s=timeout_s)

    async def arrive(self) -> TxnResult:
        """Carry out what was lost."""
        return await MemoryCoordinator.txn(self, *self._late.pop())


async def test_a_manifest_that_is_committed_late_does_not_end_all_flushing(world: World) -> None:
    """1 a flush hears nothing and reads nothing; 2 its manifest is committed after all;
    3 the next flush is told so; 4 the one after it succeeds.
    """
    late = LateCoordinator()
    late._items, late._revision = world.coord._items, world.coord._revision
    world.coord = late
    async with world.primary("b1") as primary:
        await primary.write(enrol(1))
        late.losing = True
        with pytest.raises(UnavailableError):
            await primary.flush()
        assert (await late.arrive()).succeeded
        await primary.write(enrol(2))
        with pytest.raises(UnavailableError) as told:
            await primary.flush()
        await primary.flush()

        assert told.value.reason == "MANIFEST_MOVED"
        assert primary.persisted.position == 2

    async with world.primary("b2") as second:
        assert (found(second, enrol(1)), found(second, enrol(2))) == (
            ["s-1-0", "s-1-1"],
            ["s-2-0", "s-2-1"],
        )


async def test_a_flush_without_a_store_says_that_the_store_is_away(world: World) -> None:
    world.store = store = GatedStore()
    async with world.primary("b1") as primary:
        await primary.write(enrol(1))
        store.failing = True
        with pytest.raises(UnavailableError) as away:
            await primary.flush()

        assert away.value.reason == "STORE_UNREACHABLE"


class LateDeletions(MemoryBlobStore):
    """Deletions are given up for lost, and carried out when the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.losing = False
        self._late: list[str] = []

    @override
    async def delete(self, name: str) -> None:
        if not self.losing:
            await super().delete(name)
            return
        self._late.append(name)
        raise UnavailableError("no answer", reason="STORE_UNREACHABLE")

    async def arrive(self) -> None:
        """Carry out what was lost."""
        for name in self._late:
            await super().delete(name)


async def test_a_late_deletion_hits_nothing_that_was_written_since(world: World) -> None:
    """1 a flush replaces a segment, whose deletion is lost; 2 the same rows are enrolled again and
    flushed by the same process; 3 the deletion is carried out after all.
    """
    world.store = store = LateDeletions()
    async with world.primary("b1") as primary:
        await primary.write(enrol(1))
        await primary.flush()
        await primary.write(EraseRequest("r-2", [], ["s-1-0", "s-1-1"]))
        store.losing = True
        with pytest.raises(UnavailableError):
            await primary.flush()
        again = enrol(1)
        ids = (again.template_ids, again.subject_ids)
        await primary.write(EnrolRequest("r-again", *ids, again.codes))
        store.losing = False
        await primary.flush()
        await store.arrive()

    async with world.primary("b2") as second:
        assert found(second, enrol(1)) == ["s-1-0", "s-1-1"]


async def test_a_dropped_shard_is_not_opened_by_a_map_that_is_behind(world: World) -> None:
    """1 the order to delete arrives; 2 the shard is deleted; 3 the map's end comes later."""
    ports = world.ports("n1", "b1")
    committer = Committer(
        CommitterPorts(world.coord, world.store, ports.clock, lambda: "u", ports.logger),
        lambda _: None,
    )
    no_trainer: Any = None
    policy = NodePolicy(60.0, dropping=DropRules(patience_s=60.0, again_s=0.0))
    node = Node(ports, committer, no_trainer, View(), policy=policy)
    for prefix in (keys.GALLERIES, keys.MAPS):
        node.view.take(prefix, Listing(await world.coord.list(prefix)))
    node._reconcile()
    assert list(node.copies) == [SHARD.shard_id]

    order = encode_dropped(Dropped(SHARD.shard_id, GALLERY.uid, SHARD.node_ids))
    await world.coord.txn([], [Put(keys.dropped(SHARD.shard_id), order)])
    node.view.take(keys.DROPPED, Listing(await world.coord.list(keys.DROPPED)))
    await node._drop(*node.view.drop_orders())
    node._reconcile()
    behind = list(node.copies)
    node.view.take(keys.MAPS, Listing(Snapshot(99, ())))
    node._reconcile()

    assert (behind, list(node.copies), node._dropped) == ([], [], set())


async def test_a_follower_goes_on_serving_where_what_it_needs_as_primary_is_damaged(
    world: World,
) -> None:
    """1 n2 follows; 2 the manifest in the store is damaged; 3 the map makes n2 the primary; 4 it
    looks again; 5 the map is another.
    """
    async with world.primary("b1") as primary:
        await primary.write(enrol(1))
        await primary.flush()
    (item,) = (await world.coord.list(keys.MAPS)).items
    before = decode_shard_map(item.value)
    node = node_of(world, "n2")
    follower = Follower(world.ports("n2", "b2"), GALLERY, SHARD)
    await follower.open(0, None)
    node.copies[SHARD.shard_id] = follower
    (name,) = [name for name in world.store.objects if "/manifests/" in name]
    world.store.objects[name] = world.store.objects[name][:-4]

    outdated = []
    for version in (2, 3):
        mine = replace(SHARD, node_ids=(NodeId("n2"), NodeId("n1")))
        after = encode_shard_map(replace(before, version=version, shards=(mine,)))
        await world.coord.txn([], [Put(keys.shard_map(GALLERY.name), after)])
        for prefix in WATCHED:
            node.view.take(prefix, Listing(await world.coord.list(prefix)))
        holding = node.view.holdings(NodeId("n2"))[SHARD.shard_id]
        outdated.append(node._is_outdated(follower, holding))
        await node._replace(follower, holding)
        outdated.append(node._is_outdated(follower, holding))

    assert node.copies == {SHARD.shard_id: follower}
    assert (follower.phase, found(follower, enrol(1))) == (Phase.SERVING, ["s-1-0", "s-1-1"])
    assert outdated == [True, False, True, False]
    assert name in follower.problem


def node_of(world: World, node_id: str) -> Node:
    """Return a node that does nothing by itself."""
    ports = world.ports(node_id, f"boot-{node_id}")
    committer = Committer(
        CommitterPorts(world.coord, world.store, ports.clock, lambda: "u", ports.logger),
        lambda _: None,
    )
    no_trainer: Any = None
    return Node(ports, committer, no_trainer, View(), policy=NodePolicy(60.0))


async def test_a_shard_taken_away_and_given_back_while_it_opens_is_opened_in_the_end(
    world: World,
) -> None:
    """1 a shard opens, and waits; 2 the map takes it away; 3 and back; 4 the wait ends."""
    ports = world.ports("n1", "b1")
    committer = Committer(
        CommitterPorts(world.coord, world.store, ports.clock, lambda: "u", ports.logger),
        lambda _: None,
    )
    no_trainer: Any = None
    node = Node(ports, committer, no_trainer, View(), policy=NodePolicy(60.0))
    for prefix in (keys.GALLERIES, keys.MAPS):
        node.view.take(prefix, Listing(await world.coord.list(prefix)))
    node._reconcile()
    node._busy.add(f"open {SHARD.shard_id}")
    node.view.take(keys.MAPS, Listing(Snapshot(99, ())))
    node._reconcile()
    node.view.take(keys.MAPS, Listing(await world.coord.list(keys.MAPS)))
    node._reconcile()
    meanwhile = list(node.copies)
    node._busy.clear()
    node._leaving.clear()
    node._reconcile()

    assert (meanwhile, list(node.copies)) == ([], [SHARD.shard_id])


async def test_a_shard_given_back_while_its_copy_closes_is_opened_when_that_has_closed(
    world: World,
) -> None:
    """1 a copy flushes, and its shard is taken away; 2 the map gives it back; 3 the flush ends,
    and the shard is opened again; 4 it is taken away once more.
    """
    world.store = store = GatedStore()
    ports, shard_id = world.ports("n1", "b1"), SHARD.shard_id
    committer = Committer(
        CommitterPorts(
            world.coord, store, ports.clock, lambda: f"u{next(world.uuids)}", ports.logger
        ),
        lambda _: None,
    )
    no_trainer: Any = None
    node = Node(ports, committer, no_trainer, View(), policy=NodePolicy(600.0))
    running = asyncio.get_running_loop().create_task(node.run())

    def serving() -> bool:
        return shard_id in node.copies and node.copies[shard_id].phase is Phase.SERVING

    await until(serving)
    first: Any = node.copies[shard_id]
    await first.write(enrol(1))
    maps, nothing = Listing(await world.coord.list(keys.MAPS)), Listing(Snapshot(99, ()))
    store.puts.closed = True
    flushing = asyncio.get_running_loop().create_task(first.flush())
    await store.puts.reached.wait()
    node.view.take(keys.MAPS, nothing)
    node._reconcile()
    await until(lambda: first.phase is Phase.CLOSED)
    node.view.take(keys.MAPS, maps)
    node._reconcile()
    meanwhile = (list(node.copies), list(node._leaving))
    store.puts.open.set()
    with pytest.raises(FencedError):
        await flushing
    await until(serving)
    second = node.copies[shard_id]
    assert (second is first, first.phase) == (False, Phase.CLOSED)
    node.view.take(keys.MAPS, nothing)
    node._reconcile()
    await until(lambda: not node._leaving and not node._busy)
    running.cancel()

    assert meanwhile == ([], [shard_id]), "one after the other"
    assert (second.phase, committer._writers) == (Phase.CLOSED, [])


class TwoProcesses(ChannelPool):
    """The newer process of a follower answers; the older one stands still."""

    @override
    def get(self, address: str) -> Any:
        return Line(address)


class Line:
    """A channel to one of them."""

    def __init__(self, address: str) -> None:
        self._address = address

    def unary_stream(self, _path: str, **_rest: Any) -> None:
        """Streams are asked for by nobody here."""

    stream_stream = unary_stream

    def unary_unary(self, _path: str, **_rest: Any) -> Callable[..., Awaitable[Any]]:
        async def method(_request: Any, **_rest: Any) -> Any:
            if self._address == "old:1":
                raise UnavailableError("no answer")

        return method


@pytest.mark.parametrize("boots", [("old", "new"), ("new", "old")])
async def test_an_erasure_waits_for_every_process_of_a_follower(
    world: World, boots: tuple[str, ...]
) -> None:
    view, clock = View(), SkippingClock()
    for boot in boots:
        value = encode_node(NodeInfo(NodeId("n2"), boot, f"{boot}:1"))
        item = KeyValue(keys.node(NodeId("n2"), boot), value, 7)
        view.take(keys.NODES, Changed("put", item.key, item, 7))

    no_committer: Any = None
    primary = Primary(world.ports("n1", "b1"), no_committer, GALLERY, SHARD)
    await Spread(TwoProcesses(), clock, view).wait(primary, 1, SHARD)

    assert clock.skipped_s > STALENESS_S
