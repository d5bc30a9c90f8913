"""What facegrid asks of an object store: named immutable bytes.

Real: `facegrid.blob.directory` and `facegrid.blob.s3`; twin for tests:
`facegrid.testing.memory_blob`. One conformance suite holds all to the same behaviour. Names are
slash-separated segments of [a-zA-Z0-9._-]. No name lies below another name: where the store could
hold both, callers still must not ask for it.
"""

from collections.abc import Sequence
from typing import Protocol


class BlobStore(Protocol):
    """Methods raise UnavailableError when the store cannot be reached or is full (reason
    STORE_FULL); the outcome of a write is then unknown and resolved by reading back.
    """

    async def put_new(self, name: str, data: bytes) -> None:
        """Store an object durably under a name never used before.

        When it returns, the bytes survive a power cut. An object is visible whole or not at all.

        Raises:
            ConflictError: the name exists (reason OBJECT_EXISTS); nothing was changed.
            OverloadedError: the store asks to slow down; the outcome is unknown as well.
        """
        ...

    async def get(self, name: str) -> bytes:
        """Return an object's bytes.

        Raises:
            NotFoundError: no such object.
        """
        ...

    async def list(self, prefix: str) -> Sequence[str]:
        """Return the names that begin with a prefix, sorted."""
        ...

    async def delete(self, name: str) -> None:
        """Delete an object durably; deleting what is not there is no error."""
        ...
