"""fgctl snapshot on a repository alone: what it prints, and how it ends."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from facegrid.blob.directory import DirectoryStore
from facegrid.blob.open import open_store
from facegrid.clock import SystemClock
from facegrid.coord import keys
from facegrid.coord.port import Delete, Put
from facegrid.errors import ConflictError, NotFoundError
from facegrid.format.records import Dropped, encode_dropped
from facegrid.ids import GalleryName, NodeId
from facegrid.testing.memory_coord import MemoryCoordinator
from fgctl.__main__ import run
from fgctl.snapshot import forget
from fgctl.snapshot.create import Source, create
from tests.fakes.s3_servers import S3Server
from tests.fakes.small_store import FIRST, UID, Small, small_store
from tests.fakes.snapshot_world import tools

Shell = Callable[..., Any]


async def coordinator(small: Small) -> MemoryCoordinator:
    coord = MemoryCoordinator(SystemClock())
    await coord.txn([], [Put(k, v) for k, v in small.meta.values.items()])
    return coord


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A repository in a folder, with one snapshot of the small store."""

    async def make() -> None:
        small = small_store()
        source = Source(await coordinator(small), small.store)
        await create(source, DirectoryStore(tmp_path), "g", tools=tools())

    asyncio.run(make())
    return tmp_path


@pytest.fixture
def fgctl(repo: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    def call(command: str, *arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(["snapshot", command, str(repo), *arguments])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call


def files(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and ".tmp" not in path.parts
    }


def test_list_shows_each_snapshot_and_nobody_in_it(fgctl: Shell) -> None:
    code, shown, _ = fgctl("list", "--json")
    (one,) = json.loads(shown)["snapshots"]
    assert code == 0
    assert (one["gallery"], one["uid"], one["shards_count"]) == ("g", UID, 2)
    assert (one["templates_count_max"], one["objects_count"]) == (5, 8)
    for arguments in ((), ("--gallery", "g"), ("--gallery", "other")):
        code, shown, _ = fgctl("list", *arguments)
        assert code == 0
        assert (one["snapshot"] in shown) == ("other" not in arguments)
    assert "s-5" not in shown


def test_verify_ends_with_one_and_the_names_of_what_is_damaged(fgctl: Shell, repo: Path) -> None:
    before = files(repo)
    assert fgctl("verify")[0] == 0
    assert "nothing is wrong" in fgctl("verify")[1]
    assert files(repo) == before, "nothing is changed"
    name = min(before)
    (repo / name).write_bytes(before[name][:-1])
    code, shown, _ = fgctl("verify", "--json")
    report = json.loads(shown)
    assert code == 1
    assert [(one["name"], one["reason"]) for one in report["problems"]] == [
        (name, "OBJECT_DAMAGED")
    ]
    assert [(one["ok"], one["templates_count"]) for one in report["snapshots"]] == [(False, None)]
    assert f"problem: {name}" in fgctl("verify")[1]


def test_verify_of_one_snapshot_looks_at_nothing_else(fgctl: Shell, repo: Path) -> None:
    (one,) = json.loads(fgctl("list", "--json")[1])["snapshots"]
    stranger = repo / "objects" / ("ab" * 32)
    stranger.write_bytes(b"damaged")
    assert fgctl("verify")[0] == 1
    assert fgctl("verify", one["snapshot"])[0] == 0
    code, _, told = fgctl("verify", "20261125T150312Z-00000000")
    assert (code, "SNAPSHOT_UNKNOWN" in told) == (1, True)


def test_a_damaged_descriptor_is_listed_as_such(fgctl: Shell, repo: Path) -> None:
    (path,) = (repo / "snapshots" / UID).iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    code, shown, _ = fgctl("list", "--json")
    assert code == 1
    assert [one["name"] for one in json.loads(shown)["damaged"]] == [
        f"snapshots/{UID}/{path.name}"
    ]
    assert "problem: " in fgctl("list")[1]


def test_delete_says_first_what_will_be_lost_and_wants_a_yes(fgctl: Shell, repo: Path) -> None:
    (one,) = json.loads(fgctl("list", "--json")[1])["snapshots"]
    before = files(repo)
    code, _, told = fgctl("delete", one["snapshot"])
    assert code == 2
    assert "of gallery g will be lost" in told
    assert "8 objects" in told
    assert files(repo) == before

    code, shown, _ = fgctl("delete", one["snapshot"], "--yes", "--json")
    assert (code, json.loads(shown)["objects_count"]) == (0, 8)
    assert files(repo) == {}
    assert fgctl("delete", one["snapshot"], "--yes")[0] == 1


async def test_a_repository_may_be_on_s3(s3: S3Server, capsys: pytest.CaptureFixture[str]) -> None:
    small, url = small_store(), s3.url()
    source = Source(await coordinator(small), small.store)
    store = await asyncio.to_thread(open_store, url)
    made = await create(source, store, "g", tools=tools())
    again = await create(source, store, "g", tools=tools(2))
    assert (made.new_objects_count, again.new_objects_count) == (8, 0)

    async def fgctl(command: str, *arguments: str) -> int:
        return await asyncio.to_thread(run, ["snapshot", command, url, *arguments])

    assert await fgctl("verify") == 0
    assert await fgctl("delete", made.snapshot.snapshot_id, "--yes") == 0
    assert await fgctl("verify") == 0
    assert await fgctl("delete", again.snapshot.snapshot_id, "--yes") == 0
    assert await store.list("") == []
    capsys.readouterr()


@pytest.mark.parametrize("command", ["create", "restore"])
def test_a_cluster_must_be_named(fgctl: Shell, command: str) -> None:
    arguments = ("x",) if command == "create" else ("x", "--gallery", "new")
    code, _, told = fgctl(command, *arguments)
    assert code == 2
    assert "say which cluster" in told


async def test_a_journal_is_forgotten_only_when_its_gallery_is_gone() -> None:
    """1 the gallery is there; 2 it is being dropped; 3 it is gone; 4 so is its journal."""
    small = small_store()
    coord = await coordinator(small)
    with pytest.raises(ConflictError):
        await forget.forget(coord, small.store, UID)
    name = GalleryName("g")
    gone = [Delete(keys.gallery(name)), Delete(keys.shard_map(name))]
    note = Put(keys.dropped(FIRST), encode_dropped(Dropped(FIRST, UID, (NodeId("n1"),))))
    await coord.txn([], [*gone, note])
    with pytest.raises(ConflictError):
        await forget.forget(coord, small.store, UID)
    assert small.journal in small.store.objects

    await coord.txn([], [Delete(keys.dropped(FIRST))])
    assert await forget.forget(coord, small.store, UID) == 1
    assert small.journal not in small.store.objects
    with pytest.raises(NotFoundError):
        await forget.forget(coord, small.store, UID)
