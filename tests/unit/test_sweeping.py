"""How long objects that nothing names any more are left for those who read them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from typing_extensions import override

from facegrid.errors import UnavailableError
from facegrid.testing.memory_blob import MemoryBlobStore
from facegrid.testing.skipping_clock import SkippingClock
from indexd.engine.requests import EraseRequest
from indexd.replica.committer import Committer, CommitterPorts
from indexd.replica.follower import Follower
from indexd.replica.node import Node
from indexd.replica.policy import NodePolicy
from indexd.replica.primary import Primary
from indexd.replica.shard_copy import NodePorts, Phase
from indexd.replica.sweeping import Sweeper, look_s, readers_grace_s
from indexd.replica.view import View
from indexd.server import Ground, Server
from indexd.settings import IndexdSettings
from tests.fakes.waiting import until
from tests.unit.test_replica import GALLERY, SHARD, World, enrol
from tests.unit.test_replica import world as world  # noqa: PLC0414 - a fixture
from tests.unit.test_replica_races import LateCoordinator

GRACE_S = 10.0


@dataclass
class PatientWorld(World):
    """Its primaries leave readers a grace."""

    grace_s: float = GRACE_S
    clock: SkippingClock = field(default_factory=SkippingClock)

    @override
    def ports(self, node: str, boot: str) -> NodePorts:
        ports = super().ports(node, boot)
        return replace(ports, clock=self.clock, readers_grace_s=self.grace_s)


@pytest.fixture
def patient(world: World) -> PatientWorld:
    return PatientWorld(world.coord, world.store, world.map_revision, world.uuids, world.threads)


def test_an_object_is_due_when_it_was_not_needed_all_through_the_grace() -> None:
    sweeper = Sweeper(GRACE_S)
    first = sweeper.waiting
    told = [
        (sweeper.due(["a", "b"], 100.0), sweeper.waiting),
        (sweeper.due(["a", "c"], 105.0), sweeper.waiting),
        (sweeper.due(["a", "b", "c"], 110.0), sweeper.waiting),
        (sweeper.due(["b", "c"], 115.0), sweeper.waiting),
        (sweeper.due(["b"], 120.0), sweeper.waiting),
    ]

    assert first, "nobody has looked"
    assert told == [([], True), ([], True), (["a"], True), (["c"], True), (["b"], False)]


@pytest.mark.parametrize(
    ("limit_s", "grace_s", "pause_s"),
    [(1.0, 0.125, 0.125), (80.0, 10.0, 10.0), (3600.0, 10.0, 30.0)],
)
def test_readers_get_ten_seconds_or_less_where_erased_rows_must_go_soon(
    limit_s: float, grace_s: float, pause_s: float
) -> None:
    assert (readers_grace_s(limit_s), look_s(limit_s)) == (grace_s, pause_s)
    # A look may come just too early: for the rewriting, and then for the end of the grace.
    assert limit_s / 2 + pause_s + grace_s + pause_s < limit_s


async def test_a_node_leaves_its_readers_the_grace_that_its_settings_give(
    world: World,
) -> None:
    settings = IndexdSettings(
        node_id="n1", store="memory:", etcd="127.0.0.1:1", erased_rewrite_s=40.0
    )
    clock = SkippingClock()
    server = Server(settings, Ground(world.store, world.coord, clock), View())

    assert server._node._ports.readers_grace_s == 5.0
    await server._rpc.stop(0)


class CountingClock(SkippingClock):
    """Knows for how long it was asked to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.asked_s: set[float] = set()

    @override
    async def sleep(self, duration_s: float) -> None:
        self.asked_s.add(duration_s)
        await super().sleep(duration_s)


async def test_a_node_looks_as_often_as_the_limit_of_erased_rows_asks_for(
    patient: PatientWorld,
) -> None:
    patient.clock = clock = CountingClock()
    ports = patient.ports("n1", "b1")
    committer = Committer(
        CommitterPorts(patient.coord, patient.store, clock, lambda: "u", ports.logger),
        lambda _: None,
    )
    no_trainer: Any = None
    node = Node(ports, committer, no_trainer, View(), policy=NodePolicy(17.6))
    looking = asyncio.get_running_loop().create_task(node._rewrite())
    await until(lambda: bool(clock.asked_s))
    looking.cancel()

    assert clock.asked_s == {17.6 / 8}


def test_without_a_grace_all_is_due_at_once() -> None:
    sweeper = Sweeper(0.0)

    assert (sweeper.due(["a"], 100.0), sweeper.waiting) == (["a"], False)


@asynccontextmanager
async def flushed_twice(world: PatientWorld) -> AsyncIterator[tuple[Primary, set[str]]]:
    """A primary, and what its first manifest names, of which the second needs nothing."""
    async with world.primary("b1") as primary:
        await primary.write(enrol(1))
        await primary.flush()
        former = set(world.of_shard())
        await primary.write(enrol(2))
        await primary.write(EraseRequest("e", [], ["s-1-0", "s-1-1"]))
        await primary.flush()
        yield primary, former


