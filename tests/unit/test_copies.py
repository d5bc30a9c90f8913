"""Copies that join, shards that are being filled, copies that left: who holds, answers, waits."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from typing_extensions import override

from facegrid.api.shard.v1 import shard_service_pb2 as pb
from facegrid.clock import SystemClock
from facegrid.coord import keys
from facegrid.coord.port import Changed, KeyValue, Put
from facegrid.errors import FencedError, UnavailableError
from facegrid.format.records import encode_node, encode_shard_map
from facegrid.ids import KEY_LAST, NodeId, ShardId
from facegrid.limits import CONFIRMATION_OVER_S, ETCD_TXN_OPERATIONS_MAX, STALENESS_S
from facegrid.model import HashRange, NodeInfo, ShardAssignment, ShardMap
from facegrid.testing.skipping_clock import SkippingClock
from indexd.engine.loading import ShardShape
from indexd.engine.requests import EraseRequest
from indexd.engine.state import ShardState
from indexd.replica.confirmation import Confirmation, parts_of
from indexd.replica.fence import Claimant
from indexd.replica.follower import Follower
from indexd.replica.node import Node
from indexd.replica.primary import Primary
from indexd.replica.shard_copy import Phase, ShardCopy, Trust
from indexd.replica.spread import Spread
from indexd.replica.trainer import train_due
from indexd.replica.view import View
from indexd.service.describing import shard_status
from tests.fakes.waiting import until
from tests.unit.test_between_parts import CALLER, Services, node_of, service_of
from tests.unit.test_replica import (
    GALLERY,
    SHARD,
    FlakyCoordinator,
    HaltingStore,
    World,
    enrol,
    found,
)
from tests.unit.test_replica import world as world  # noqa: PLC0414 - a fixture
from tests.unit.test_replica_races import Gate

N1, N2, N3 = NodeId("n1"), NodeId("n2"), NodeId("n3")
ALONE = replace(SHARD, node_ids=(N1,))
JOINED = replace(SHARD, node_ids=(N1,), joining=(N2,))
CHILD_ID = ShardId("g.1f00aa23.0001")
CHILD = ShardAssignment(CHILD_ID, SHARD.range, (N1, N2), sources=(SHARD.shard_id,))
FILLED = ShardMap(GALLERY.name, GALLERY.uid, 2, (SHARD,), (CHILD,), made_count=2)


async def put_map(world: World, shard_map: ShardMap) -> int:
    """Put a map; return its revision."""
    operation = Put(keys.shard_map(GALLERY.name), encode_shard_map(shard_map))
    world.map_revision = (await world.coord.txn([], [operation])).revision
    return world.map_revision


def map_of(version: int, *shards: ShardAssignment) -> ShardMap:
    return ShardMap(GALLERY.name, GALLERY.uid, version, shards)


def confirmation_of(copies: Sequence[ShardCopy]) -> Confirmation:
    """What confirms some copies, not running."""
    return Confirmation(
        copies[0].ports,
        {copy.assignment.shard_id: copy for copy in copies},
        superseded=lambda *_: None,
        caught_up=lambda _: None,
        load_ahead=lambda _: None,
    )


async def test_nodes_hold_what_they_join_and_what_is_being_filled(world: World) -> None:
    view = View()
    shard_map = replace(FILLED, shards=(replace(SHARD, joining=(N3,)),))
    for key, value in (
        (keys.gallery(GALLERY.name), (await world.coord.get(keys.gallery(GALLERY.name)))),
        (keys.shard_map(GALLERY.name), None),
    ):
        data = encode_shard_map(shard_map) if value is None else value.value
        view.take(f"{key.split('/')[0]}/", Changed("put", key, KeyValue(key, data, 9), 9))

    held = [
        {shard: one.map_version for shard, one in view.holdings(node).items()}
        for node in (N1, N2, N3)
    ]

    assert held == [{SHARD.shard_id: 2, CHILD_ID: 2}] * 2 + [{SHARD.shard_id: 2}]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (map_of(2, JOINED), map_of(3, SHARD)),
        (FILLED, map_of(3, replace(CHILD, sources=()))),
    ],
    ids=["joining", "pending"],
)
async def test_a_copy_is_confirmed_only_by_a_map_that_has_it_searched(
    world: World, before: ShardMap, after: ShardMap
) -> None:
    """1 a copy joins, or its shard is being filled, and it has everything; 2 it serves."""
    assignment = before.held[-1]
    await put_map(world, before)
    follower = Follower(world.ports("n2", "b1"), GALLERY, assignment, map_version=2)
    await follower.open(0, None)
    confirmation = confirmation_of([follower])
    (look,) = await confirmation._look([follower], keys.tip)
    await confirmation._confirm(follower, look)

    with pytest.raises(UnavailableError) as refused:
        follower.check_answering(Trust(primary_boot_id="b1"))
    assert refused.value.reason == "UNCONFIRMED"
    assert not follower.check_answering(Trust(unconfirmed_accepted=True))
    status = shard_status(follower)
    assert (follower.caught_up, status.confirmed, status.map_version) == (True, True, 2)

    # As when it was searched before, left, and joins again.
    follower.confirmed_s = follower.caught_up_s
    assert not follower.confirmed
    follower.confirmed_s = float("-inf")

    # The watch has told of the next map, etcd was not asked since.
    follower.take_map(GALLERY, after.shards[-1], 3)
    assert (follower.confirmed, shard_status(follower).confirmed) == (False, False)
    await put_map(world, after)
    (look,) = await confirmation._look([follower], keys.tip)
    await confirmation._confirm(follower, look)
    assert (follower.check_answering(Trust()), shard_status(follower).map_version) == (True, 3)


async def test_a_primary_of_a_shard_that_is_filled_is_confirmed_to_nobody(world: World) -> None:
    """1 n1 claims a pending shard; 2 somebody vouches for it; 3 the shard serves."""
    await put_map(world, FILLED)
    async with world.primary("b1", assignment=CHILD, map_version=2) as primary:
        confirmation = confirmation_of([primary])
        (look,) = await confirmation._look([primary], keys.generation)
        confirmation._confirm_primary(primary, look)

        with pytest.raises(UnavailableError):
            primary.check_answering(Trust(primary_boot_id="b1"))
        assert not primary.check_answering(Trust("b1", unconfirmed_accepted=True))
        assert primary.caught_up
        served = map_of(3, replace(CHILD, sources=()))
        primary.take_map(GALLERY, served.shards[0], 3)
        assert not primary.confirmed
        assert primary.check_answering(Trust(primary_boot_id="b1")), "vouched for"
        await put_map(world, served)
        (look,) = await confirmation._look([primary], keys.generation)
        confirmation._confirm_primary(primary, look)
        assert primary.check_answering(Trust())


class ReadBetween(FlakyCoordinator):
    """The map's value is read when the test says."""

    def __init__(self, former: FlakyCoordinator) -> None:
        super().__init__(SystemClock())
        self._items, self._revision = former._items, former._revision
        self.maps = Gate()

    @override
    async def get(self, key: str, *, timeout_s: float = 5.0) -> KeyValue | None:
        if key.startswith(keys.MAPS):
            await self.maps.pass_through()
        return await super().get(key, timeout_s=timeout_s)


