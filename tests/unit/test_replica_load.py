"""Bulk loads as a primary and its followers carry them out, on stores in memory."""

import hashlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
from typing_extensions import override

from facegrid.clock import SystemClock
from facegrid.coord import keys
from facegrid.coord.port import Put
from facegrid.errors import CorruptError, InvalidError, UnavailableError
from facegrid.format.log import LoadRecord, LogGroup, encode_log, log_name, log_ref
from facegrid.format.records import decode_tip, encode_gallery, encode_shard_map
from facegrid.format.segment import decode_segment, encode_segment, segment_name
from facegrid.ids import KEY_LAST, ShardId, subject_key
from facegrid.model import HashRange, ShardMap
from facegrid.rpc.together import all_of
from facegrid.testing.memory_blob import MemoryBlobStore
from fgctl.bulk.publish import LoadStore
from fgctl.bulk.rows import ShardRows
from fgctl.bulk.segments import BuiltSegment, StoredSegment, build_segment
from indexd.engine import staging
from indexd.engine.loading import ShardShape, prepare
from indexd.engine.planning import overlay_of, plan
from indexd.engine.requests import (
    EraseRequest,
    LoadRequest,
    NamedSegment,
    Outcome,
    RequestMemory,
)
from indexd.replica.follower import Follower
from indexd.replica.primary import Primary
from tests.unit.test_replica import (
    DIM,
    GALLERY,
    SHARD,
    FlakyCoordinator,
    World,
    enrol,
    found,
)

LOAD = "a" * 32


@pytest.fixture
async def world() -> AsyncIterator[World]:
    coord = FlakyCoordinator(SystemClock())
    shard_map = ShardMap(GALLERY.name, GALLERY.uid, 1, (SHARD,))
    result = await coord.txn(
        [],
        [
            Put(keys.gallery(GALLERY.name), encode_gallery(GALLERY)),
            Put(keys.shard_map(GALLERY.name), encode_shard_map(shard_map)),
        ],
    )
    with ThreadPoolExecutor(1) as search, ThreadPoolExecutor(1) as build:
        yield World(coord, MemoryBlobStore(), result.revision, count(), (search, build))


def rows(first: int, last: int, *, shard_id: ShardId = SHARD.shard_id) -> ShardRows:
    """Rows with the ids and vectors that `enrol` gives to requests first to last - 1."""
    requests = [enrol(number) for number in range(first, last)]
    return ShardRows(
        [one for request in requests for one in request.template_ids],
        [one for request in requests for one in request.subject_ids],
        np.concatenate([request.codes for request in requests]),
        shard_id=shard_id,
    )


def built(*parts: ShardRows, load_id: str = LOAD) -> list[BuiltSegment]:
    return [build_segment(part, load_id) for part in parts]


def load_request(segments: list[BuiltSegment], request_id: str = "load") -> LoadRequest:
    return LoadRequest(
        request_id, tuple(NamedSegment(one.named.sha256, one.named.rows_count) for one in segments)
    )


async def stored(world: World, *parts: ShardRows, load_id: str = LOAD) -> LoadRequest:
    segments = built(*parts, load_id=load_id)
    for one in segments:
        await LoadStore(world.store, load_id).put(one)
    return load_request(segments, f"load-{load_id}")


async def test_a_load_adds_all_its_rows_at_once_and_they_are_found(world: World) -> None:
    async with world.primary("b1") as primary:
        await primary.write(enrol(1))
        request = await stored(world, rows(2, 5), rows(5, 6))

        outcome = await primary.load_segments(request)

        assert outcome == Outcome(2, enrolled_count=8)
        assert found(primary, enrol(4)) == ["s-4-0", "s-4-1"]
        assert await primary.load_segments(request) == outcome, "a retry hears the same"
        assert primary.state.templates_count == 10


async def test_a_loaded_shard_has_the_digest_of_one_enrolled_through_the_log(
    world: World,
) -> None:
    async with world.primary("b1") as primary:
        await primary.load_segments(await stored(world, rows(1, 4)))
        loaded = primary.state.digest
        await primary.write(EraseRequest("e", [], ["s-1-0", "s-1-1"]))
        for number in (2, 3):
            await primary.write(EraseRequest(f"e-{number}", [], enrol(number).subject_ids))
        assert primary.state.digest == 0
        for number in (1, 2, 3):
            await primary.write(enrol(number))
        assert primary.state.digest == loaded


