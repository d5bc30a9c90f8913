"""The erasure journal: what a flush writes of it, what a crash leaves, how a drop ends it."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest
from typing_extensions import override

from facegrid.clock import SystemClock
from facegrid.coord import keys
from facegrid.coord.port import Put
from facegrid.errors import UnavailableError
from facegrid.format import erasures
from facegrid.format.erasures import (
    Erasure,
    ErasureJournal,
    JournalRef,
    decode_journal,
    id_hash,
    journal_name,
    journal_objects,
    parse_journal_name,
)
from facegrid.format.frame import decode_frames
from facegrid.format.log import EraseRecord
from facegrid.format.manifest import Manifest, decode_manifest
from facegrid.format.records import encode_gallery, encode_shard_map
from facegrid.format.sources import SourcePosition
from facegrid.ids import ShardId
from facegrid.model import HashRange, ShardMap
from facegrid.testing.memory_blob import MemoryBlobStore
from indexd.engine.requests import EraseRequest, MirrorRequest, Step
from indexd.replica.committer import Committer, CommitterPorts
from indexd.replica.erasure_journal import close_journal
from indexd.replica.follower import Follower
from indexd.replica.primary import Primary
from tests.sim import journal as journal_check
from tests.unit.test_replica import GALLERY, SHARD, FlakyCoordinator, World, enrol
from tests.unit.test_replica_races import LateCoordinator

SHARD_ID = SHARD.shard_id


@pytest.fixture
async def world() -> AsyncIterator[World]:
    coord = FlakyCoordinator(SystemClock())
    shard_map = ShardMap(GALLERY.name, GALLERY.uid, 1, (SHARD,))
    puts = [
        Put(keys.gallery(GALLERY.name), encode_gallery(GALLERY)),
        Put(keys.shard_map(GALLERY.name), encode_shard_map(shard_map)),
    ]
    revision = (await coord.txn([], puts)).revision
    with ThreadPoolExecutor(1) as search, ThreadPoolExecutor(1) as build:
        yield World(coord, MemoryBlobStore(), revision, count(), (search, build))


def erase(number: int, *subjects: str, templates: tuple[str, ...] = ()) -> EraseRequest:
    return EraseRequest(f"erase-{number}", list(templates), list(subjects))


def journals(world: World) -> list[ErasureJournal]:
    """Return the journal's objects in the order of their names."""
    names = sorted(name for name in world.store.objects if parse_journal_name(name) is not None)
    return [decode_journal(world.store.objects[name]) for name in names]


def positions(journal: ErasureJournal) -> list[int]:
    return [one.position for one in journal.erasures]


def manifest(world: World) -> Manifest:
    (name,) = [name for name in world.store.objects if "/manifests/" in name]
    return decode_manifest(world.store.objects[name])


async def test_a_flush_journals_what_the_log_erased_before_the_log_is_trimmed(
    world: World,
) -> None:
    async with world.primary("b1") as primary:
        await primary.write(enrol(1))
        await primary.write(erase(2, "s-1-0", templates=("t-9",)))
        assert journals(world) == []
        await primary.flush()

    (journal,) = journals(world)
    assert (journal.predecessor, journal.last_position, journal.closing) == (None, 2, False)
    (one,) = journal.erasures
    assert (one.position, one.subjects, one.templates) == (
        2,
        id_hash(GALLERY.uid, "subject", "s-1-0"),
        id_hash(GALLERY.uid, "template", "t-9"),
    )
    assert one.erased_unix_ms > 0
    assert manifest(world).journal is not None
    assert not [name for name in world.of_shard() if "/log/" in name], "the log was trimmed"


async def test_no_id_stands_in_the_journal(world: World) -> None:
    async with world.primary("b1") as primary:
        await primary.write(erase(1, "a-name-to-be-forgotten", templates=("its-template",)))
        await primary.flush()

    (data,) = [data for name, data in world.store.objects.items() if name.startswith("journal/")]
    (frame,) = decode_frames(data)
    assert b"forgotten" not in bytes(frame.payload)
    assert b"its-template" not in bytes(frame.payload)
    other = id_hash("another", "subject", "s-1")
    assert len({other, id_hash("x", "subject", "s-1"), id_hash("x", "template", "s-1")}) == 3


async def test_a_flush_without_erasures_writes_none_and_leads_to_the_last(world: World) -> None:
    async with world.primary("b1") as primary:
        await primary.write(erase(1, "s"))
        await primary.flush()
        before = manifest(world).journal
        await primary.write(enrol(2))
        await primary.flush()

        assert len(journals(world)) == 1
        assert manifest(world).journal == before
        await primary.write(erase(3, "s"))
        await primary.rewrite()

    first, second = journals(world)
    assert second.predecessor == before == JournalRef(first.last_position, before.sha256)  # type: ignore[union-attr]  # there is one
    assert positions(second) == [3]


