"""Making and deleting snapshots: shared objects, cuts that move, marks, and being killed."""

from collections.abc import Awaitable, Callable, Sequence

import pytest
from typing_extensions import override

from facegrid.clock import SystemClock
from facegrid.coord import keys
from facegrid.coord.port import Put
from facegrid.errors import ConflictError, CorruptError, NotFoundError, UnavailableError
from facegrid.format.log import LogRef, log_name
from facegrid.format.records import Tip, encode_tip
from facegrid.testing.memory_blob import MemoryBlobStore
from facegrid.testing.memory_coord import MemoryCoordinator
from fgctl.snapshot import repository
from fgctl.snapshot.check import check
from fgctl.snapshot.create import CUTS_MAX, Created, Source, create
from fgctl.snapshot.delete import delete, plan
from fgctl.snapshot.repository import Mark, Tools
from tests.fakes.small_store import SECOND, Small, add_log, enrol, small_store
from tests.fakes.snapshot_world import tools


class World:
    """A small cluster that stands still, and a repository."""

    def __init__(self, small: Small) -> None:
        self.small = small
        self.coord = MemoryCoordinator(SystemClock())
        self.repo = MemoryBlobStore()
        self.tools = tools()

    @property
    def source(self) -> Source:
        return Source(self.coord, self.small.store)

    async def create(self, repo: MemoryBlobStore | None = None) -> Created:
        return await create(
            self.source, self.repo if repo is None else repo, "g", tools=self.tools
        )

    async def append(self, before: LogRef, number: int) -> LogRef:
        """Commit one more log object to the second shard."""
        position = before.last_position + 1
        ref = add_log(
            self.small.store, SECOND, before, [enrol(position, number)],
            generation=1, uuid=f"w{number}",
        )  # fmt: skip
        await self.coord.txn([], [Put(keys.tip(SECOND), encode_tip(Tip(ref)))])
        return ref

    def kinds(self) -> list[str]:
        return sorted({name.split("/")[0] for name in self.repo.objects})


@pytest.fixture
async def world() -> World:
    world = World(small_store())
    await world.coord.txn([], [Put(k, v) for k, v in world.small.meta.values.items()])
    return world


async def test_a_snapshot_has_what_etcd_names_and_nothing_else(world: World) -> None:
    made = await world.create()

    small = world.small
    named = {small.manifest, small.segment, small.codebook, small.journal}
    named |= {small.enrol, small.erase, *small.second}
    assert {one.name for one in made.snapshot.objects} == named, "no orphan, no copy of records"
    assert dict(made.snapshot.records) == small.meta.values
    assert made.new_objects_count == len(named)
    assert world.kinds() == ["objects", "snapshots"], "no mark is left"
    for one in made.snapshot.objects:
        data = world.repo.objects[f"objects/{one.sha256}"]
        assert data == small.store.objects[one.name]
        assert len(data) == one.size_bytes


async def test_a_second_snapshot_copies_only_what_is_new(world: World) -> None:
    first = await world.create()
    again = await world.create()
    await world.append(world.small.tips[1], 7)
    later = await world.create()

    assert (again.new_objects_count, again.new_bytes) == (0, 0)
    assert again.snapshot.objects == first.snapshot.objects
    assert later.new_objects_count == 1
    assert (await check(world.repo)).whole


class Trimming(MemoryBlobStore):
    """Calls back before a name is read for the first time."""

    def __init__(
        self, objects: dict[str, bytes], hooks: dict[str, Callable[[], Awaitable[None]]]
    ) -> None:
        super().__init__()
        self.objects = objects
        self.hooks = hooks

    @override
    async def get(self, name: str) -> bytes:
        if hook := self.hooks.pop(name, None):
            await hook()
        return await super().get(name)


async def test_an_object_deleted_before_it_was_copied_makes_a_new_cut(world: World) -> None:
    """1 the cut names a tip; 2 the tip moves on and its object is gone; 3 the new cut is made.

    What a flush does to the log, in the shortest form: here another log takes its place.
    """
    small = world.small

    async def replaced() -> None:
        for name in small.second:
            del small.store.objects[name]
        one = add_log(small.store, SECOND, None, [enrol(1, 5)], generation=2, uuid="x1")
        await world.coord.txn([], [Put(keys.tip(SECOND), encode_tip(Tip(one)))])

    source = Trimming(small.store.objects, {small.second[1]: replaced})
    small.store.objects = source.objects
    made = await create(Source(world.coord, source), world.repo, "g", tools=world.tools)

    names = {one.name for one in made.snapshot.objects}
    assert not names & set(small.second)
    assert made.new_objects_count == len(names), "what was copied is not copied again"
    assert (await check(world.repo)).whole


