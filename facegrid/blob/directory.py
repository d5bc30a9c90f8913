"""The object store as a folder tree on a local file system, shared by the nodes of one machine.

An object is written to a temporary file, synced, and then linked to its name: link(2) fails if the
name exists, so of several racers exactly one wins, and a name never shows half an object. The
folder is synced after the link, and so are the folders above it when they are new.

    ROOT/<name>          objects, readable by the owner only: they are biometric data
    ROOT/.tmp/           temporary files; what a crash left there is swept when a store is opened
    ROOT/.tmp/lock       held shared by writers and exclusively by the sweep, which therefore never
                         takes a temporary file from under a living writer

The file system must be local, or have link(2) and flock(2) that hold between its hosts.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from facegrid.blob.names import check_nesting, check_object_name, check_prefix, is_object_name
from facegrid.errors import ConflictError, NotFoundError, UnavailableError
from facegrid.format.log import parse_log_name

_TMP: Final = ".tmp"
_LOCK: Final = "lock"
LOCK_PATH: Final = f"{_TMP}/{_LOCK}"
"""The file of the store itself that is always there and is no object."""
_THREADS: Final = 8
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_FOLDER_MODE: Final = 0o700
RESERVE_SHARE: Final = 0.05
RESERVE_BYTES_MAX: Final = 256 * 1024 * 1024
"""While less than this is free, no log object is taken: what is left is for the segments and
manifests of a flush, after which the log can be trimmed."""

T = TypeVar("T")


class Files:
    """The system calls that write; tests replace them to fail or to crash."""

    def write(self, fd: int, data: bytes) -> None:
        """Write all the data."""
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    def sync(self, fd: int) -> None:
        """Bring a file or a folder to the disk."""
        os.fsync(fd)

    def room_bytes(self, folder: Path) -> tuple[int, int]:
        """Return how much of a file system is free for us, and how large it is."""
        found = os.statvfs(folder)
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name, unless the name exists."""
        os.link(source, target)

    def unlink(self, path: Path) -> None:
        """Take a name away; it need not exist."""
        path.unlink(missing_ok=True)