class WritesMeanwhile(MemoryBlobStore):
    """Erases while a flush stores its segment."""

    primary: Primary | None = None

    @override
    async def put_new(self, name: str, data: bytes) -> None:
        await super().put_new(name, data)
        if "/segments/" in name and self.primary is not None:
            primary, self.primary = self.primary, None
            await primary.write(erase(9, "s-1-1"))


async def test_what_is_erased_during_a_flush_goes_into_the_next_journal(world: World) -> None:
    world.store = store = WritesMeanwhile()
    async with world.primary("b1") as primary:
        await primary.write(enrol(1))
        await primary.write(erase(2, "s-1-0"))
        store.primary = primary
        await primary.flush()
        assert [positions(one) for one in journals(world)] == [[2]]
        await primary.flush()
    assert [positions(one) for one in journals(world)] == [[2], [3]]


async def test_a_process_that_dies_before_its_flush_leaves_it_to_the_next(world: World) -> None:
    async with world.primary("b1") as primary:
        await primary.write(erase(1, "s-1"))
        await primary.flush()
        await primary.write(erase(2, "s-2"))
    async with world.primary("b2") as primary:
        await primary.write(erase(3, "s-3"))
        await primary.flush()
        assert len(primary.state.erasures) == 0, "and then it is forgotten in memory"
    assert [positions(one) for one in journals(world)] == [[1], [2, 3]]


async def test_a_successor_goes_on_with_the_journal_of_a_flush_that_it_did_not_follow(
    world: World,
) -> None:
    """1 a follower applies an erasure from the log; 2 the primary flushes, which journals it;
    3 another erasure; 4 the follower takes over with its rows; 5 it erases and flushes.
    """
    async with world.primary("b1") as primary:
        follower = Follower(world.ports("n2", "b2"), GALLERY, SHARD)
        await follower.open(world.map_revision, None)
        for number in (1, 2):
            await primary.write(erase(number, f"s-{number}"))
            await follower.confirm(primary.state.log, SystemClock().now_s())
            if number == 1:
                await primary.flush()

    successor = await taken_over(world, follower)
    await successor.flush()

    assert successor.state is follower.state, "the rows were taken over"
    first, second = journals(world)
    assert [positions(first), positions(second)] == [[1], [2, 3]]
    assert second.predecessor is not None
    assert second.predecessor.last_position == first.last_position


async def taken_over(world: World, follower: Follower) -> Primary:
    """Return a primary with the rows of a follower, which has erased once more."""
    ports = follower.ports
    committer = Committer(
        CommitterPorts(world.coord, world.store, ports.clock, lambda: "v1", ports.logger),
        lambda _: None,
    )
    successor = Primary(ports, committer, GALLERY, SHARD)
    successor.inherit(follower)
    await successor.open(world.map_revision, None)
    running = asyncio.get_running_loop().create_task(committer.run())
    await successor.write(erase(3, "s-3"))
    running.cancel()
    return successor


async def test_a_successor_goes_on_with_the_journal_of_a_manifest_that_only_the_store_knows(
    world: World,
) -> None:
    """1 a flush stores journal and manifest, and dies before it commits; 2 a node that starts
    without etcd loads what is in the store; 3 etcd comes back, and it takes over.
    """
    late = LateCoordinator()
    late._items, late._revision = world.coord._items, world.coord._revision
    world.coord = late
    async with world.primary("b1") as primary:
        await primary.write(erase(1, "s-1"))
        late.losing = True
        with pytest.raises(UnavailableError):
            await primary.flush()
        await primary.write(erase(2, "s-2"))
    follower = Follower(world.ports("n2", "b2"), GALLERY, SHARD)
    await follower.open_without_etcd(None)
    successor = await taken_over(world, follower)
    await successor.flush()

    assert successor.state is follower.state, "the rows were taken over"
    first, second = journals(world)
    assert [positions(first), positions(second)] == [[1], [2, 3]]
    assert second.predecessor is not None


async def test_a_manifest_that_is_committed_late_leaves_the_journal_whole(world: World) -> None:
    """1 a flush gives its manifest up; 2 it is committed after all; 3 the next flush is refused,
    the one after it succeeds; 4 the chain from its manifest has every erasure.
    """
    late = LateCoordinator()
    late._items, late._revision = world.coord._items, world.coord._revision
    world.coord = late
    async with world.primary("b1") as primary:
        await primary.write(erase(1, "s-1"))
        late.losing = True
        with pytest.raises(UnavailableError):
            await primary.flush()
        assert (await late.arrive()).succeeded
        await primary.write(erase(2, "s-2"))
        with pytest.raises(UnavailableError):
            await primary.flush()
        await primary.write(erase(3, "s-3"))
        await primary.flush()
        pending = list(primary.state.erasures.up_to(9))

    assert pending == []
    found: list[int] = []
    ref = manifest(world).journal
    while ref is not None:
        journal = decode_journal(world.store.objects[journal_name(SHARD_ID, ref)])
        found = positions(journal) + found
        ref = journal.predecessor
    assert found == [1, 2, 3]


