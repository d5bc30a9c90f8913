"""fgctl meta recover beside a split: whichever map it takes, nothing acknowledged is lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from facegrid.api.shard.v1 import shard_service_pb2 as pb
from facegrid.clock import SystemClock
from facegrid.coord import keys
from facegrid.coord.port import Put
from facegrid.errors import InvalidError, NotFoundError, UnavailableError
from facegrid.format.erasures import journal_objects
from facegrid.format.log import EnrolRecord, LogGroup, encode_log, log_name, log_ref
from facegrid.format.operations import (
    Operation,
    OperationLock,
    OperationState,
    Split,
    decode_operation,
    encode_lock,
    encode_operation,
)
from facegrid.format.records import decode_tip, encode_gallery, encode_shard_map
from facegrid.format.stored_gallery import decode_stored_gallery
from facegrid.ids import ShardId
from facegrid.model import ShardMap
from facegrid.testing.memory_blob import MemoryBlobStore
from facegrid.testing.memory_coord import MemoryCoordinator
from fgctl.meta import recovery
from fgctl.meta.recovery import Plan
from tests.fakes.caller import CALLER
from tests.fakes.mirror_rig import (
    GALLERY,
    HIGH,
    LOW,
    N1,
    N2,
    UID,
    Rig,
    S,
    rigged,
    split_map,
    whole_map,
)
from tests.fakes.waiting import until
from tests.unit.test_mirror import enrol, part, rows_of

Rows = dict[tuple[str, str], bytes]


def cut_over_map() -> ShardMap:
    children = tuple(replace(one, sources=()) for one in split_map().pending)
    return replace(split_map(3), shards=children, pending=())


@asynccontextmanager
async def split_kept() -> AsyncIterator[Rig]:
    """A shard that has been brought into two others, and the record of their map stored."""
    async with rigged(shard_map=split_map()) as rig:
        await rig.start(N1)
        await rig.start(N2)
        source = await rig.serving(S)
        for number in range(1, 6):
            await source.write(enrol(number))
        await rig.brought_over()
        request = pb.KeepRecordRequest(
            gallery=encode_gallery(GALLERY), shard_map=encode_shard_map(cut_over_map())
        )
        await rig.service(S).KeepRecord(request, CALLER)
        yield rig


async def rows(rig: Rig, *shard_ids: ShardId) -> Rows:
    found: Rows = {}
    for shard_id in shard_ids:
        found |= rows_of((await rig.serving(shard_id)).state)
    return found


async def stop(rig: Rig) -> None:
    for process in [*rig.processes.values()]:
        await rig.kill(process)


async def recovered(
    rig: Rig, *, backup: ShardMap | None = None, operation: Operation | None = None
) -> tuple[Plan, MemoryCoordinator]:
    """Recover into an etcd that is empty, or a backup with this map and operation."""
    coord = MemoryCoordinator(SystemClock())
    if operation is not None:
        lock = encode_lock(OperationLock(operation.operation_id))
        puts = [Put(keys.operation_lock(one), lock) for one in operation.locked_ids]
        key = keys.operation(operation.operation_id)
        await coord.txn([], [Put(key, encode_operation(operation)), *puts])
    if backup is not None:
        puts = [
            Put(keys.gallery(GALLERY.name), encode_gallery(GALLERY)),
            Put(keys.shard_map(GALLERY.name), encode_shard_map(backup)),
        ]
        await coord.txn([], puts)
    current = await recovery.read_current(coord, unix_ms=1)
    plan = await recovery.plan(current, rig.store, None, boot_id="recovery-1")
    await recovery.apply(coord, plan)
    again = await recovery.plan(
        await recovery.read_current(coord, unix_ms=1), rig.store, None, boot_id="recovery-2"
    )
    assert not any(one.changes for one in again.galleries), "run again, it changes nothing"
    return plan, coord


async def served(
    coord: MemoryCoordinator, store: MemoryBlobStore, *shard_ids: ShardId
) -> tuple[Rows, set[str]]:
    """Start nodes on what was recovered; return what the shards have, and which shards the store
    has in the end.
    """
    async with rigged(coord, store, say=False) as rig:
        await rig.start(N1)
        await rig.start(N2)
        found = await rows(rig, *shard_ids)
        await until(lambda: not [key for key in coord._items if key.startswith(keys.DROPPED)])
        return found, {name.split("/")[1] for name in store.objects if "shards/" in name}


async def test_a_map_that_was_never_in_force_is_not_taken_where_that_loses_rows() -> None:
    """1 the record of the new map is stored, and its transaction fails; 2 the shard goes on, and
    the others do not hear of it; 3 etcd is lost.
    """
    async with split_kept() as rig:

        def lose(method: str, _: object) -> None:
            if method == "Mirror":
                raise UnavailableError("lost", reason="TRANSPORT")

        rig.wire.before = lose
        await (await rig.serving(S)).write(enrol(6))
        expected = await rows(rig, S)
        await stop(rig)
        plan, coord = await recovered(rig)
        assert plan.complete
        (gallery,) = plan.galleries
        assert [shard.shard_id for shard in gallery.shard_map.shards] == [S]
        assert [one.shard_id for one in gallery.leftovers] == [LOW, HIGH]
        assert gallery.shard_map.next_number == 3, "their ids are not given out again"
        assert await served(coord, rig.store, S) == (expected, {S})


@pytest.mark.parametrize("backup", [None, split_map()])
async def test_a_map_under_which_was_written_is_taken(backup: ShardMap | None) -> None:
    """1 the map is put in force; 2 somebody is enrolled; 3 etcd is lost, or set back. Beyond the
    tip of the old shard lies what nobody could commit any more.
    """
    async with split_kept() as rig:
        generation = (await rig.serving(S)).generation
        await rig.raise_generation(S)
        await rig.say(cut_over_map())
        await until(lambda: rig.primary(S) is None)
        await orphan(rig, generation)
        for shard in cut_over_map().shards:
            child = await rig.serving(shard.shard_id)
            await child.write(part(enrol(7, rows=8), shard.range))
        expected = await rows(rig, LOW, HIGH)
        await stop(rig)
        plan, coord = await recovered(rig, backup=backup)
        assert plan.complete
        assert [one.shard_id for one in plan.galleries[0].leftovers] == [S]
        assert await served(coord, rig.store, LOW, HIGH) == (expected, {LOW, HIGH})


async def test_the_old_shard_is_taken_where_nobody_wrote_to_the_new_ones() -> None:
    """The map was put in force, or not. Beyond the old shard's tip lies what was perhaps
    committed, and the others do not have it.
    """
    async with split_kept() as rig:
        generation = (await rig.serving(S)).generation
        expected = await rows(rig, S)
        await stop(rig)
        await orphan(rig, generation)
        _, coord = await recovered(rig)
        found, left = await served(coord, rig.store, S)
        assert expected.items() <= found.items()
        assert left == {S}


async def test_a_shard_that_is_being_deleted_does_not_come_back() -> None:
    """Its journal is closed, and some of its objects are gone: it is over, and not damaged."""
    async with split_kept() as rig:
        await (await rig.serving(S)).flush()
        await (await rig.serving(S)).write(enrol(6))
        expected = await rows(rig, S)
        await rig.brought_over()
        await stop(rig)
        for item in journal_objects(S, None, [], last_position=9, closing=True):
            await rig.store.put_new(item.name, item.data)
        manifests = [name for name in rig.store.objects if f"{S}/manifests/" in name]
        for name in manifests:
            await rig.store.delete(name)
        plan, coord = await recovered(rig)
        assert plan.complete
        found, left = await served(coord, rig.store, LOW, HIGH)
        assert (found, left) == (expected, {LOW, HIGH})


@pytest.mark.parametrize("step", ["fill", "follow"])
async def test_an_operation_does_not_go_on_whose_shards_are_given_up(step: str) -> None:
    """1. etcd is saved while a shard is split. 2. A copy joins it, so the map is another one. 3.
    etcd is set back. The new shards are given up, and deleted twice, the second time half a minute
    later: were they filled again, what was enrolled into them meanwhile would be lost.
    """
    async with split_kept() as rig:
        expected = await rows(rig, S)
        later = tuple(replace(one, joining=(N2,)) for one in split_map().shards)
        await rig.say(replace(split_map(4), shards=later))
        await until(lambda: any(f"{4:019d}" in name for name in stored_maps(rig)))
        await stop(rig)
        for name in stored_maps(rig):
            kept = decode_stored_gallery(await rig.store.get(name))
            if not kept.shard_map.pending:
                await rig.store.delete(name)
        split = Split(S, split_map().pending[1].range.first, (LOW, HIGH))
        running = Operation("op-1", GALLERY.name, UID, split, OperationState.RUNNING, step)
        backup = split_map() if step == "follow" else whole_map()
        plan, coord = await recovered(rig, backup=backup, operation=running)

        (gallery,) = plan.galleries
        assert [one.shard_id for one in gallery.leftovers] == [LOW, HIGH]
        item = await coord.get(keys.operation("op-1"))
        assert item is not None
        assert decode_operation(item.value) == replace(
            running, state=OperationState.ABORTED, note=recovery.GIVEN_UP
        )
        assert not (await coord.list(keys.OPERATION_LOCKS)).items
        assert await served(coord, rig.store, S) == (expected, {S})


def stored_maps(rig: Rig) -> list[str]:
    return [name for name in rig.store.objects if name.startswith(f"cluster/{UID}/")]


async def test_an_etcd_that_has_the_map_keeps_shards_that_are_being_filled() -> None:
    async with split_kept() as rig:
        await stop(rig)
        split = Split(S, split_map().pending[1].range.first, (LOW, HIGH))
        running = Operation("op-1", GALLERY.name, UID, split, OperationState.RUNNING, "follow")
        await rig.coord.txn([], [Put(keys.operation("op-1"), encode_operation(running))])
        current = await recovery.read_current(rig.coord, unix_ms=1)
        plan = await recovery.plan(current, rig.store, None, boot_id="r")
        (gallery,) = plan.galleries
        assert (plan.complete, gallery.changes, gallery.leftovers) == (True, False, ())
        assert gallery.given_up == ()
        assert [one.shard_id for one in gallery.shards] == [S, LOW, HIGH]


async def test_records_of_other_galleries_and_nonsense_are_not_kept() -> None:
    async with split_kept() as rig:
        other = replace(GALLERY, uid="00000000")
        shard_map = encode_shard_map(cut_over_map())
        requests = [
            pb.KeepRecordRequest(gallery=b"\xff", shard_map=shard_map),
            pb.KeepRecordRequest(gallery=encode_gallery(GALLERY), shard_map=b"\xff"),
            pb.KeepRecordRequest(gallery=encode_gallery(other), shard_map=shard_map),
        ]
        before = set(rig.store.objects)
        for request in requests:
            with pytest.raises(InvalidError):
                await rig.service(S).KeepRecord(request, CALLER)
        elsewhere = replace(cut_over_map(), gallery_uid=other.uid)
        request = pb.KeepRecordRequest(
            gallery=encode_gallery(other), shard_map=encode_shard_map(elsewhere)
        )
        with pytest.raises(NotFoundError):
            await rig.service(S).KeepRecord(request, CALLER)
        assert {name for name in rig.store.objects if "cluster/" in name} <= before
        versions = [name for name in before if name.startswith(f"cluster/{UID}/")]
        assert len(versions) == 2, "what is in force, and what is to come"


async def orphan(rig: Rig, generation: int) -> None:
    """Store a log object behind the tip of the source that nobody commits."""
    tip = await rig.coord.get(keys.tip(S))
    assert tip is not None
    before = decode_tip(tip.value).log
    request = enrol(99, rows=1)
    record = EnrolRecord(
        before.last_position + 1,
        request.request_id,
        request.digest(),
        0,
        request.template_ids,
        request.subject_ids,
        request.codes,
    )
    group = LogGroup(S, generation, before, [record])
    data = encode_log(group)
    await rig.store.put_new(log_name(S, log_ref(group, "orphan", data)), data)


async def test_how_many_copies_are_wanted_is_kept_for_a_recovery_too() -> None:
    """A gallery's settings change and its map does not."""
    async with rigged() as rig:
        await rig.start(N1)
        await rig.serving(S)
        three = encode_gallery(replace(GALLERY, replicas_count=3))
        await rig.coord.txn([], [Put(keys.gallery(GALLERY.name), three)])

        async def kept() -> list[int]:
            found = [decode_stored_gallery(await rig.store.get(one)) for one in stored_maps(rig)]
            return [one.gallery.replicas_count for one in found]

        async with asyncio.timeout(10):
            while await kept() != [3]:
                await rig.clock.sleep(0)
        await stop(rig)
        plan, _ = await recovered(rig)
        assert plan.galleries[0].gallery.replicas_count == 3
