"""The object store in memory: the twin of facegrid.blob.directory, for tests."""

from collections.abc import Sequence

from facegrid.blob.names import check_nesting, check_object_name, check_prefix
from facegrid.errors import ConflictError, NotFoundError


class MemoryBlobStore:
    """A BlobStore in a dict. `objects` may be read and damaged by tests."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    async def put_new(self, name: str, data: bytes) -> None:
        """Store an object under a name never used before. See BlobStore."""
        check_object_name(name)
        if name in self.objects:
            raise ConflictError(f"object exists name={name}", reason="OBJECT_EXISTS", name=name)
        check_nesting(name, taken=self._nested(name))
        self.objects[name] = bytes(data)

    async def get(self, name: str) -> bytes:
        """Return an object's bytes. See BlobStore."""
        check_object_name(name)
        if name not in self.objects:
            raise NotFoundError(f"no such object name={name}", reason="OBJECT_UNKNOWN", name=name)
        return self.objects[name]

    async def list(self, prefix: str) -> Sequence[str]:
        """Return the names that begin with a prefix, sorted. See BlobStore."""
        check_prefix(prefix)
        return sorted(name for name in self.objects if name.startswith(prefix))

    async def delete(self, name: str) -> None:
        """Delete an object. See BlobStore."""
        check_object_name(name)
        self.objects.pop(name, None)

    def _nested(self, name: str) -> bool:
        below = f"{name}/"
        return any(
            other.startswith(below) or name.startswith(f"{other}/") for other in self.objects
        )
