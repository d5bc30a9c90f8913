"""Names of the keys in the coordinator, all relative to the cluster's root prefix.

There are O(shards) of them, never O(templates). Values are messages of facegrid.api.storage.v1,
see `facegrid.format.records`.
"""

from typing import Final

from facegrid.errors import InvalidError
from facegrid.ids import GalleryName, NodeId, ShardId

NODES: Final = "nodes/"
GENERATIONS: Final = "gen/"
TIPS: Final = "tip/"
MANIFESTS: Final = "manifest/"
MAPS: Final = "map/"
GALLERIES: Final = "galleries/"
DROPPED: Final = "dropped/"
OPERATIONS: Final = "ops/"
OPERATION_LOCKS: Final = "oplocks/"
MARKS: Final = "marks/"
DRIVER: Final = "driver"
"""The router that drives operations, under its lease."""
REBALANCER: Final = "rebalancer"
"""How operations are run."""


def node(node_id: NodeId, boot_id: str) -> str:
    """Return the key of a node's registration; each start of the process has its own."""
    return f"{NODES}{_part(node_id)}/{_part(boot_id)}"


def generation(shard_id: ShardId) -> str:
    """Return the key of the shard's current generation: who may commit."""
    return GENERATIONS + _part(shard_id)


def tip(shard_id: ShardId) -> str:
    """Return the key of the shard's last committed log object."""
    return TIPS + _part(shard_id)


def manifest(shard_id: ShardId) -> str:
    """Return the key of the shard's manifest pointer."""
    return MANIFESTS + _part(shard_id)


def shard_map(gallery_name: GalleryName) -> str:
    """Return the key of the gallery's shard map."""
    return MAPS + _part(gallery_name)


def gallery(gallery_name: GalleryName) -> str:
    """Return the key of the gallery's settings."""
    return GALLERIES + _part(gallery_name)


def dropped(shard_id: ShardId) -> str:
    """Return the key that says: this shard's objects are to be deleted."""
    return DROPPED + _part(shard_id)


def operation(operation_id: str) -> str:
    """Return the key of an operation's record."""
    return OPERATIONS + _part(operation_id)


def operation_lock(shard_id: ShardId) -> str:
    """Return the key that names the operation which may change a shard."""
    return OPERATION_LOCKS + _part(shard_id)


def mark(node_id: NodeId) -> str:
    """Return the key of what operators want of a node."""
    return MARKS + _part(node_id)


def name_of(key: str, prefix: str) -> str:
    """Return what follows the prefix: the shard, the gallery, or `<node>/<boot>`.

    >>> name_of("galleries/staff", GALLERIES)
    'staff'
    """
    assert key.startswith(prefix), f"not under this prefix: {key} {prefix}"
    return key[len(prefix) :]


def _part(name: str) -> str:
    """Return the name unless it would end up as another key."""
    if not name or "/" in name or not name.isprintable():
        raise InvalidError(f"name cannot be part of a key name={name!r}", reason="NAME_MALFORMED")
    return name
