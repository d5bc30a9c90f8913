"""An object store with failpoints: every call is named by what it does to which kind of object."""

from collections.abc import Sequence
from typing import Final

from facegrid.blob.port import BlobStore
from facegrid.failpoint.points import Failpoints

KINDS: Final = {
    "log": "log",
    "segments": "segment",
    "manifests": "manifest",
    "cluster": "gallery",
    "codebooks": "codebook",
    "journal": "journal",
    "loads": "pin",
}
"""By the part of a name that tells."""


def kind_of(name: str) -> str:
    """Return the kind of object that a name or a prefix is about.

    >>> kind_of("shards/g.1f00aa23.0000/log/0000000001-0000000000000000001-aa")
    'log'
    >>> kind_of("somewhere/else")
    'other'
    """
    parts = name.split("/")
    if parts[0] == "shards" and len(parts) > 2:
        return KINDS.get(parts[2], "other")
    return KINDS.get(parts[0], "other")


class FailingStore:
    """A BlobStore that fails where failpoints say so."""

    def __init__(self, store: BlobStore, failpoints: Failpoints) -> None:
        self._store = store
        self._failpoints = failpoints

    async def put_new(self, name: str, data: bytes) -> None:
        """Store an object under a name never used before. See BlobStore."""
        point = f"store.put.{kind_of(name)}"
        self._failpoints.reach(point, "before")
        await self._store.put_new(name, data)
        self._failpoints.reach(point, "after")

    async def get(self, name: str) -> bytes:
        """Return an object's bytes. See BlobStore."""
        point = f"store.get.{kind_of(name)}"
        self._failpoints.reach(point, "before")
        data = await self._store.get(name)
        self._failpoints.reach(point, "after")
        return data

    async def list(self, prefix: str) -> Sequence[str]:
        """Return the names that begin with a prefix, sorted. See BlobStore."""
        point = f"store.list.{kind_of(prefix)}"
        self._failpoints.reach(point, "before")
        names = await self._store.list(prefix)
        self._failpoints.reach(point, "after")
        return names

    async def delete(self, name: str) -> None:
        """Delete an object durably. See BlobStore."""
        point = f"store.delete.{kind_of(name)}"
        self._failpoints.reach(point, "before")
        await self._store.delete(name)
        self._failpoints.reach(point, "after")
