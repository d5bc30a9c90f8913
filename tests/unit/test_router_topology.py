"""The topology: whole or as it was, on disk for a start without etcd."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from facegrid.coord import keys, saved
from facegrid.coord.port import Delete, KeyValue, Put
from facegrid.errors import CorruptError, DeadlineError, UnavailableError
from facegrid.format import records
from facegrid.ids import GalleryName, NodeId
from facegrid.model import Gallery, NodeInfo
from facegrid.telemetry.log import get_logger
from facegrid.testing.manual_clock import ManualClock
from facegrid.testing.memory_coord import MemoryCoordinator
from router.plan import placement
from router.topology.snapshot import Problem, ServedGallery, Topology, assemble
from router.topology.watcher import SILENCE_S_MAX, Watcher

N1, N2 = NodeId("n1"), NodeId("n2")
STAFF = Gallery(GalleryName("staff"), "uid1", 8, "e", 2, 1, 0)
STAFF_MAP = placement.place(STAFF, live=[N1])
STAFF_ITEMS = (
    KeyValue(keys.gallery(STAFF.name), records.encode_gallery(STAFF), 3),
    KeyValue(keys.shard_map(STAFF.name), records.encode_shard_map(STAFF_MAP), 3),
)


def node(node_id: NodeId, boot: str, address: str, *, revision: int = 1) -> KeyValue:
    info = NodeInfo(node_id, boot, address)
    return KeyValue(keys.node(node_id, boot), records.encode_node(info), revision)


def puts(*items: KeyValue) -> list[Put]:
    return [Put(item.key, item.value) for item in items]


def test_a_gallery_is_served_once_its_settings_and_its_map_are_known() -> None:
    assert assemble(STAFF_ITEMS[:1], addresses={}).topology == Topology()
    assert assemble(STAFF_ITEMS[1:], addresses={}).topology == Topology()
    assert assemble(STAFF_ITEMS, addresses={}).topology == Topology(
        galleries={STAFF.name: ServedGallery(STAFF, STAFF_MAP)}
    )


def test_a_map_of_an_earlier_gallery_of_the_name_is_not_used() -> None:
    again = Gallery(STAFF.name, "uid2", 8, "e", 2, 1, 0)
    item = KeyValue(keys.gallery(STAFF.name), records.encode_gallery(again), 9)

    assert assemble((item, STAFF_ITEMS[1]), addresses={}).topology == Topology()


def test_the_newest_registration_of_a_node_says_where_it_is() -> None:
    items = (node(N1, "b", "new:1", revision=8), node(N1, "a", "old:1", revision=4))

    assert assemble(items, addresses={}).topology.addresses == {N1: "new:1"}


def test_a_node_that_is_gone_keeps_its_address_while_a_map_names_it() -> None:
    before = {N1: "here:1", N2: "there:2"}

    assert assemble(STAFF_ITEMS, addresses=before).topology.addresses == {N1: "here:1"}
    assert assemble(STAFF_ITEMS, addresses=before).topology.nodes == {}


def test_a_damaged_record_is_left_out_and_told() -> None:
    broken = KeyValue("map/broken", b"\xff", 1)

    assembled = assemble((*STAFF_ITEMS, broken), addresses={})

    assert list(assembled.topology.galleries) == [STAFF.name]
    assert [problem.key for problem in assembled.problems] == ["map/broken"]
    assert isinstance(assembled.problems[0], Problem)


def test_saved_keys_come_back(tmp_path: Path) -> None:
    saved.save(tmp_path / "new", STAFF_ITEMS)
    saved.save(tmp_path / "new", STAFF_ITEMS)

    assert saved.load(tmp_path / "new") == STAFF_ITEMS
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["topology"]
    assert saved.load(tmp_path) == ()


def test_any_flipped_bit_of_a_saved_file_is_noticed() -> None:
    data = saved.encode_state(STAFF_ITEMS[:1])

    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1
        with pytest.raises(CorruptError):
            saved.decode_state(bytes(damaged))
    with pytest.raises(CorruptError):
        saved.decode_state(data[:-1])


def watcher(coordinator: MemoryCoordinator, clock: ManualClock, folder: Path | None) -> Watcher:
    return Watcher(coordinator, clock, get_logger("watcher"), state_dir=folder)


@asynccontextmanager
async def supervised(watching: Watcher) -> AsyncIterator[None]:
    """Run a watcher in the background."""
    async with asyncio.TaskGroup() as group:
        running = group.create_task(watching.run())
        yield
        running.cancel()


async def test_the_age_grows_while_etcd_is_silent_and_the_topology_stays() -> None:
    clock = ManualClock()
    coordinator = MemoryCoordinator(clock)
    await coordinator.txn([], puts(*STAFF_ITEMS, node(N1, "a", "here:1")))
    watching = watcher(coordinator, clock, None)
    assert watching.age_s is None
    assert not watching.reachable
    async with supervised(watching):
        await watching.ready(timeout_s=5)
        fresh = watching.topology
        await clock.advance(3)
        assert watching.age_s is not None
        assert watching.age_s <= 1
        coordinator.stop()
        await clock.advance(SILENCE_S_MAX + 2)

        assert watching.age_s > SILENCE_S_MAX
        assert not watching.reachable
        assert watching.topology is fresh


async def test_each_change_gives_a_new_topology_and_leaves_the_old_one_as_it_was() -> None:
    clock = ManualClock()
    coordinator = MemoryCoordinator(clock)
    watching = watcher(coordinator, clock, None)
    async with supervised(watching):
        await watching.ready(timeout_s=5)
        empty = watching.topology
        await coordinator.txn([], puts(node(N1, "a", "here:1")))
        assert await watching.changed(empty, timeout_s=5)
        one = watching.topology
        await coordinator.txn([], [Delete(keys.node(N1, "a"))])
        assert await watching.changed(one, timeout_s=5)

    assert (len(empty.nodes), len(one.nodes), len(watching.topology.nodes)) == (0, 1, 0)


async def test_silence_at_the_start_is_an_error() -> None:
    clock = ManualClock()
    coordinator = MemoryCoordinator(clock)
    coordinator.stop()
    watching = watcher(coordinator, clock, None)
    async with supervised(watching):
        with pytest.raises(DeadlineError) as caught:
            await watching.ready(timeout_s=0.01)

    assert caught.value.reason == "COORDINATOR_SILENT"


async def test_a_damaged_file_is_no_reason_not_to_start(tmp_path: Path) -> None:
    (tmp_path / "topology").write_bytes(b"nonsense")
    clock = ManualClock()
    watching = watcher(MemoryCoordinator(clock), clock, tmp_path)

    assert watching.load() is False
    assert watching.topology == Topology()


@pytest.mark.parametrize("path", ["/proc/x", "file", "file/below"])
def test_a_folder_that_cannot_be_written_stops_the_start(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / path
    clock = ManualClock()

    with pytest.raises(UnavailableError) as caught:
        watcher(MemoryCoordinator(clock), clock, folder).load()

    assert caught.value.reason == "STATE_DIR_UNUSABLE"
    assert caught.value.message.startswith(f"state folder cannot be written path={folder}: ")


def test_finding_out_whether_a_folder_can_be_written_leaves_nothing_there(tmp_path: Path) -> None:
    saved.probe(tmp_path / "new")

    assert list((tmp_path / "new").iterdir()) == []
