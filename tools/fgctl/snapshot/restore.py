"""Restores a snapshot into a new gallery, without what was erased since.

Rows become segments of a bulk load, which nobody sees; when all are stored they are committed
shard by shard. What was erased up to the beginning of the restore is never in a segment. What is
erased of the old gallery while this runs is erased from the new one before it is called restored.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from facegrid.blob.port import BlobStore
from facegrid.blob.reader import BlobReader
from facegrid.clock import Clock
from facegrid.coord import keys
from facegrid.coord.port import Coordinator, Guard, Put
from facegrid.errors import ConflictError, CorruptError, DeadlineError, NotFoundError
from facegrid.format import digest as digests
from facegrid.format.codebook import codebook_name
from facegrid.format.load_pin import parse_pin_name, pin_prefix
from facegrid.format.records import decode_gallery, decode_shard_map, encode_gallery
from facegrid.format.snapshot import Snapshot
from facegrid.ids import GalleryName, ShardId
from facegrid.limits import ERASE_IDS_MAX
from facegrid.model import Gallery, ShardMap
from fgctl.bulk.publish import LoadStore
from fgctl.bulk.segments import StoredSegment
from fgctl.snapshot import repository
from fgctl.snapshot.build import Builder
from fgctl.snapshot.cut import gallery_in
from fgctl.snapshot.erased import ErasedIds, Erasures
from fgctl.snapshot.repository import SnapshotReader
from fgctl.snapshot.rows import CutRows

READY_S = 600.0
"""How long the shards of an empty gallery may take to change over to a codebook."""
LEVEL_S = 60.0
"""How long to wait for followers; those that take longer refuse to answer meanwhile."""
POLL_S = 0.2
ROUNDS_MAX = 20
"""How often erasures are looked for again that were made meanwhile."""


@dataclass(frozen=True, slots=True)
class Holding:
    """What the primary of a shard says of it."""

    shard_id: ShardId
    codebook: str
    templates_count: int
    digest: int


class Cluster(Protocol):
    """The cluster that a snapshot is restored into."""

    @property
    def coord(self) -> Coordinator:
        """Its etcd."""
        ...

    @property
    def store(self) -> BlobStore:
        """Its object store."""
        ...

    async def create_gallery(self, like: Gallery) -> None:
        """Create a gallery with these settings; returns when its shards accept writes."""
        ...

    async def commit(self, gallery: str, load_id: str, segments: Sequence[StoredSegment]) -> None:
        """Commit the segments of one shard, all at once."""
        ...

    async def erase(
        self, gallery: str, subject_ids: Sequence[str], template_ids: Sequence[str]
    ) -> None:
        """Erase from all shards."""
        ...

    async def holdings(self, gallery: str) -> list[Holding]:
        """Return what the primaries of all shards hold."""
        ...

    async def level(self, gallery: str) -> bool:
        """Tell whether every copy that answers holds what its primary holds."""
        ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the operator wants.

    Attributes:
        gallery: name of the new gallery.
        shards_count, replicas_count: None: as the snapshot has them.
        resume: go on with a gallery that a restore of this snapshot left unfinished.
    """

    gallery: str
    shards_count: int | None = None
    replicas_count: int | None = None
    resume: bool = False


@dataclass(frozen=True, slots=True)
class Restored:
    """What was restored.

    Attributes:
        erased_count: templates of the snapshot left out, since they were erased after it.
        digest: of the live rows of all shards together.
    """

    gallery: Gallery
    templates_count: int
    erased_count: int
    digest: int


