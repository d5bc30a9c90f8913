"""What a node knows of the cluster: the latest of what its watches told."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from facegrid.coord import keys
from facegrid.coord.port import Changed, KeyValue, Listing, WatchEvent
from facegrid.errors import CorruptError, UnavailableError
from facegrid.format.records import (
    Dropped,
    GenerationClaim,
    decode_dropped,
    decode_gallery,
    decode_generation,
    decode_node,
    decode_shard_map,
)
from facegrid.format.stored_gallery import StoredGallery
from facegrid.ids import NodeId, ShardId
from facegrid.model import Gallery, NodeInfo, ShardAssignment, ShardMap
from indexd.replica.takeover import MapSeen

WATCHED = (keys.MAPS, keys.GALLERIES, keys.DROPPED, keys.GENERATIONS, keys.NODES)

Value = ShardMap | Gallery | Dropped | GenerationClaim | NodeInfo


@dataclass(frozen=True, slots=True)
class Seen:
    """A decoded key, with the revision that guards name."""

    value: Value
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Holding:
    """A shard that the map gives to a node, and that map's revision in etcd and version."""

    gallery: Gallery
    assignment: ShardAssignment
    map_revision: int
    map_version: int


@dataclass(frozen=True, slots=True)
class DropOrder:
    """A dropped shard whose objects are to be deleted, and the revision that guards the record."""

    record: Dropped
    revision: int


