"""The directory store where the disk fails, fills up, or the process dies."""

import errno
import os
import stat
from pathlib import Path
from typing import Literal

import pytest
from typing_extensions import override

from facegrid.blob.directory import DirectoryStore, Files
from facegrid.blob.open import open_store
from facegrid.errors import ConflictError, InvalidError, NotFoundError, UnavailableError

Step = Literal["write", "sync", "link", "sync folder", "unlink"]


class Crash(BaseException):
    """The process died here."""


class FaultyFiles(Files):
    """System calls that fail, once armed, at one step. After a crash nothing works any more."""

    def __init__(self) -> None:
        self.step: Step | None = None
        self.error: int | None = None
        self._dead = False
        self.synced: list[str] = []

    def arm(self, step: Step, error: int | None = None) -> None:
        """Fail at the step with an error number, or crash if there is none."""
        self.step, self.error = step, error

    def _reach(self, step: Step) -> None:
        if self._dead:
            raise Crash
        if step != self.step:
            return
        if self.error is None:
            self._dead = True
            raise Crash
        raise OSError(self.error, os.strerror(self.error))

    @override
    def write(self, fd: int, data: bytes) -> None:
        if self.step == "write":
            super().write(fd, data[: len(data) // 2])
        self._reach("write")
        super().write(fd, data)

    @override
    def sync(self, fd: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(fd).st_mode)
        self._reach("sync folder" if is_folder else "sync")
        self.synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        super().sync(fd)

    @override
    def link(self, source: Path, target: Path) -> None:
        self._reach("link")
        super().link(source, target)

    @override
    def unlink(self, path: Path) -> None:
        self._reach("unlink")
        super().unlink(path)


def leftovers(root: Path) -> list[str]:
    return sorted(path.name for path in (root / ".tmp").iterdir() if path.name != "lock")


async def faulty_store(root: Path) -> tuple[DirectoryStore, FaultyFiles]:
    files = FaultyFiles()
    store = DirectoryStore(root, files=files)
    await store.put_new("a/before", b"before")
    return store, files


@pytest.mark.parametrize("step", ["write", "sync", "link"])
async def test_a_crash_before_the_link_leaves_no_object_and_its_file_is_swept(
    tmp_path: Path, step: Step
) -> None:
    store, files = await faulty_store(tmp_path)
    files.arm(step)
    with pytest.raises(Crash):
        await store.put_new("a/b", b"x" * 1000)
    assert len(leftovers(tmp_path)) == 1
    assert list(await store.list("")) == ["a/before"]
    reopened = DirectoryStore(tmp_path)
    assert leftovers(tmp_path) == []
    await reopened.put_new("a/b", b"again")
    assert await reopened.get("a/b") == b"again"


async def test_a_crash_after_the_link_leaves_the_whole_object(tmp_path: Path) -> None:
    store, files = await faulty_store(tmp_path)
    files.arm("unlink")
    with pytest.raises(Crash):
        await store.put_new("a/b", b"x" * 1000)
    reopened = DirectoryStore(tmp_path)
    assert leftovers(tmp_path) == []
    assert await reopened.get("a/b") == b"x" * 1000
    with pytest.raises(ConflictError):
        await reopened.put_new("a/b", b"y")


async def test_opening_a_store_leaves_the_files_of_living_writers_alone(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    with store._temporary() as (path, fd):
        DirectoryStore(tmp_path)
        os.write(fd, b"x")
        assert path.exists()
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("step", ["write", "sync", "link"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk_is_reported_as_such_and_leaves_nothing(
    tmp_path: Path, step: Step, error: int
) -> None:
    store, files = await faulty_store(tmp_path)
    files.arm(step, error)
    with pytest.raises(UnavailableError) as full:
        await store.put_new("a/b", b"x" * 1000)
    assert full.value.reason == "STORE_FULL"
    assert str(tmp_path) in full.value.message
    assert leftovers(tmp_path) == []
    assert list(await store.list("")) == ["a/before"]


class AlmostFull(Files):
    """A disk of 1,000 bytes with some of them free."""

    def __init__(self, free_bytes: int) -> None:
        self.free_bytes = free_bytes

    @override
    def room_bytes(self, folder: Path) -> tuple[int, int]:
        return self.free_bytes, 1000


async def test_the_log_leaves_a_reserve_to_segments_and_manifests(tmp_path: Path) -> None:
    log = "shards/g.1f00aa23.0000/log/0000000001-0000000000000000001-"
    await DirectoryStore(tmp_path, files=AlmostFull(60)).put_new(f"{log}aa", b"x" * 10)
    fuller = DirectoryStore(tmp_path, files=AlmostFull(59))

    with pytest.raises(UnavailableError) as full:
        await fuller.put_new(f"{log}bb", b"x" * 10)
    assert full.value.reason == "STORE_FULL"
    assert leftovers(tmp_path) == []
    await fuller.put_new("shards/g.1f00aa23.0000/segments/aa", b"x" * 10)


@pytest.mark.parametrize("step", ["sync", "sync folder"])
async def test_a_failed_sync_is_an_error_of_its_own(tmp_path: Path, step: Step) -> None:
    store, files = await faulty_store(tmp_path)
    files.arm(step, errno.EIO)
    with pytest.raises(UnavailableError) as failed:
        await store.put_new("a/b", b"x")
    assert failed.value.reason == "STORE_SYNC_FAILED"
    assert leftovers(tmp_path) == []


async def test_a_failed_sync_of_a_folder_fails_a_deletion_too(tmp_path: Path) -> None:
    store, files = await faulty_store(tmp_path)
    files.arm("sync folder", errno.EIO)
    with pytest.raises(UnavailableError) as failed:
        await store.delete("a/before")
    assert failed.value.reason == "STORE_SYNC_FAILED"


@pytest.mark.parametrize("step", ["write", "link"])
async def test_any_other_failure_names_the_path(tmp_path: Path, step: Step) -> None:
    store, files = await faulty_store(tmp_path)
    files.arm(step, errno.EIO)
    with pytest.raises(UnavailableError) as failed:
        await store.put_new("a/b", b"x")
    assert (failed.value.reason, failed.value.facts) == (
        "STORE_FAILED",
        {"path": str(tmp_path), "name": "a/b"},
    )


async def test_new_folders_are_synced_from_the_object_up_to_the_root(tmp_path: Path) -> None:
    store, files = await faulty_store(tmp_path)
    files.synced.clear()
    await store.put_new("x/y/z", b"1")
    folders = [path for path in files.synced if ".tmp" not in path]
    root = str(tmp_path)
    assert folders == [root, f"{root}/x", f"{root}/x/y"]
    files.synced.clear()
    await store.put_new("x/y/w", b"1")
    assert [path for path in files.synced if ".tmp" not in path] == [f"{root}/x/y"]


async def test_the_loser_of_a_race_may_rely_on_the_winner(tmp_path: Path) -> None:
    """1. A winner has linked and died before its sync. 2. The loser syncs before it says so."""
    store, files = await faulty_store(tmp_path)
    files.synced.clear()
    with pytest.raises(ConflictError):
        await store.put_new("a/before", b"other")
    assert files.synced[-1] == f"{tmp_path}/a"


async def test_a_folder_removed_by_hand_is_made_anew_on_the_next_attempt(tmp_path: Path) -> None:
    store, _ = await faulty_store(tmp_path)
    (tmp_path / "a" / "before").unlink()
    (tmp_path / "a").rmdir()
    with pytest.raises(UnavailableError):
        await store.put_new("a/b", b"x")
    await store.put_new("a/b", b"x")
    assert await store.get("a/b") == b"x"


async def test_what_others_put_into_the_folder_is_no_object(tmp_path: Path) -> None:
    store, _ = await faulty_store(tmp_path)
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "lost+found" / "x").write_bytes(b"x")
    (tmp_path / ".hidden").write_bytes(b"x")
    (tmp_path / "backup~").write_bytes(b"x")
    assert list(await store.list("")) == ["a/before"]


async def test_objects_can_be_read_by_their_owner_only(tmp_path: Path) -> None:
    await faulty_store(tmp_path / "store")
    modes = {
        name: stat.S_IMODE((tmp_path / "store" / name).stat().st_mode) & 0o077
        for name in ("", ".tmp", "a", "a/before")
    }
    assert modes == {"": 0, ".tmp": 0, "a": 0, "a/before": 0}


class ForgetfulFiles(Files):
    """A file system whose link replaces what is there."""

    @override
    def link(self, source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes())


def test_a_file_system_that_lets_names_be_taken_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError) as refused:
        DirectoryStore(tmp_path, files=ForgetfulFiles())
    assert refused.value.reason == "STORE_UNSAFE"
    assert str(tmp_path) in refused.value.message


def test_a_folder_that_cannot_be_made_is_refused_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UnavailableError) as refused:
        open_store(f"dir:{tmp_path}/file/store")
    assert refused.value.reason == "STORE_FAILED"
    assert f"{tmp_path}/file/store" in refused.value.message


@pytest.mark.parametrize("url", ["", "dir:", "s3:bucket", "/plain/path"])
def test_an_unknown_kind_of_store_is_refused(url: str) -> None:
    with pytest.raises(InvalidError) as refused:
        open_store(url)
    assert refused.value.reason == "STORE_URL_MALFORMED"


async def test_two_stores_on_one_folder_see_each_other(tmp_path: Path) -> None:
    one, other = open_store(f"dir:{tmp_path}/store"), open_store(f"dir:{tmp_path}/store")
    await one.put_new("a", b"1")
    assert await other.get("a") == b"1"
    await other.delete("a")
    with pytest.raises(NotFoundError):
        await one.get("a")