async def test_a_tip_does_not_count_by_a_map_that_came_after_it(world: World) -> None:
    """1 n2 joins, and reads its tip; 2 something is erased, for which nobody waits, since the
    primary knows of no copy; 3 the map has n2 serve; 4 n2 reads the map's value.
    """
    await put_map(world, map_of(2, JOINED))
    world.coord = coord = ReadBetween(world.coord)
    async with world.primary("b1") as primary:
        await primary.write(enrol(1))
        follower = Follower(world.ports("n2", "b1"), GALLERY, SHARD, map_version=3)
        await follower.open(0, None)
        confirmation = confirmation_of([follower])
        coord.maps.closed = True
        looking = asyncio.get_running_loop().create_task(confirmation._look([follower], keys.tip))
        await coord.maps.reached.wait()
        await primary.write(EraseRequest("e-1", [], ["s-1-0"]))
        await put_map(world, map_of(3, SHARD))
        coord.maps.open.set()
        (look,) = await looking
        await confirmation._confirm(follower, look)

        assert found(follower, enrol(1)) == ["s-1-0", "s-1-1"], "it has not heard"
        assert not follower.confirmed


def registered(node: Node, *node_ids: NodeId) -> None:
    """Let a node hear that others are registered."""
    for node_id in node_ids:
        info = encode_node(NodeInfo(node_id, "b1", f"{node_id}:1"))
        item = KeyValue(keys.node(node_id, "b1"), info, 7)
        node.view.take(keys.NODES, Changed("put", item.key, item, 7))


