"""Opens the object store that a setting names."""

from pathlib import Path

from facegrid.blob.directory import DirectoryStore
from facegrid.blob.port import BlobStore
from facegrid.errors import InvalidError


def open_store(url: str) -> BlobStore:
    """Return the store at "dir:PATH", once it is known to be writable and to keep names.

    Raises:
        InvalidError: no such kind of store (STORE_URL_MALFORMED).
        UnavailableError: the store cannot be used; the message names the path.
    """
    kind, _, where = url.partition(":")
    if kind != "dir" or not where:
        raise InvalidError(
            f"store must be dir:PATH store={url!r}", reason="STORE_URL_MALFORMED", field="store"
        )
    return DirectoryStore(Path(where))
