"""Random histories of a gallery, its loads, snapshots and restores, against a plain model.

What is restored is what was there at the cut, but for all that was erased later: whether it was
erased by subject or by template, before or after a flush, a rewrite or a crash, and whether the
gallery is still there, was dropped, or only its store is left. What was enrolled again after the
cut is not in the snapshot, and does not bring an erased row back.
"""

import random  # noqa: TID251 - seeded
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from facegrid import vectors
from facegrid.coord import keys
from facegrid.coord.port import Delete
from facegrid.format.snapshot import Snapshot
from facegrid.testing.memory_blob import MemoryBlobStore
from facegrid.testing.skipping_clock import SkippingClock
from fgctl.bulk.publish import LoadStore
from fgctl.bulk.rows import ShardRows
from fgctl.bulk.segments import build_segment
from fgctl.snapshot.check import check
from fgctl.snapshot.create import Source, create
from fgctl.snapshot.delete import delete
from fgctl.snapshot.erased import ClusterSource, Erasures, ErasureSource, StoreSource, gather
from fgctl.snapshot.restore import Restore, Restored, Wanted
from indexd.engine.requests import EnrolRequest, EraseRequest, LoadRequest, NamedSegment
from indexd.replica.erasure_journal import close_journal
from indexd.replica.primary import Primary
from tests.fakes.engine_store import DIM, GALLERY, SHARD, EngineWorld
from tests.fakes.snapshot_world import FakeCluster, Key, digest_of, tools

SEEDS = range(24)
STEPS = 40


@dataclass
class Cut:
    """A snapshot, and what was there when it was made."""

    snapshot: Snapshot
    rows: dict[Key, bytes]
    erasures_count: int


@dataclass
class Model:
    """The gallery as it should be."""

    live: dict[Key, bytes] = field(default_factory=dict)
    erasures: list[tuple[set[str], set[str]]] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)

    def erase(self, subjects: set[str], templates: set[str]) -> None:
        self.erasures.append((subjects, templates))
        self.live = {key: data for key, data in self.live.items() if not _named(key, self, -1)}

    def expected(self, cut: Cut) -> dict[Key, bytes]:
        """Return what a restore of this cut brings back now."""
        at = cut.erasures_count
        return {key: data for key, data in cut.rows.items() if not _named(key, self, at)}


def _named(key: Key, model: Model, at: int) -> bool:
    erasures = model.erasures[at:]
    return any(key[0] in subjects or key[1] in templates for subjects, templates in erasures)