async def test_a_gallery_that_is_always_ahead_is_given_up_without_a_trace(world: World) -> None:
    small, turns = world.small, 0

    class AlwaysAhead(MemoryBlobStore):
        @override
        async def get(self, name: str) -> bytes:
            nonlocal turns
            if name.startswith(f"shards/{SECOND}/log/"):
                turns += 1
                gone = LogRef(1, 1, 2 + turns, f"gone{turns}", "00" * 32)
                await world.coord.txn([], [Put(keys.tip(SECOND), encode_tip(Tip(gone)))])
                raise NotFoundError("trimmed")
            return await super().get(name)

    source = AlwaysAhead()
    source.objects = small.store.objects
    with pytest.raises(CorruptError, match="changes faster than it is copied"):
        await create(Source(world.coord, source), world.repo, "g", tools=world.tools)

    assert turns == CUTS_MAX
    assert world.kinds() == ["objects"], "no descriptor and no mark"


async def test_an_object_that_is_really_lost_or_damaged_makes_no_snapshot(world: World) -> None:
    for name in (world.small.segment, world.small.enrol, world.small.journal, log_name(
        SECOND, world.small.tips[1]
    )):  # fmt: skip
        whole = world.small.store.objects.pop(name)
        with pytest.raises(CorruptError) as lost:
            await world.create(MemoryBlobStore())
        world.small.store.objects[name] = whole[:-1] + b"\x01"
        repo = MemoryBlobStore()
        with pytest.raises(CorruptError) as damaged:
            await world.create(repo)
        world.small.store.objects[name] = whole

        assert (lost.value.reason, damaged.value.reason) == ("OBJECT_MISSING", "OBJECT_DAMAGED")
        assert {name.split("/")[0] for name in repo.objects} <= {"objects"}


async def test_an_unknown_gallery_leaves_the_repository_as_it_is(world: World) -> None:
    with pytest.raises(NotFoundError) as told:
        await create(world.source, world.repo, "other", tools=world.tools)
    assert told.value.reason == "GALLERY_UNKNOWN"
    assert world.repo.objects == {}


async def test_deleting_leaves_what_others_need_and_then_nothing(world: World) -> None:
    first = await world.create()
    await world.append(world.small.tips[1], 7)
    second = await world.create()

    planned = await plan(world.repo, first.snapshot.snapshot_id)
    assert planned.objects == (), "all of it is in the second one too"
    await delete(world.repo, first.snapshot.snapshot_id, tools=world.tools)
    assert [one.snapshot for one in (await check(world.repo)).snapshots] == [second.snapshot]
    assert (await check(world.repo)).whole

    done = await delete(world.repo, second.snapshot.snapshot_id, tools=world.tools)
    assert len(done.objects) == len(second.snapshot.objects)
    assert world.repo.objects == {}
    with pytest.raises(NotFoundError):
        await delete(world.repo, second.snapshot.snapshot_id, tools=world.tools)


async def test_a_damaged_descriptor_stops_deletions_and_not_new_snapshots(world: World) -> None:
    first = await world.create()
    (name,) = [name for name in world.repo.objects if name.startswith("snapshots/")]
    world.repo.objects[name] = world.repo.objects[name][:-8]
    second = await world.create()

    with pytest.raises(CorruptError):
        await delete(world.repo, second.snapshot.snapshot_id, tools=world.tools)
    known = await repository.descriptors(world.repo)
    assert [one.snapshot for one in known.readable] == [second.snapshot]
    assert known.damaged.keys() == {name}
    assert second.new_objects_count == 0
    assert first.snapshot.objects == second.snapshot.objects


class Died(BaseException):
    """The process was killed: nothing it would do afterwards happens."""


class Killing(MemoryBlobStore):
    """Dies at the n-th change, before or after it takes effect, and does nothing any more."""

    def __init__(self, objects: dict[str, bytes], *, at: int, after: bool) -> None:
        super().__init__()
        self.objects = objects
        self.left = at
        self.after = after

    @override
    async def put_new(self, name: str, data: bytes) -> None:
        self._live()
        if not self._dies() or self.after:
            await super().put_new(name, data)
        self._live()

    @override
    async def delete(self, name: str) -> None:
        self._live()
        if not self._dies() or self.after:
            await super().delete(name)
        self._live()

    def _dies(self) -> bool:
        self.left -= 1
        return self.left == 0

    def _live(self) -> None:
        if self.left <= 0:
            raise Died


async def killed(world: World, work: Callable[[MemoryBlobStore], Awaitable[object]]) -> int:
    """Do work on the repository, killed at each change in turn; return how many there are."""
    before, at = dict(world.repo.objects), 0
    while True:
        at += 1
        for after in (False, True):
            store = Killing(dict(before), at=at, after=after)
            try:
                await work(store)
            except Died:
                await is_repairable(world, store.objects)
            else:
                world.repo.objects = store.objects
                return at - 1