async def waited_s(world: World, primary: Primary, clock: SkippingClock) -> float:
    """Return how long an erasure waits for n2, which is registered and silent."""
    node = node_of(world, "n1", "b1")
    registered(node, N2)
    since_s = clock.skipped_s
    await Spread(Services({}), clock, node.view).wait(primary, 1, primary.assignment)
    return clock.skipped_s - since_s


async def test_an_erasure_waits_for_copies_that_join(world: World) -> None:
    async with world.primary("b1", assignment=JOINED) as primary:
        clock = SkippingClock()
        assert await waited_s(world, primary, clock) > STALENESS_S
        primary.take_map(GALLERY, ALONE, 2)
        primary.forerunners.until_s.clear()
        assert await waited_s(world, primary, clock) == 0


async def test_an_erasure_waits_for_a_copy_that_left_for_as_long_as_it_may_be_confirmed(
    world: World,
) -> None:
    """1 n2 leaves; 2 an erasure; 3 one more, later; 4 one when n2 cannot be confirmed any more."""
    clock = SkippingClock()
    async with world.primary("b1", assignment=SHARD) as primary:
        primary.ports = replace(primary.ports, clock=clock)
        primary.take_map(GALLERY, ALONE, 2)
        took = [await waited_s(world, primary, clock)]
        primary.take_map(GALLERY, SHARD, 3)
        primary.take_map(GALLERY, ALONE, 4)
        await clock.sleep(2.0)
        took += [await waited_s(world, primary, clock), await waited_s(world, primary, clock)]

    assert STALENESS_S < took[0] <= CONFIRMATION_OVER_S
    assert 0 < took[1] <= CONFIRMATION_OVER_S - 2.0
    assert took[2] == 0


@pytest.mark.parametrize(("version", "waits"), [(1, False), (2, True)])
async def test_only_the_first_primary_by_the_first_map_is_alone_at_once(
    world: World, version: int, *, waits: bool
) -> None:
    clock = SkippingClock()
    async with world.primary("b1", assignment=ALONE, map_version=version, clock=clock) as primary:
        assert primary.generation == 1
        assert (await waited_s(world, primary, clock) > STALENESS_S) == waits


async def test_erasures_of_a_child_wait_until_nobody_believes_in_its_source(
    world: World,
) -> None:
    """1 n1 claims a shard that is filled; 2 long after it takes the place of its source."""
    clock = SkippingClock()
    await put_map(world, FILLED)
    child = replace(CHILD, node_ids=(N1,))
    async with world.primary("b1", assignment=child, map_version=2, clock=clock) as primary:
        await clock.sleep(60.0)
        primary.take_map(GALLERY, replace(child, sources=()), 3)

        assert STALENESS_S < await waited_s(world, primary, clock) <= CONFIRMATION_OVER_S


async def test_a_shard_that_is_filled_takes_no_write_of_a_client(world: World) -> None:
    await put_map(world, FILLED)
    node = node_of(world, "n1", "b1")
    service = service_of(world, node, Spread(Services({}), SystemClock(), node.view), CLAIMANT)
    async with world.primary("b1", assignment=CHILD, map_version=2) as primary:
        node.copies[CHILD_ID] = primary
        request = pb.EraseRequest(shard_id=CHILD_ID, request_id="e-1", subject_ids=["s"])
        with pytest.raises(UnavailableError) as refused:
            await service.Erase(request, CALLER)
        primary.take_map(GALLERY, replace(CHILD, node_ids=(N1,), sources=()), 3)
        primary.forerunners.alone_from_s = float("-inf")
        primary.forerunners.until_s.clear()
        answer = await service.Erase(request, CALLER)

    assert (refused.value.reason, answer.position) == ("SHARD_PENDING", 1)