def record_of(number: int) -> EraseRecord:
    return EraseRecord(number, "", b"", 0, [], [f"s-{number}"])


def test_the_checker_of_the_simulation_finds_a_journal_that_lacks_an_erasure() -> None:
    one = erasures.erasure_of(GALLERY.uid, record_of(1))
    two = erasures.erasure_of(GALLERY.uid, record_of(2))
    (made,) = journal_objects(SHARD_ID, None, [one], last_position=2)
    contents = {made.name: made.data}

    def problem(committed: list[Erasure], ref: JournalRef | None, position: int) -> str:
        return journal_check.problem(
            SHARD_ID, committed, contents, known=set(), ref=ref, position=position
        )

    assert problem([one], made.ref, 2) == problem([], None, 2) == ""
    assert problem([one, two], made.ref, 2), "one is left out"
    assert problem([one], None, 2), "nothing leads to it"
    assert problem([], made.ref, 2), "one was never committed"
    assert problem([one], JournalRef(2, "00" * 32), 2), "it is not stored"
    assert journal_check.closing(contents, SHARD_ID) is None


def test_many_erasures_make_several_objects_each_leading_to_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(erasures, "JOURNAL_IDS_MAX", 3)
    many = [Erasure(n, 7, bytes([n]) * 16, bytes(16 * (n % 3))) for n in range(1, 12)]
    before = JournalRef(1, "0f" * 32)
    made = journal_objects(SHARD_ID, before, many[1:], last_position=20)

    read = [decode_journal(one.data) for one in made]
    assert [one.predecessor for one in read] == [before, *(one.ref for one in made[:-1])]
    assert [e for one in read for e in one.erasures] == many[1:]
    assert read[-1].last_position == 20
    assert all(sum(e.ids_count for e in one.erasures) <= 3 for one in read)


async def dropped(world: World) -> None:
    await close_journal(world.ports("n1", "b9"), SHARD_ID)


async def test_a_drop_journals_what_only_the_log_knows_and_says_that_nothing_follows(
    world: World,
) -> None:
    async with world.primary("b1") as primary:
        await primary.write(erase(1, "s-1"))
        await primary.flush()
        await primary.write(enrol(2))
        await primary.write(erase(3, "s-3"))
        await primary.abandon()
    await dropped(world)
    await dropped(world)

    first, last = journals(world)
    assert (positions(last), last.last_position, last.closing) == ([3], 3, True)
    assert last.predecessor == manifest(world).journal
    assert not first.closing


async def test_a_closed_journal_has_nothing_that_another_shard_has_journalled(
    world: World,
) -> None:
    """By its ids alone such an erasure would reach rows that its source never had."""
    source = ShardId("g.1f00aa23.0009")
    brought = EraseRecord(
        1,
        "erase-9",
        bytes(16),
        0,
        ["t-1"],
        [],
        source=SourcePosition(source, 4),
        within=HashRange(0, 1),
    )
    async with world.primary("b1") as primary:
        await primary.write(MirrorRequest("mirror-4", Step(source, 0, 4), (brought,), 100))
        await primary.write(erase(2, "s-2"))
        await primary.abandon()
    await dropped(world)

    (closed,) = journals(world)
    assert (positions(closed), closed.last_position, closed.closing) == ([2], 2, True)


async def test_the_journal_of_a_gallery_without_erasures_is_closed_too(world: World) -> None:
    await dropped(world)
    (closed,) = journals(world)
    assert closed == ErasureJournal(GALLERY.uid, SHARD_ID, None, (), 0, closing=True)


async def test_a_drop_goes_on_where_it_was_broken_off(world: World) -> None:
    """1 the journal is closed; 2 some of the shard is deleted; 3 the drop is started again."""
    async with world.primary("b1") as primary:
        await primary.write(erase(1, "s-1"))
    await dropped(world)
    for name in world.of_shard():
        await world.store.delete(name)
    await dropped(world)

    (closed,) = journals(world)
    assert positions(closed) == [1]


async def test_a_damaged_log_does_not_stop_a_drop_and_leaves_the_journal_open(
    world: World,
) -> None:
    async with world.primary("b1") as primary:
        await primary.write(erase(1, "s-1"))
    (log,) = world.of_shard()
    world.store.objects[log] = world.store.objects[log][:-8]
    await dropped(world)

    assert journals(world) == []
