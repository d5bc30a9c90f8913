"""Writes etcd's records anew from the store. docs/rfcs/0005-recovering-etcd.md has the protocol.

Planning reads and checks the whole store and changes nothing; applying is one guarded transaction
for each shard and then one for each gallery, so that no node sees a map before the records of its
shards are right. What etcd had when the plan was made is the guard of each: whoever changed it
meanwhile stops the recovery, and a recovery that broke off can be repeated.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from facegrid.blob.reader import BlobReader
from facegrid.coord import keys
from facegrid.coord.port import Coordinator, Delete, Guard, KeyValue, Put
from facegrid.errors import ConflictError, CorruptError, NotFoundError
from facegrid.format.erasures import parse_journal_name
from facegrid.format.inventory import Inventory, gallery_of
from facegrid.format.log import LogRef
from facegrid.format.operations import (
    Operation,
    OperationState,
    decode_operation,
    encode_operation,
)
from facegrid.format.records import (
    Dropped,
    GenerationClaim,
    ManifestPointer,
    Tip,
    decode_dropped,
    encode_dropped,
    encode_gallery,
    encode_generation,
    encode_manifest_pointer,
    encode_shard_map,
    encode_tip,
)
from facegrid.format.stored_gallery import StoredGallery, decode_stored_gallery
from facegrid.ids import GalleryName, NodeId, ShardId, shard_number
from facegrid.model import Gallery, ShardMap
from fgctl.meta.lineage import Evidence, ruling
from fgctl.meta_file import KEPT, Meta
from fgctl.offline.findings import Problem
from fgctl.offline.shard_check import ShardReport
from fgctl.offline.verify import Scope, StoreReport, survey, verify

RECOVERER = NodeId("fgctl-meta-recover")
"""Stands in generation records until the shard's primary claims it."""
GIVEN_UP = "given up: fgctl meta recover wrote another map than it was made for"


@dataclass(frozen=True, slots=True)
class Current:
    """What etcd holds now, with the revisions that guards name; of operations those that are not
    over.
    """

    meta: Meta
    revisions: Mapping[str, int]
    nodes: tuple[str, ...]
    operations: tuple[Operation, ...] = ()

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
    """What will be done for one gallery; nothing, if there are problems.

    `leftovers` are shards that a change of shape has left: nodes will delete them. `given_up` are
    operations that were made for another map: they are ended, since they would give ids of shards
    out again that are being deleted.
    """

    gallery: Gallery
    shard_map: ShardMap
    shards: tuple[ShardPlan, ...]
    leftovers: tuple[ShardPlan, ...]
    puts: tuple[Put, ...]
    given_up: tuple[Operation, ...]
    problems: tuple[Problem, ...]

    @property
    def changes(self) -> bool:
        """Whether anything is to be written."""
        return bool(self.puts) or any(one.puts for one in (*self.shards, *self.leftovers))


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
        operations=tuple(_under_way(snapshot.items)),
    )