class Restore:
    """One restore.

    Args:
        repo: the repository.
        snapshot: what to restore.
        cluster: where to.
        wanted: as what.
        gather: returns what was erased since, see `fgctl.snapshot.erased`; asked several times.
        clock: for waiting.
        on_rows: called with the number of rows read.
    """

    def __init__(
        self,
        repo: BlobReader,
        snapshot: Snapshot,
        cluster: Cluster,
        *,
        wanted: Wanted,
        gather: Callable[[], Awaitable[Erasures]],
        clock: Clock,
    ) -> None:
        self._reader = SnapshotReader(repo, snapshot)
        self._snapshot = snapshot
        self._cut = repository.cut_of(snapshot)
        self._cluster = cluster
        self._wanted = wanted
        self._gather = gather
        self._clock = clock
        self._erased_count = 0
        self.on_rows: Callable[[int], None] = lambda _: None

    async def run(self) -> Restored:
        """Restore, and return what the new gallery holds.

        Raises:
            ConflictError: the gallery exists (GALLERY_EXISTS), or see `fgctl.snapshot.erased`.
            CorruptError: an object of the snapshot is missing or damaged; or in the end the
                gallery does not hold what it should (RESTORE_MISMATCH).
            UnavailableError: the cluster or a store cannot be reached; repeat it with `resume`.
        """
        erasures = await self._gather()
        gallery = await self._gallery()
        gallery = await self._with_codebook(gallery)
        shard_map = await self._map(gallery)
        load_id = self._load_id(gallery, erasures)
        await self._forget_other_loads(shard_map, gallery, load_id)
        loads = LoadStore(self._cluster.store, load_id)
        builder = Builder(loads, load_id, shard_map, codebook=gallery.codebook)
        await self._build(builder, erasures)
        for shard_id in sorted(builder.segments):
            segments = builder.segments[shard_id]
            await self._cluster.commit(gallery.name, load_id, segments)
            await loads.unpin(segments)
        late = await self._erase_late(gallery, erasures)
        if late is not None:
            builder.templates_count, builder.digest = await self._count(late)
        await self._check(gallery, builder)
        await self._followed(gallery)
        return Restored(gallery, builder.templates_count, self._erased_count, builder.digest)

    # The gallery

    async def _gallery(self) -> Gallery:
        """Create the gallery, or take the one that is to be gone on with."""
        old = gallery_in(self._cut)[0]
        like = replace(
            old,
            name=GalleryName(self._wanted.gallery),
            shards_count=self._wanted.shards_count or old.shards_count,
            replicas_count=self._wanted.replicas_count or old.replicas_count,
        )
        found = await self._record(like.name)
        if found is not None and not self._wanted.resume:
            raise ConflictError(
                "there is a gallery of this name; if a restore of this snapshot left it"
                f" unfinished, go on with --resume gallery={like.name}",
                reason="GALLERY_EXISTS",
                gallery=like.name,
            )
        if found is None:
            await self._cluster.create_gallery(like)
            found = await self._record(like.name)
        if found is None:
            raise NotFoundError(
                f"the gallery is gone gallery={like.name}", reason="GALLERY_UNKNOWN"
            )
        if _kind(found) != _kind(like):
            raise ConflictError(
                f"the gallery is of another kind gallery={like.name} dim={found.dim}"
                f" extractor={found.extractor} component_bits={found.component_bits}",
                reason="GALLERY_EXISTS",
                gallery=like.name,
            )
        return found

    async def _record(self, name: GalleryName) -> Gallery | None:
        item = await self._cluster.coord.get(keys.gallery(name))
        return None if item is None else decode_gallery(item.value)

    async def _map(self, gallery: Gallery) -> ShardMap:
        item = await self._cluster.coord.get(keys.shard_map(gallery.name))
        shard_map = None if item is None else decode_shard_map(item.value)
        if shard_map is None or shard_map.gallery_uid != gallery.uid:
            raise _gone(gallery.name)
        return shard_map

    async def _with_codebook(self, gallery: Gallery) -> Gallery:
        """Give the gallery the codebook that it had, and wait until its shards search with it."""
        old = gallery_in(self._cut)[0]
        if not old.codebook or gallery.codebook not in ("", old.codebook):
            return gallery
        data = await self._reader.get(codebook_name(old.uid, old.codebook))
        name = codebook_name(gallery.uid, old.codebook)
        await repository.put(self._cluster.store, name, data)
        key = keys.gallery(gallery.name)
        item = await self._cluster.coord.get(key)
        trained = replace(gallery, codebook=old.codebook, tuning=old.tuning)
        if item is not None and decode_gallery(item.value) == gallery != trained:
            guard = Guard(key, item.mod_revision)
            await self._cluster.coord.txn([guard], [Put(key, encode_gallery(trained))])
        end_s = self._clock.now_s() + READY_S
        while any(
            one.codebook != old.codebook for one in await self._cluster.holdings(gallery.name)
        ):
            if self._clock.now_s() > end_s:
                raise DeadlineError(
                    f"a shard does not search with the codebook gallery={gallery.name}",
                    reason="SHARD_NOT_TRAINED",
                )
            await self._clock.sleep(POLL_S)
        return await self._record(gallery.name) or trained

    # The rows

    def _load_id(self, gallery: Gallery, erasures: Erasures) -> str:
        """Return the load's id: the same for the same rows, so that repeating goes on."""
        return f"{self._load_ids(gallery)}{erasures.fingerprint[:16]}"

    def _load_ids(self, gallery: Gallery) -> str:
        """Return what the ids of all loads of this snapshot into this gallery begin with."""
        digits = self._snapshot.snapshot_id.lower().replace("-", "")
        return f"{digits}{gallery.uid}x"

    async def _forget_other_loads(
        self, shard_map: ShardMap, gallery: Gallery, load_id: str
    ) -> None:
        """Unpin what a restore stored that was broken off, when less was erased."""
        store = self._cluster.store
        for shard in shard_map.shards:
            for name in await store.list(pin_prefix(shard.shard_id)):
                pin = parse_pin_name(name)
                ours = pin is not None and pin.load_id.startswith(self._load_ids(gallery))
                if pin is not None and ours and pin.load_id != load_id:
                    await store.delete(name)

    async def _build(self, builder: Builder, erasures: Erasures) -> None:
        """Store all rows that are to come back, as segments that nobody sees."""
        for shard in gallery_in(self._cut)[1].shards:
            erased = erasures.of(shard.shard_id)
            async for block in CutRows(self._reader, self._cut, shard.shard_id).blocks():
                mask = erased.mask(block.subject_ids, block.template_ids)
                self._erased_count += int(mask.sum())
                self.on_rows(len(block))
                await builder.add(block.only(~mask))
            await builder.flush()

    # Afterwards

    async def _erase_late(self, gallery: Gallery, first: Erasures) -> Erasures | None:
        """Erase what was erased of the old gallery meanwhile; return all of it, None: nothing.

        A restore that goes on also erases what an earlier attempt may have brought back.
        """
        done = None if self._wanted.resume else first.fingerprint
        known = first
        for _ in range(ROUNDS_MAX):
            if known.fingerprint == done:
                known = await self._gather()
            if known.fingerprint == done:
                return None if done == first.fingerprint else known
            await self._erase(gallery, known)
            done = known.fingerprint
        return known

    async def _erase(self, gallery: Gallery, erasures: Erasures) -> None:
        """Erase every row of the snapshot that was erased since, as it was erased."""
        for shard in gallery_in(self._cut)[1].shards:
            erased = erasures.of(shard.shard_id)
            subjects: set[str] = set()
            templates: set[str] = set()
            async for block in CutRows(self._reader, self._cut, shard.shard_id).blocks():
                gone = block.only(erased.mask(block.subject_ids, block.template_ids))
                subjects |= {one for one in gone.subject_ids if erased.has("subject", one)}
                templates |= {one for one in gone.template_ids if erased.has("template", one)}
            for ids, named in ((sorted(subjects), "subject"), (sorted(templates), "template")):
                for at in range(0, len(ids), ERASE_IDS_MAX):
                    part = ids[at : at + ERASE_IDS_MAX]
                    pair = (part, []) if named == "subject" else ([], part)
                    await self._cluster.erase(gallery.name, *pair)

    async def _count(self, erasures: Erasures) -> tuple[int, int]:
        """Return number and digest of the rows that are to be there."""
        count, digest, self._erased_count = 0, 0, 0
        for shard in gallery_in(self._cut)[1].shards:
            erased: ErasedIds = erasures.of(shard.shard_id)
            async for block in CutRows(self._reader, self._cut, shard.shard_id).blocks():
                kept = block.only(~erased.mask(block.subject_ids, block.template_ids))
                self._erased_count += len(block) - len(kept)
                count += len(kept)
                digest = digests.add(digest, kept.digest())
        return count, digest

    async def _check(self, gallery: Gallery, builder: Builder) -> None:
        """Find that the gallery holds exactly the rows that it should: none that was erased."""
        count, digest = 0, 0
        for one in await self._cluster.holdings(gallery.name):
            count += one.templates_count
            digest = digests.add(digest, one.digest)
        if (count, digest) != (builder.templates_count, builder.digest):
            raise CorruptError(
                "the gallery does not hold what was restored, did anybody else write to it?"
                f" gallery={gallery.name} templates={count} expected={builder.templates_count}",
                reason="RESTORE_MISMATCH",
                gallery=gallery.name,
            )

    async def _followed(self, gallery: Gallery) -> None:
        """Wait until the other copies have the rows too, for a while: a node may be down."""
        end_s = self._clock.now_s() + LEVEL_S
        while self._clock.now_s() < end_s and not await self._cluster.level(gallery.name):
            await self._clock.sleep(POLL_S)


def _gone(name: str) -> NotFoundError:
    return NotFoundError(
        f"the gallery is gone gallery={name}", reason="GALLERY_UNKNOWN", gallery=name
    )


def _kind(gallery: Gallery) -> tuple[object, ...]:
    """Return what rows depend on: those of one kind mean nothing in a gallery of another."""
    return gallery.dim, gallery.extractor, gallery.component_bits
