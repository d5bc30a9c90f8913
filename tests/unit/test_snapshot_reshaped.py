"""Snapshots made before, while and after a shard was split, restored later: who was erased since
stays away, whichever shard recorded it, and nobody else does.
"""

import random  # noqa: TID251 - seeded
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from facegrid.coord import keys
from facegrid.coord.port import Delete, Put
from facegrid.format.records import Dropped, encode_dropped
from facegrid.format.snapshot import Snapshot
from facegrid.model import ShardMap
from facegrid.testing.memory_blob import MemoryBlobStore
from facegrid.testing.skipping_clock import SkippingClock
from fgctl.snapshot.check import check
from fgctl.snapshot.create import Source, create
from fgctl.snapshot.erased import ClusterSource, Erasures, ErasureSource, StoreSource, gather
from fgctl.snapshot.restore import Restore, Wanted
from indexd.engine.requests import EraseRequest
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
from tests.fakes.snapshot_world import FakeCluster, Key, tools
from tests.fakes.waiting import until
from tests.unit.test_mirror import enrol, part, rows_of


@dataclass
class Story:
    """A gallery, what was erased from it, and its snapshots with what was there."""

    rig: Rig
    shard_map: ShardMap
    repo: MemoryBlobStore = field(default_factory=MemoryBlobStore)
    erased: list[set[str]] = field(default_factory=list)
    cuts: list[tuple[Snapshot, dict[Key, bytes], int]] = field(default_factory=list)
    requests: int = 0

    def __post_init__(self) -> None:
        self.tools = tools()

    async def enrol(self, *numbers: int) -> None:
        for number in numbers:
            for shard in self.shard_map.shards:
                self.requests += 1
                request = part(enrol(number), shard.range)
                primary = await self.rig.serving(shard.shard_id)
                await primary.write(replace(request, request_id=f"r-{self.requests}"))

    async def erase(self, *ids: str) -> None:
        """Erase by subject where a subject is named, by template where the id begins with t."""
        subjects, templates = (
            [one for one in ids if one.startswith(kind)] for kind in ("s-", "t-")
        )
        for shard in self.shard_map.shards:
            self.requests += 1
            request = EraseRequest(f"e-{self.requests}", templates, subjects)
            await (await self.rig.serving(shard.shard_id)).write(request)
        self.erased.append({*ids})

    async def snapshot(self) -> None:
        live: dict[Key, bytes] = {}
        for shard in self.shard_map.shards:
            live |= rows_of((await self.rig.serving(shard.shard_id)).state)
        source = Source(self.rig.coord, self.rig.store)
        made = await create(source, self.repo, GALLERY.name, tools=self.tools)
        self.cuts.append((made.snapshot, live, len(self.erased)))

    async def say(self, shard_map: ShardMap) -> None:
        self.shard_map = replace(shard_map, version=self.shard_map.version + 1)
        await self.rig.say(self.shard_map)

    async def check_restores(self, *sources: ErasureSource) -> None:
        """Restore every snapshot, once with each source of erasures, and compare."""
        assert (await check(self.repo)).findings.problems == []
        for snapshot, live, at in self.cuts:
            later = {one for ids in self.erased[at:] for one in ids}
            expected = {key: data for key, data in live.items() if not later & {*key}}
            for source in sources or [None]:
                known = [] if source is None else [source]
                assert await self.restored(snapshot, known) == expected

    async def restored(
        self, snapshot: Snapshot, sources: Sequence[ErasureSource]
    ) -> dict[Key, bytes]:
        cluster = FakeCluster()

        async def known() -> Erasures:
            return await gather(snapshot, self.repo, sources, accept_lost=not sources)

        shards = random.Random(1).randint(1, 3)
        wanted = Wanted("copy", shards_count=shards)
        await Restore(
            self.repo, snapshot, cluster, wanted=wanted, gather=known, clock=SkippingClock()
        ).run()
        return cluster.found("copy")