def _under_way(items: Iterable[KeyValue]) -> Iterable[Operation]:
    """Return the operations that are not over, as far as they can be read."""
    for item in items:
        if item.key.startswith(keys.OPERATIONS):
            try:
                operation = decode_operation(item.value)
            except CorruptError:
                # No driver can read it either.
                continue
            if not operation.state.over:
                yield operation


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
    certain = current.meta if saved is None else _newest(current.meta, saved)
    stored = await _stored_galleries(reader, store.inventory, current.meta)
    newest = [max(ones, key=_standing) for ones in stored.values()]
    known = _newest(certain, _records(current, newest))
    report = await verify(store, Scope(meta=known), on_read=on_read)
    evidence = Evidence({one.shard_id: one for one in report.shards}, report.closed)
    chosen = [ruling(_candidates(certain, ones), evidence) for ones in stored.values()]
    known = _newest(certain, _records(current, chosen))
    found = Found(report, evidence)
    made = [*evidence.reports, *(_journalled(name) for name in store.inventory.journals)]
    planned = tuple(
        _gallery_plan(
            current, settled(known, name, current.meta, made), name, found=found, boot_id=boot_id
        )
        for name in sorted(known.galleries.keys() & known.maps.keys())
    )
    mapped = {one.shard_id for held in planned for one in (*held.shards, *held.leftovers)}
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
        for shard in (*one.shards, *one.leftovers):
            if shard.puts:
                shard_id = shard.shard_id
                guarded = [keys.generation(shard_id), keys.tip(shard_id), keys.manifest(shard_id)]
                await _commit(coord, [current.guard(key) for key in guarded], shard.puts)
        if one.puts:
            guarded = [keys.gallery(one.gallery.name), keys.shard_map(one.gallery.name)]
            guarded += [keys.operation(given_up.operation_id) for given_up in one.given_up]
            unlocked = tuple(
                Delete(keys.operation_lock(shard_id))
                for given_up in one.given_up
                for shard_id in given_up.locked_ids
            )
            await _commit(coord, [current.guard(key) for key in guarded], one.puts, unlocked)


async def _commit(
    coord: Coordinator,
    guards: list[Guard],
    puts: tuple[Put, ...],
    deletes: tuple[Delete, ...] = (),
) -> None:
    result = await coord.txn(guards, [*puts, *deletes])
    if not result.succeeded:
        raise ConflictError(
            f"etcd was changed meanwhile, run it again key={puts[0].key}", reason="ETCD_CHANGED"
        )


async def _stored_galleries(
    reader: BlobReader, inventory: Inventory, current: Meta
) -> dict[GalleryName, list[StoredGallery]]:
    """Return all records that the store keeps of galleries, but for those being dropped; where
    several galleries had one name, those of the last.
    """
    dropped = [
        decode_dropped(value)
        for key, value in current.values.items()
        if key.startswith(keys.DROPPED)
    ]
    dropping = {one.gallery_uid for one in dropped if not one.gallery_lives}
    found: dict[GalleryName, list[StoredGallery]] = {}
    for name in inventory.galleries:
        try:
            stored = decode_stored_gallery(await reader.get(name))
        except (CorruptError, NotFoundError):
            # The check of the store, which comes next, names it.
            continue
        if stored.gallery.uid not in dropping:
            found.setdefault(stored.gallery.name, []).append(stored)
    for name, ones in found.items():
        uid = max(ones, key=_standing).gallery.uid
        found[name] = [one for one in ones if one.gallery.uid == uid]
    return found


def _records(current: Current, ones: Sequence[StoredGallery]) -> Meta:
    """Return records of galleries as etcd would hold them."""
    values = {}
    for one in ones:
        values[keys.gallery(one.gallery.name)] = encode_gallery(one.gallery)
        values[keys.shard_map(one.gallery.name)] = encode_shard_map(one.shard_map)
    return Meta(current.meta.revision, current.meta.saved_unix_ms, values)


def _candidates(certain: Meta, stored: Sequence[StoredGallery]) -> list[StoredGallery]:
    """Return the records that may have been in force last: those that etcd had, and newer ones."""
    name, uid = stored[0].gallery.name, stored[0].gallery.uid
    gallery, shard_map = certain.galleries.get(name), certain.maps.get(name)
    if gallery is None or shard_map is None or gallery.uid != uid:
        return list(stored)
    newer = [one for one in stored if one.shard_map.version > shard_map.version]
    return [StoredGallery(gallery, shard_map), *newer]


def _journalled(name: str) -> ShardId:
    parsed = parse_journal_name(name)
    assert parsed is not None, "the inventory has sorted the names"
    return parsed[1]