async def is_repairable(world: World, objects: dict[str, bytes]) -> None:
    """What a kill leaves is whole; another create works, and in the end all of it can go."""
    left = MemoryBlobStore()
    left.objects = dict(objects)
    assert (await check(left)).findings.problems == []
    await create(world.source, left, "g", tools=world.tools, others_ended=True)
    assert (await check(left)).findings.problems == []
    for one in (await repository.descriptors(left)).whole():
        snapshot_id = one.snapshot.snapshot_id
        await delete(left, snapshot_id, tools=world.tools, others_ended=True)
    assert left.objects == {}


async def test_a_create_killed_at_any_step_leaves_a_repository_that_goes_on(world: World) -> None:
    async def work(store: MemoryBlobStore) -> object:
        return await world.create(store)

    changes = await killed(world, work)
    assert changes == 1 + 8 + 1 + 1, "mark, objects, descriptor, mark"


async def test_a_delete_killed_at_any_step_leaves_a_repository_that_goes_on(world: World) -> None:
    first = await world.create()

    async def work(store: MemoryBlobStore) -> object:
        return await delete(store, first.snapshot.snapshot_id, tools=world.tools)

    changes = await killed(world, work)
    assert changes == 1 + 1 + 8 + 1, "mark, descriptor, objects, mark"


def mark(world: World, prefix: str, *, others_ended: bool = False) -> Mark:
    return Mark(
        world.repo, world.tools, prefix=prefix, snapshot_id="20261125T150312Z-3f2a9c1e",
        others_ended=others_ended,
    )  # fmt: skip


async def test_nobody_deletes_while_somebody_makes_a_snapshot_nor_the_other_way_round(
    world: World,
) -> None:
    made = await world.create()
    for held in (repository.PENDING, repository.DELETING):
        async with mark(world, held):
            before = dict(world.repo.objects)
            with pytest.raises(ConflictError) as told:
                await delete(world.repo, made.snapshot.snapshot_id, tools=world.tools)
            assert told.value.reason == "REPOSITORY_BUSY"
            assert world.repo.objects == before, "nothing is deleted, and no mark left"
    async with mark(world, repository.DELETING):
        with pytest.raises(ConflictError):
            await world.create()
    async with mark(world, repository.PENDING):
        await world.create()
    assert world.kinds() == ["objects", "snapshots"]


class Both(MemoryBlobStore):
    """Lets another begin between the mark and the look at others' marks."""

    other: Callable[[], Awaitable[None]] | None = None

    @override
    async def list(self, prefix: str) -> Sequence[str]:
        if self.other is not None and prefix in (repository.PENDING, repository.DELETING):
            other, self.other = self.other, None
            await other()
        return await super().list(prefix)


async def test_of_a_create_and_a_delete_that_begin_at_once_one_gives_way(world: World) -> None:
    """1 delete stores its mark; 2 create stores its own and looks; 3 delete looks."""
    world.repo = both = Both()
    made = await world.create()
    refused: list[ConflictError] = []

    async def begin() -> None:
        try:
            await world.create()
        except ConflictError as error:
            refused.append(error)

    both.other = begin
    await delete(world.repo, made.snapshot.snapshot_id, tools=world.tools)

    assert [error.reason for error in refused] == ["REPOSITORY_BUSY"]
    assert both.objects == {}


async def test_marks_of_the_killed_go_when_the_operator_says_so(world: World) -> None:
    made = await world.create()
    left = mark(world, repository.PENDING)
    await left.__aenter__()
    with pytest.raises(ConflictError, match="--others-ended"):
        await delete(world.repo, made.snapshot.snapshot_id, tools=world.tools)
    await delete(world.repo, made.snapshot.snapshot_id, tools=world.tools, others_ended=True)
    assert world.repo.objects == {}


class Lossy(MemoryBlobStore):
    """Puts take effect, and the answers of some are lost."""

    puts = 0

    @override
    async def put_new(self, name: str, data: bytes) -> None:
        await super().put_new(name, data)
        self.puts += 1
        if self.puts % 2 == 0:
            raise UnavailableError("the answer was lost", reason="TRANSPORT")


async def test_lost_answers_are_resolved_by_looking(world: World) -> None:
    world.repo = Lossy()
    made = await world.create()
    assert made.snapshot.objects
    assert (await check(world.repo)).findings.problems == []


def test_ids_are_readable_and_never_the_same() -> None:
    made: Tools = tools()
    assert len({made.new_digits() for _ in range(100)}) == 100
