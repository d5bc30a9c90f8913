"""A new primary and log objects that etcd does not know of: died writers, etcd set back."""

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from facegrid.clock import SystemClock
from facegrid.coord import keys
from facegrid.coord.port import Delete, KeyValue, Put
from facegrid.errors import CorruptError, FencedError, UnavailableError
from fgctl.meta import recovery
from indexd.engine.requests import EraseRequest, Outcome
from tests.fakes.engine_store import SHARD, EngineWorld, enrol_request

KEYS = (
    keys.generation(SHARD.shard_id),
    keys.tip(SHARD.shard_id),
    keys.manifest(SHARD.shard_id),
)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[EngineWorld]:
    with ThreadPoolExecutor(1) as threads:
        made = EngineWorld(tmp_path / "store", threads)
        await made.create()
        yield made


async def backup(world: EngineWorld) -> dict[str, KeyValue | None]:
    return {key: await world.coord.get(key) for key in KEYS}


async def set_back(world: EngineWorld, backed_up: dict[str, KeyValue | None]) -> None:
    await world.coord.txn(
        [],
        [Delete(key) if item is None else Put(key, item.value) for key, item in backed_up.items()],
    )


async def recover(world: EngineWorld) -> bool:
    """Do what fgctl meta recover does."""
    current = await recovery.read_current(world.coord, unix_ms=1)
    plan = await recovery.plan(current, world.store, None, boot_id="recovery-1")
    await recovery.apply(world.coord, plan)
    return plan.complete


async def test_a_write_that_was_stored_and_not_committed_is_there_once(world: EngineWorld) -> None:
    """1 the object is stored; 2 the process dies; 3 the next one takes over; 4 a retry."""
    async with world.primary("b1") as first:
        await first.write(enrol_request(1))
        world.coord.stop()
        with pytest.raises(UnavailableError):
            await first.write(enrol_request(2))
    world.coord.start()

    async with world.primary("b2") as second:
        assert (second.state.position, second.state.templates_count) == (2, 4)
        assert await second.write(enrol_request(2)) == Outcome(2, enrolled_count=2)
        assert await second.write(enrol_request(3)) == Outcome(3, enrolled_count=2)

    async with world.primary("b3") as third:
        assert third.state.templates_count == 6


async def test_an_etcd_set_back_by_one_write_loses_nothing(world: EngineWorld) -> None:
    async with world.primary("b1") as first:
        await first.write(enrol_request(1))
        backed_up = await backup(world)
        await first.write(EraseRequest("e-1", [], ["s-1-0"]))
    await set_back(world, backed_up)

    async with world.primary("b2") as second:
        assert (second.state.position, second.state.templates_count) == (2, 1)


async def test_an_etcd_set_back_further_is_refused_until_it_is_recovered(
    world: EngineWorld,
) -> None:
    async with world.primary("b1") as first:
        await first.write(enrol_request(1))
        backed_up = await backup(world)
        await first.write(enrol_request(2))
        await first.write(enrol_request(3))
        digest = first.state.digest
    await set_back(world, backed_up)

    with pytest.raises(CorruptError) as refused:
        async with world.primary("b2"):
            pass
    assert refused.value.reason == "ETCD_BEHIND"
    assert await recover(world)

    async with world.primary("b3") as third:
        assert (third.state.position, third.state.digest) == (3, digest)


async def test_a_generation_that_etcd_forgot_is_not_used_again(world: EngineWorld) -> None:
    async with world.primary("b1") as first:
        await first.write(enrol_request(1))
        backed_up = await backup(world)
    async with world.primary("b2") as second:
        await second.write(enrol_request(2))
    await set_back(world, backed_up)

    with pytest.raises(CorruptError) as refused:
        async with world.primary("b3"):
            pass
    assert refused.value.reason == "ETCD_BEHIND"
    assert await recover(world)

    async with world.primary("b4") as fourth:
        assert (fourth.state.position, fourth.generation) == (2, 4)


async def test_an_etcd_set_back_behind_a_flush_is_refused_until_it_is_recovered(
    world: EngineWorld,
) -> None:
    async with world.primary("b1") as first:
        await first.write(enrol_request(1))
        backed_up = await backup(world)
        await first.write(enrol_request(2))
        await first.flush()
        digest = first.state.digest
    await set_back(world, backed_up)

    with pytest.raises(CorruptError):
        async with world.primary("b2"):
            pass
    assert await recover(world)

    async with world.primary("b3") as third:
        assert (third.state.position, third.state.digest) == (2, digest)


