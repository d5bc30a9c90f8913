"""What a node knows of the cluster: the latest of what its watches told."""

from dataclasses import dataclass, field

from facegrid.coord import keys
from facegrid.coord.port import Changed, KeyValue, Listing, WatchEvent
from facegrid.errors import CorruptError
from facegrid.format.records import (
    Dropped,
    GenerationClaim,
    decode_dropped,
    decode_gallery,
    decode_generation,
    decode_node,
    decode_shard_map,
)
from facegrid.ids import NodeId, ShardId
from facegrid.model import Gallery, NodeInfo, ShardAssignment, ShardMap

WATCHED = (keys.MAPS, keys.GALLERIES, keys.DROPPED, keys.GENERATIONS, keys.NODES)

Value = ShardMap | Gallery | Dropped | GenerationClaim | NodeInfo


@dataclass(frozen=True, slots=True)
class Seen:
    """A decoded key, with the revision that guards name."""

    value: Value
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Holding:
    """A shard that the map gives to a node."""

    gallery: Gallery
    assignment: ShardAssignment
    map_revision: int


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

    def take(self, prefix: str, event: WatchEvent) -> bool:
        """Take in an event; tell whether anything is different now."""
        match event:
            case Listing(snapshot=snapshot):
                self.seen[prefix] = {}
                for item in snapshot.items:
                    self._put(prefix, item)
                self.listed.add(prefix)
                return True
            case Changed(key=key, item=None):
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
        try:
            self.seen[prefix][item.key] = _decode(prefix, item)
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

    def generation(self, shard_id: ShardId) -> GenerationClaim | None:
        """Return who claimed a shard last."""
        seen = self.seen[keys.GENERATIONS].get(keys.GENERATIONS + shard_id)
        return seen.value if seen is not None and isinstance(seen.value, GenerationClaim) else None

    def address(self, node_id: NodeId) -> str | None:
        """Return where a node can be reached, if it is registered."""
        found = self.addresses(node_id)
        return found[-1] if found else None

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

    def dropped(self, node_id: NodeId) -> list[Dropped]:
        """Return the dropped shards whose objects this node deletes."""
        records = [seen.value for seen in self.seen[keys.DROPPED].values()]
        return [r for r in records if isinstance(r, Dropped) and node_id in r.node_ids[:1]]

    def holdings(self, node_id: NodeId) -> dict[ShardId, Holding]:
        """Return the shards that the maps give to a node, in whatever role."""
        found: dict[ShardId, Holding] = {}
        for seen in self.seen[keys.MAPS].values():
            shard_map = seen.value
            assert isinstance(shard_map, ShardMap), "maps lie under the prefix of maps"
            gallery = self.gallery(shard_map.gallery)
            if gallery is None or gallery.uid != shard_map.gallery_uid:
                continue
            for assignment in shard_map.shards:
                if node_id in assignment.node_ids:
                    holding = Holding(gallery, assignment, seen.mod_revision)
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
