"""Keeps etcd's records of a gallery in the object store too, for the day that etcd is lost."""

from facegrid.blob.port import BlobStore
from facegrid.errors import ConflictError, CorruptError, UnavailableError
from facegrid.format.checks import sha256_hex
from facegrid.format.stored_gallery import (
    StoredGallery,
    encode_stored_gallery,
    parse_stored_gallery_name,
    stored_gallery_name,
    stored_gallery_prefix,
)
from indexd.engine.recovery import fetch


async def keep(store: BlobStore, stored: StoredGallery) -> str:
    """Store the records of a gallery, unless they are there; return the object's name.

    Raises:
        CorruptError: the object is there and damaged.
        UnavailableError: the store cannot be reached, or another node has just deleted them, since
            there are newer ones (RECORD_REPLACED): try again with what etcd says then.
    """
    data = encode_stored_gallery(stored)
    sha256 = sha256_hex(data)
    name = stored_gallery_name(stored, sha256)
    try:
        await store.put_new(name, data)
    except ConflictError:
        try:
            await fetch(store, name, sha256)
        except CorruptError as error:
            if error.reason != "OBJECT_MISSING":
                raise
            # It was there a moment ago: nothing is damaged.
            raise UnavailableError(
                f"the records of the gallery are being replaced name={name}",
                reason="RECORD_REPLACED",
            ) from error
    return name


async def forget_older(store: BlobStore, stored: StoredGallery, name: str) -> None:
    """Delete what these records have replaced; never those of a newer map."""
    for other in await store.list(stored_gallery_prefix(stored.gallery.uid)):
        parsed = parse_stored_gallery_name(other)
        if other != name and parsed is not None and parsed[1] <= stored.shard_map.version:
            await store.delete(other)