async def test_a_load_survives_the_process_before_and_after_a_flush(world: World) -> None:
    """1 enrol, load, erase a loaded row, enrol; 2 die, replay; 3 flush; 4 die, reopen."""
    async with world.primary("b1") as first:
        await first.write(enrol(1))
        await first.load_segments(await stored(world, rows(2, 5)))
        await first.write(EraseRequest("e", [], ["s-3-0"]))
        await first.write(enrol(7))
        state = first.state
        expected = (state.digest, state.position, state.templates_count)
        segments = [name for name in world.store.objects if "/segments/" in name]

    async with world.primary("b2") as second:
        state = second.state
        assert (state.digest, state.position, state.templates_count) == expected
        assert found(second, enrol(3)) == ["s-3-1"]
        await second.flush()
        assert segments[0] in world.store.objects, "kept by reference, not written again"
        assert len([name for name in world.store.objects if "/segments/" in name]) == 3

    async with world.primary("b3") as third:
        state = third.state
        assert (state.digest, state.position, state.templates_count) == expected
        assert [found(third, enrol(n)) for n in (1, 2, 3, 7)] == [
            ["s-1-0", "s-1-1"],
            ["s-2-0", "s-2-1"],
            ["s-3-1"],
            ["s-7-0", "s-7-1"],
        ]


async def test_rows_that_are_there_already_count_as_unchanged(world: World) -> None:
    async with world.primary("b1") as primary:
        await primary.write(enrol(2))
        outcome = await primary.load_segments(await stored(world, rows(1, 4), rows(4, 5)))
        digest = primary.state.digest
        assert outcome == Outcome(2, enrolled_count=6, unchanged_count=2)
        assert found(primary, enrol(2)) == ["s-2-0", "s-2-1"]
        again = await primary.load_segments(await stored(world, rows(1, 5), load_id="b" * 32))
        assert again == Outcome(3, unchanged_count=8)
        assert (primary.state.digest, primary.state.templates_count) == (digest, 8)
    async with world.primary("b2") as second:
        assert (second.state.digest, second.state.templates_count) == (digest, 8)
        await second.flush()
    async with world.primary("b3") as third:
        assert (third.state.digest, third.state.templates_count) == (digest, 8)
        assert (
            await third.load_segments(load_request(built(rows(1, 4), rows(4, 5)), f"load-{LOAD}"))
            == outcome
        )