def settled(known: Meta, name: GalleryName, current: Meta, made: Iterable[ShardId]) -> Meta:
    """Return records in which nothing is under way that nobody drives any more: unless etcd has
    the very map, copies that join and shards that are being filled are given up. No id of a shard
    is given out again of which there is anything in the store.
    """
    gallery, shard_map = known.galleries[name], known.maps[name]
    numbers = [shard_number(one) for one in made if gallery_of(one)[1] == gallery.uid]
    made_count = max([shard_map.next_number, *(number + 1 for number in numbers)])
    wanted = shard_map
    if made_count > shard_map.next_number:
        wanted = replace(wanted, made_count=made_count)
    if current.maps.get(name) != shard_map:
        serving = tuple(replace(shard, joining=()) for shard in wanted.shards)
        made_count = wanted.next_number if wanted.pending else wanted.made_count
        wanted = replace(wanted, shards=serving, pending=(), made_count=made_count)
    if wanted == shard_map:
        return known
    wanted = replace(wanted, version=shard_map.version + 1)
    values = {**known.values, keys.shard_map(name): encode_shard_map(wanted)}
    return Meta(known.revision, known.saved_unix_ms, values)


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


@dataclass(frozen=True, slots=True)
class Found:
    """What was found in the store."""

    report: StoreReport
    evidence: Evidence

    def left(self, gallery: Gallery, shard_map: ShardMap) -> list[ShardId]:
        """Return the shards of a gallery that a change of shape has left: filled in vain, or
        replaced. They are whole, or were being deleted.
        """
        held = {shard.shard_id for shard in shard_map.held}
        return [
            shard_id
            for shard_id, one in self.evidence.reports.items()
            if gallery_of(shard_id)[1] == gallery.uid
            and shard_id not in held
            and shard_number(shard_id) < shard_map.next_number
            and (one.whole or shard_id in self.evidence.closed)
        ]

    def problems(self, gallery: Gallery) -> tuple[Problem, ...]:
        """Return what is wrong with a gallery. Of a shard that was being deleted nothing is: and
        of all others something would be, since which map was in force depends on them.
        """
        ids = [
            one
            for one in self.evidence.reports
            if gallery_of(one)[1] == gallery.uid and one not in self.evidence.closed
        ]
        prefixes = (*(f"shards/{one}/" for one in ids), f"codebooks/{gallery.uid}/")
        found = self.report.findings.problems
        return tuple(one for one in found if one.name.startswith(prefixes))


def _gallery_plan(
    current: Current, known: Meta, name: GalleryName, *, found: Found, boot_id: str
) -> GalleryPlan:
    """Plan one gallery."""
    gallery, shard_map = known.galleries[name], known.maps[name]
    reports, before = found.evidence.reports, current.meta.maps.get(name)
    ids = [shard.shard_id for shard in shard_map.held]
    left = found.left(gallery, shard_map)
    records: tuple[Put, ...] = (
        Put(keys.gallery(name), encode_gallery(gallery)),
        Put(keys.shard_map(name), encode_shard_map(shard_map)),
    )
    deleter = shard_map.shards[0].node_ids[:1]
    records += tuple(
        Put(
            keys.dropped(one),
            encode_dropped(Dropped(one, gallery.uid, deleter, gallery_lives=True)),
        )
        for one in left
        if keys.dropped(one) not in current.meta.values
    )
    given_up = tuple(
        replace(one, state=OperationState.ABORTED, note=GIVEN_UP)
        for one in current.operations
        if one.gallery_uid == gallery.uid
        and (before is None or before.held != shard_map.held or {*one.child_ids} & {*left})
    )
    records += tuple(
        Put(keys.operation(one.operation_id), encode_operation(one)) for one in given_up
    )
    shards, leftovers = (
        tuple(_shard_plan(current, known, one, reports.get(one), boot_id) for one in part)
        for part in (ids, left)
    )
    return GalleryPlan(
        gallery=gallery,
        shard_map=shard_map,
        shards=shards,
        leftovers=leftovers,
        puts=tuple(put for put in records if current.meta.values.get(put.key) != put.value),
        given_up=given_up,
        problems=found.problems(gallery),
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