@dataclass(slots=True)
class View:
    """Keys by prefix.

    `listed` tells which prefixes have been read in full, `refused` which keys hold what this
    version cannot read, and why: one such record must not hide the others.
    """

    seen: dict[str, dict[str, Seen]] = field(
        default_factory=lambda: {prefix: {} for prefix in WATCHED}
    )
    listed: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)
    items: dict[str, KeyValue] = field(default_factory=dict)
    """All keys as they were read, to be saved for a start without etcd."""
    heard_s: dict[str, float] = field(default_factory=dict)
    """When each prefix was last heard of, changes or not."""
    last_registrations: dict[NodeId, str] = field(default_factory=dict)
    """The key under which each node was last registered, whether it still is or not."""
    restored: bool = False
    """Whether there is a view from the disk to start from."""

    def restore(self, items: Iterable[KeyValue]) -> None:
        """Take up what was saved, until etcd tells what is true now."""
        for item in items:
            prefix = next((one for one in WATCHED if item.key.startswith(one)), None)
            # Who is there, and who may write, was true then and is of no use now.
            if prefix in (keys.MAPS, keys.GALLERIES, keys.DROPPED):
                self._put(prefix, item)
                self.restored = True

    def take(self, prefix: str, event: WatchEvent) -> bool:
        """Take in an event; tell whether anything is different now."""
        match event:
            case Listing(snapshot=snapshot):
                for key in self.seen[prefix]:
                    self.items.pop(key, None)
                self.seen[prefix] = {}
                for item in snapshot.items:
                    self._put(prefix, item)
                self.listed.add(prefix)
                return True
            case Changed(key=key, item=None):
                self.items.pop(key, None)
                return self.seen[prefix].pop(key, None) is not None
            case Changed(key=key, item=KeyValue() as item):
                self.seen[prefix].pop(key, None)
                self._put(prefix, item)
                return True
            case _:
                return False

    def _put(self, prefix: str, item: KeyValue) -> None:
        """Keep a record, or the reason why it cannot be read."""
        self.refused.pop(item.key, None)
        self.items[item.key] = item
        try:
            self.seen[prefix][item.key] = seen = _decode(prefix, item)
            if isinstance(seen.value, NodeInfo):
                self.last_registrations[seen.value.node_id] = item.key
        except CorruptError as error:
            self.refused[item.key] = error.message

    @property
    def complete(self) -> bool:
        """Whether every prefix has been read in full."""
        return len(self.listed) == len(WATCHED)

    def gallery(self, name: str) -> Gallery | None:
        """Return a gallery by name."""
        seen = self.seen[keys.GALLERIES].get(keys.GALLERIES + name)
        return seen.value if seen is not None and isinstance(seen.value, Gallery) else None

    def gallery_revision(self, name: str) -> int:
        """Return the revision of a gallery's record, 0 where there is none."""
        seen = self.seen[keys.GALLERIES].get(keys.GALLERIES + name)
        return 0 if seen is None else seen.mod_revision

    def shard_map(self, name: str) -> ShardMap | None:
        """Return a gallery's map."""
        seen = self.seen[keys.MAPS].get(keys.MAPS + name)
        return seen.value if seen is not None and isinstance(seen.value, ShardMap) else None

    def stored_gallery(self, gallery: Gallery) -> StoredGallery | None:
        """Return what etcd says of a gallery; None while settings and map do not match."""
        shard_map = self.shard_map(gallery.name)
        if shard_map is None or shard_map.gallery_uid != gallery.uid:
            return None
        return StoredGallery(gallery, shard_map)

    def generation(self, shard_id: ShardId) -> GenerationClaim | None:
        """Return who claimed a shard last."""
        seen = self.seen[keys.GENERATIONS].get(keys.GENERATIONS + shard_id)
        return seen.value if seen is not None and isinstance(seen.value, GenerationClaim) else None

    def address(self, node_id: NodeId) -> str | None:
        """Return where a node can be reached, if it is registered."""
        found = self.addresses(node_id)
        return found[-1] if found else None

    def primary_address(self, shard: ShardAssignment) -> str:
        """Return where the primary of a shard can be reached; it may be this very node.

        Raises:
            UnavailableError: it is not registered (NODE_AWAY).
        """
        address = self.address(shard.primary)
        if address is None:
            raise UnavailableError(
                f"node is not registered node={shard.primary} shard={shard.shard_id}",
                reason="NODE_AWAY",
                node=shard.primary,
            )
        return address

    def addresses(self, node_id: NodeId) -> list[str]:
        """Return where the processes of a node can be reached, the latest registered last.

        A node that was killed and started again is listed twice until the old lease ends.
        """
        found = [
            (seen.mod_revision, seen.value.address)
            for seen in self.seen[keys.NODES].values()
            if isinstance(seen.value, NodeInfo) and seen.value.node_id == node_id
        ]
        return list(dict.fromkeys(address for _, address in sorted(found)))

    def all_addresses(self) -> set[str]:
        """Return where all processes that are registered can be reached."""
        nodes = [seen.value for seen in self.seen[keys.NODES].values()]
        return {node.address for node in nodes if isinstance(node, NodeInfo)}

    def maps(self) -> list[MapSeen]:
        """Return the maps of galleries whose settings belong to them, with their revisions."""
        found = []
        for seen in self.seen[keys.MAPS].values():
            shard_map = seen.value
            assert isinstance(shard_map, ShardMap), "maps lie under the prefix of maps"
            gallery = self.gallery(shard_map.gallery)
            if gallery is not None and gallery.uid == shard_map.gallery_uid:
                found.append(MapSeen(shard_map, seen.mod_revision))
        return found

    def registered(self) -> set[NodeId]:
        """Return the nodes that are registered."""
        nodes = [seen.value for seen in self.seen[keys.NODES].values()]
        return {node.node_id for node in nodes if isinstance(node, NodeInfo)}

    def former_registrations(self, node_ids: Iterable[NodeId]) -> list[str]:
        """Return the keys under which nodes were last registered, as far as known."""
        return [self.last_registrations[n] for n in node_ids if n in self.last_registrations]

    def drop_orders(self) -> list[DropOrder]:
        """Return the dropped shards whose objects are to be deleted."""
        return [
            DropOrder(seen.value, seen.mod_revision)
            for seen in self.seen[keys.DROPPED].values()
            if isinstance(seen.value, Dropped)
        ]

    def holdings(self, node_id: NodeId) -> dict[ShardId, Holding]:
        """Return the shards that the maps give to a node, in whatever role: those too that it
        joins, and those that are being filled.
        """
        found: dict[ShardId, Holding] = {}
        for seen in self.maps():
            gallery = self.gallery(seen.shard_map.gallery)
            assert gallery is not None, "only maps of galleries are listed"
            version = seen.shard_map.version
            for assignment in seen.shard_map.held:
                if node_id in assignment.holders:
                    holding = Holding(gallery, assignment, seen.revision, version)
                    found[assignment.shard_id] = holding
        return found


def _decode(prefix: str, item: KeyValue) -> Seen:
    """Decode a value by the prefix that it lies under."""
    value: Value
    match prefix:
        case keys.MAPS:
            value = decode_shard_map(item.value)
        case keys.GALLERIES:
            value = decode_gallery(item.value)
        case keys.DROPPED:
            value = decode_dropped(item.value)
        case keys.GENERATIONS:
            value = decode_generation(item.value)
        case keys.NODES:
            value = decode_node(item.value)
        case _:
            raise CorruptError(f"no such prefix prefix={prefix}")
    return Seen(value, item.mod_revision)
