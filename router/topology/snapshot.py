"""The cluster as of one moment, as a value: every decision is made from one of these."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from facegrid.coord import keys
from facegrid.coord.port import KeyValue
from facegrid.errors import CorruptError
from facegrid.format import records
from facegrid.ids import GalleryName, NodeId
from facegrid.model import Gallery, NodeInfo, ShardMap


@dataclass(frozen=True, slots=True)
class ServedGallery:
    """A gallery with the map that belongs to it."""

    gallery: Gallery
    shard_map: ShardMap


@dataclass(frozen=True, slots=True)
class Topology:
    """Who is there and who holds what.

    Attributes:
        galleries: those of which both the settings and the map are known and belong together.
        nodes: registered at present.
        addresses: where nodes were last, registered or not. A registration is a hint: a node whose
            lease ran out may well answer.
    """

    galleries: Mapping[GalleryName, ServedGallery] = field(default_factory=dict)
    nodes: Mapping[NodeId, NodeInfo] = field(default_factory=dict)
    addresses: Mapping[NodeId, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Problem:
    """A key whose value cannot be used, and why."""

    key: str
    why: str


@dataclass(frozen=True, slots=True)
class Assembled:
    """A topology and what had to be left out of it."""

    topology: Topology
    problems: tuple[Problem, ...]


def assemble(items: Iterable[KeyValue], *, addresses: Mapping[NodeId, str]) -> Assembled:
    """Return the topology that the keys of galleries/, map/ and nodes/ describe.

    A damaged record is left out and told, so that one gallery never takes others down with it.

    Args:
        items: the keys, in any order.
        addresses: where nodes were before.
    """
    galleries: dict[GalleryName, Gallery] = {}
    maps: dict[GalleryName, ShardMap] = {}
    nodes: dict[NodeId, NodeInfo] = {}
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
        except CorruptError as error:
            problems.append(Problem(item.key, error.message))
    served = {
        name: ServedGallery(gallery, maps[name])
        for name, gallery in sorted(galleries.items())
        if name in maps and maps[name].gallery_uid == gallery.uid
    }
    current = {node_id: node.address for node_id, node in nodes.items()}
    mapped = {
        node_id
        for item in served.values()
        for shard in item.shard_map.shards
        for node_id in shard.node_ids
    }
    kept = {node_id: address for node_id, address in addresses.items() if node_id in mapped}
    return Assembled(Topology(served, nodes, kept | current), tuple(problems))