async def test_an_etcd_from_before_the_first_write_does_not_open_an_empty_shard(
    world: EngineWorld,
) -> None:
    """Nothing is left of the log: only the manifest tells that there was one."""
    async with world.primary("b1") as first:
        backed_up = await backup(world)
        await first.write(enrol_request(1))
        await first.flush()
        digest = first.state.digest
    await set_back(world, backed_up)

    with pytest.raises(CorruptError) as refused:
        async with world.primary("b2"):
            pass
    assert refused.value.reason == "ETCD_BEHIND"
    assert await recover(world)

    async with world.primary("b3") as third:
        assert (third.state.position, third.state.digest) == (1, digest)


async def test_an_older_manifest_that_was_not_deleted_yet_is_not_taken_for_the_newest(
    world: EngineWorld,
) -> None:
    """1 a flush; 2 the backup; 3 writes and a flush; 4 a crash before the old manifest goes."""
    async with world.primary("b1") as first:
        await first.write(enrol_request(1))
        await first.flush()
        backed_up = await backup(world)
        (old,) = await world.store.list(f"shards/{SHARD.shard_id}/manifests/")
        data = await world.store.get(old)
        await first.write(enrol_request(2))
        await first.flush()
        digest = first.state.digest
    await world.store.put_new(old, data)
    await set_back(world, backed_up)

    with pytest.raises(CorruptError) as refused:
        async with world.primary("b2"):
            pass
    assert refused.value.reason == "ETCD_BEHIND"
    assert await recover(world)

    async with world.primary("b3") as third:
        assert third.state.digest == digest


async def test_a_manifest_stored_by_a_flush_that_died_is_no_sign_of_a_loss(
    world: EngineWorld,
) -> None:
    """1 a flush stores its objects; 2 its process dies before the commit."""
    async with world.primary("b1") as first:
        await first.write(enrol_request(1))
        pointer = await world.coord.get(keys.manifest(SHARD.shard_id))
        log = {name: await world.store.get(name) for name in await world.store.list("shards/")}
        await first.flush()
    for name, data in log.items():
        await world.store.put_new(name, data)
    await set_back(world, {keys.manifest(SHARD.shard_id): pointer})

    async with world.primary("b2") as second:
        assert second.state.templates_count == 2


async def test_a_process_from_before_the_loss_cannot_commit_though_revisions_come_again(
    world: EngineWorld,
) -> None:
    """1 a primary claims and writes; 2 etcd is wiped and recovered; 3 its revisions happen to be
    those that the old primary remembers; 4 it writes.
    """
    async with world.primary("b1") as old:
        await old.write(enrol_request(1))
        remembered = await backup(world)
        await set_back(world, dict.fromkeys(KEYS))
        assert await recover(world)
        for key, item in remembered.items():
            held = world.coord._items.get(key)
            if item is not None and held is not None:
                world.coord._items[key] = KeyValue(key, held.value, item.mod_revision)

        with pytest.raises(FencedError):
            await old.write(enrol_request(2))


async def test_a_follower_refuses_an_etcd_that_was_set_back(world: EngineWorld) -> None:
    """1 enrol, back up; 2 erase, enrol; 3 etcd is set back; 4 a follower opens."""
    async with world.primary("b1") as first:
        await first.write(enrol_request(1))
        backed_up = await backup(world)
        await first.write(EraseRequest("e-1", [], ["s-1-0"]))
        await first.write(enrol_request(2))
    await set_back(world, backed_up)
    follower = world.follower("b2")

    with pytest.raises(CorruptError) as refused:
        await follower.open(0, None)

    assert refused.value.reason == "ETCD_BEHIND"


async def test_a_follower_notices_that_etcd_is_set_back_under_it(world: EngineWorld) -> None:
    async with world.primary("b1") as first:
        backed_up = await backup(world)
        await first.write(enrol_request(1))
        follower = world.follower("b2")
        await follower.open(0, None)
    await set_back(world, backed_up)

    with pytest.raises(CorruptError) as refused:
        await follower.confirm(None, SystemClock().now_s())

    assert refused.value.reason == "ETCD_BEHIND"


async def test_a_copy_opened_without_etcd_is_loaded_anew_before_it_is_confirmed(
    world: EngineWorld,
) -> None:
    """1 an object is stored, not committed; 2 a node starts without etcd; 3 etcd is back, and the
    next primary has committed another object in its place.
    """
    async with world.primary("b1") as first:
        await first.write(enrol_request(1))
        world.coord.stop()
        with pytest.raises(UnavailableError):
            await first.write(enrol_request(2))
        follower = world.follower("b2")
        await follower.open_without_etcd(None)
        before = (follower.state.position, follower.confirmed)
    world.coord.start()
    for name in await world.store.list(f"shards/{SHARD.shard_id}/log/"):
        if f"-{2:019d}-" in name:
            await world.store.delete(name)

    async with world.primary("b3") as second:
        await second.write(enrol_request(3))
        await follower.confirm(second.state.log, SystemClock().now_s())

        assert before == (2, False)
        assert (follower.state.digest, follower.confirmed) == (second.state.digest, True)