async def test_what_a_manifest_named_stays_for_the_grace_and_goes_with_the_next_sweep(
    patient: PatientWorld,
) -> None:
    async with flushed_twice(patient) as (primary, former):
        await patient.clock.sleep(GRACE_S / 2)
        await primary.sweep()
        assert primary.sweep_due
        assert former <= set(patient.of_shard()), "a reader may be on its way"
        await patient.clock.sleep(GRACE_S)
        await primary.sweep()

        assert not primary.sweep_due
        assert sorted(name.split("/")[2] for name in patient.of_shard()) == [
            "manifests",
            "segments",
        ]
        assert not former & set(patient.of_shard())
    async with patient.primary("b2") as second:
        assert (second.state.digest, second.state.templates_count) == (primary.state.digest, 2)


async def test_nothing_is_swept_while_a_manifest_may_be_committed_late(
    patient: PatientWorld,
) -> None:
    """1 a flush hears nothing and reads nothing; 2 the grace is over, and the primary sweeps;
    3 its manifest is committed after all; 4 it dies.
    """
    late = LateCoordinator()
    late._items, late._revision = patient.coord._items, patient.coord._revision
    patient.coord = late
    async with flushed_twice(patient) as (primary, _):
        await primary.write(enrol(3))
        late.losing = True
        with pytest.raises(UnavailableError):
            await primary.flush()
        stored = patient.of_shard()
        for _ in range(2):
            await patient.clock.sleep(2 * GRACE_S)
            await primary.sweep()
        assert patient.of_shard() == stored
        assert (await late.arrive()).succeeded
    async with patient.primary("b2") as second:
        assert (second.state.digest, second.state.templates_count) == (primary.state.digest, 4)


async def test_a_primary_with_the_rows_of_a_follower_sweeps_only_after_its_first_flush(
    patient: PatientWorld,
) -> None:
    """1 n2 follows; 2 the primary flushes, which n2 does not load, and dies; 3 n2's rows are taken
    over; 4 the grace is over, and the successor sweeps; 5 it dies.
    """
    async with patient.primary("b1") as primary:
        await primary.write(enrol(1))
        follower = Follower(patient.ports("n1", "b2"), GALLERY, SHARD)
        await follower.open(0, None)
        await primary.flush()
    async with patient.primary("b2", heritage=follower) as second:
        named = patient.of_shard()
        for _ in range(2):
            await patient.clock.sleep(2 * GRACE_S)
            await second.sweep()
        assert set(named) <= set(patient.of_shard())
        digest = second.state.digest
    async with patient.primary("b3") as third:
        assert third.state.digest == digest
        await third.flush()
        assert third._settled, "what it names is what is there"


class BusyStore(MemoryBlobStore):
    """Whenever a segment was read, something happens: at most as often as the test allows."""

    def __init__(self) -> None:
        super().__init__()
        self.reads_count = 0
        self.then: Callable[[], Awaitable[None]] | None = None

    @override
    async def get(self, name: str) -> bytes:
        data = await super().get(name)
        if "/segments/" in name and self.then is not None:
            self.reads_count += 1
            then, self.then = self.then, None
            await then()
            if self.reads_count < READS_COUNT_MAX:
                self.then = then
        return data


READS_COUNT_MAX = 60
"""When the primary of a test gives in."""


@pytest.mark.parametrize(("grace_s", "opens_at_once"), [(GRACE_S, True), (0.0, False)])
async def test_a_follower_opens_beside_a_primary_that_flushes_after_each_of_its_reads(
    patient: PatientWorld, grace_s: float, *, opens_at_once: bool
) -> None:
    patient.store = store = BusyStore()
    patient.grace_s = grace_s
    numbers = iter(range(1, 10 * READS_COUNT_MAX))
    async with patient.primary("b1") as primary:
        await primary.write(enrol(0, 60))
        await primary.flush()
        await primary.write(enrol(9999))

        async def flush() -> None:
            await primary.write(enrol(next(numbers)))
            await primary.flush()
            await primary.write(enrol(next(numbers)))

        store.then = flush
        follower = Follower(patient.ports("n2", "b1"), GALLERY, SHARD)
        await follower.open(0, None)

        assert (store.reads_count < READS_COUNT_MAX) is opens_at_once


async def test_a_node_sweeps_by_itself_when_the_grace_is_over(patient: PatientWorld) -> None:
    ports, uuids = patient.ports("n1", "b1"), (f"u{number}" for number in patient.uuids)
    committer = Committer(
        CommitterPorts(
            patient.coord, patient.store, ports.clock, lambda: next(uuids), ports.logger
        ),
        lambda _: None,
    )
    no_trainer: Any = None
    node = Node(ports, committer, no_trainer, View(), policy=NodePolicy(600.0))
    running = asyncio.get_running_loop().create_task(node.run())
    shard_id = SHARD.shard_id
    await until(lambda: shard_id in node.copies and node.copies[shard_id].phase is Phase.SERVING)
    primary: Any = node.copies[shard_id]
    for number in (1, 2):
        await primary.write(enrol(number))
        await primary.flush()
    await until(lambda: not primary.sweep_due)
    running.cancel()

    kinds = [name.split("/")[2] for name in sorted(patient.of_shard())]
    assert kinds == ["manifests", "segments", "segments"]
