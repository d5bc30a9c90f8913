"""fgctl meta: what is written into an etcd that lost everything, or was set back."""

import asyncio
import dataclasses
import json
from pathlib import Path

import pytest

from facegrid.blob.directory import DirectoryStore
from facegrid.clock import SystemClock
from facegrid.coord import keys
from facegrid.coord.port import Delete, Put
from facegrid.errors import ConflictError, CorruptError, NotFoundError
from facegrid.format.checks import sha256_hex
from facegrid.format.records import Dropped, encode_dropped, encode_node
from facegrid.format.stored_gallery import (
    StoredGallery,
    encode_stored_gallery,
    stored_gallery_name,
)
from facegrid.ids import GalleryName, NodeId, ShardId
from facegrid.model import NodeInfo
from facegrid.testing.memory_blob import MemoryBlobStore
from facegrid.testing.memory_coord import MemoryCoordinator
from fgctl import meta_file
from fgctl.__main__ import run
from fgctl.meta import recovery
from fgctl.meta.recovery import Plan
from fgctl.meta_file import Meta
from tests.conftest import EtcdRoot
from tests.fakes.small_store import FIRST, SECOND, UID, Small, shard_map, small_store


async def etcd_with(meta: Meta | None) -> MemoryCoordinator:
    """Return an etcd that holds these records, or nothing."""
    coord = MemoryCoordinator(SystemClock())
    if meta is not None:
        await coord.txn([], [Put(key, value) for key, value in meta.values.items()])
    return coord


async def planned(
    coord: MemoryCoordinator, store: MemoryBlobStore, saved: Meta | None = None
) -> Plan:
    current = await recovery.read_current(coord, unix_ms=1)
    return await recovery.plan(current, store, saved, boot_id="recovery-1")


async def recovered(
    coord: MemoryCoordinator, store: MemoryBlobStore, saved: Meta | None = None
) -> tuple[Plan, Meta]:
    """Recover; return the plan, and what etcd says afterwards."""
    plan = await planned(coord, store, saved)
    await recovery.apply(coord, plan)
    return plan, (await recovery.read_current(coord, unix_ms=1)).meta


@pytest.fixture
def small() -> Small:
    return small_store()


def generations(meta: Meta) -> dict[ShardId, int]:
    return {shard_id: claim.generation for shard_id, claim in meta.claims.items()}


async def test_a_wiped_etcd_says_what_the_store_ends_with(small: Small) -> None:
    """Records saved earlier give the galleries; the store gives all the rest."""
    del small.store.objects[small.record]
    plan, meta = await recovered(await etcd_with(None), small.store, small.earlier)

    assert plan.complete
    assert (meta.galleries, meta.maps) == (small.meta.galleries, small.meta.maps)
    assert meta.tips == {FIRST: small.tips[0], SECOND: small.tips[1]}
    assert meta.pointers == {FIRST: small.pointer}
    assert generations(meta) == {FIRST: 3, SECOND: 2}, "above all that were ever claimed"


async def test_a_wiped_etcd_is_recovered_from_the_store_alone(small: Small) -> None:
    plan, meta = await recovered(await etcd_with(None), small.store)

    assert plan.complete
    assert (meta.galleries, meta.maps) == (small.meta.galleries, small.meta.maps)
    assert meta.tips == {FIRST: small.tips[0], SECOND: small.tips[1]}


async def test_a_gallery_that_is_being_dropped_does_not_come_back(small: Small) -> None:
    coord = await etcd_with(None)
    note = Dropped(FIRST, UID, (NodeId("n1"),))
    await coord.txn([], [Put(keys.dropped(FIRST), encode_dropped(note))])

    plan, meta = await recovered(coord, small.store)

    assert (plan.galleries, meta.tips) == ((), {})


async def test_records_with_a_newer_map_are_taken(small: Small) -> None:
    """The backup of etcd is older than the last change of the map."""
    newer = dataclasses.replace(shard_map(), version=2)
    stored = StoredGallery(small.meta.galleries[GalleryName("g")], newer)
    data = encode_stored_gallery(stored)
    await small.store.put_new(stored_gallery_name(stored, sha256_hex(data)), data)

    _, meta = await recovered(await etcd_with(small.earlier), small.store)

    assert meta.maps == {GalleryName("g"): newer}


async def test_an_etcd_that_was_set_back_is_brought_forward(small: Small) -> None:
    plan, meta = await recovered(await etcd_with(small.earlier), small.store)

    assert plan.complete
    assert meta.tips == {FIRST: small.tips[0], SECOND: small.tips[1]}
    assert generations(meta) == {FIRST: 3, SECOND: 2}


async def test_generations_rise_above_every_one_that_the_store_has_seen(small: Small) -> None:
    """An etcd from before the second generation was claimed must not hand it out again."""
    old = {**small.earlier.values}
    old[keys.generation(FIRST)] = old[keys.generation(SECOND)]
    _, meta = await recovered(await etcd_with(Meta(1, 1, old)), small.store)

    assert generations(meta)[FIRST] == 3


