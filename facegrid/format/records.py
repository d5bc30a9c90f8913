"""What lies in etcd: values to the messages of facegrid.api.storage.v1 and back.

The messages are stored bare, since etcd checks its own bytes. Every `decode_x` raises CorruptError
for bytes that are no such record, and for a record that needs a feature that this version lacks
(reason FEATURE_UNKNOWN).
"""

from dataclasses import dataclass

from facegrid import limits
from facegrid.api.storage.v1 import storage_pb2
from facegrid.errors import CorruptError, InvalidError
from facegrid.format.checks import (
    COMPONENT_BITS,
    GALLERY_LIVES,
    MAP_JOINING,
    MAP_MADE_COUNT,
    MAP_PENDING,
    parse,
    require,
    serialized,
    sha256_problem,
)
from facegrid.format.log import LogRef, ref_from_message, ref_to_message
from facegrid.format.tiling import tiling_problem
from facegrid.ids import GalleryName, NodeId, ShardId, check_gallery_name
from facegrid.model import Gallery, HashRange, NodeInfo, ShardAssignment, ShardMap
from facegrid.tuning import MISS_RATE_MAX_DEFAULT, Profile, Tuning
from facegrid.tuning_messages import (
    from_profile_message,
    from_tuning_message,
    to_profile_message,
    to_tuning_message,
)
from facegrid.vectors import BITS_DEFAULT, COMPONENT_BITS_KNOWN


@dataclass(frozen=True, slots=True)
class GenerationClaim:
    """gen/<shard>: which process is the shard's primary. The generation is the fencing token."""

    generation: int
    node_id: NodeId
    boot_id: str


@dataclass(frozen=True, slots=True)
class Tip:
    """tip/<shard>: the last committed log object."""

    log: LogRef


@dataclass(frozen=True, slots=True)
class ManifestPointer:
    """manifest/<shard>: the manifest that rules.

    Attributes:
        sha256: names the object manifests/<sha256>, 64 hex digits.
        position: of the last record that its segments hold.
        generation: of the primary that committed it.
    """

    sha256: str
    position: int
    generation: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """dropped/<shard>: objects to be deleted by the first node named, or one after it.

    `gallery_lives`: only this shard goes, and what belongs to the gallery stays.
    """

    shard_id: ShardId
    gallery_uid: str
    node_ids: tuple[NodeId, ...]
    gallery_lives: bool = False


def encode_gallery(gallery: Gallery) -> bytes:
    """Return the value of galleries/<name>. The templates are not counted there."""
    coarse = gallery.component_bits != BITS_DEFAULT
    return serialized(
        storage_pb2.GalleryRecord(
            name=gallery.name,
            uid=gallery.uid,
            dim=gallery.dim,
            extractor=gallery.extractor,
            shards_count=gallery.shards_count,
            replicas_count=gallery.replicas_count,
            train_at_templates_count=gallery.train_at_templates_count,
            codebook=gallery.codebook,
            created_unix_ms=gallery.created_unix_ms,
            # What is as by default is left out, so that older versions write the same.
            profile=to_profile_message(
                None if gallery.profile is Profile.BALANCED else gallery.profile
            ),
            miss_rate_max=(
                0.0 if gallery.miss_rate_max == MISS_RATE_MAX_DEFAULT else gallery.miss_rate_max
            ),
            tuning=None if gallery.tuning is None else to_tuning_message(gallery.tuning),
            retrained_unix_ms=gallery.retrained_unix_ms,
            component_bits=gallery.component_bits if coarse else 0,
            required_features=[COMPONENT_BITS] if coarse else [],
        )
    )