def spoiled(what: str) -> list[BuiltSegment]:
    """Segments of which the second is not fit."""
    good, bad = rows(1, 3), rows(3, 5)
    match what:
        case "other shard":
            bad = rows(3, 5, shard_id=ShardId("g.1f00aa23.0001"))
        case "other dimension":
            bad = replace(bad, codes=np.tile(bad.codes, (1, 2)))
        case "no stored row":
            bad = replace(bad, codes=bad.codes // 2)
        case "subject id":
            bad = replace(bad, subject_ids=["s-3-0", "s-\n", "s-4-0", "s-4-1"])
        case "template id":
            bad = replace(bad, template_ids=["t-3-0", "t-3-1", "t" * 200, "t-4-1"])
        case "twice":
            bad = rows(2, 4)
        case "no load":
            segment = decode_segment(build_segment(bad, LOAD).data)
            data = encode_segment(replace(segment, load_id="", generation=1))
            named = StoredSegment(SHARD.shard_id, hashlib.sha256(data).hexdigest(), 4)
            return [*built(good), BuiltSegment(named, data)]
    return built(good, bad)


@pytest.mark.parametrize(
    ("what", "reason", "row"),
    [
        ("other shard", "LOAD_REFUSED", None),
        ("other dimension", "LOAD_REFUSED", None),
        ("no load", "LOAD_REFUSED", None),
        ("no stored row", "CODES_MALFORMED", 0),
        ("subject id", "ID_MALFORMED", 1),
        ("template id", "ID_MALFORMED", 2),
        ("twice", "DUPLICATE_ROW", 0),
    ],
)
async def test_a_segment_that_is_not_fit_is_refused_by_its_number_and_changes_nothing(
    world: World, what: str, reason: str, row: int | None
) -> None:
    segments = spoiled(what)
    for one in segments:
        # Where the loader believed it to belong, the primary looks.
        world.store.objects[segment_name(SHARD.shard_id, one.named.sha256)] = one.data
    async with world.primary("b1") as primary:
        with pytest.raises(InvalidError) as refused:
            await primary.load_segments(load_request(segments))
        facts = refused.value.facts
        assert (refused.value.reason, facts.get("segment"), refused.value.row) == (
            reason,
            "1",
            row,
        )
        assert (primary.state.position, primary.state.rows_count) == (0, 0)
        assert await primary.write(enrol(3)) == Outcome(1, enrolled_count=2)


def test_subjects_of_another_range_are_refused() -> None:
    half = replace(SHARD, range=HashRange(0, KEY_LAST // 2))
    segment = build_segment(rows(1, 9), LOAD)
    with pytest.raises(InvalidError) as refused:
        prepare(segment.data, "", ShardShape(half.shard_id, half.range, DIM))
    wanted = [not half.range.contains(subject_key(one)) for one in rows(1, 9).subject_ids]
    assert (refused.value.reason, refused.value.row) == ("SUBJECT_ELSEWHERE", wanted.index(True))


@pytest.mark.parametrize(
    ("how", "reason"), [("gone", "OBJECT_MISSING"), ("bit", "OBJECT_DAMAGED")]
)
async def test_a_segment_that_is_missing_or_damaged_is_refused(
    world: World, how: str, reason: str
) -> None:
    request = await stored(world, rows(1, 3))
    name = segment_name(SHARD.shard_id, request.segments[0].sha256)
    data = bytearray(world.store.objects.pop(name))
    if how == "bit":
        data[len(data) // 2] ^= 1
        world.store.objects[name] = bytes(data)
    async with world.primary("b1") as primary:
        with pytest.raises(CorruptError) as refused:
            await primary.load_segments(request)
        assert refused.value.reason == reason
        assert primary.state.position == 0


async def test_a_load_beside_writes_takes_its_turn_and_each_has_the_effect_of_once(
    world: World,
) -> None:
    request = await stored(world, rows(1, 20))
    async with world.primary("b1") as primary:
        writes = [primary.write(enrol(number)) for number in range(30, 40)]
        outcomes = await all_of([*writes, primary.load_segments(request)])
        more = await all_of([primary.write(enrol(number)) for number in range(40, 45)])
        assert sorted(one.position for one in (*outcomes, *more)) == list(range(1, 17))
        assert primary.state.templates_count == 38 + 30
        digest = primary.state.digest
    async with world.primary("b2") as second:
        assert second.state.digest == digest


async def test_a_load_in_doubt_is_settled_and_keeps_its_segments_meanwhile(world: World) -> None:
    """1 the commit's answer is lost; 2 the pins are gone, and the primary flushes and sweeps; 3
    etcd answers again: the load was committed, once.
    """
    request = await stored(world, rows(1, 4))
    name = segment_name(SHARD.shard_id, request.segments[0].sha256)
    async with world.primary("b1") as primary:
        await primary.write(enrol(9))
        world.coord.lose_answers = 1
        with pytest.raises(UnavailableError) as doubt:
            await primary.load_segments(request)
        assert doubt.value.reason == "COMMIT_IN_DOUBT"
        assert primary.state.staged is not None, "it may be committed any moment"
        await LoadStore(world.store, LOAD).unpin_all([SHARD.shard_id])
        await primary.flush()
        assert name in world.store.objects
        assert primary._writer is not None, "it serves"
        await primary._committer.idle(primary._writer, 10)
        assert await primary.load_segments(request) == Outcome(2, enrolled_count=6)
        assert found(primary, enrol(2)) == ["s-2-0", "s-2-1"]


class FullStore(MemoryBlobStore):
    """Takes no log objects while it is full."""

    full = False

    @override
    async def put_new(self, name: str, data: bytes) -> None:
        if self.full and "/log/" in name:
            raise UnavailableError("no space", reason="STORE_FULL")
        await super().put_new(name, data)


async def test_what_was_staged_for_a_load_that_failed_is_forgotten(world: World) -> None:
    """1 the log object cannot be stored; 2 rows are enrolled instead; 3 the load succeeds."""
    store = FullStore()
    world.store = store
    request = await stored(world, rows(1, 4))
    async with world.primary("b1") as primary:
        store.full = True
        with pytest.raises(UnavailableError):
            await primary.load_segments(request)
        assert (primary.state.rows_count, len(primary.state.subjects)) == (0, 0)
        assert primary.state.live_rows("s-1-0") == []
        store.full = False
        await primary.write(enrol(2))
        assert await primary.load_segments(request) == Outcome(
            2, enrolled_count=4, unchanged_count=2
        )
        assert [found(primary, enrol(n)) for n in (1, 2, 3)] == [
            [f"s-{n}-0", f"s-{n}-1"] for n in (1, 2, 3)
        ]


async def test_a_follower_brings_a_load_in_apart_from_its_confirmations(world: World) -> None:
    async with world.primary("b1") as primary:
        await primary.write(enrol(9))
        follower = Follower(world.ports("n2", "f1"), GALLERY, SHARD)
        await follower.open(world.map_revision, None)
        await primary.load_segments(await stored(world, rows(1, 4)))
        await primary.write(EraseRequest("e", [], ["s-2-0"]))
        item = await world.coord.get(keys.tip(SHARD.shard_id))
        assert item is not None, "there were writes"
        tip = decode_tip(item.value).log

        with pytest.raises(UnavailableError) as ahead:
            await follower.confirm(tip, follower.ports.clock.now_s())
        assert ahead.value.reason == "LOAD_AHEAD"
        await follower.take_load()
        await follower.confirm(tip, follower.ports.clock.now_s())

        follower.check_serving()
        assert follower.state.digest == primary.state.digest
        assert found(follower, enrol(2)) == ["s-2-1"]


async def unsettled(world: World, primary: Primary, request: LoadRequest) -> None:
    """Leave a load's log object behind that was stored and never committed."""
    state = primary.state
    shape = ShardShape(state.shard_id, state.range, state.dim)
    segments = [
        prepare(world.store.objects[segment_name(SHARD.shard_id, one.sha256)], one.sha256, shape)
        for one in request.segments
    ]
    staging.stage_new(state, request.request_id, segments)
    record = plan(state, request, overlay_of(state), 0)
    assert isinstance(record, LoadRecord), "it is new"
    group = LogGroup(SHARD.shard_id, primary.generation, state.log, [record])
    data = encode_log(group)
    world.store.objects[log_name(SHARD.shard_id, log_ref(group, "left", data))] = data


async def test_an_unsettled_load_is_committed_by_the_next_primary(world: World) -> None:
    request = await stored(world, rows(1, 4))
    async with world.primary("b1") as first:
        await first.write(enrol(9))
        await unsettled(world, first, request)
    async with world.primary("b2") as second:
        assert (second.state.position, second.state.templates_count) == (2, 8)
        assert await second.load_segments(request) == Outcome(2, enrolled_count=6)


async def test_an_unsettled_load_that_was_given_up_and_swept_is_passed_over(world: World) -> None:
    request = await stored(world, rows(1, 4))
    async with world.primary("b1") as first:
        await first.write(enrol(9))
        await unsettled(world, first, request)
    del world.store.objects[segment_name(SHARD.shard_id, request.segments[0].sha256)]
    async with world.primary("b2") as second:
        assert (second.state.position, second.state.templates_count) == (1, 2)
        assert await second.write(enrol(8)) == Outcome(2, enrolled_count=2)
    async with world.primary("b3") as third:
        assert third.state.templates_count == 4


async def test_a_load_repeated_after_its_request_was_forgotten_adds_nothing(world: World) -> None:
    request = await stored(world, rows(1, 4))
    async with world.primary("b1") as primary:
        await primary.load_segments(request)
        await primary.write(EraseRequest("e", [], ["s-1-0"]))
        primary.state.requests = RequestMemory()
        assert await primary.load_segments(request) == Outcome(2, unchanged_count=6)
        assert primary.state.templates_count == 5, "what was erased does not come back"


async def test_codes_of_a_codebook_that_is_not_in_use_are_refused(world: World) -> None:
    part = replace(
        rows(1, 4),
        codebook="ab" * 32,
        lists=np.zeros(6, np.int32),
        pq_codes=np.zeros((6, DIM // 8), np.uint8),
    )
    async with world.primary("b1") as primary:
        with pytest.raises(UnavailableError) as refused:
            await primary.load_segments(await stored(world, part))
        assert refused.value.reason == "CODEBOOK_NOT_IN_USE"
        assert primary.state.rows_count == 0


async def test_the_bytes_of_an_erased_row_leave_the_store_though_its_loader_died(
    world: World,
) -> None:
    """1 a load is committed, and the loader dies before it takes its pins back; 2 a row is erased;
    3 the time has come to rewrite it.
    """
    async with world.primary("b1") as primary:
        await primary.load_segments(await stored(world, rows(2, 4)))
        await primary.write(EraseRequest("e", [], ["s-2-0"]))
        objects = world.store.objects
        before = [name for name, data in objects.items() if enrolled(data, "s-2-0")]
        await primary.rewrite()
        await primary.rewrite()

        assert before
        assert [name for name, data in objects.items() if enrolled(data, "s-2-0")] == []
        assert found(primary, enrol(2)) == ["s-2-1"]


def enrolled(data: bytes, subject_id: str) -> bool:
    """Tell whether the bytes of an object hold a subject."""
    return subject_id.encode() in data


async def test_a_primary_forgets_what_was_loaded_once_a_manifest_names_it(world: World) -> None:
    async with world.primary("b1") as primary:
        await primary.load_segments(await stored(world, rows(1, 3)))
        before = len(primary.state.loaded)
        await primary.flush()
        between = len(primary.state.loaded)
        request = await stored(world, rows(3, 5), load_id="b" * 32)
        await primary.load_segments(request)
        after = [one.sha256 for one in primary.state.loaded]
        again = await primary.load_segments(request)

    assert (before, between, after) == (1, 0, [request.segments[0].sha256])
    assert again.enrolled_count == 4, "a retry hears the same"
