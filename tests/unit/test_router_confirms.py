"""When a router's view counts as confirmed, and for which processes it vouches."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from facegrid.coord import keys
from facegrid.coord.port import Delete, Put
from facegrid.format import records
from facegrid.format.records import GenerationClaim
from facegrid.ids import GalleryName, NodeId
from facegrid.limits import STALENESS_S
from facegrid.model import Gallery, NodeInfo
from facegrid.telemetry.log import get_logger
from facegrid.testing.manual_clock import ManualClock
from router.plan import placement
from router.topology.watcher import CATCH_UP_S, CONFIRM_S, Watcher
from tests.fakes.cut_off_coordinator import CutOffMember

N1, N2 = NodeId("n1"), NodeId("n2")
STAFF = Gallery(GalleryName("staff"), "uid1", 8, "e", 1, 2, 0)
MAP = placement.place(STAFF, live=[N1, N2])
SHARD = MAP.shards[0]
AFTER_TAKEOVER = replace(MAP, version=2, shards=(replace(SHARD, node_ids=(N2, N1)),))


def put_map(shard_map: object) -> Put:
    return Put(keys.shard_map(STAFF.name), records.encode_shard_map(shard_map))


def put_claim(generation: int, node_id: NodeId, boot_id: str) -> Put:
    claim = GenerationClaim(generation, node_id, boot_id)
    return Put(keys.generation(SHARD.shard_id), records.encode_generation(claim))


def put_node(node_id: NodeId, boot_id: str) -> Put:
    info = NodeInfo(node_id, boot_id, f"{node_id}:1")
    return Put(keys.node(node_id, boot_id), records.encode_node(info))


@asynccontextmanager
async def watching() -> AsyncIterator[tuple[ManualClock, CutOffMember, Watcher]]:
    """Follow a cluster whose only shard was claimed by the process b1 of node n1."""
    clock = ManualClock()
    etcd = CutOffMember(clock)
    gallery = Put(keys.gallery(STAFF.name), records.encode_gallery(STAFF))
    await etcd.txn([], [gallery, put_map(MAP), put_node(N1, "b1"), put_claim(1, N1, "b1")])
    watcher = Watcher(etcd, clock, get_logger("watcher"), state_dir=None)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(watcher.run())
        await watcher.ready(timeout_s=5)
        await clock.advance(2 * CONFIRM_S)
        yield clock, etcd, watcher
        running.cancel()


def vouched(watcher: Watcher) -> tuple[str, str]:
    """Return for which process of each node the router vouches."""
    return (
        watcher.vouched_boot_id(SHARD.shard_id, N1),
        watcher.vouched_boot_id(SHARD.shard_id, N2),
    )


async def test_a_view_is_confirmed_while_a_majority_of_etcd_answers() -> None:
    async with watching() as (clock, _, watcher):
        for _ in range(8):
            assert watcher.confirmed
            assert vouched(watcher) == ("b1", "")
            await clock.advance(1)


async def test_a_member_without_its_majority_confirms_nothing_though_its_watches_go_on() -> None:
    async with watching() as (clock, etcd, watcher):
        etcd.cut_off()
        etcd.quorate = False
        await clock.advance(STALENESS_S - CONFIRM_S)
        before = (watcher.confirmed, vouched(watcher))
        await clock.advance(2 * CONFIRM_S)
        after = (watcher.confirmed, vouched(watcher))
        reachable = watcher.reachable

        etcd.quorate = True
        await clock.advance(2 * CONFIRM_S)
        healed = (watcher.confirmed, vouched(watcher))

    assert before == (True, ("b1", ""))
    assert after == (False, ("", ""))
    assert reachable  # which a watch alone would have taken for a sign of the present
    assert healed == (True, ("b1", ""))


async def test_a_watch_that_has_not_told_what_a_majority_knows_is_not_confirmed() -> None:
    async with watching() as (clock, etcd, watcher):
        etcd.cut_off()
        await etcd.txn([], [put_map(AFTER_TAKEOVER), put_claim(2, N2, "b2")])
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + 30
        while watcher.confirmed and loop.time() < ends_s:
            await clock.advance(CONFIRM_S)
            await asyncio.wait([loop.create_future()], timeout=CATCH_UP_S / 10)
        stale = vouched(watcher)

        etcd.join()
        while not watcher.confirmed and loop.time() < ends_s:
            await clock.advance(CONFIRM_S)
            await asyncio.wait([loop.create_future()], timeout=CATCH_UP_S / 10)
        caught_up = vouched(watcher)

    assert stale == ("", "")
    assert caught_up == ("", "b2")


async def test_a_confirmation_counts_from_when_the_read_was_sent() -> None:
    async with watching() as (clock, _, watcher):
        since_s = watcher.confirmed_s
        assert since_s is not None
        await clock.advance(10 * CONFIRM_S)
        later_s = watcher.confirmed_s

    assert later_s is not None
    assert since_s < later_s <= clock.now_s()


async def test_the_old_primary_is_vouched_for_until_the_new_one_claims() -> None:
    async with watching() as (clock, etcd, watcher):
        steps = []
        for change in (put_map(AFTER_TAKEOVER), put_node(N2, "b2"), put_claim(2, N2, "b2")):
            await etcd.txn([], [change])
            await clock.advance(2 * CONFIRM_S)
            steps.append(vouched(watcher))

    assert steps == [("b1", ""), ("b1", ""), ("", "b2")]


async def test_a_process_that_registers_again_after_its_successor_is_not_vouched_for() -> None:
    """1. b1 of n1 stands still beyond its lease. 2. b2 of n1 is started in its place and claims.
    3. b1 goes on and registers again: now it is the newest registered, and knows of nothing.
    """
    async with watching() as (clock, etcd, watcher):
        await etcd.txn([], [put_node(N1, "b2"), put_claim(2, N1, "b2")])
        await etcd.txn([], [put_node(N1, "b1")])
        await clock.advance(2 * CONFIRM_S)

        assert vouched(watcher) == ("b2", "")


async def test_a_primary_whose_registration_ran_out_is_vouched_for_until_another_claims() -> None:
    async with watching() as (clock, etcd, watcher):
        before = watcher.topology
        await etcd.txn([], [Delete(keys.node(N1, "b1"))])
        await clock.advance(2 * CONFIRM_S)

        assert (list(before.nodes), list(watcher.topology.nodes)) == ([N1], [])
        assert vouched(watcher) == ("b1", "")
