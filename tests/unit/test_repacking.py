"""Copies are repacked while they serve: flushes, takeovers, training and writes meanwhile."""

import asyncio
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from facegrid import limits, vectors
from facegrid.clock import SystemClock
from indexd.ann.train import train
from indexd.engine import coded
from indexd.engine.coded import NamedCodebook
from indexd.engine.requests import EraseRequest, Outcome
from indexd.replica.follower import Follower
from indexd.replica.primary import Primary
from indexd.replica.repacking import Repacker
from indexd.replica.shard_copy import Phase
from tests.unit.test_replica import DIM, GALLERY, SHARD, World, enrol, found
from tests.unit.test_replica import world as world  # noqa: PLC0414 - a fixture
from tests.unit.test_replica_races import GatedStore


@pytest.fixture(autouse=True)
def _small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "REPACK_ERASED_MIN", 2)
        patch.setattr(limits, "REPACK_STEP_ROWS", 3)
        yield


async def fill(primary: Primary) -> None:
    """Enrol twelve rows and erase five of them."""
    for number in range(1, 7):
        await primary.write(enrol(number))
    await primary.write(EraseRequest("e-1", [], ["s-1-0", "s-2-0", "s-2-1", "s-4-1", "s-6-0"]))


LIVE = {1: ["s-1-1"], 2: [], 3: ["s-3-0", "s-3-1"], 4: ["s-4-0"], 6: ["s-6-1"]}
"""What a search for the rows of a request finds after `fill`."""


def live(copy: Primary | Follower) -> dict[int, list[str]]:
    return {number: found(copy, enrol(number)) for number in LIVE}


async def test_a_repacked_primary_goes_on_as_before(world: World) -> None:
    async with world.primary("b1") as primary:
        await fill(primary)
        before = primary.state
        digest = before.digest
        await Repacker().repack(primary)

        assert primary.state is not before
        assert (primary.state.rows_count, primary.state.digest) == (7, digest)
        assert live(primary) == LIVE
        assert await primary.write(enrol(3)) == Outcome(3, enrolled_count=2), "a retry"
        assert (await primary.write(EraseRequest("e-2", ["t-3-0"], []))).erased_count == 1
        assert (before.position, primary.state.position) == (7, 8), "only the new one is written"
        digest = primary.state.digest

    async with world.primary("b2") as second:
        assert second.state.digest == digest


async def test_segments_survive_repacking_and_rewriting_takes_the_erased_bytes(
    world: World,
) -> None:
    """1 flush, erase, repack; 2 flush again: its segment stays, erased rows too; 3 rewrite."""
    async with world.primary("b1") as primary:
        for number in range(1, 7):
            await primary.write(enrol(number))
        await primary.flush()
        segment = primary.persisted.segments[0].sha256
        await fill(primary)
        await Repacker().repack(primary)
        await primary.write(enrol(7))
        await primary.flush()
        digest, names = primary.state.digest, [one.sha256 for one in primary.persisted.segments]
        async with world.primary("b2") as second:
            assert (second.state.digest, live(second)) == (digest, LIVE)
            assert second.state.erased_count == 5, "the store still has them"
            await Repacker().repack(second)
            await second.rewrite()
            sizes = [len(one.rows) for one in second.persisted.segments]
        async with world.primary("b3") as third:
            assert (third.state.digest, live(third)) == (digest, LIVE)
            assert (third.state.erased_count, sizes) == (0, [7, 2])

    assert names[0] == segment


async def test_an_erasure_after_repacking_is_rewritten_in_its_time(world: World) -> None:
    """Rewriting counts erasures, and those that repacking has left out count on."""
    async with world.primary("b1") as primary:
        await fill(primary)
        primary.applied()
        await primary.rewrite()
        await Repacker().repack(primary)
        primary.applied()
        nothing_new = primary.rewrite_due(0)
        await primary.write(EraseRequest("e-2", [], ["s-3-0"]))
        primary.applied()

        assert (nothing_new, primary.rewrite_due(0)) == (False, True)


async def test_repacking_waits_for_the_flush_under_way(world: World) -> None:
    """1 a flush has numbered its rows, and its store is slow; 2 repack; 3 the flush commits."""
    world.store = store = GatedStore()
    async with world.primary("b1") as primary, asyncio.TaskGroup() as tasks:
        await fill(primary)
        before = primary.state
        store.puts.closed = True
        flushing = tasks.create_task(primary.flush())
        await store.puts.reached.wait()
        repacking = tasks.create_task(Repacker().repack(primary))
        while not primary.building.locked():
            await asyncio.to_thread(bool)
        for _ in range(50):
            # As many turns as the copying takes, and more.
            await primary.on(primary.ports.build_thread, bool)
        waits = primary.state is before and not repacking.done()
        store.puts.open.set()
        await flushing
        await repacking
        await primary.write(enrol(8))
        await primary.flush()
        digest = primary.state.digest

        assert (waits, primary.state is before) == (True, False)
    async with world.primary("b2") as second:
        assert (second.state.digest, live(second)) == (digest, LIVE)


