"""What the object store keeps of etcd's records about a gallery, for the day that etcd is lost.

One object is one frame of kind STORED_GALLERY: settings and map of a gallery, in the very bytes
that etcd holds. It is named by the map's version, so that the newest is known by name, and by its
sha256.
"""

import re
from dataclasses import dataclass
from typing import Final

from facegrid.api.storage.v1 import storage_pb2
from facegrid.format.checks import Buffer, parse, require, serialized
from facegrid.format.frame import Kind, encode_frame, expect_frames
from facegrid.format.records import (
    decode_gallery,
    decode_shard_map,
    encode_gallery,
    encode_shard_map,
)
from facegrid.model import Gallery, ShardMap

_WHAT: Final = "stored gallery"
_RAW_BYTES_MAX: Final = 16 * 1024 * 1024
_NAME: Final = re.compile(r"cluster/([^/]+)/(\d{19})-([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class StoredGallery:
    """A gallery's settings and its map, which belong together."""

    gallery: Gallery
    shard_map: ShardMap


def stored_gallery_prefix(gallery_uid: str) -> str:
    """Return what the names of all such objects of a gallery begin with."""
    return f"cluster/{gallery_uid}/"


def stored_gallery_name(stored: StoredGallery, sha256: str) -> str:
    """Return the name of the object that has this sha256 in hex."""
    prefix = stored_gallery_prefix(stored.gallery.uid)
    return f"{prefix}{stored.shard_map.version:019d}-{sha256}"


def parse_stored_gallery_name(name: str) -> tuple[str, int] | None:
    """Return the gallery's uid and the map's version; None for names of other objects."""
    found = _NAME.fullmatch(name)
    return (found[1], int(found[2])) if found else None


def encode_stored_gallery(stored: StoredGallery) -> bytes:
    """Return the object's bytes."""
    problem = stored_gallery_problem(stored)
    assert not problem, problem
    message = storage_pb2.StoredGallery(
        gallery=encode_gallery(stored.gallery), shard_map=encode_shard_map(stored.shard_map)
    )
    return encode_frame(Kind.STORED_GALLERY, serialized(message), compress="lz4")


def decode_stored_gallery(data: Buffer) -> StoredGallery:
    """Return what the object holds.

    Raises:
        CorruptError: damaged, or made by a version that writes what this one cannot read.
    """
    kinds = [Kind.STORED_GALLERY]
    (payload,) = expect_frames(data, kinds, what=_WHAT, raw_bytes_max=_RAW_BYTES_MAX)
    message = parse(storage_pb2.StoredGallery(), payload, what=_WHAT)
    stored = StoredGallery(decode_gallery(message.gallery), decode_shard_map(message.shard_map))
    problem = stored_gallery_problem(stored)
    require(not problem, _WHAT, problem)
    return stored


def stored_gallery_problem(stored: StoredGallery) -> str:
    """Say why settings and map do not belong together; empty when they do."""
    gallery, shard_map = stored.gallery, stored.shard_map
    if (gallery.name, gallery.uid) != (shard_map.gallery, shard_map.gallery_uid):
        return f"the map is of another gallery gallery={gallery.name} map={shard_map.gallery}"
    return ""
