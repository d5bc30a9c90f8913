"""The cluster as of one moment, as a value: every decision is made from one of these."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from facegrid.coord import keys
from facegrid.coord.port import KeyValue
from facegrid.errors import CorruptError
from facegrid.format import records
from facegrid.format.records import GenerationClaim
from facegrid.ids import GalleryName, NodeId, ShardId
from facegrid.model import Gallery, NodeInfo, ShardAssignment, ShardMap


@dataclass(frozen=True, slots=True)
class ServedGallery:
    """A gallery with the map that belongs to it."""

    gallery: Gallery
    shard_map: ShardMap

    @property
    def described(self) -> Gallery:
        """The settings with the number of shards that there are, which may not be the number that
        the gallery was created with.
        """
        return replace(self.gallery, shards_count=len(self.shard_map.shards))


@dataclass(frozen=True, slots=True)
class Topology:
    """Who is there and who holds what.

    Attributes:
        galleries: those of which both the settings and the map are known and belong together.
        nodes: registered at present.
        addresses: where nodes were last, registered or not. A registration is a hint: a node whose
            lease ran out may well answer.
        claims: which process claimed a shard last: the only one that may commit to it, whatever
            map and registrations say.
    """

    galleries: Mapping[GalleryName, ServedGallery] = field(default_factory=dict)
    nodes: Mapping[NodeId, NodeInfo] = field(default_factory=dict)
    addresses: Mapping[NodeId, str] = field(default_factory=dict)
    claims: Mapping[ShardId, GenerationClaim] = field(default_factory=dict)

    def shard(self, gallery: GalleryName, shard_id: ShardId) -> ShardAssignment | None:
        """Return where a shard is; None where the gallery does not have it any more."""
        served = self.galleries.get(gallery)
        shards = () if served is None else served.shard_map.shards
        return next((shard for shard in shards if shard.shard_id == shard_id), None)


@dataclass(frozen=True, slots=True)
class Problem:
    """A key whose value cannot be used, and why."""

    key: str
    why: str


@dataclass(frozen=True, slots=True)
class Assembled:
    """A topology and what had to be left out of it.

    Attributes:
        topology: what can be used.
        problems: records that cannot.
        halves: settings without a map and maps without settings. For a moment that is so whenever
            a gallery comes or goes, since each is heard of by itself.
    """

    topology: Topology
    problems: tuple[Problem, ...]
    halves: tuple[Problem, ...] = ()


def assemble(items: Iterable[KeyValue], *, addresses: Mapping[NodeId, str]) -> Assembled:
    """Return the topology that the keys of galleries/, map/, gen/ and nodes/ describe.

    A damaged record is left out and told, so that one gallery never takes others down with it.

    Args:
        items: the keys, in any order.
        addresses: where nodes were before.
    """
    galleries: dict[GalleryName, Gallery] = {}
    maps: dict[GalleryName, ShardMap] = {}
    nodes: dict[NodeId, NodeInfo] = {}
    claims: dict[ShardId, GenerationClaim] = {}
    problems: list[Problem] = []
    # By revision, so that of two registrations of one node the newer one stays.
    for item in sorted(items, key=lambda item: item.mod_revision):
        try:
            if item.key.startswith(keys.GALLERIES):
                gallery = records.decode_gallery(item.value)
                galleries[gallery.name] = gallery
            elif item.key.startswith(keys.MAPS):
                shard_map = records.decode_shard_map(item.value)
                maps[shard_map.gallery] = shard_map
            elif item.key.startswith(keys.NODES):
                node = records.decode_node(item.value)
                nodes[node.node_id] = node
            elif item.key.startswith(keys.GENERATIONS):
                shard_id = ShardId(keys.name_of(item.key, keys.GENERATIONS))
                claims[shard_id] = records.decode_generation(item.value)
        except CorruptError as error:
            problems.append(Problem(item.key, error.message))
    served = {
        name: ServedGallery(gallery, maps[name])
        for name, gallery in sorted(galleries.items())
        if name in maps and maps[name].gallery_uid == gallery.uid
    }
    current = {node_id: node.address for node_id, node in nodes.items()}
    shards = [shard for item in served.values() for shard in item.shard_map.held]
    mapped = {node_id for shard in shards for node_id in shard.holders}
    kept = {node_id: address for node_id, address in addresses.items() if node_id in mapped}
    ruling = {
        shard.shard_id: claims[shard.shard_id] for shard in shards if shard.shard_id in claims
    }
    halves = [
        Problem(keys.gallery(name), f"gallery {name} has no map")
        for name in sorted(galleries.keys() - served.keys())
    ]
    halves += [
        Problem(keys.shard_map(name), f"the map of gallery {name} has no settings")
        for name in sorted(maps.keys() - galleries.keys())
    ]
    topology = Topology(served, nodes, kept | current, ruling)
    return Assembled(topology, tuple(problems), tuple(halves))
