"""What etcd says of one gallery at one revision: the cut that a snapshot is made at."""

from dataclasses import dataclass, replace
from typing import Final

from facegrid.coord import keys
from facegrid.coord.port import Coordinator
from facegrid.errors import NotFoundError
from facegrid.format.inventory import gallery_of
from facegrid.format.records import encode_shard_map
from facegrid.ids import GalleryName, ShardId
from facegrid.model import Gallery, ShardMap
from fgctl.meta.recovery import read_current
from fgctl.meta_file import Meta

OF_SHARDS: Final = (keys.GENERATIONS, keys.TIPS, keys.MANIFESTS)


@dataclass(frozen=True, slots=True)
class Cut:
    """What serves in a gallery as of one revision, and which shards were being filled."""

    meta: Meta
    pending: tuple[ShardId, ...]


async def read_cut(coord: Coordinator, name: str, *, unix_ms: int) -> Cut:
    """Return the records of a gallery, all as of one revision, in one read.

    Raises:
        NotFoundError: etcd knows no such gallery (GALLERY_UNKNOWN).
    """
    meta = (await read_current(coord, unix_ms=unix_ms)).meta
    gallery = meta.galleries.get(GalleryName(name))
    shard_map = meta.maps.get(GalleryName(name))
    if gallery is None or shard_map is None or gallery.uid != shard_map.gallery_uid:
        raise NotFoundError(
            f"there is no such gallery gallery={name}", reason="GALLERY_UNKNOWN", gallery=name
        )
    return Cut(only(meta, gallery, shard_map), pending_of(shard_map))


def by_uid(meta: Meta, uid: str) -> Meta | None:
    """Return the records of the gallery with this uid alone, those too of shards that do not serve
    (any more); None where there is none.
    """
    for name, gallery in meta.galleries.items():
        shard_map = meta.maps.get(name)
        if gallery.uid == uid and shard_map is not None and shard_map.gallery_uid == uid:
            kept = {keys.gallery(name), keys.shard_map(name)}
            values = {
                key: value
                for key, value in meta.values.items()
                if key in kept or (key.startswith(OF_SHARDS) and gallery_of(key)[1] == uid)
            }
            return Meta(meta.revision, meta.saved_unix_ms, values)
    return None


def only(meta: Meta, gallery: Gallery, shard_map: ShardMap) -> Meta:
    """Return the records of what serves in one gallery alone. Its map is one without shards that
    are being filled, and without copies that join.
    """
    kept = {keys.gallery(gallery.name), keys.shard_map(gallery.name)}
    for shard in shard_map.shards:
        one = shard.shard_id
        kept |= {keys.generation(one), keys.tip(one), keys.manifest(one)}
    values = {key: value for key, value in meta.values.items() if key in kept}
    serving = replace(
        shard_map,
        shards=tuple(replace(shard, joining=()) for shard in shard_map.shards),
        pending=(),
    )
    if serving != shard_map:
        values[keys.shard_map(gallery.name)] = encode_shard_map(serving)
    return Meta(meta.revision, meta.saved_unix_ms, values)


def pending_of(shard_map: ShardMap) -> tuple[ShardId, ...]:
    """Return the shards that are being filled, sorted."""
    return tuple(sorted(shard.shard_id for shard in shard_map.pending))


def gallery_in(cut: Meta) -> tuple[Gallery, ShardMap]:
    """Return the gallery that a cut is of, and its map."""
    (name,) = cut.galleries
    return cut.galleries[name], cut.maps[name]


def position_of(cut: Meta, shard_id: ShardId) -> int:
    """Return the position of a shard in a cut; 0: nothing was written yet."""
    tip, pointer = cut.tips.get(shard_id), cut.pointers.get(shard_id)
    covered = 0 if pointer is None else pointer.position
    return covered if tip is None else max(covered, tip.last_position)