class History:
    """One run."""

    def __init__(self, seed: int, world: EngineWorld) -> None:
        self.chance = random.Random(seed)
        self.world = world
        self.model = Model()
        self.repo = MemoryBlobStore()
        self.tools = tools(seed)
        self.requests = 0
        self.restores = 0

    async def play(self) -> None:
        boots = 0
        steps = STEPS
        while steps:
            boots += 1
            async with self.world.primary(f"b{boots}") as primary:
                for _ in range(min(steps, self.chance.randint(3, 12))):
                    steps -= 1
                    await self.step(primary)
        await self.everything_is_restored([ClusterSource(self.world.coord, self.world.store)])
        await self.everything_is_restored([StoreSource(self.world.store)])
        async with self.world.primary("last") as primary:
            await self.drop(primary)
        await self.everything_is_restored([ClusterSource(self.world.coord, self.world.store)])
        await self.everything_is_restored([StoreSource(self.world.store)])

    async def step(self, primary: Primary) -> None:
        steps: Sequence[Callable[[Primary], object]] = [
            self.enrol, self.enrol, self.enrol, self.erase, self.erase, self.flush, self.snapshot,
            self.restore, self.delete, self.load, self.load,
        ]  # fmt: skip
        await self.chance.choice(steps)(primary)  # type: ignore[misc]  # all are coroutines

    def request_id(self) -> str:
        self.requests += 1
        return f"r-{self.requests}"

    async def enrol(self, primary: Primary) -> None:
        keys_ = {(self.subject(), self.template()) for _ in range(self.chance.randint(1, 6))}
        new = sorted(keys_ - self.model.live.keys())
        if new:
            codes = self.codes(len(new))
            subjects, templates = [key[0] for key in new], [key[1] for key in new]
            await primary.write(EnrolRequest(self.request_id(), templates, subjects, codes))
            self.model.live |= {k: row.tobytes() for k, row in zip(new, codes, strict=True)}

    async def load(self, primary: Primary) -> None:
        """A bulk load, of which one template may be there already."""
        there = sorted(self.model.live)[: self.chance.randint(0, 1)]
        pairs = {(self.subject(), self.template()) for _ in range(self.chance.randint(1, 6))}
        new = sorted(pairs - self.model.live.keys())
        rows = dict(zip(new, self.codes(len(new)), strict=True)) if new else {}
        rows |= {key: np.frombuffer(self.model.live[key], np.int8) for key in there}
        if not rows:
            return
        load_id = f"load{self.requests:08d}"
        codes = np.array(list(rows.values()), np.int8)
        subjects, templates = [key[0] for key in rows], [key[1] for key in rows]
        added = ShardRows(templates, subjects, codes, shard_id=SHARD.shard_id)
        built = build_segment(added, load_id)
        loads = LoadStore(self.world.store, load_id)
        await loads.put(built)
        segment = NamedSegment(built.named.sha256, built.named.rows_count)
        await primary.load_segments(LoadRequest(self.request_id(), (segment,)))
        await loads.unpin([built.named])
        self.model.live |= {key: row.tobytes() for key, row in rows.items()}

    def codes(self, rows: int) -> vectors.Int8:
        x = np.random.default_rng(self.requests).normal(size=(rows, DIM)).astype(np.float32)
        return vectors.quantize(x)

    async def erase(self, primary: Primary) -> None:
        subjects = {self.subject() for _ in range(self.chance.randint(0, 2))}
        templates = {self.template() for _ in range(self.chance.randint(not subjects, 1))}
        request = EraseRequest(self.request_id(), sorted(templates), sorted(subjects))
        await primary.write(request)
        self.model.erase(subjects, templates)

    async def flush(self, primary: Primary) -> None:
        await self.chance.choice((primary.flush, primary.rewrite))()

    async def snapshot(self, primary: Primary) -> None:
        del primary
        source = Source(self.world.coord, self.world.store)
        made = await create(source, self.repo, GALLERY.name, tools=self.tools)
        rows, erased = dict(self.model.live), len(self.model.erasures)
        self.model.cuts.append(Cut(made.snapshot, rows, erased))

    async def delete(self, primary: Primary) -> None:
        del primary
        if len(self.model.cuts) > 1:
            doomed = self.model.cuts.pop(self.chance.randrange(len(self.model.cuts)))
            await delete(self.repo, doomed.snapshot.snapshot_id, tools=self.tools)

    async def restore(self, primary: Primary) -> None:
        del primary
        if self.model.cuts:
            source = ClusterSource(self.world.coord, self.world.store)
            await self.is_restored(self.chance.choice(self.model.cuts), [source])

    async def everything_is_restored(self, sources: list[ErasureSource]) -> None:
        assert (await check(self.repo)).findings.problems == []
        for cut in self.model.cuts:
            await self.is_restored(cut, sources)

    async def is_restored(self, cut: Cut, sources: list[ErasureSource]) -> None:
        cluster = FakeCluster()
        done = await restored(self.repo, cut.snapshot, cluster, sources, self.chance)
        expected = self.model.expected(cut)
        assert cluster.found("copy") == expected
        assert (done.templates_count, done.digest) == (len(expected), digest_of(expected))
        assert done.erased_count == len(cut.rows) - len(expected)
        assert not [name for name in cluster.store.objects if "/loads/" in name], "unpinned"
        self.restores += 1

    async def drop(self, primary: Primary) -> None:
        """As a node does it."""
        await primary.abandon()
        await close_journal(primary.ports, SHARD.shard_id)
        for name in await self.world.store.list("shards/"):
            await self.world.store.delete(name)
        doomed = [keys.tip(SHARD.shard_id), keys.manifest(SHARD.shard_id)]
        doomed += [keys.gallery(GALLERY.name), keys.shard_map(GALLERY.name)]
        await self.world.coord.txn([], [Delete(key) for key in doomed])

    def subject(self) -> str:
        return f"s-{self.chance.randint(1, 6)}"

    def template(self) -> str:
        return f"t-{self.chance.randint(1, 4)}"


async def restored(
    repo: MemoryBlobStore,
    snapshot: Snapshot,
    cluster: FakeCluster,
    sources: Sequence[ErasureSource],
    chance: random.Random,
) -> Restored:
    async def known() -> Erasures:
        return await gather(snapshot, repo, sources, accept_lost=False)

    wanted = Wanted("copy", shards_count=chance.randint(1, 3))
    return await Restore(
        repo, snapshot, cluster, wanted=wanted, gather=known, clock=SkippingClock()
    ).run()


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_restore_brings_back_what_was_there_but_for_what_was_erased_since(
    seed: int, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(1) as threads:
        world = EngineWorld(tmp_path, threads)
        world.store = MemoryBlobStore()  # type: ignore[assignment]  # faster, the same otherwise
        await world.create()
        history = History(seed, world)
        await history.play()