def decode_gallery(data: bytes) -> Gallery:
    """Return the gallery that galleries/<name> describes."""
    what = "gallery record"
    message = parse(storage_pb2.GalleryRecord(), data, what=what)
    require(bool(message.uid), what, "no uid")
    require(1 <= message.dim <= limits.DIM_MAX, what, f"dim={message.dim}")
    require(message.shards_count >= 1, what, f"shards_count={message.shards_count}")
    require(message.replicas_count >= 1, what, f"replicas_count={message.replicas_count}")
    bits = message.component_bits or BITS_DEFAULT
    require(bits in COMPONENT_BITS_KNOWN, what, f"component_bits={bits}")
    problem = sha256_problem(message.codebook) if message.codebook else ""
    require(not problem, what, problem)
    return Gallery(
        name=_gallery_name(message.name, what),
        uid=message.uid,
        dim=message.dim,
        extractor=message.extractor,
        shards_count=message.shards_count,
        replicas_count=message.replicas_count,
        train_at_templates_count=message.train_at_templates_count,
        codebook=message.codebook,
        created_unix_ms=message.created_unix_ms,
        profile=_profile(message, what),
        miss_rate_max=message.miss_rate_max or MISS_RATE_MAX_DEFAULT,
        tuning=_tuning(message, what),
        retrained_unix_ms=message.retrained_unix_ms,
        component_bits=bits,
    )


def _profile(message: storage_pb2.GalleryRecord, what: str) -> Profile:
    try:
        return from_profile_message(message.profile) or Profile.BALANCED
    except InvalidError as error:
        raise CorruptError(f"{what}: {error}") from error


def _tuning(message: storage_pb2.GalleryRecord, what: str) -> Tuning | None:
    if not message.HasField("tuning"):
        return None
    try:
        return from_tuning_message(message.tuning)
    except InvalidError as error:
        raise CorruptError(f"{what}: {error}") from error


def encode_shard_map(shard_map: ShardMap) -> bytes:
    """Return the value of map/<gallery>."""
    problem = tiling_problem(shard_map)
    assert not problem, problem
    return serialized(
        storage_pb2.ShardMapRecord(
            required_features=_map_features(shard_map),
            gallery=shard_map.gallery,
            gallery_uid=shard_map.gallery_uid,
            version=shard_map.version,
            shards=[_shard_to_message(shard) for shard in shard_map.shards],
            pending=[_shard_to_message(shard) for shard in shard_map.pending],
            made_count=shard_map.made_count,
        )
    )


def _map_features(shard_map: ShardMap) -> list[str]:
    """Return what a reader must know to act by a map, or to change it. A map without any of it is
    as it always was, and all versions read it.
    """
    wanted = {
        MAP_JOINING: any(shard.joining for shard in shard_map.held),
        MAP_PENDING: bool(shard_map.pending),
        MAP_MADE_COUNT: shard_map.next_number != len(shard_map.shards),
    }
    return sorted(feature for feature, needed in wanted.items() if needed)


def decode_shard_map(data: bytes) -> ShardMap:
    """Return the map that map/<gallery> holds."""
    what = "shard map"
    message = parse(storage_pb2.ShardMapRecord(), data, what=what)
    require(bool(message.gallery_uid), what, "no gallery uid")
    require(message.version >= 1, what, f"version={message.version}")
    for shard in (*message.shards, *message.pending):
        require(shard.first <= shard.last, what, f"range is empty shard={shard.shard_id}")
    shard_map = ShardMap(
        gallery=_gallery_name(message.gallery, what),
        gallery_uid=message.gallery_uid,
        version=message.version,
        shards=tuple(map(_shard_from_message, message.shards)),
        pending=tuple(map(_shard_from_message, message.pending)),
        made_count=message.made_count,
    )
    problem = tiling_problem(shard_map)
    require(not problem, what, problem)
    return shard_map


def _shard_to_message(shard: ShardAssignment) -> storage_pb2.ShardMapRecord.Shard:
    return storage_pb2.ShardMapRecord.Shard(
        shard_id=shard.shard_id,
        first=shard.range.first,
        last=shard.range.last,
        node_ids=shard.node_ids,
        joining_node_ids=shard.joining,
        source_shard_ids=shard.sources,
    )


def _shard_from_message(message: storage_pb2.ShardMapRecord.Shard) -> ShardAssignment:
    return ShardAssignment(
        shard_id=ShardId(message.shard_id),
        range=HashRange(message.first, message.last),
        node_ids=tuple(NodeId(node_id) for node_id in message.node_ids),
        joining=tuple(NodeId(node_id) for node_id in message.joining_node_ids),
        sources=tuple(ShardId(shard_id) for shard_id in message.source_shard_ids),
    )