async def test_a_repacked_follower_goes_on_and_takes_over_with_its_rows(world: World) -> None:
    async with world.primary("b1") as primary:
        follower = Follower(world.ports("n2", "b1"), GALLERY, SHARD)
        await fill(primary)
        await primary.flush()
        await follower.open(world.map_revision, None)
        await primary.write(EraseRequest("e-2", [], ["s-5-0", "s-5-1", "s-3-0"]))
        await follower.confirm(primary.state.log, SystemClock().now_s())
        before = follower.state
        await Repacker().repack(follower)
        await primary.write(enrol(9))
        await follower.confirm(primary.state.log, SystemClock().now_s())
        digest = primary.state.digest

        assert follower.state is not before
        assert (follower.state.digest, follower.state.position) == (digest, 9)

    async with world.primary("b2", heritage=follower) as heir:
        assert heir.state is follower.state
        await heir.rewrite()
    async with world.primary("b3") as third:
        assert (third.state.digest, third.state.erased_count) == (digest, 0)


async def test_a_copy_that_is_let_go_is_not_repacked(world: World) -> None:
    async with world.primary("b1") as primary:
        await fill(primary)
        before = primary.state
        async with asyncio.TaskGroup() as tasks, primary.handing_over():
            tasks.create_task(Repacker().repack(primary))
            while not primary.building.locked():
                await asyncio.to_thread(bool)
            primary.phase = Phase.CLOSED

        assert primary.state is before


async def test_a_follower_that_loads_anew_meanwhile_keeps_what_it_loaded(world: World) -> None:
    """1 copy; 2 the primary has trimmed, so the follower loads; 3 the copy is thrown away."""
    async with world.primary("b1") as primary:
        await fill(primary)
        follower = Follower(world.ports("n2", "b1"), GALLERY, SHARD)
        await follower.open(world.map_revision, None)
        before = follower.state
        async with asyncio.TaskGroup() as tasks, follower.handing_over():
            tasks.create_task(Repacker().repack(follower))
            while not follower.building.locked():
                await asyncio.to_thread(bool)
            await primary.write(enrol(9))
            await primary.flush()
            await follower._reload()
            loaded = follower.state

        assert loaded is not before
        assert (follower.state is loaded, follower.state.digest) == (True, primary.state.digest)


async def test_a_gallery_trained_meanwhile_ends_the_repacking_or_waits_for_it(
    world: World,
) -> None:
    """The codebook comes after, and codes the rows of the new state."""
    x = np.random.default_rng(1).normal(size=(1200, DIM)).astype(np.float32)
    trained = train(vectors.quantize(x), seed=3, threads=1)
    named = NamedCodebook(coded.encode(trained)[1], trained)
    async with world.primary("b1") as primary, asyncio.TaskGroup() as tasks:
        await fill(primary)
        before = primary.state
        tasks.create_task(Repacker().repack(primary))
        while not primary.building.locked():
            await asyncio.to_thread(bool)
        tasks.create_task(primary.use_codebook(named))
        while primary.state.codebook != named.sha256:
            await asyncio.to_thread(bool)

        assert primary.state is not before
        assert (primary.state.index.indexed_count, live(primary)) == (7, LIVE)


async def test_rows_that_differ_keep_the_old_state_and_end_all_repacking(world: World) -> None:
    async with world.primary("b1") as primary:
        await fill(primary)
        before = primary.state
        before.index._rows._chunks[0][4, 0] ^= 1
        await Repacker().repack(primary)

        assert (primary.state is before, Repacker().due(primary)) == (True, False)
        assert primary.phase is Phase.SERVING


async def test_a_shard_is_loaded_in_a_thread_so_that_the_others_go_on(world: World) -> None:
    """1 the build thread is busy; 2 a shard is opened: it waits, and the event loop does not."""
    async with world.primary("b1") as primary:
        await fill(primary)
        await primary.flush()
    free = threading.Event()
    busy = world.threads[1].submit(free.wait)
    async with asyncio.TaskGroup() as tasks:
        follower = Follower(world.ports("n2", "b1"), GALLERY, SHARD)
        opening = tasks.create_task(follower.open(world.map_revision, None))
        for _ in range(50):
            await asyncio.to_thread(bool)
        waits = not opening.done()
        free.set()

    assert (busy.result(), waits, live(follower)) == (True, True, LIVE)


async def test_a_follower_forgets_the_erasures_that_the_journal_has(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 erase; 2 the primary flushes and erases more; 3 the follower takes over: none is lost."""
    monkeypatch.setattr(limits, "ERASURES_NOTED", 1)
    async with world.primary("b1") as primary:
        follower = Follower(world.ports("n2", "b1"), GALLERY, SHARD)
        await follower.open(world.map_revision, None)
        await fill(primary)
        await follower.confirm(primary.state.log, SystemClock().now_s())
        due = follower.forget_due
        await follower.forget_journalled()
        noted = len(follower.state.erasures)
        await primary.flush()
        await primary.write(EraseRequest("e-2", [], ["s-3-0"]))
        await follower.confirm(primary.state.log, SystemClock().now_s())
        await follower.forget_journalled()
        journal = primary.persisted.journal

        assert (due, noted) == (True, 1), "no manifest yet: all is kept"
        assert [one.position for one in follower.state.erasures.up_to(99)] == [8]
    async with world.primary("b2", heritage=follower) as heir:
        assert heir.persisted.journal == journal
        await heir.flush()
        assert heir.persisted.journal is not None
        assert heir.persisted.journal.last_position == 8


async def test_records_without_rows_are_flushed_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FLUSH_RECORDS", 3)
    async with world.primary("b1") as primary:
        await primary.write(enrol(1))
        due = [primary.applied()]
        for number in range(3):
            await primary.write(EraseRequest(f"e-{number}", [], ["nobody"]))
            due.append(primary.applied())
        await primary.flush()

        assert (due, primary.applied()) == ([False, False, True, True], False)
        assert [name for name in world.store.objects if "/log/" in name] == []
