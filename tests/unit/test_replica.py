"""A primary and its followers on stores in memory: commits, fences, doubt, flush, recovery."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import pytest
from typing_extensions import override

from facegrid import vectors
from facegrid.clock import Clock, SystemClock
from facegrid.coord import keys
from facegrid.coord.port import Delete, Guard, Put, TxnResult, ValueGuard
from facegrid.errors import CorruptError, FencedError, UnavailableError
from facegrid.format.records import encode_gallery, encode_shard_map
from facegrid.ids import KEY_LAST, GalleryName, NodeId, ShardId
from facegrid.model import Gallery, HashRange, ShardAssignment, ShardMap
from facegrid.telemetry.log import get_logger
from facegrid.testing.memory_blob import MemoryBlobStore
from facegrid.testing.memory_coord import MemoryCoordinator
from indexd.ann.train import train
from indexd.engine import coded
from indexd.engine.coded import NamedCodebook
from indexd.engine.compaction import FEW_SEGMENTS
from indexd.engine.requests import EnrolRequest, EraseRequest, Outcome
from indexd.replica.committer import Committer, CommitterPorts
from indexd.replica.fence import Claimant
from indexd.replica.follower import Follower
from indexd.replica.primary import Primary
from indexd.replica.shard_copy import NodePorts, Phase, Trust

DIM = 16
GALLERY = Gallery(GalleryName("g"), "1f00aa23", DIM, "x@1", 1, 2, 0)
SHARD = ShardAssignment(
    ShardId("g.1f00aa23.0000"), HashRange(0, KEY_LAST), (NodeId("n1"), NodeId("n2"))
)


class FlakyCoordinator(MemoryCoordinator):
    """Loses answers: the next transaction takes effect, and its answer is lost."""

    lose_answers = 0

    @override
    async def txn(
        self,
        guards: Sequence[Guard | ValueGuard],
        operations: Sequence[Put | Delete],
        *,
        timeout_s: float = 5.0,
    ) -> TxnResult:
        result = await super().txn(guards, operations, timeout_s=timeout_s)
        if self.lose_answers:
            self.lose_answers -= 1
            raise UnavailableError("the answer was lost", reason="TRANSPORT")
        return result


@dataclass
class World:
    """What all processes of a test share."""

    coord: FlakyCoordinator
    store: MemoryBlobStore
    map_revision: int
    uuids: "count[int]"
    threads: tuple[ThreadPoolExecutor, ThreadPoolExecutor]

    def ports(self, node: str, boot: str) -> NodePorts:
        return NodePorts(
            claimant=Claimant(NodeId(node), boot),
            coord=self.coord,
            store=self.store,
            clock=SystemClock(),
            logger=get_logger("test"),
            search_thread=self.threads[0],
            build_thread=self.threads[1],
            coding_thread=self.threads[1],
        )

    def of_shard(self) -> list[str]:
        """The shard's objects; the journal of erasures lies elsewhere."""
        return [name for name in self.store.objects if name.startswith("shards/")]

    @asynccontextmanager
    async def primary(
        self,
        boot: str,
        codebook: NamedCodebook | None = None,
        heritage: Follower | None = None,
        *,
        assignment: ShardAssignment = SHARD,
        map_version: int = 1,
        clock: Clock | None = None,
    ) -> AsyncIterator[Primary]:
        """A primary of a process; leaving is the death of the process."""
        ports = self.ports("n1", boot)
        if clock is not None:
            ports = replace(ports, clock=clock)
        committer = Committer(
            CommitterPorts(
                self.coord, self.store, ports.clock, lambda: f"u{next(self.uuids)}", ports.logger
            ),
            lambda _: None,
        )
        running = asyncio.get_running_loop().create_task(committer.run())
        primary = Primary(ports, committer, GALLERY, assignment, map_version=map_version)
        if heritage is not None:
            primary.inherit(heritage)
        await primary.open(self.map_revision, codebook)
        yield primary
        running.cancel()


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


def enrol(number: int, rows: int = 2) -> EnrolRequest:
    x = np.random.default_rng(number).normal(size=(rows, DIM)).astype(np.float32)
    ids = [f"{number}-{row}" for row in range(rows)]
    return EnrolRequest(
        f"r-{number}", [f"t-{i}" for i in ids], [f"s-{i}" for i in ids], vectors.quantize(x)
    )


def found(copy: Primary | Follower, request: EnrolRequest) -> list[str]:
    """Search for the rows of a request; return the subjects found for each, best first."""
    probes = vectors.prepare_probes(vectors.dequantize(request.codes))
    hits = copy.state.index.search(probes, 1, 0.99)
    return [copy.state.subjects.name_of_row(row) for row in hits.rows.tolist()]


