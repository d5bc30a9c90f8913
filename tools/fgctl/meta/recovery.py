"""Writes etcd's records anew from the store. docs/rfcs/0005-recovering-etcd.md has the protocol.

Planning reads and checks the whole store and changes nothing; applying is one guarded transaction
for each shard and then one for each gallery, so that no node sees a map before the records of its
shards are right. What etcd had when the plan was made is the guard of each: whoever changed it
meanwhile stops the recovery, and a recovery that broke off can be repeated.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from facegrid.blob.reader import BlobReader
from facegrid.coord import keys
from facegrid.coord.port import Coordinator, Guard, Put
from facegrid.errors import ConflictError, CorruptError, NotFoundError
from facegrid.format.inventory import Inventory
from facegrid.format.log import LogRef
from facegrid.format.records import (
    GenerationClaim,
    ManifestPointer,
    Tip,
    decode_dropped,
    encode_gallery,
    encode_generation,
    encode_manifest_pointer,
    encode_shard_map,
    encode_tip,
)
from facegrid.format.stored_gallery import StoredGallery, decode_stored_gallery
from facegrid.ids import GalleryName, NodeId, ShardId
from facegrid.model import Gallery, ShardMap
from fgctl.meta_file import KEPT, Meta
from fgctl.offline.findings import Problem
from fgctl.offline.shard_check import ShardReport
from fgctl.offline.verify import Scope, StoreReport, survey, verify

RECOVERER = NodeId("fgctl-meta-recover")
"""Stands in generation records until the shard's primary claims it."""


@dataclass(frozen=True, slots=True)
class Current:
    """What etcd holds now, with the revisions that guards name."""

    meta: Meta
    revisions: Mapping[str, int]
    nodes: tuple[str, ...]

    def guard(self, key: str) -> Guard:
        """Return what holds as long as nobody changed the key."""
        return Guard(key, self.revisions.get(key, 0))


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """What etcd will say about one shard. `puts` is empty where it says so already."""

    shard_id: ShardId
    claim: GenerationClaim
    tip: LogRef | None
    pointer: ManifestPointer | None
    puts: tuple[Put, ...]


@dataclass(frozen=True, slots=True)
class GalleryPlan:
    """What will be done for one gallery; nothing, if there are problems."""

    gallery: Gallery
    shard_map: ShardMap
    shards: tuple[ShardPlan, ...]
    puts: tuple[Put, ...]
    problems: tuple[Problem, ...]

    @property
    def changes(self) -> bool:
        """Whether anything is to be written."""
        return bool(self.puts) or any(shard.puts for shard in self.shards)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a recovery will do. `homeless` are shards of the store that no map names."""

    current: Current
    galleries: tuple[GalleryPlan, ...]
    homeless: tuple[ShardId, ...]

    @property
    def complete(self) -> bool:
        """Whether everything in the store will be served again."""
        return not self.homeless and not any(one.problems for one in self.galleries)


async def read_current(coord: Coordinator, *, unix_ms: int) -> Current:
    """Read everything that etcd holds, as of one revision."""
    snapshot = await coord.list("")
    values = {item.key: item.value for item in snapshot.items if item.key.startswith(KEPT)}
    return Current(
        meta=Meta(snapshot.revision, unix_ms, values),
        revisions={item.key: item.mod_revision for item in snapshot.items},
        nodes=tuple(
            keys.name_of(item.key, keys.NODES)
            for item in snapshot.items
            if item.key.startswith(keys.NODES)
        ),
    )


async def plan(
    current: Current,
    reader: BlobReader,
    saved: Meta | None,
    *,
    boot_id: str,
    on_read: Callable[[], None] = lambda: None,
) -> Plan:
    """Check the store and return what etcd should say.

    Args:
        current: what it says.
        reader: the store.
        saved: records saved earlier. Galleries and maps are also looked for in the store.
        boot_id: unique; marks the generation records of this recovery.
        on_read: called for every object read.

    Raises:
        ConflictError: nodes are registered (NODES_RUNNING): they must be stopped first.
    """
    if current.nodes:
        raise ConflictError(
            f"nodes are running, stop them and wait until their leases end"
            f" nodes={','.join(current.nodes)}",
            reason="NODES_RUNNING",
        )
    store = await survey(reader)
    known = current.meta
    for other in (saved, await _stored_galleries(reader, store.inventory, current.meta)):
        known = known if other is None else _newest(known, other)
    report = await verify(store, Scope(meta=known), on_read=on_read)
    planned = tuple(
        _gallery_plan(current, known, report, name, boot_id)
        for name in sorted(known.galleries.keys() & known.maps.keys())
    )
    mapped = {shard.shard_id for one in planned for shard in one.shard_map.shards}
    homeless = tuple(one.shard_id for one in report.shards if one.shard_id not in mapped)
    return Plan(current, planned, homeless)


async def apply(coord: Coordinator, planned: Plan) -> None:
    """Carry a plan out.

    Raises:
        ConflictError: etcd was changed meanwhile (ETCD_CHANGED); plan again.
        UnavailableError: etcd cannot be reached; plan again, what was done is kept.
    """
    current = planned.current
    for one in planned.galleries:
        if one.problems:
            continue
        for shard in one.shards:
            if shard.puts:
                shard_id = shard.shard_id
                guarded = [keys.generation(shard_id), keys.tip(shard_id), keys.manifest(shard_id)]
                await _commit(coord, [current.guard(key) for key in guarded], shard.puts)
        if one.puts:
            guarded = [keys.gallery(one.gallery.name), keys.shard_map(one.gallery.name)]
            await _commit(coord, [current.guard(key) for key in guarded], one.puts)


async def _commit(coord: Coordinator, guards: list[Guard], puts: tuple[Put, ...]) -> None:
    result = await coord.txn(guards, puts)
    if not result.succeeded:
        raise ConflictError(
            f"etcd was changed meanwhile, run it again key={puts[0].key}", reason="ETCD_CHANGED"
        )


async def _stored_galleries(reader: BlobReader, inventory: Inventory, current: Meta) -> Meta:
    """Return the records of galleries that the store keeps, but for those being dropped."""
    dropping = {
        decode_dropped(value).gallery_uid
        for key, value in current.values.items()
        if key.startswith(keys.DROPPED)
    }
    newest: dict[GalleryName, StoredGallery] = {}
    for name in inventory.galleries:
        try:
            stored = decode_stored_gallery(await reader.get(name))
        except (CorruptError, NotFoundError):
            # The check of the store, which comes next, names it.
            continue
        gallery = stored.gallery
        if gallery.uid not in dropping:
            held = newest.get(gallery.name, stored)
            newest[gallery.name] = max(held, stored, key=_standing)
    values = {}
    for gallery_name, stored in newest.items():
        values[keys.gallery(gallery_name)] = encode_gallery(stored.gallery)
        values[keys.shard_map(gallery_name)] = encode_shard_map(stored.shard_map)
    return Meta(current.revision, current.saved_unix_ms, values)


def _standing(stored: StoredGallery) -> tuple[int, int, bool]:
    """Return what tells the newest records of a gallery's name."""
    gallery = stored.gallery
    return (gallery.created_unix_ms, stored.shard_map.version, bool(gallery.codebook))