async def test_a_whole_etcd_is_left_as_it_is(small: Small) -> None:
    plan, meta = await recovered(await etcd_with(small.meta), small.store)

    assert (plan.complete, [one.changes for one in plan.galleries]) == (True, [False])
    assert meta.values == small.meta.values


async def test_recovering_twice_is_recovering_once(small: Small) -> None:
    coord = await etcd_with(None)
    _, first = await recovered(coord, small.store, small.earlier)
    _, second = await recovered(coord, small.store, small.earlier)

    assert first.values == second.values


async def test_a_recovery_that_broke_off_goes_on(small: Small) -> None:
    """1 the records of shards are written; 2 the tool dies; 3 maps come with the next try."""
    coord = await etcd_with(None)
    _, whole = await recovered(coord, small.store, small.earlier)
    map_key = next(iter(key for key in whole.values if key.startswith(keys.MAPS)))
    gallery_key = next(iter(key for key in whole.values if key.startswith(keys.GALLERIES)))
    await coord.txn([], [Delete(map_key), Delete(gallery_key)])

    _, again = await recovered(coord, small.store, small.earlier)

    assert again.values == whole.values


async def test_a_shard_of_no_known_gallery_is_named_and_nothing_is_written(small: Small) -> None:
    del small.store.objects[small.record]
    plan, meta = await recovered(await etcd_with(None), small.store)

    assert (plan.complete, plan.homeless, meta.values) == (False, (FIRST, SECOND), {})


async def test_a_gallery_with_a_missing_object_is_left_alone(small: Small) -> None:
    del small.store.objects[small.enrol]
    plan, meta = await recovered(await etcd_with(small.earlier), small.store)

    assert not plan.complete
    assert [one.name for one in plan.galleries[0].problems] == [small.enrol]
    assert meta.values == small.earlier.values


async def test_a_store_that_is_behind_etcd_is_refused(small: Small) -> None:
    """What etcd says was committed is not there: that is a loss, not for a tool to hide."""
    del small.store.objects[small.second[1]]
    plan, meta = await recovered(await etcd_with(small.meta), small.store)

    assert [(one.name, one.reason) for one in plan.galleries[0].problems] == [
        (small.second[1], "OBJECT_MISSING")
    ]
    assert meta.values == small.meta.values


async def test_nodes_must_be_stopped_first(small: Small) -> None:
    coord = await etcd_with(small.earlier)
    node = NodeInfo(NodeId("n1"), "b1", "127.0.0.1:1", "0.1.0", "")
    await coord.txn([], [Put(keys.node(NodeId("n1"), "b1"), encode_node(node))])

    with pytest.raises(ConflictError) as refused:
        await planned(coord, small.store)

    assert refused.value.reason == "NODES_RUNNING"


async def test_whoever_changes_etcd_meanwhile_stops_the_recovery(small: Small) -> None:
    coord = await etcd_with(small.earlier)
    plan = await planned(coord, small.store)
    key = keys.generation(FIRST)
    await coord.txn([], [Put(key, small.meta.values[key])])

    with pytest.raises(ConflictError) as refused:
        await recovery.apply(coord, plan)

    assert refused.value.reason == "ETCD_CHANGED"


def test_saved_records_are_read_back_as_they_were(small: Small, tmp_path: Path) -> None:
    path = tmp_path / "meta.json"
    meta_file.save(path, small.meta)

    assert meta_file.load(path) == small.meta
    path.write_text(path.read_text()[:-20])
    with pytest.raises(CorruptError):
        meta_file.load(path)
    with pytest.raises(NotFoundError):
        meta_file.load(tmp_path / "none.json")


@pytest.mark.parametrize("content", [b"\x93NUMPY\x01\x00", b"text", b"[1]", b"{}"])
def test_a_file_of_another_kind_is_called_that(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    with pytest.raises(CorruptError) as told:
        meta_file.load(path)
    assert told.value.reason == "META_FILE"
    assert told.value.message.startswith("this is no file of fgctl meta save")
    assert "codec" not in told.value.message


async def test_the_commands_work_on_a_real_etcd(
    etcd: EtcdRoot, small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, file = tmp_path / "store", tmp_path / "meta.json"
    directory = DirectoryStore(store)
    for name, data in small.store.objects.items():
        await directory.put_new(name, data)
    meta_file.save(file, small.earlier)
    where = ("--etcd", etcd.endpoint, "--etcd-prefix", etcd.root)
    recover = ("meta", "recover", str(store), *where, "--meta", str(file))

    unconfirmed = await asyncio.to_thread(run, recover)
    capsys.readouterr()
    code = await asyncio.to_thread(run, [*recover, "--yes", "--json"])
    document = json.loads(capsys.readouterr().out)
    saved = await asyncio.to_thread(run, ["meta", "save", str(file), *where])
    told = capsys.readouterr().out

    assert (unconfirmed, code, saved) == (2, 0, 0)
    assert [one["position"] for one in document["galleries"][0]["shards"]] == [4, 2]
    assert told.startswith("saved 7 keys")
    assert meta_file.load(file).tips == {FIRST: small.tips[0], SECOND: small.tips[1]}
    assert await asyncio.to_thread(run, [*recover]) == 0, "nothing is left to confirm"
