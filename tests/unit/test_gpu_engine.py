"""Shards on devices: how they come, what they take, and what happens when a device fails."""

import asyncio
import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from facegrid import vectors
from facegrid.errors import FacegridError
from facegrid.testing.manual_clock import ManualClock
from facegrid.tuning import Effort
from indexd.ann import packing
from indexd.ann.codebook import Codebook
from indexd.ann.gpu import unit as units
from indexd.ann.gpu.arrays import DeviceFullError, DeviceLostError, HostArrays
from indexd.ann.gpu.engine import GpuEngine
from indexd.ann.gpu.placing import PAUSE_S, PAUSE_S_MAX, Ledger, Pause, choose
from indexd.ann.gpu.resident import needed_bytes
from indexd.ann.gpu.scanner import HostScanners, Scanner, Tables
from indexd.ann.gpu.self_test import self_test
from indexd.ann.gpu.unit import Unit
from indexd.ann.index import ShardIndex
from indexd.ann.looking import Wanted
from indexd.ann.rescore import Hits
from indexd.ann.together import Asked
from indexd.ann.train import train
from tests.fakes.device_units import LOGGER, played_unit, settle, small_sizes

DIM = 32
ROWS = 1200
ALL = -2.0


class Failing(HostArrays):
    """A device that fails when it is told to."""

    def __init__(self, name: str = "gpu:0") -> None:
        self.error: Exception | None = None
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    def guarded(self) -> AbstractContextManager[None]:
        return self._guarded()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        yield
        if self.error is not None:
            raise self.error


@pytest.fixture(autouse=True)
def _small() -> Iterator[None]:
    with small_sizes():
        yield


@pytest.fixture(scope="module")
def codes() -> vectors.Int8:
    x = np.random.default_rng(1).standard_normal((ROWS, DIM), dtype=np.float32)
    return vectors.quantize(x)


@pytest.fixture(scope="module")
def codebook(codes: vectors.Int8) -> Codebook:
    return replace(train(codes, seed=3, threads=1), rescore_factor=ROWS)


