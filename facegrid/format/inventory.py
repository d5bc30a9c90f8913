"""What lies in an object store, told by the names alone."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from facegrid.format.load_pin import parse_pin_name
from facegrid.format.log import parse_log_name
from facegrid.format.stored_gallery import parse_stored_gallery_name
from facegrid.ids import ShardId

SHA256_HEX_CHARS: Final = 64

_HASHED: Final = re.compile(r"shards/([^/]+)/(segments|manifests)/[0-9a-f]{64}")
_JOURNAL: Final = re.compile(r"journal/[^/]+/[^/]+/\d{19}-[0-9a-f]{64}")
_CODEBOOK: Final = re.compile(r"codebooks/([^/]+)/[0-9a-f]{64}")


@dataclass(slots=True)
class ShardNames:
    """Names of the objects of one shard, each list sorted; log objects in the order written."""

    logs: list[str] = field(default_factory=list)
    segments: list[str] = field(default_factory=list)
    manifests: list[str] = field(default_factory=list)
    pins: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Number of objects."""
        return len(self.logs) + len(self.segments) + len(self.manifests) + len(self.pins)


@dataclass(slots=True)
class Inventory:
    """Names by what they say. `galleries` are copies of etcd's records of galleries, `journals`
    objects of erasure journals, `others` names that no format of this version has.
    """

    shards: dict[ShardId, ShardNames] = field(default_factory=dict)
    codebooks: list[str] = field(default_factory=list)
    galleries: list[str] = field(default_factory=list)
    journals: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def take_inventory(names: Iterable[str]) -> Inventory:
    """Sort names by shard and kind."""
    inventory = Inventory()
    for name in sorted(names):
        hashed = _HASHED.fullmatch(name)
        if parse_log_name(name) is not None:
            _shard(inventory, name.split("/")[1]).logs.append(name)
        elif hashed is not None:
            held = _shard(inventory, hashed[1])
            (held.segments if hashed[2] == "segments" else held.manifests).append(name)
        elif parse_pin_name(name) is not None:
            _shard(inventory, name.split("/")[1]).pins.append(name)
        elif parse_stored_gallery_name(name) is not None:
            inventory.galleries.append(name)
        elif _JOURNAL.fullmatch(name):
            inventory.journals.append(name)
        elif _CODEBOOK.fullmatch(name):
            inventory.codebooks.append(name)
        else:
            inventory.others.append(name)
    return inventory


def named_sha256(name: str) -> str:
    """Return the sha256 that ends the name of any object but those of the log."""
    return name[-SHA256_HEX_CHARS:]


def gallery_of(shard_id: str) -> tuple[str, str]:
    """Return name and uid of the gallery that a shard belongs to; empty texts where it says none.

    >>> gallery_of("staff.1f00aa23.0003")
    ('staff', '1f00aa23')
    """
    parts = shard_id.split(".")
    return (parts[0], parts[1]) if len(parts) == 3 else ("", "")


def _shard(inventory: Inventory, shard_id: str) -> ShardNames:
    return inventory.shards.setdefault(ShardId(shard_id), ShardNames())