async def test_what_was_acknowledged_is_there_after_the_process_died(world: World) -> None:
    async with world.primary("b1") as first:
        outcomes = [await first.write(enrol(n)) for n in (1, 2)]
        await first.write(EraseRequest("r-3", [], ["s-1-0"]))
        digest = first.state.digest

    async with world.primary("b2") as second:
        assert (second.state.digest, second.state.position) == (digest, 3)
        assert (found(second, enrol(1)), found(second, enrol(2))) == (
            ["s-1-1"],
            ["s-2-0", "s-2-1"],
        )
        assert await second.write(enrol(2)) == outcomes[1], "a retry hears the same"


async def test_a_flush_moves_the_log_into_segments_and_changes_no_answer(world: World) -> None:
    async with world.primary("b1") as first:
        await first.write(enrol(1))
        await first.flush()
        await first.write(EraseRequest("r-2", ["t-1-0"], []))
        await first.write(enrol(3))
        await first.flush()
        digest = first.state.digest
        names = sorted(name.split("/")[2] for name in world.of_shard())

    async with world.primary("b2") as second:
        assert names == ["manifests", "segments", "segments"]
        assert (second.state.digest, second.state.position) == (digest, 3)
        assert found(second, enrol(1)) == ["s-1-1"]
        assert await second.write(enrol(3)) == Outcome(3, enrolled_count=2)


async def test_a_segment_without_live_rows_leaves_the_store_with_the_next_flush(
    world: World,
) -> None:
    async with world.primary("b1") as primary:
        await primary.write(enrol(1))
        await primary.flush()
        await primary.write(EraseRequest("r-2", [], ["s-1-0", "s-1-1"]))
        await primary.flush()

        assert [name.split("/")[2] for name in world.of_shard()] == ["manifests"]


async def test_a_zombie_cannot_commit(world: World) -> None:
    """1 b1 is primary; 2 b2 claims; 3 b1, which knows nothing of it, writes."""
    async with world.primary("b1") as zombie, world.primary("b2") as second:
        with pytest.raises(FencedError):
            await zombie.write(enrol(1))
        with pytest.raises(FencedError):
            await zombie.write(enrol(2))

        assert await second.write(enrol(3)) == Outcome(1, enrolled_count=2)
        assert second.state.templates_count == 2


async def test_a_zombie_cannot_flush(world: World) -> None:
    async with world.primary("b1") as zombie:
        await zombie.write(enrol(1))
        async with world.primary("b2") as second:
            await second.write(enrol(2))
            with pytest.raises(FencedError):
                await zombie.flush()
        async with world.primary("b3") as third:
            assert third.state.templates_count == 4


async def test_a_commit_with_a_lost_answer_takes_effect_once(world: World) -> None:
    """1 the commit takes effect; 2 its answer is lost; 3 the caller is told; 4 it retries."""
    async with world.primary("b1") as primary:
        world.coord.lose_answers = 1
        with pytest.raises(UnavailableError) as told:
            await primary.write(enrol(1))
        outcome = await settled(primary, enrol(1))

        assert told.value.reason == "COMMIT_IN_DOUBT"
        assert outcome == Outcome(1, enrolled_count=2)
        assert (primary.state.position, primary.state.templates_count) == (1, 2)


async def test_writes_fail_fast_while_etcd_is_away_and_go_on_after(world: World) -> None:
    async with world.primary("b1") as primary:
        await primary.write(enrol(1))
        world.coord.stop()
        for number in (2, 3):
            with pytest.raises(UnavailableError):
                await primary.write(enrol(number))
        assert found(primary, enrol(1)) == ["s-1-0", "s-1-1"], "reads go on"
        world.coord.start()
        outcomes = [await settled(primary, enrol(number)) for number in (2, 3)]

        assert sorted(outcome.position for outcome in outcomes) == [2, 3]
        assert primary.state.templates_count == 6


async def settled(primary: Primary, request: EnrolRequest) -> Outcome:
    """Retry a write until its outcome is known, as clients do."""
    while True:
        try:
            return await primary.write(request)
        except UnavailableError:
            await primary.ports.clock.sleep(0.01)


