"""Restoring: what is refused, what is left out, and being killed at any step."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from typing_extensions import override

from facegrid.clock import SystemClock
from facegrid.coord import keys
from facegrid.coord.port import Delete, Put
from facegrid.errors import ConflictError, CorruptError, NotFoundError
from facegrid.format.codebook import codebook_name
from facegrid.format.erasures import Erasure, JournalRef, erasure_of, journal_objects
from facegrid.format.log import LogRef
from facegrid.format.manifest import decode_manifest
from facegrid.format.records import Tip, decode_gallery, encode_tip
from facegrid.format.segment import decode_segment
from facegrid.format.snapshot import Snapshot
from facegrid.ids import GalleryName, ShardId
from facegrid.testing.memory_blob import MemoryBlobStore
from facegrid.testing.memory_coord import MemoryCoordinator
from facegrid.testing.skipping_clock import SkippingClock
from fgctl.bulk.segments import StoredSegment
from fgctl.snapshot.create import Source, create
from fgctl.snapshot.erased import (
    ByShard,
    ClusterSource,
    Erasures,
    ErasureSource,
    StoreSource,
    gather,
)
from fgctl.snapshot.repository import find
from fgctl.snapshot.restore import Restore, Restored, Wanted
from tests.fakes.small_store import (
    FIRST,
    SECOND,
    UID,
    Small,
    add_log,
    codes,
    erase,
    small_store,
)
from tests.fakes.snapshot_world import FakeCluster, Key, tools

ROWS = {("s-5", "t-5"): codes(5).tobytes(), ("s-6", "t-6"): codes(6).tobytes()}
"""All that lives in the small store: the two rows of the second shard."""


@dataclass
class World:
    """A small cluster with a snapshot of it, and a cluster to restore into."""

    small: Small
    coord: MemoryCoordinator
    repo: MemoryBlobStore
    snapshot: Snapshot
    target: FakeCluster = field(default_factory=FakeCluster)
    tip: LogRef | None = None

    @property
    def source(self) -> ClusterSource:
        return ClusterSource(self.coord, self.small.store)

    async def restore(
        self,
        sources: Sequence[ErasureSource] | None = None,
        *,
        wanted: Wanted | None = None,
        accept_lost: bool = False,
        gathered: Callable[[], Awaitable[Erasures]] | None = None,
    ) -> Restored:
        asked = [self.source] if sources is None else sources

        async def known() -> Erasures:
            return await gather(self.snapshot, self.repo, asked, accept_lost=accept_lost)

        return await Restore(
            self.repo,
            self.snapshot,
            self.target,
            wanted=wanted or Wanted("copy"),
            gather=gathered or known,
            clock=SkippingClock(),
        ).run()

    async def erase(self, *subjects: str, templates: tuple[str, ...] = ()) -> None:
        """Commit an erasure to the second shard."""
        before = self.tip or self.small.tips[1]
        position = before.last_position + 1
        record = erase(position, template_ids=list(templates), subject_ids=list(subjects))
        self.tip = add_log(
            self.small.store, SECOND, before, [record], generation=1, uuid=f"e{position}"
        )
        await self.coord.txn([], [Put(keys.tip(SECOND), encode_tip(Tip(self.tip)))])

    async def drop(self) -> None:
        """Drop the gallery, as nodes and router do."""
        ends = {FIRST: self.small.tips[0], SECOND: self.tip or self.small.tips[1]}
        for shard_id, ref in ends.items():
            before, logged = None, []
            if shard_id == FIRST:
                before = _journal(self.small)
                logged = [erasure_of(UID, erase(4, template_ids=["t-3"], subject_ids=["s-1"]))]
            elif self.tip is not None:
                gone = erase(ref.last_position, template_ids=[], subject_ids=["s-5"])
                logged = [erasure_of(UID, gone)]
            for one in journal_objects(
                shard_id, before, logged, last_position=ref.last_position, closing=True
            ):
                self.small.store.objects[one.name] = one.data
        for name in list(self.small.store.objects):
            if name.startswith(("shards/", "codebooks/", "cluster/")):
                del self.small.store.objects[name]
        doomed = [item.key for item in (await self.coord.list("")).items]
        await self.coord.txn([], [Delete(key) for key in doomed])


def _journal(small: Small) -> JournalRef | None:
    return decode_manifest(small.store.objects[small.manifest]).journal


@pytest.fixture
async def world() -> World:
    small, coord, repo = small_store(), MemoryCoordinator(SystemClock()), MemoryBlobStore()
    await coord.txn([], [Put(k, v) for k, v in small.meta.values.items()])
    made = await create(Source(coord, small.store), repo, "g", tools=tools())
    return World(small, coord, repo, made.snapshot)


def without(*subjects: str) -> dict[Key, bytes]:
    return {key: data for key, data in ROWS.items() if key[0] not in subjects}


@pytest.mark.parametrize("shards_count", [1, 2, 3, 5])
async def test_rows_find_their_shards_however_many_there_are(
    world: World, shards_count: int
) -> None:
    done = await world.restore(wanted=Wanted("copy", shards_count=shards_count))

    assert world.target.found("copy") == ROWS
    assert (done.templates_count, done.erased_count, done.gallery.name) == (2, 0, "copy")
    assert done.gallery.uid != UID
    assert done.gallery.shards_count == shards_count


@pytest.mark.parametrize("how", ["subject", "template"])
async def test_what_was_erased_after_the_snapshot_is_in_no_segment(world: World, how: str) -> None:
    await (world.erase("s-5") if how == "subject" else world.erase(templates=("t-5",)))
    done = await world.restore()

    assert world.target.found("copy") == without("s-5")
    assert done.erased_count == 1
    stored = [
        decode_segment(data).subject_ids
        for name, data in world.target.store.objects.items()
        if "/segments/" in name
    ]
    assert stored == [["s-6"]], "not even unseen"


async def test_the_store_alone_knows_it_too(world: World) -> None:
    await world.erase("s-5")
    await world.restore([StoreSource(world.small.store)])
    assert world.target.found("copy") == without("s-5")


async def test_a_dropped_gallery_is_restored_without_what_was_erased_before_the_drop(
    world: World,
) -> None:
    await world.erase("s-5")
    await world.drop()
    await world.restore()
    assert world.target.found("copy") == without("s-5")
    world.target = FakeCluster()
    await world.restore([StoreSource(world.small.store)])
    assert world.target.found("copy") == without("s-5")


async def test_a_gallery_that_came_back_after_its_drop_is_asked_for_what_it_erased_since(
    world: World,
) -> None:
    """1 the journal is closed, and etcd lost before anything is deleted; 2 it is recovered;
    3 somebody is erased.
    """
    for shard_id, ref in zip((FIRST, SECOND), world.small.tips, strict=True):
        before = _journal(world.small) if shard_id == FIRST else None
        (closing,) = journal_objects(
            shard_id, before, [], last_position=ref.last_position, closing=True
        )
        world.small.store.objects[closing.name] = closing.data
    await world.erase("s-5")
    for source in (StoreSource(world.small.store), world.source):
        world.target = FakeCluster()
        await world.restore([source])
        assert world.target.found("copy") == without("s-5")


async def test_a_later_snapshot_knows_it_when_all_else_is_lost(world: World) -> None:
    await world.erase("s-5")
    source = Source(world.coord, world.small.store)
    await create(source, world.repo, "g", tools=tools(2))
    empty = ClusterSource(MemoryCoordinator(SystemClock()), MemoryBlobStore())

    with pytest.raises(ConflictError) as told:
        await world.restore([empty])
    assert told.value.reason == "ERASURES_UNKNOWN"
    assert world.target.rows == {}, "nothing was created"
    await world.restore([empty], accept_lost=True)
    assert world.target.found("copy") == without("s-5")


async def test_a_lost_journal_is_noticed_and_nothing_is_restored(world: World) -> None:
    """1 erase; 2 drop, which journals it; 3 an object of the journal is lost."""
    await world.erase("s-5")
    await world.drop()
    for name in [name for name in world.small.store.objects if f"/{SECOND}/" in name]:
        del world.small.store.objects[name]
    with pytest.raises(ConflictError) as told:
        await world.restore()
    assert told.value.reason == "DROP_UNDER_WAY"
    assert world.target.rows == {}


@pytest.mark.parametrize("kind", ["cluster", "store"])
async def test_an_object_lost_between_cut_and_end_is_noticed(world: World, kind: str) -> None:
    """1 two more erasures; 2 the log object of the first is lost."""
    await world.erase("s-5")
    lost = world.tip
    await world.erase("s-6")
    assert lost is not None
    (name,) = [name for name in world.small.store.objects if name.endswith(f"-{lost.uuid}")]
    del world.small.store.objects[name]
    source = world.source if kind == "cluster" else StoreSource(world.small.store)
    with pytest.raises(CorruptError) as told:
        await world.restore([source])
    assert told.value.reason in {"OBJECT_MISSING", "LOG_BROKEN"}
    assert world.target.rows == {}


async def test_a_source_that_was_set_back_to_before_the_snapshot_is_refused(world: World) -> None:
    earlier = world.small.earlier.values
    await world.coord.txn([], [Put(key, earlier[key]) for key in (keys.tip(FIRST),)])
    with pytest.raises(ConflictError) as told:
        await world.restore()
    assert told.value.reason == "SOURCE_BEHIND"

    for name in (world.small.erase, world.small.second[1]):
        del world.small.store.objects[name]
    with pytest.raises(ConflictError) as told:
        await world.restore([StoreSource(world.small.store)])
    assert told.value.reason == "SOURCE_BEHIND"


async def test_what_is_erased_while_the_restore_runs_is_gone_before_it_ends(world: World) -> None:
    """1 nothing is erased; 2 rows are committed; 3 one is erased of the old gallery."""

    async def known() -> Erasures:
        if world.target.commits and world.tip is None:
            await world.erase("s-6")
        return await gather(world.snapshot, world.repo, [world.source], accept_lost=False)

    done = await world.restore(gathered=known)
    assert world.target.found("copy") == without("s-6")
    assert (done.templates_count, done.erased_count) == (1, 1)


async def test_a_name_that_is_taken_is_refused_and_another_kind_of_gallery_even_to_resume(
    world: World,
) -> None:
    old = decode_gallery(world.small.meta.values[keys.gallery(GalleryName("g"))])
    for name, change in (("copy", {"extractor": "y@2"}), ("coarse", {"component_bits": 4})):
        await world.target.create_gallery(replace(old, name=GalleryName(name), **change))  # type: ignore[arg-type]  # of both types
        for resume, why in ((False, "there is a gallery"), (True, "of another kind")):
            with pytest.raises(ConflictError, match=why) as told:
                await world.restore(wanted=Wanted(name, resume=resume))
            assert told.value.reason == "GALLERY_EXISTS"


async def test_the_codebook_comes_along_and_codes_with_it(world: World) -> None:
    """The gallery is not filled before its shards search with the codebook."""
    world.target.codebook_after = 3
    done = await world.restore()

    old = decode_gallery(world.small.meta.values[keys.gallery(GalleryName("g"))])
    assert done.gallery.codebook == old.codebook != ""
    name = codebook_name(done.gallery.uid, old.codebook)
    assert world.target.store.objects[name] == world.small.store.objects[world.small.codebook]
    assert world.target.codebook_after < 0


async def test_profile_miss_rate_and_tuning_come_along(world: World) -> None:
    done = await world.restore()

    old = decode_gallery(world.small.meta.values[keys.gallery(GalleryName("g"))])
    kept = decode_gallery((await world.target.coord.get(keys.gallery(done.gallery.name))).value)
    assert old.tuning is not None
    assert (kept.profile, kept.miss_rate_max) == (old.profile, old.miss_rate_max)
    assert kept.tuning == done.gallery.tuning == old.tuning


async def test_others_who_write_meanwhile_are_noticed(world: World) -> None:
    class Busy(FakeCluster):
        @override
        async def commit(
            self, gallery: str, load_id: str, segments: Sequence[StoredSegment]
        ) -> None:
            await super().commit(gallery, load_id, segments)
            next(iter(self.rows.values()))["stranger", "t"] = bytes(8)

    world.target = Busy()
    with pytest.raises(CorruptError) as told:
        await world.restore()
    assert told.value.reason == "RESTORE_MISMATCH"


async def test_damage_in_the_repository_brings_nothing_back(world: World) -> None:
    for one in world.snapshot.objects:
        name = f"objects/{one.sha256}"
        if "/journal/" in f"/{one.name}":
            continue
        whole = world.repo.objects[name]
        world.repo.objects[name] = whole[:-1] + b"\x01"
        with pytest.raises(CorruptError):
            await world.restore()
        assert not any(world.target.rows.values()), "no row is seen"
        world.repo.objects[name], world.target = whole, FakeCluster()


class Died(BaseException):
    """The process was killed."""


@dataclass(eq=False)
class Mortal(FakeCluster):
    """Dies at the n-th step, before or after it takes effect."""

    left: int = -1
    after: bool = False

    async def _step(self, work: Callable[[], Awaitable[None]]) -> None:
        self.left -= 1
        if self.left == 0 and not self.after:
            raise Died
        await work()
        if self.left == 0:
            raise Died

    @override
    async def commit(self, gallery: str, load_id: str, segments: Sequence[StoredSegment]) -> None:
        parent = super()
        await self._step(lambda: parent.commit(gallery, load_id, segments))


class MortalStore(MemoryBlobStore):
    """Counts its changes as steps of the cluster."""

    def __init__(self, owner: Mortal) -> None:
        super().__init__()
        self.owner = owner

    @override
    async def put_new(self, name: str, data: bytes) -> None:
        parent = super()
        await self.owner._step(lambda: parent.put_new(name, data))

    @override
    async def delete(self, name: str) -> None:
        parent = super()
        await self.owner._step(lambda: parent.delete(name))


@pytest.mark.parametrize("erased_between", [False, True])
async def test_a_restore_killed_at_any_step_goes_on(world: World, erased_between: bool) -> None:  # noqa: FBT001 - a case
    """1 killed at step n; 2 perhaps a row is erased of the old gallery; 3 resumed."""
    at, died = 0, True
    while died:
        at += 1
        died = False
        for after in (False, True):
            fresh = World(small_store(), world.coord, world.repo, world.snapshot)
            await world.coord.txn([], [Put(k, v) for k, v in fresh.small.meta.values.items()])
            fresh.target = mortal = Mortal(left=at, after=after)
            mortal.store = MortalStore(mortal)
            try:
                await fresh.restore()
            except Died:
                died = True
            if erased_between:
                await fresh.erase("s-5")
            mortal.left = -1
            exists = bool(mortal.rows)
            done = await fresh.restore(wanted=Wanted("copy", resume=exists))

            assert mortal.found("copy") == (without("s-5") if erased_between else ROWS)
            assert done.templates_count == len(mortal.found("copy"))
            assert not [name for name in mortal.store.objects if "/loads/" in name], "no pin"
    assert at > 5


async def test_shards_that_came_after_the_snapshot_count_for_all(world: World) -> None:
    later = ShardId(f"g.{UID}.0007")
    found: ByShard = {
        later: [erasure_of(UID, erase(1, template_ids=[], subject_ids=["s-5"]))],
        FIRST: [erasure_of(UID, erase(9, template_ids=[], subject_ids=["s-6"]))],
    }
    erasures = Erasures(world.snapshot, [found])

    rows = (["s-5", "s-6", "s-7"], ["t", "t", "t"])
    assert np.array_equal(erasures.of(SECOND).mask(*rows), [True, False, False])
    assert np.array_equal(erasures.of(FIRST).mask(*rows), [True, True, False])
    assert erasures.ids_count == 2


async def test_the_fingerprint_tells_sets_of_erasures_apart(world: World) -> None:
    one = Erasure(3, 7, bytes(16), b"")
    other = Erasure(3, 7, b"", bytes(16))
    prints = {
        Erasures(world.snapshot, found).fingerprint
        for found in ([], [{FIRST: [one]}], [{FIRST: [other]}], [{SECOND: [one]}])
    }
    assert len(prints) == 4
    twice = Erasures(world.snapshot, [{FIRST: [one]}, {FIRST: [one]}])
    assert twice.fingerprint in prints, "who says it, and how often, does not matter"


async def test_a_snapshot_that_is_not_there_is_not_restored(world: World) -> None:
    with pytest.raises(NotFoundError):
        await find(world.repo, "20261125T150312Z-00000000")
    assert (await find(world.repo, world.snapshot.snapshot_id)).snapshot == world.snapshot