class DirectoryStore:
    """A BlobStore in a folder.

    Args:
        root: the folder; made if it is missing.
        files: the system calls that write.

    Raises:
        UnavailableError: the folder cannot be written, or put-if-absent does not hold there.
    """

    def __init__(self, root: Path, *, files: Files | None = None) -> None:
        self._root = root.resolve()
        self._files = files or Files()
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="store")
        # Folders whose own entries in the folders above are known to be on the disk.
        self._durable: set[Path] = set()
        with self._translated("open", str(self._root)):
            self._make_root()
            self._sweep()
            self._probe()

    async def put_new(self, name: str, data: bytes) -> None:
        """Store an object durably under a name never used before. See BlobStore."""
        check_object_name(name)
        await self._in_thread(lambda: self._put_new(name, data))

    async def get(self, name: str) -> bytes:
        """Return an object's bytes. See BlobStore."""
        check_object_name(name)
        return await self._in_thread(lambda: self._get(name))

    async def list(self, prefix: str) -> Sequence[str]:
        """Return the names that begin with a prefix, sorted. See BlobStore."""
        check_prefix(prefix)
        return await self._in_thread(lambda: self._list(prefix))

    async def delete(self, name: str) -> None:
        """Delete an object durably. See BlobStore."""
        check_object_name(name)
        await self._in_thread(lambda: self._delete(name))

    @property
    def _tmp(self) -> Path:
        return self._root / _TMP

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _put_new(self, name: str, data: bytes) -> None:
        target = self._root / name
        with self._translated("put", name), self._temporary() as (temporary, fd):
            if parse_log_name(name) is not None:
                self._check_room(name, len(data))
            self._make_durable(name, target.parent)
            self._files.write(fd, data)
            self._sync(fd, path=temporary)
            try:
                self._files.link(temporary, target)
            except FileExistsError as error:
                check_nesting(name, taken=target.is_dir())
                # The winner may not have come that far, and callers may rely on the object now.
                self._sync_folder(target.parent)
                raise ConflictError(
                    f"object exists name={name}", reason="OBJECT_EXISTS", name=name
                ) from error
            except FileNotFoundError:
                # Somebody removed the folder; a later attempt makes it anew.
                self._durable.clear()
                raise
            self._sync_folder(target.parent)

    def _check_room(self, name: str, size_bytes: int) -> None:
        """Raise UnavailableError (STORE_FULL) before the disk is full to the last byte."""
        free_bytes, all_bytes = self._files.room_bytes(self._root)
        reserve_bytes = min(int(all_bytes * RESERVE_SHARE), RESERVE_BYTES_MAX)
        if free_bytes - size_bytes < reserve_bytes:
            raise UnavailableError(
                f"store is almost full path={self._root} free_bytes={free_bytes}"
                f" reserve_bytes={reserve_bytes}",
                reason="STORE_FULL",
                path=self._root,
                name=name,
            )

    def _get(self, name: str) -> bytes:
        with self._translated("get", name):
            try:
                return (self._root / name).read_bytes()
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
                raise NotFoundError(
                    f"no such object name={name}", reason="OBJECT_UNKNOWN", name=name
                ) from error

    def _list(self, prefix: str) -> Sequence[str]:
        top = self._root / prefix.rpartition("/")[0]
        found = []
        with self._translated("list", prefix):
            for folder, folders, files in os.walk(top, onerror=_raise_unless_gone):
                # What others put here, such as lost+found, is no object.
                folders[:] = filter(is_object_name, folders)
                inside = Path(folder).relative_to(self._root)
                found += [(inside / name).as_posix() for name in filter(is_object_name, files)]
        return sorted(name for name in found if name.startswith(prefix))

    def _delete(self, name: str) -> None:
        target = self._root / name
        with self._translated("delete", name):
            # A folder is no object, and below an object there is none either.
            if target.is_dir() or not target.parent.is_dir():
                return
            self._files.unlink(target)
            # Also when it was not there: an earlier attempt may have ended before this.
            self._sync_folder(target.parent)

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[tuple[Path, int]]:
        """Lend an open temporary file that no sweep takes away, and remove it afterwards."""
        with self._locked(fcntl.LOCK_SH):
            fd, path = tempfile.mkstemp(dir=self._tmp)
            try:
                yield Path(path), fd
            finally:
                os.close(fd)
                self._files.unlink(Path(path))

    @contextlib.contextmanager
    def _locked(self, operation: int) -> Iterator[None]:
        fd = os.open(self._tmp / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, operation)
            yield
        finally:
            os.close(fd)

    def _sweep(self) -> None:
        """Remove what crashed writers left; leave it for later while anybody is writing."""
        with contextlib.suppress(BlockingIOError), self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB):
            for path in self._tmp.iterdir():
                if path.name != _LOCK:
                    self._files.unlink(path)

    def _probe(self) -> None:
        """Raise UnavailableError unless put-if-absent holds on this file system."""
        with self._temporary() as (temporary, fd):
            self._files.write(fd, b"probe")
            self._sync(fd, path=temporary)
            twin = temporary.with_name(f"{temporary.name}.twin")
            self._files.link(temporary, twin)
            try:
                self._files.link(temporary, twin)
            except FileExistsError:
                return
            finally:
                self._files.unlink(twin)
        raise UnavailableError(
            f"store does not keep a name from being taken twice path={self._root}",
            reason="STORE_UNSAFE",
            path=self._root,
        )

    def _make_root(self) -> None:
        """Make the root and the folder for temporary files, durably, where they are missing."""
        folders = [self._tmp, self._root, *self._root.parents]
        missing = [folder for folder in folders if not folder.exists()]
        self._root.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        self._tmp.mkdir(mode=_FOLDER_MODE, exist_ok=True)
        for folder in missing:
            self._sync_folder(folder.parent)

    def _make_durable(self, name: str, folder: Path) -> None:
        """Make a folder and those above it, and sync the entry of each in the one above."""
        if folder in self._durable or folder == self._root:
            return
        self._make_durable(name, folder.parent)
        try:
            folder.mkdir(mode=_FOLDER_MODE, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            check_nesting(name, taken=True)
        self._sync_folder(folder.parent)
        self._durable.add(folder)

    def _sync_folder(self, folder: Path) -> None:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._sync(fd, path=folder)
        finally:
            os.close(fd)

    def _sync(self, fd: int, *, path: Path) -> None:
        try:
            self._files.sync(fd)
        except OSError as error:
            if error.errno in _FULL:
                raise
            # Distinct, since nothing is known any more about what earlier syncs had promised:
            # whoever had data acknowledged by them must stop and recover.
            raise UnavailableError(
                f"store could not be synced path={path}: {error.strerror}",
                reason="STORE_SYNC_FAILED",
                path=path,
            ) from error

    @contextlib.contextmanager
    def _translated(self, action: str, name: str) -> Iterator[None]:
        """Turn errors of the system into the port's."""
        try:
            yield
        except OSError as error:
            full = error.errno in _FULL
            reason = "STORE_FULL" if full else "STORE_FAILED"
            raise UnavailableError(
                f"store cannot {action} path={self._root} name={name}: {error.strerror or error}",
                reason=reason,
                path=self._root,
                name=name,
            ) from error


def _raise_unless_gone(error: OSError) -> None:
    """Let a folder vanish while it is listed, or be none; anything else is a failure."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error