async def test_a_damaged_object_is_found_before_anything_is_served(world: World) -> None:
    async with world.primary("b1") as first:
        await first.write(enrol(1))
    (name,) = world.store.objects
    data = bytearray(world.store.objects[name])
    data[len(data) // 2] ^= 1
    world.store.objects[name] = bytes(data)

    with pytest.raises(CorruptError) as damaged:
        async with world.primary("b2"):
            pass

    assert damaged.value.reason == "OBJECT_DAMAGED"


async def test_a_follower_has_what_was_committed_and_the_same_digest(world: World) -> None:
    async with world.primary("b1") as primary:
        await primary.write(enrol(1))
        follower = Follower(world.ports("n2", "b1"), GALLERY, SHARD)
        await follower.open(world.map_revision, None)
        await primary.write(enrol(2))
        await primary.write(EraseRequest("r-3", [], ["s-1-0"]))
        await follower.confirm(primary.state.log, SystemClock().now_s())

        assert (follower.state.digest, follower.state.position) == (primary.state.digest, 3)
        assert found(follower, enrol(1)) == ["s-1-1"]


async def test_a_follower_behind_a_trimmed_log_loads_the_segments(world: World) -> None:
    async with world.primary("b1") as primary:
        follower = Follower(world.ports("n2", "b1"), GALLERY, SHARD)
        await follower.open(world.map_revision, None)
        await primary.write(enrol(1))
        await primary.write(enrol(2))
        await primary.flush()
        await follower.confirm(primary.state.log, SystemClock().now_s())

        assert (follower.state.digest, follower.state.position) == (primary.state.digest, 2)


async def test_a_follower_that_cannot_confirm_its_tip_says_so(world: World) -> None:
    async with world.primary("b1") as primary:
        await primary.write(enrol(1))
        follower = Follower(world.ports("n2", "b1"), GALLERY, SHARD)
        await follower.open(world.map_revision, None)
        first = follower.check_answering(Trust())
        follower.confirmed_s -= 60

        with pytest.raises(UnavailableError) as stale:
            follower.check_answering(Trust(primary_boot_id="b1"))
        accepted = follower.check_answering(Trust(unconfirmed_accepted=True))
        await follower.confirm(primary.state.log, SystemClock().now_s())

        assert (first, stale.value.reason, accepted) == (True, "UNCONFIRMED", False)
        assert follower.check_answering(Trust())


async def test_a_primary_cut_off_from_etcd_is_confirmed_by_who_vouches_for_it(
    world: World,
) -> None:
    async with world.primary("b1") as primary:
        first = primary.check_answering(Trust())
        primary.confirmed_s -= 60

        with pytest.raises(UnavailableError) as stale:
            primary.check_answering(Trust(primary_boot_id="b2"))

        assert (first, stale.value.reason) == (True, "UNCONFIRMED")
        assert primary.check_answering(Trust(primary_boot_id="b1"))


async def test_the_bytes_of_erased_rows_leave_the_store_and_no_answer_changes(
    world: World,
) -> None:
    async with world.primary("b1") as first:
        await first.write(enrol(1))
        await first.flush()
        await first.write(enrol(2))
        await first.write(EraseRequest("r-3", [], ["s-1-0", "s-2-0"]))
        first.applied()
        due = (first.rewrite_due(3600), first.rewrite_due(0))
        await first.rewrite()

        erased = [enrol(number).codes[0].tobytes() for number in (1, 2)]
        left = [data for data in world.store.objects.values() if any(e in data for e in erased)]
        assert (due, left) == ((False, True), [])
        assert not first.rewrite_due(0)
        digest = first.state.digest

    async with world.primary("b2") as second:
        assert second.state.digest == digest
        assert (found(second, enrol(1)), found(second, enrol(2))) == (["s-1-1"], ["s-2-1"])


async def test_many_small_segments_become_one_and_rows_keep_their_order(world: World) -> None:
    async with world.primary("b1") as first:
        for number in range(FEW_SEGMENTS + 1):
            await first.write(enrol(number))
            await first.flush()
        names = [first.state.subjects.name_of_row(row) for row in range(first.state.rows_count)]

    async with world.primary("b2") as second:
        assert len(second.persisted.segments) == 2
        state = second.state
        assert [state.subjects.name_of_row(row) for row in range(state.rows_count)] == names
        assert state.digest == first.state.digest


async def test_a_primary_that_stood_still_deletes_nothing_of_its_successor(world: World) -> None:
    """1 b1 flushes and stands still before it deletes; 2 b2 takes over, erases, enrols the same
    rows again and flushes; 3 b1 goes on; 4 b3 finds everything.
    """
    world.store = store = StoppingStore()
    async with world.primary("b1") as first:
        await first.write(enrol(1))
        await first.flush()
        await first.write(enrol(2))
        await first.write(EraseRequest("r-3", [], ["s-1-0", "s-1-1"]))
        store.stopping = True
        async with asyncio.TaskGroup() as tasks:
            flush = tasks.create_task(first.flush())
            await store.stopped.wait()
            async with world.primary("b2") as second:
                again = enrol(1)
                await second.write(EnrolRequest("r-4", *_columns(again), again.codes))
                await second.flush()
            store.go_on.set()
            await flush

    async with world.primary("b3") as third:
        assert (found(third, enrol(1)), found(third, enrol(2))) == (
            ["s-1-0", "s-1-1"],
            ["s-2-0", "s-2-1"],
        )


def _columns(request: EnrolRequest) -> tuple[list[str], list[str]]:
    return request.template_ids, request.subject_ids


def trained(seed: int) -> NamedCodebook:
    """A codebook of random rows, under the name that its object would have."""
    sample = enrol(seed, rows=1500).codes
    codebook = train(sample, seed=seed, threads=1)
    _, sha256 = coded.encode(codebook)
    return NamedCodebook(sha256, codebook)


@pytest.mark.parametrize("later", [1, 2], ids=["same codebook", "another codebook"])
async def test_coded_rows_come_back_from_their_segments(world: World, later: int) -> None:
    """1 enrol; 2 code; 3 enrol more and erase; 4 flush; 5 open again with this or another book."""
    async with world.primary("b1") as first:
        await first.write(enrol(1, rows=300))
        await first.use_codebook(trained(1))
        await first.write(enrol(2, rows=40))
        await first.absorb()
        await first.write(EraseRequest("r-3", [], ["s-1-7", "s-2-7"]))
        await first.flush()
        probes = vectors.prepare_probes(vectors.dequantize(enrol(1, rows=20).codes))
        before = first.state.index.search(probes, 5, -2.0)
        names = [first.state.subjects.name_of_row(row) for row in before.rows.tolist()]

    async with world.primary("b2", trained(later)) as second:
        state = second.state
        after = state.index.search(probes, 5, -2.0)
        assert (state.index.rows_count, state.index.indexed_count) == (338, 338)
        assert state.codebook == trained(later).sha256
        assert [state.subjects.name_of_row(row) for row in after.rows.tolist()] == names
        assert after.scores.tolist() == before.scores.tolist()


class StoppingStore(MemoryBlobStore):
    """The first deletion after `stopping` was set waits until the test lets it go on."""

    def __init__(self) -> None:
        super().__init__()
        self.stopping = False
        self.stopped = asyncio.Event()
        self.go_on = asyncio.Event()

    @override
    async def delete(self, name: str) -> None:
        if self.stopping:
            self.stopping = False
            self.stopped.set()
            await self.go_on.wait()
        await super().delete(name)


class HaltingStore(MemoryBlobStore):
    """Segments wait to be stored until the test lets them."""

    def __init__(self) -> None:
        super().__init__()
        self.halted = asyncio.Event()
        self.go_on = asyncio.Event()

    @override
    async def put_new(self, name: str, data: bytes) -> None:
        if "/segments/" in name:
            self.halted.set()
            await self.go_on.wait()
        await super().put_new(name, data)


async def test_nothing_is_stored_after_a_shard_was_abandoned(world: World) -> None:
    """1 a flush is storing its segment; 2 the gallery is dropped; 3 the flush goes on."""
    world.store = store = HaltingStore()
    async with world.primary("b1") as primary, asyncio.TaskGroup() as tasks:
        await primary.write(enrol(1))
        flush = tasks.create_task(refused(primary))
        await store.halted.wait()
        abandoning = tasks.create_task(primary.abandon())
        while primary.phase is Phase.SERVING:
            await primary.ports.clock.sleep(0)
        store.go_on.set()
        await abandoning
        stored = set(store.objects)
        await flush

        assert set(store.objects) == stored
        assert not [name for name in stored if "/manifests/" in name]


async def refused(primary: Primary) -> None:
    """Flush, which the drop interrupts."""
    with pytest.raises(FencedError):
        await primary.flush()


async def test_a_flush_refused_by_a_wiped_etcd_takes_nothing_back(world: World) -> None:
    """Gone keys may mean a drop or a loss; after a loss recovery needs what there is."""
    async with world.primary("b1") as primary:
        await primary.write(enrol(1))
        items = (await world.coord.list("")).items
        await world.coord.txn([], [Delete(item.key) for item in items])
        with pytest.raises(FencedError):
            await primary.flush()

    kinds = sorted(name.split("/")[2] for name in world.of_shard())
    assert kinds == ["log", "manifests", "segments"]