def encode_node(node: NodeInfo) -> bytes:
    """Return the value of nodes/<id>/<boot>."""
    return serialized(
        storage_pb2.NodeRecord(
            node_id=node.node_id,
            boot_id=node.boot_id,
            address=node.address,
            version=node.version,
            zone=node.zone,
        )
    )


def decode_node(data: bytes) -> NodeInfo:
    """Return the node that nodes/<id>/<boot> describes."""
    what = "node record"
    message = parse(storage_pb2.NodeRecord(), data, what=what)
    require(bool(message.node_id), what, "no node id")
    require(bool(message.boot_id), what, "no boot id")
    require(bool(message.address), what, "no address")
    return NodeInfo(
        node_id=NodeId(message.node_id),
        boot_id=message.boot_id,
        address=message.address,
        version=message.version,
        zone=message.zone,
    )


def encode_generation(claim: GenerationClaim) -> bytes:
    """Return the value of gen/<shard>."""
    return serialized(
        storage_pb2.GenerationRecord(
            generation=claim.generation, node_id=claim.node_id, boot_id=claim.boot_id
        )
    )


def decode_generation(data: bytes) -> GenerationClaim:
    """Return the claim that gen/<shard> holds."""
    what = "generation record"
    message = parse(storage_pb2.GenerationRecord(), data, what=what)
    require(message.generation >= 1, what, f"generation={message.generation}")
    require(bool(message.node_id), what, "no node id")
    require(bool(message.boot_id), what, "no boot id")
    return GenerationClaim(
        generation=message.generation, node_id=NodeId(message.node_id), boot_id=message.boot_id
    )


def encode_tip(tip: Tip) -> bytes:
    """Return the value of tip/<shard>."""
    return serialized(storage_pb2.TipRecord(log=ref_to_message(tip.log)))


def decode_tip(data: bytes) -> Tip:
    """Return the tip that tip/<shard> holds."""
    return Tip(log=ref_from_message(parse(storage_pb2.TipRecord(), data, what="tip record").log))


def encode_manifest_pointer(pointer: ManifestPointer) -> bytes:
    """Return the value of manifest/<shard>."""
    return serialized(
        storage_pb2.ManifestPointer(
            sha256=bytes.fromhex(pointer.sha256),
            position=pointer.position,
            generation=pointer.generation,
        )
    )


def decode_manifest_pointer(data: bytes) -> ManifestPointer:
    """Return the pointer that manifest/<shard> holds."""
    what = "manifest pointer"
    message = parse(storage_pb2.ManifestPointer(), data, what=what)
    problem = sha256_problem(message.sha256.hex())
    require(not problem, what, problem)
    require(message.position >= 0, what, f"position={message.position}")
    require(message.generation >= 1, what, f"generation={message.generation}")
    return ManifestPointer(
        sha256=message.sha256.hex(), position=message.position, generation=message.generation
    )


def encode_dropped(dropped: Dropped) -> bytes:
    """Return the value of dropped/<shard>."""
    return serialized(
        storage_pb2.DroppedRecord(
            shard_id=dropped.shard_id,
            gallery_uid=dropped.gallery_uid,
            node_ids=dropped.node_ids,
            # Who does not know of it would delete what the gallery still needs.
            required_features=[GALLERY_LIVES] if dropped.gallery_lives else [],
            gallery_lives=dropped.gallery_lives,
        )
    )


def decode_dropped(data: bytes) -> Dropped:
    """Return the shard that dropped/<shard> gives up."""
    what = "dropped record"
    message = parse(storage_pb2.DroppedRecord(), data, what=what)
    require(bool(message.shard_id), what, "no shard id")
    return Dropped(
        shard_id=ShardId(message.shard_id),
        gallery_uid=message.gallery_uid,
        node_ids=tuple(NodeId(node_id) for node_id in message.node_ids),
        gallery_lives=message.gallery_lives,
    )


def _gallery_name(name: str, what: str) -> GalleryName:
    try:
        return check_gallery_name(name)
    except InvalidError as error:
        require(False, what, error.message)  # noqa: FBT003 - raises always
        raise