def _newest(current: Meta, saved: Meta) -> Meta:
    """Return of each record the newer one."""
    values = {**saved.values, **current.values}
    for name, gallery in saved.galleries.items():
        held, held_map = current.galleries.get(name), current.maps.get(name)
        if held is None or held_map is None or name not in saved.maps:
            continue
        if gallery.created_unix_ms < held.created_unix_ms:
            continue
        if saved.maps[name].version > held_map.version or gallery.uid != held.uid:
            values[keys.gallery(name)] = saved.values[keys.gallery(name)]
            values[keys.shard_map(name)] = saved.values[keys.shard_map(name)]
    for shard_id, tip in saved.tips.items():
        held_tip = current.tips.get(shard_id)
        if held_tip is not None and held_tip.last_position < tip.last_position:
            values[keys.tip(shard_id)] = saved.values[keys.tip(shard_id)]
    for shard_id, pointer in saved.pointers.items():
        held_pointer = current.pointers.get(shard_id)
        if held_pointer is not None and _age(held_pointer) < _age(pointer):
            values[keys.manifest(shard_id)] = saved.values[keys.manifest(shard_id)]
    return Meta(current.revision, current.saved_unix_ms, values)


def _age(pointer: ManifestPointer) -> tuple[int, int]:
    return (pointer.position, pointer.generation)


def _gallery_plan(
    current: Current, known: Meta, report: StoreReport, name: GalleryName, boot_id: str
) -> GalleryPlan:
    """Plan one gallery."""
    gallery, shard_map = known.galleries[name], known.maps[name]
    reports = {one.shard_id: one for one in report.shards}
    ids = [shard.shard_id for shard in shard_map.shards]
    prefixes = (*(f"shards/{one}/" for one in ids), f"codebooks/{gallery.uid}/")
    problems = [one for one in report.findings.problems if one.name.startswith(prefixes)]
    records = (
        Put(keys.gallery(name), encode_gallery(gallery)),
        Put(keys.shard_map(name), encode_shard_map(shard_map)),
    )
    return GalleryPlan(
        gallery=gallery,
        shard_map=shard_map,
        shards=tuple(_shard_plan(current, known, one, reports.get(one), boot_id) for one in ids),
        puts=tuple(put for put in records if current.meta.values.get(put.key) != put.value),
        problems=tuple(problems),
    )


def _shard_plan(
    current: Current, known: Meta, shard_id: ShardId, stored: ShardReport | None, boot_id: str
) -> ShardPlan:
    """Plan one shard: a generation above all that were ever seen, and what the store ends with."""
    tip = None if stored is None else stored.tip
    pointer = None if stored is None else stored.pointer
    held = current.meta.claims.get(shard_id)
    others = [claim for claim in (held, known.claims.get(shard_id)) if claim is not None]
    highest = max([0, *(claim.generation for claim in others)])
    if stored is not None:
        highest = max(highest, stored.generation_max)
    agrees = (
        held is not None
        and held.generation >= highest
        and current.meta.tips.get(shard_id) == tip
        and current.meta.pointers.get(shard_id) == pointer
    )
    if agrees and held is not None:
        return ShardPlan(shard_id, held, tip, pointer, ())
    claim = GenerationClaim(highest + 1, RECOVERER, boot_id)
    puts = [Put(keys.generation(shard_id), encode_generation(claim))]
    if tip is not None:
        puts.append(Put(keys.tip(shard_id), encode_tip(Tip(tip))))
    if pointer is not None:
        puts.append(Put(keys.manifest(shard_id), encode_manifest_pointer(pointer)))
    return ShardPlan(shard_id, claim, tip, pointer, tuple(puts))
