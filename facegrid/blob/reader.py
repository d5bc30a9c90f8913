"""The reading half of an object store, for tools that must not change a byte of it.

Opening a `DirectoryStore` makes folders, sweeps temporary files and writes a probe; this does none
of that, so it also works on a copy mounted read-only.
"""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from facegrid.blob.directory import LOCK_PATH
from facegrid.blob.names import check_object_name, check_prefix, is_object_name
from facegrid.errors import NotFoundError, UnavailableError


class BlobReader(Protocol):
    """What tools that only read need; every BlobStore has it too."""

    async def get(self, name: str) -> bytes:
        """Return an object's bytes. See BlobStore."""
        ...

    async def list(self, prefix: str) -> Sequence[str]:
        """Return the names that begin with a prefix, sorted. See BlobStore."""
        ...


class DirectoryReader:
    """A BlobReader of the folder that a DirectoryStore keeps.

    Args:
        root: the folder.

    Raises:
        UnavailableError: there is no such folder, or it cannot be read (STORE_FAILED).
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            os.scandir(root).close()
        except OSError as error:
            raise _failed(root, "", error) from error

    async def get(self, name: str) -> bytes:
        """Return an object's bytes. See BlobStore."""
        check_object_name(name)
        try:
            return await asyncio.to_thread((self.root / name).read_bytes)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise NotFoundError(
                f"no such object name={name}", reason="OBJECT_UNKNOWN", name=name
            ) from error
        except OSError as error:
            raise _failed(self.root, name, error) from error

    async def list(self, prefix: str) -> Sequence[str]:
        """Return the names that begin with a prefix, sorted. See BlobStore."""
        check_prefix(prefix)
        names = [name for name in await self._paths() if is_object_name(name)]
        return [name for name in names if name.startswith(prefix)]

    async def strangers(self) -> Sequence[str]:
        """Return the paths of files that are no objects: temporary files and what others put."""
        paths = await self._paths()
        return [name for name in paths if not is_object_name(name) and name != LOCK_PATH]

    async def _paths(self) -> Sequence[str]:
        return await asyncio.to_thread(self._walk)

    def _walk(self) -> Sequence[str]:
        def refuse(error: OSError) -> None:
            raise _failed(self.root, str(error.filename), error) from error

        found = []
        for folder, _, files in os.walk(self.root, onerror=refuse):
            inside = Path(folder).relative_to(self.root)
            found += [(inside / name).as_posix() for name in files]
        return sorted(found)


def _failed(root: Path, name: str, error: OSError) -> UnavailableError:
    return UnavailableError(
        f"store cannot be read path={root} name={name}: {error.strerror or error}",
        reason="STORE_FAILED",
        path=root,
        name=name,
    )