CLAIMANT = Claimant(N1, "b1")


def test_looks_at_many_copies_are_as_large_as_etcd_takes(world: World) -> None:
    ports = world.ports("n2", "b1")
    copies = [
        Follower(
            ports,
            replace(GALLERY, name=f"g{number % 3}"),
            replace(SHARD, shard_id=ShardId(f"g{number % 3}.0.{number:04d}")),
        )
        for number in range(300)
    ]

    parts = parts_of(copies)

    sizes = [len(part) + len({copy.gallery.name for copy in part}) for part in parts]
    assert max(sizes) <= ETCD_TXN_OPERATIONS_MAX
    assert len(parts) == 3
    assert {copy for part in parts for copy in part} == set(copies)


@pytest.mark.parametrize(("share", "due"), [(4, True), (2, False)])
def test_a_gallery_trains_by_the_share_of_the_keys_that_its_first_shard_has(
    share: int, *, due: bool
) -> None:
    """1,000 rows in a quarter of the keys stand for 4,000, however many shards there are."""
    gallery = replace(GALLERY, shards_count=1, train_at_templates_count=4000)
    state = ShardState(ShardShape(SHARD.shard_id, HashRange(0, (KEY_LAST + 1) // share - 1), 16))
    state.templates_count = 1000

    assert train_due(gallery, state) == due
    assert not train_due(replace(gallery, codebook="ab" * 32), state)


async def test_a_copy_that_the_map_gave_up_answers_a_while_and_is_let_go(world: World) -> None:
    """1 n1 is the primary; 2 n2 is put in its place, and n1 out of the map."""
    node = node_of(world, "n1", "b1")
    running = asyncio.get_running_loop().create_task(node.run())
    shard_id = SHARD.shard_id
    await until(lambda: shard_id in node.copies and node.copies[shard_id].phase is Phase.SERVING)
    primary: Any = node.copies[shard_id]
    await primary.write(enrol(1))
    await put_map(world, map_of(2, replace(SHARD, node_ids=(N2,))))
    await until(lambda: isinstance(node.copies.get(shard_id), Follower))
    lingering = node.copies[shard_id]

    assert lingering.check_answering(Trust(unconfirmed_accepted=True))
    assert found(lingering, enrol(1)) == ["s-1-0", "s-1-1"]  # type: ignore[arg-type]  # either
    await until(lambda: shard_id not in node.copies)
    running.cancel()
    assert primary.confirmed_s == lingering.confirmed_s, "by the claim that it had"


async def test_a_primary_that_steps_down_answers_all_along_and_takes_no_writes(
    world: World,
) -> None:
    """1 n1 flushes, and the store is slow; 2 the map puts n2 first, which claims; 3 the store goes
    on.
    """
    world.store = store = HaltingStore()
    node = node_of(world, "n1", "b1")
    running = asyncio.get_running_loop().create_task(node.run())
    shard_id = SHARD.shard_id
    await until(lambda: shard_id in node.copies and node.copies[shard_id].phase is Phase.SERVING)
    primary: Any = node.copies[shard_id]
    await primary.write(enrol(1))
    flushing = asyncio.get_running_loop().create_task(primary.flush())
    await store.halted.wait()
    await put_map(world, map_of(2, replace(SHARD, node_ids=(N2, N1))))
    await until(lambda: primary.map_version == 2)
    with pytest.raises(FencedError):
        await primary.write(enrol(2))

    primary.fence()

    assert node.copies[shard_id].check_answering(Trust()), "n2 has claimed, and answers too"
    store.go_on.set()
    await flushing
    await until(lambda: isinstance(node.copies[shard_id], Follower))
    follower: Any = node.copies[shard_id]
    assert (primary.phase, follower.check_answering(Trust())) == (Phase.CLOSED, True)
    assert found(follower, enrol(1)) == ["s-1-0", "s-1-1"]
    running.cancel()