def shard(codes: vectors.Int8, codebook: Codebook | None, bits: int = 8) -> ShardIndex:
    index = ShardIndex(DIM, bits)
    index.append(codes, np.arange(len(codes), dtype=np.int32) // 2)
    if codebook is not None:
        index.swap(index.rebuilt(codebook))
    return index


def probes(codes: vectors.Int8, count: int = 9) -> vectors.Probes:
    noise = np.random.default_rng(4).standard_normal((count, DIM), dtype=np.float32)
    return vectors.prepare_probes(vectors.dequantize(codes[:count]) + 0.1 * noise)


def answers(hits: Hits) -> tuple[list[int], list[int], list[float]]:
    return hits.counts.tolist(), hits.rows.tolist(), hits.scores.tolist()


class World:
    """An engine with devices that can fail, one trained shard, and a question."""

    def __init__(self, codes: vectors.Int8, codebook: Codebook | None, **devices: int) -> None:
        self.arrays = [Failing(name.replace("_", ":")) for name in devices or {"gpu_0": 0}]
        sizes = [*devices.values()] or [1 << 30]
        self.clock = ManualClock()
        self.units = [
            played_unit(arrays, size, self.clock)
            for arrays, size in zip(self.arrays, sizes, strict=True)
        ]
        self.engine = GpuEngine(self.units, LOGGER)
        self.index = shard(codes, codebook)
        self.wanted = Wanted(probes(codes), 5, ALL)

    def ask(self, *indexes: ShardIndex) -> list[Hits]:
        return self.engine.search([Asked(one) for one in indexes or (self.index,)], self.wanted)

    def expected(
        self, index: ShardIndex | None = None
    ) -> tuple[list[int], list[int], list[float]]:
        index = index or self.index
        return answers(index.search(self.wanted.probes, self.wanted.k, self.wanted.threshold))

    def wait(self, duration_s: float) -> None:
        asyncio.run(self.clock.advance(duration_s))

    def settled(self) -> "World":
        self.ask()
        settle(self.engine)
        return self


def test_a_shard_comes_by_itself_and_answers_the_same_on_both(
    codes: vectors.Int8, codebook: Codebook
) -> None:
    world = World(codes, codebook)
    first = world.ask()
    settle(world.engine)
    second = world.ask()

    assert answers(first[0]) == answers(second[0]) == world.expected()
    unit = world.units[0]
    assert (unit.shards_count, unit.counts.searches) == (1, 1)
    assert unit.coded_count(world.index) > ROWS // 2


def test_what_comes_and_goes_later_is_seen_at_once(
    codes: vectors.Int8, codebook: Codebook
) -> None:
    world = World(codes[:1000], codebook).settled()
    index = world.index
    index.append(codes[1000:], np.arange(1000, ROWS, dtype=np.int32))
    index.erase(np.arange(0, 1100, 3))

    found = world.ask()[0]

    assert answers(found) == world.expected()
    assert not index.is_erased(found.rows).any()
    assert world.units[0].counts.searches == 1


def test_what_is_erased_comes_to_the_device_without_unpacking_a_row(
    codes: vectors.Int8, codebook: Codebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mask of a shard of millions of rows would else cost gigabytes for a moment."""
    coarse = vectors.quantize(vectors.dequantize(codes), 4)
    world = World(coarse, codebook)
    world.index = shard(coarse, codebook, bits=4)
    world.settled()
    unpacked: list[int] = []
    unpack = packing.unpack

    def noted(kept: vectors.Int8) -> vectors.Int8:
        unpacked.append(len(kept))
        return unpack(kept)

    monkeypatch.setattr(packing, "unpack", noted)
    world.index.erase(np.arange(0, ROWS, 2))

    found = answers(world.ask()[0])
    settle(world.engine)

    assert unpacked == []
    assert found == world.expected()


@pytest.mark.parametrize("share", [0.5, 0.97, 1.0])
def test_many_erased_rows_hide_nobody_who_lives(
    codes: vectors.Int8, codebook: Codebook, share: float
) -> None:
    world = World(codes, codebook).settled()
    gone = np.random.default_rng(5).permutation(ROWS)[: int(share * ROWS)]
    world.index.erase(gone)

    assert answers(world.ask()[0]) == world.expected()


def test_an_exhaustive_search_needs_no_codes(codes: vectors.Int8, codebook: Codebook) -> None:
    poor = replace(codebook, rescore_factor=1)
    world = World(codes, poor).settled()
    world.wanted = replace(world.wanted, k=200, exhaustive=True)

    found = world.ask()[0]

    exact = shard(codes, None).search(world.wanted.probes, 200, ALL)
    assert answers(found) == answers(exact)
    assert found.scanned.tolist() == [ROWS] * len(world.wanted.probes)


def test_fewer_lists_are_the_same_share_of_the_lists_there(
    codes: vectors.Int8, codebook: Codebook
) -> None:
    world = World(codes, codebook).settled()
    half = Effort(nprobe=max(1, codebook.nlist // 2), depth=50)

    found = world.engine.search([Asked(world.index, half)], world.wanted)[0]

    share = half.nprobe / codebook.nlist
    assert (found.scanned < ROWS).all()
    assert 0.3 * share < found.scanned.mean() / ROWS < min(1.0, 1.7 * share)


def test_fourfold_growth_brings_more_lists_and_less_does_not(
    codes: vectors.Int8, codebook: Codebook
) -> None:
    world = World(codes[:300], codebook).settled()
    few = world.units[0].lists_count(world.index)
    world.index.append(codes[300:], np.arange(300, ROWS, dtype=np.int32))
    world.ask()
    world.settled()
    many = world.units[0].lists_count(world.index)

    assert (few, many) == (16, 16)
    more = np.concatenate([codes] * 4)
    world.index.append(more, np.arange(len(more), dtype=np.int32))
    world.settled()
    world.settled()
    assert world.units[0].lists_count(world.index) == 64
    assert answers(world.ask()[0]) == world.expected()


def test_shards_go_where_there_is_most_room_and_else_stay(
    codes: vectors.Int8, codebook: Codebook
) -> None:
    size = needed_bytes(DIM, int(ROWS * units.ROOM_FACTOR))
    world = World(codes, codebook, gpu_0=int(1.5 * size), gpu_1=int(2.5 * size))
    shards = [shard(codes, codebook) for _ in range(4)]

    first = world.ask(*shards)
    settle(world.engine)
    second = world.ask(*shards)

    assert [unit.shards_count for unit in world.units] == [1, 2]
    assert [answers(one) for one in first] == [answers(one) for one in second]
    assert [unit.counts.searches for unit in world.units] == [1, 1]


def test_a_shard_that_goes_while_the_device_is_looked_at_holds_nobody_up(
    codes: vectors.Int8, codebook: Codebook
) -> None:
    """Whoever collects garbage may hold the lock of the device."""
    world = World(codes, codebook).settled()
    unit = world.units[0]
    with unit._here() as homes:
        world.index = shard(codes[:10], None)
        gc.collect()
        assert len(homes) == 1
    assert (unit.shards_count, unit.ledger.taken_bytes) == (0, 0)


def test_memory_comes_back_when_a_shard_is_gone(codes: vectors.Int8, codebook: Codebook) -> None:
    world = World(codes, codebook).settled()
    unit = world.units[0]
    assert unit.ledger.taken_bytes > 0

    world.index = shard(codes[:10], None)
    gc.collect()

    assert (unit.shards_count, unit.ledger.taken_bytes) == (0, 0)


def test_a_shard_that_outgrows_its_device_leaves_it(
    codes: vectors.Int8, codebook: Codebook
) -> None:
    room = needed_bytes(DIM, int(ROWS * 2))
    world = World(codes, codebook, gpu_0=room).settled()
    assert world.units[0].shards_count == 1
    more = np.concatenate([codes] * 3)
    world.index.append(more, np.arange(len(more), dtype=np.int32))
    world.ask()
    settle(world.engine)

    assert answers(world.ask()[0]) == world.expected()
    unit = world.units[0]
    assert (unit.shards_count, unit.counts.moved_away, unit.lost) == (0, 1, False)
    assert unit.ledger.taken_bytes == 0


@pytest.mark.parametrize("error", [DeviceFullError("full"), DeviceLostError("gone")])
def test_where_a_device_fails_the_processor_answers_the_same(
    codes: vectors.Int8, codebook: Codebook, error: Exception
) -> None:
    world = World(codes, codebook).settled()
    other = shard(codes[:700], codebook)
    world.ask(world.index, other)
    settle(world.engine)
    world.arrays[0].error = error

    found = world.ask(world.index, other)

    assert [answers(one) for one in found] == [world.expected(), world.expected(other)]
    unit = world.units[0]
    assert (unit.counts.failures, unit.counts.moved_away) == (1, 2)
    assert unit.lost == isinstance(error, DeviceLostError)
    world.arrays[0].error = None
    world.settled()
    assert answers(world.ask()[0]) == world.expected()
    world.wait(PAUSE_S)
    world.settled()
    assert answers(world.ask()[0]) == world.expected()
    assert unit.shards_count == (0 if unit.lost else 1)


def test_no_shard_comes_to_a_device_that_was_just_full_and_each_pause_is_longer(
    codes: vectors.Int8, codebook: Codebook
) -> None:
    """Where something else took the memory the ledger knows nothing of it."""
    world = World(codes, codebook).settled()
    unit = world.units[0]
    world.arrays[0].error = DeviceFullError("full")
    for pause_s in (PAUSE_S, 2 * PAUSE_S, 4 * PAUSE_S):
        world.ask()  # brings the shard to the device, or finds that it is full
        world.settled()
        moved = unit.counts.moved_away
        world.wait(0.9 * pause_s)
        world.settled()
        assert (unit.shards_count, unit.counts.moved_away) == (0, moved)
        world.wait(0.1 * pause_s)
    world.arrays[0].error = None
    world.settled().ask()
    assert (unit.shards_count, unit.counts.searches) == (1, 1)

    world.arrays[0].error = DeviceFullError("full")
    world.ask()
    world.arrays[0].error = None
    world.wait(PAUSE_S)
    world.settled()
    assert unit.shards_count == 1


def test_a_shard_that_outgrew_its_device_keeps_no_other_from_it(
    codes: vectors.Int8, codebook: Codebook
) -> None:
    world = World(codes, codebook, gpu_0=needed_bytes(DIM, ROWS * 2)).settled()
    more = np.concatenate([codes] * 3)
    world.index.append(more, np.arange(len(more), dtype=np.int32))
    world.ask()
    settle(world.engine)

    other = shard(codes[:700], codebook)
    world.ask(other)
    settle(world.engine)
    assert world.units[0].holds(other)


def test_a_device_that_fails_while_a_shard_is_brought_there_is_left(
    codes: vectors.Int8, codebook: Codebook
) -> None:
    world = World(codes, codebook)
    world.arrays[0].error = DeviceFullError("full")

    found = world.settled().ask()[0]

    assert answers(found) == world.expected()
    assert world.units[0].counts.searches == 0


def test_a_device_is_tried_before_it_serves() -> None:
    self_test(played_unit())


class Same:
    """Takes all rows for the same one."""

    def __init__(self, made: Scanner) -> None:
        self.search = made.search
        self._made = made

    def add(self, units: Any) -> None:
        self._made.add(units * 0 + 1)


class Forgetful(HostScanners):
    """Makes such scanners."""

    def scanner(self, tables: Tables) -> Scanner:
        made = super().scanner(tables)
        return Same(made)


def test_a_device_that_misses_rows_does_not_serve() -> None:
    arrays = HostArrays()
    unit = Unit(
        arrays,
        lambda: Forgetful(arrays.get),
        LOGGER,
        clock=ManualClock(),
        memory_bytes=1 << 30,
    )
    with pytest.raises(FacegridError) as caught:
        self_test(unit)
    assert caught.value.reason == "ENGINE_UNFIT"
    unit.close()


def test_memory_is_accounted_before_it_is_taken() -> None:
    ledger = Ledger(1000)
    assert ledger.total_bytes == 900
    assert ledger.take(1, 500)
    assert not ledger.take(2, 500)
    assert ledger.take(1, 900)
    assert (ledger.free_bytes, ledger.promised_bytes(1)) == (0, 900)
    ledger.give_back(1)
    ledger.give_back(1)
    assert (ledger.free_bytes, ledger.promised_bytes(1)) == (900, 0)


def test_a_pause_is_twice_the_one_before_up_to_a_limit_until_a_search_went_well() -> None:
    pause = Pause()
    assert not pause.lasts(0.0)
    pause.forget(0.0)
    now_s, lasted = 0.0, []
    for _ in range(9):
        lasted.append(pause.begin(now_s))
        assert pause.begin(now_s + 1) == lasted[-1] - 1, "one pause"
        assert pause.lasts(now_s + lasted[-1] - 1)
        now_s += lasted[-1]
        assert not pause.lasts(now_s)
    assert lasted == [10, 20, 40, 80, 160, 320, 640, 640, 640]
    assert (lasted[0], lasted[-1]) == (PAUSE_S, PAUSE_S_MAX)
    pause.begin(now_s)
    pause.forget(now_s)  # of another shard, that was there before
    assert pause.lasts(now_s)
    now_s += PAUSE_S_MAX
    pause.forget(now_s)
    assert pause.begin(now_s) == PAUSE_S


def test_a_template_takes_what_the_documents_say() -> None:
    """OPERATIONS.md: about 700 bytes at 512 dimensions."""
    assert needed_bytes(512, 1) == 700


def test_the_emptiest_device_that_fits_is_chosen() -> None:
    free = {"gpu:1": 5, "gpu:0": 5, "gpu:2": 3}
    assert [choose(free, size) for size in (3, 5, 6)] == ["gpu:0", "gpu:0", None]
    assert choose({}, 0) is None