async def be_split(story: Story) -> None:
    """A snapshot; the shard is brought into two others, and erases; a snapshot meanwhile."""
    source = await story.rig.serving(S)
    await story.enrol(1, 2, 3, 4, 5, 6)
    await story.erase("s-1-0")
    await source.flush()
    await story.snapshot()
    await story.say(split_map())
    await story.rig.brought_over()
    await story.erase("s-2-0", "t-2-1", "t-3-0", "t-3-1")
    await source.flush()
    await story.erase("s-4-0", "s-4-1")
    await story.enrol(7)
    await story.snapshot()
    snapshot = story.cuts[-1][0]
    assert snapshot.pending == (LOW, HIGH)
    assert not [one.name for one in snapshot.objects if LOW in one.name or HIGH in one.name]


async def cut_over(story: Story) -> None:
    """The two take the place of the one; a snapshot while that is still there; they erase, and
    enrol again whom the old one had erased.
    """
    rig = story.rig
    await story.erase("s-5-0", "s-7-0")
    await rig.brought_over()
    await rig.raise_generation(S)
    children = tuple(replace(one, sources=()) for one in split_map().pending)
    await story.say(replace(split_map(), shards=children, pending=()))
    await until(lambda: rig.primary(S) is None)
    await story.erase("s-5-1", "t-6-0", "s-7-1")
    await story.snapshot()
    await story.enrol(1, 2, 4)
    await (await rig.serving(LOW)).flush()
    await (await rig.serving(HIGH)).rewrite()


async def drop(rig: Rig, *records: Dropped) -> None:
    """Let nodes delete shards, and wait until they have."""
    for record in records:
        await rig.coord.txn([], [Put(keys.dropped(record.shard_id), encode_dropped(record))])
    await until(lambda: not [key for key in rig.coord._items if key.startswith(keys.DROPPED)])


async def test_a_snapshot_is_restored_without_who_was_erased_since_also_beyond_a_split() -> None:
    """1 the gallery is split, with a snapshot before, while and after; 2 the old shard is deleted;
    3 a snapshot more; 4 the gallery is dropped; 5 nobody but the snapshots knows of it any more.
    """
    async with rigged() as rig:
        await rig.start(N1)
        await rig.start(N2)
        await rig.serving(S)
        story = Story(rig, whole_map())
        sources = ClusterSource(rig.coord, rig.store), StoreSource(rig.store)
        await be_split(story)
        await story.check_restores(*sources)
        await cut_over(story)
        await story.check_restores(*sources)

        await drop(rig, Dropped(S, UID, (N1,), gallery_lives=True))
        assert [name for name in rig.store.objects if name.startswith(f"cluster/{UID}/")]
        assert not [name for name in rig.store.objects if f"shards/{S}/" in name]
        await story.check_restores(*sources)
        await story.snapshot()
        await story.erase("s-6-1", "t-1-1")
        await story.check_restores(*sources)

        await story.snapshot()
        gone = [keys.gallery(GALLERY.name), keys.shard_map(GALLERY.name)]
        await rig.coord.txn([], [Delete(key) for key in gone])
        await drop(rig, Dropped(LOW, UID, (N1,)), Dropped(HIGH, UID, (N2,)))
        assert not [name for name in rig.store.objects if not name.startswith("journal/")]
        await story.check_restores(*sources)
        await story.check_restores()


async def test_who_was_enrolled_again_before_a_snapshot_is_restored_after_an_abort() -> None:
    """1 a shard is being split; 2 somebody is erased, and enrolled again; 3 a snapshot; 4 the
    split is aborted. The erasure was brought into a shard that is deleted now: to that one's
    journal it does not belong.
    """
    async with rigged() as rig:
        await rig.start(N1)
        await rig.start(N2)
        await rig.serving(S)
        story = Story(rig, whole_map())
        await story.enrol(1, 2, 3)
        await story.say(split_map())
        await rig.brought_over()
        await story.erase("s-2-0", "t-3-1")
        await story.enrol(2, 3)
        await rig.brought_over()
        await story.snapshot()
        await story.say(whole_map(4))
        nodes = {LOW: N1, HIGH: N2}
        orders = [Dropped(one, UID, (nodes[one],), gallery_lives=True) for one in nodes]
        await drop(rig, *orders)
        assert not [name for name in rig.store.objects if f"shards/{LOW}/" in name]
        await story.erase("s-1-0")
        await story.check_restores(ClusterSource(rig.coord, rig.store), StoreSource(rig.store))
