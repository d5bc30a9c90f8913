"""What etcd held, in a file: `fgctl meta save` writes it, other commands compare a store with it.

The file is one JSON document with the value of every key, in base64, as of one revision.
"""

import base64
import binascii
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from facegrid.coord import keys
from facegrid.errors import CorruptError, NotFoundError
from facegrid.format.log import LogRef
from facegrid.format.records import (
    GenerationClaim,
    ManifestPointer,
    decode_gallery,
    decode_generation,
    decode_manifest_pointer,
    decode_shard_map,
    decode_tip,
)
from facegrid.ids import GalleryName, ShardId
from facegrid.model import Gallery, ShardMap

VERSION = 1
KEPT = (
    keys.GALLERIES, keys.MAPS, keys.GENERATIONS, keys.TIPS, keys.MANIFESTS, keys.DROPPED,
)  # fmt: skip
"""Prefixes of what is kept. Registrations of nodes are not: they renew themselves."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Meta:
    """Records of etcd as of one revision, by key."""

    revision: int
    saved_unix_ms: int
    values: Mapping[str, bytes]

    @property
    def galleries(self) -> dict[GalleryName, Gallery]:
        """Settings by gallery."""
        found = self._decoded(keys.GALLERIES, decode_gallery)
        return {GalleryName(name): gallery for name, gallery in found.items()}

    @property
    def maps(self) -> dict[GalleryName, ShardMap]:
        """Shard maps by gallery."""
        found = self._decoded(keys.MAPS, decode_shard_map)
        return {GalleryName(name): shard_map for name, shard_map in found.items()}

    @property
    def claims(self) -> dict[ShardId, GenerationClaim]:
        """Generations by shard."""
        found = self._decoded(keys.GENERATIONS, decode_generation)
        return {ShardId(shard_id): claim for shard_id, claim in found.items()}

    @property
    def tips(self) -> dict[ShardId, LogRef]:
        """The last committed log object by shard."""
        found = self._decoded(keys.TIPS, decode_tip)
        return {ShardId(shard_id): tip.log for shard_id, tip in found.items()}

    @property
    def pointers(self) -> dict[ShardId, ManifestPointer]:
        """The ruling manifest by shard."""
        found = self._decoded(keys.MANIFESTS, decode_manifest_pointer)
        return {ShardId(shard_id): pointer for shard_id, pointer in found.items()}

    def _decoded(self, prefix: str, decode: Callable[[bytes], T]) -> dict[str, T]:
        return {
            keys.name_of(key, prefix): decode(value)
            for key, value in self.values.items()
            if key.startswith(prefix)
        }


def load(path: Path) -> Meta:
    """Read a file.

    Raises:
        NotFoundError: there is no such file (META_FILE).
        CorruptError: it is not what `save` wrote (META_FILE).
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["version"] != VERSION:
            raise CorruptError(
                "the file is of another version of fgctl meta save"
                f" path={path} version={document['version']}",
                reason="META_FILE",
            )
        return Meta(
            revision=int(document["revision"]),
            saved_unix_ms=int(document["saved_unix_ms"]),
            values={
                str(key): base64.b64decode(value, validate=True)
                for key, value in document["values"].items()
            },
        )
    except FileNotFoundError:
        raise NotFoundError(f"no such file path={path}", reason="META_FILE") from None
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error):
        # What the decoder says of a file of another kind helps nobody.
        raise CorruptError(
            f"this is no file of fgctl meta save, or it is damaged path={path}", reason="META_FILE"
        ) from None


def save(path: Path, meta: Meta) -> None:
    """Write a file durably so that a reader sees the old or the new one, never half."""
    document = {
        "version": VERSION,
        "revision": meta.revision,
        "saved_unix_ms": meta.saved_unix_ms,
        "values": {
            key: base64.b64encode(value).decode() for key, value in sorted(meta.values.items())
        },
    }
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps(document, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
