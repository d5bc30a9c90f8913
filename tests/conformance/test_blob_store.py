"""What every BlobStore must do, held against the memory twin, the directory and an S3 server."""

import asyncio
from pathlib import Path

import pytest

from facegrid.blob.directory import DirectoryStore
from facegrid.blob.open import connect
from facegrid.blob.port import BlobStore
from facegrid.blob.s3 import S3Store
from facegrid.blob.s3_address import parse_s3_url
from facegrid.errors import ConflictError, InvalidError, NotFoundError
from facegrid.testing.memory_blob import MemoryBlobStore
from tests.fakes.s3_servers import S3Server

WITH_FOLDERS = ["memory", "directory"]


def opened(kind: str, request: pytest.FixtureRequest) -> BlobStore:
    match kind:
        case "memory":
            return MemoryBlobStore()
        case "directory":
            folder: Path = request.getfixturevalue("tmp_path")
            return DirectoryStore(folder / "store")
        case "s3":
            server: S3Server = request.getfixturevalue("s3")
            return S3Store(parse_s3_url(server.url()))
        case _:
            server = request.getfixturevalue("s3")
            return connect(server.url())


@pytest.fixture(params=[*WITH_FOLDERS, "s3", "s3, retrying"])
def store(request: pytest.FixtureRequest) -> BlobStore:
    return opened(request.param, request)


@pytest.fixture(params=WITH_FOLDERS)
def store_with_folders(request: pytest.FixtureRequest) -> BlobStore:
    """S3 has no folders, so an object there may lie below another."""
    return opened(request.param, request)


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 5000])
async def test_an_object_comes_back_as_it_was_put(store: BlobStore, data: bytes) -> None:
    await store.put_new("shards/staff.1f00aa23.0003/log/1-1-a", data)
    assert await store.get("shards/staff.1f00aa23.0003/log/1-1-a") == data


async def test_a_name_is_taken_once_and_keeps_its_first_object(store: BlobStore) -> None:
    await store.put_new("a/b", b"first")
    with pytest.raises(ConflictError) as refused:
        await store.put_new("a/b", b"second")
    assert refused.value.reason == "OBJECT_EXISTS"
    assert await store.get("a/b") == b"first"


async def test_of_sixteen_racers_for_a_name_exactly_one_wins(store: BlobStore) -> None:
    outcomes: dict[int, str] = {}

    async def race(racer: int) -> None:
        try:
            await store.put_new("folder/that/is/new", b"%d" % racer)
            outcomes[racer] = "won"
        except ConflictError as error:
            outcomes[racer] = error.reason

    async with asyncio.TaskGroup() as tasks:
        for racer in range(16):
            tasks.create_task(race(racer))
    assert sorted(outcomes.values()) == ["OBJECT_EXISTS"] * 15 + ["won"]
    (winner,) = [racer for racer, outcome in outcomes.items() if outcome == "won"]
    assert await store.get("folder/that/is/new") == b"%d" % winner
    assert list(await store.list("")) == ["folder/that/is/new"]


async def test_a_list_is_whole_however_long_it_is(store: BlobStore) -> None:
    names = [f"log/{number:04d}" for number in range(1001)]
    async with asyncio.TaskGroup() as tasks:
        for name in names:
            tasks.create_task(store.put_new(name, b""))
    assert list(await store.list("log/")) == names


async def test_many_objects_put_at_once_are_all_there(store: BlobStore) -> None:
    names = [f"shards/s{number % 3}/log/{number:03d}" for number in range(48)]
    async with asyncio.TaskGroup() as tasks:
        for name in names:
            tasks.create_task(store.put_new(name, name.encode()))
    assert list(await store.list("shards/")) == sorted(names)
    assert [await store.get(name) for name in names] == [name.encode() for name in names]


@pytest.mark.parametrize("name", ["a", "a/b", "a/b/c/d"])
async def test_what_is_not_there_is_not_found(store: BlobStore, name: str) -> None:
    with pytest.raises(NotFoundError) as missing:
        await store.get(name)
    assert missing.value.reason == "OBJECT_UNKNOWN"


async def test_what_lies_above_or_below_an_object_is_not_found(store: BlobStore) -> None:
    await store.put_new("a/b/c", b"x")
    for name in ("a", "a/b", "a/b/c/d", "a/b/c/d/e"):
        with pytest.raises(NotFoundError):
            await store.get(name)


async def test_a_list_holds_the_names_with_the_prefix_in_order(store: BlobStore) -> None:
    for name in ("b/1", "a/2", "a/10", "ab/1", "a-b", "c"):
        await store.put_new(name, b"")
    assert list(await store.list("")) == ["a-b", "a/10", "a/2", "ab/1", "b/1", "c"]
    assert list(await store.list("a")) == ["a-b", "a/10", "a/2", "ab/1"]
    assert list(await store.list("a/")) == ["a/10", "a/2"]
    assert list(await store.list("a/1")) == ["a/10"]
    assert list(await store.list("c")) == ["c"]
    assert list(await store.list("c/")) == []
    assert list(await store.list("d/e")) == []


async def test_a_deleted_object_is_gone_and_its_name_is_free(store: BlobStore) -> None:
    await store.put_new("a/b", b"first")
    await store.delete("a/b")
    with pytest.raises(NotFoundError):
        await store.get("a/b")
    assert list(await store.list("")) == []
    await store.put_new("a/b", b"second")
    assert await store.get("a/b") == b"second"


async def test_deleting_what_is_not_there_is_no_error(store: BlobStore) -> None:
    await store.put_new("a/b/c", b"x")
    for name in ("x", "x/y", "a", "a/b", "a/b/d", "a/b/c/d", "a/b/c/d/e"):
        await store.delete(name)
    assert await store.get("a/b/c") == b"x"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "/etc/passwd",
        "a/",
        "a//b",
        ".",
        "..",
        "../a",
        "a/../b",
        "a/..",
        "./a",
        ".tmp/a",
        "a/.hidden",
        "a\\b",
        "a b",
        "a\n",
        "a\0b",
        "ä",
        "a" * 201,
        "/".join("a" * 300),
    ],
)
async def test_a_malformed_name_is_refused_by_every_call(store: BlobStore, name: str) -> None:
    for call in (store.put_new(name, b"x"), store.get(name), store.delete(name)):
        with pytest.raises(InvalidError) as refused:
            await call
        assert refused.value.reason == "OBJECT_NAME_MALFORMED"
    assert list(await store.list("")) == []


@pytest.mark.parametrize("prefix", ["/", "..", "../", "a/../", "a//", ".tmp/"])
async def test_a_malformed_prefix_is_refused(store: BlobStore, prefix: str) -> None:
    with pytest.raises(InvalidError) as refused:
        await store.list(prefix)
    assert refused.value.reason == "OBJECT_NAME_MALFORMED"


@pytest.mark.parametrize(("first", "second"), [("a/b", "a/b/c"), ("a/b/c", "a/b")])
async def test_a_name_is_an_object_or_a_folder(
    store_with_folders: BlobStore, first: str, second: str
) -> None:
    store = store_with_folders
    await store.put_new(first, b"x")
    with pytest.raises(InvalidError) as refused:
        await store.put_new(second, b"y")
    assert refused.value.reason == "OBJECT_NAME_NESTED"
    assert list(await store.list("")) == [first]
