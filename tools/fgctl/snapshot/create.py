"""Makes a snapshot: one cut of etcd, then every object that it names, then the descriptor.

The cluster goes on meanwhile. Objects are never changed, so what the cut names is what it was;
but a primary may delete an object of it before it was copied. Then a new cut is read. What was
copied is not copied again, so it does not take long until one is had whole.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from facegrid.blob.port import BlobStore
from facegrid.blob.reader import BlobReader
from facegrid.coord.port import Coordinator
from facegrid.errors import CorruptError
from facegrid.format.codebook import codebook_name
from facegrid.format.inventory import named_sha256
from facegrid.format.log import EnrolRecord, EraseRecord, LoadRecord, LogRecord
from facegrid.format.segment import segment_name
from facegrid.format.snapshot import PENDING, Snapshot, SnapshotObject, object_name
from facegrid.ids import ShardId
from facegrid.rpc.together import all_of
from fgctl.meta_file import Meta
from fgctl.snapshot import repository, walk
from fgctl.snapshot.cut import Cut, gallery_in, read_cut
from fgctl.snapshot.repository import Mark, Tools, fetch

CUTS_MAX = 20
"""Cuts that are tried while a primary deletes faster than this copies."""
COPIES_MAX = 4
"""Shards copied at a time: each holds one object in memory."""


@dataclass(frozen=True, slots=True)
class Source:
    """A cluster: its etcd and its object store."""

    coord: Coordinator
    store: BlobReader


@dataclass(frozen=True, slots=True)
class Created:
    """A snapshot just made, and what it added to the repository."""

    snapshot: Snapshot
    new_objects_count: int
    new_bytes: int


async def create(
    source: Source,
    store: BlobStore,
    gallery: str,
    *,
    tools: Tools,
    others_ended: bool = False,
) -> Created:
    """Make a snapshot of a gallery and return it.

    Args:
        source: where the gallery is.
        store: the repository.
        gallery: its name.
        tools: clock and random digits.
        others_ended: see Mark.

    Raises:
        NotFoundError: there is no such gallery.
        ConflictError: somebody deletes from the repository (REPOSITORY_BUSY).
        CorruptError: an object of the gallery is damaged or lost, or one of the repository is.
        UnavailableError: etcd or a store cannot be reached; what was copied is not copied again.
    """
    clock = tools.clock
    cut = await read_cut(source.coord, gallery, unix_ms=clock.unix_ms())
    begun = datetime.fromtimestamp(clock.unix_ms() / 1000, UTC)
    snapshot_id = f"{begun:%Y%m%dT%H%M%SZ}-{tools.new_digits()}"
    async with Mark(
        store, tools, prefix=PENDING, snapshot_id=snapshot_id, others_ended=others_ended
    ):
        copier = await Copier.into(store, source.store)
        for _ in range(CUTS_MAX):
            try:
                objects, count = await copier.copy(cut)
                break
            except CorruptError as error:
                later = await read_cut(source.coord, gallery, unix_ms=clock.unix_ms())
                if error.reason != "OBJECT_MISSING" or later.meta.values == cut.meta.values:
                    raise
                cut = later
        else:
            raise _outrun(gallery)
        snapshot = Snapshot(
            snapshot_id=snapshot_id,
            gallery_uid=gallery_in(cut.meta)[0].uid,
            created_unix_ms=cut.meta.saved_unix_ms,
            cut_revision=cut.meta.revision,
            records=tuple(sorted(cut.meta.values.items())),
            objects=tuple(sorted(objects)),
            templates_count_max=count,
            pending=cut.pending,
        )
        await repository.put_snapshot(store, snapshot)
    return Created(snapshot, copier.new_objects_count, copier.new_bytes)


class Copier:
    """Copies objects of a cluster's store into a repository, each once.

    Args:
        store: the repository.
        source: the cluster's store.
        sizes: of the objects that descriptors name, by sha256.
        present: sha256 of every object in the repository.
    """

    def __init__(
        self,
        store: BlobStore,
        source: BlobReader,
        *,
        sizes: dict[str, int],
        present: set[str],
    ) -> None:
        self._store = store
        self._source = source
        self._sizes = sizes
        self._present = present
        self._slots = asyncio.Semaphore(COPIES_MAX)
        self.new_objects_count = 0
        self.new_bytes = 0

    @classmethod
    async def into(cls, store: BlobStore, source: BlobReader) -> "Copier":
        """Return a copier that knows what the repository has."""
        return cls(
            store,
            source,
            sizes=repository.sizes_of((await repository.descriptors(store)).readable),
            present=await repository.object_hashes(store),
        )

    async def copy(self, cut: Cut) -> tuple[list[SnapshotObject], int]:
        """Copy what a cut names; return all its objects, and how many templates it has at most.

        Raises:
            CorruptError: an object is not there (OBJECT_MISSING), or damaged.
        """
        gallery, shard_map = gallery_in(cut.meta)
        objects: list[SnapshotObject] = []
        count = 0
        ids = [shard.shard_id for shard in shard_map.shards]
        for found, templates_count in await all_of([self._shard(cut.meta, one) for one in ids]):
            objects += found
            count += templates_count
        objects += await self._closed_journals(gallery.uid, {*ids, *cut.pending})
        # All that there are: a segment may have the codes of one that was replaced since.
        names = {*await self._source.list(f"codebooks/{gallery.uid}/")}
        if gallery.codebook:
            names.add(codebook_name(gallery.uid, gallery.codebook))
        objects += [await self._copied(name, named_sha256(name)) for name in sorted(names)]
        return objects, count

    async def _shard(self, cut: Meta, shard_id: ShardId) -> tuple[list[SnapshotObject], int]:
        """Copy one shard."""
        async with self._slots:
            pointer, tip = cut.pointers.get(shard_id), cut.tips.get(shard_id)
            found: dict[str, SnapshotObject] = {}

            async def take(name: str, sha256: str) -> bytes:
                found[name] = await self._copied(name, sha256)
                return await fetch(self._store, object_name(sha256), sha256)

            manifest = await walk.manifest_of(take, shard_id, pointer)
            # The log first: it is what a flush deletes.
            log = await walk.log_of(take, shard_id, manifest, tip)
            hashes = [] if manifest is None else [one.sha256 for one in manifest.segments]
            records = [record for one in log for record in one.group.records]
            hashes += loaded_segments(records)
            for sha256 in hashes:
                name = segment_name(shard_id, sha256)
                found[name] = await self._copied(name, sha256)
            end = None if manifest is None else manifest.journal
            await walk.journal_of(take, shard_id, end)
            held = 0 if manifest is None else manifest.templates_count
            return list(found.values()), held + sum(map(added_count, records))

    async def _closed_journals(self, uid: str, others: set[ShardId]) -> list[SnapshotObject]:
        """Copy the journals of shards whose place others have taken: an earlier snapshot may be
        restored when nobody else has them any more.
        """
        found: dict[str, SnapshotObject] = {}

        async def take(name: str, sha256: str) -> bytes:
            found[name] = await self._copied(name, sha256)
            return await fetch(self._store, object_name(sha256), sha256)

        for shard_id in await walk.journalled(self._source, uid):
            end = None if shard_id in others else await walk.closing_of(self._source, shard_id)
            if end is not None:
                await walk.journal_of(take, shard_id, end, behind=-1)
        return list(found.values())

    async def _copied(self, name: str, sha256: str) -> SnapshotObject:
        """Have an object in the repository."""
        place = object_name(sha256)
        if sha256 not in self._present:
            data = await fetch(self._source, name, sha256)
            if await repository.put(self._store, place, data):
                self.new_objects_count += 1
                self.new_bytes += len(data)
            self._present.add(sha256)
            self._sizes[sha256] = len(data)
        if sha256 not in self._sizes:
            # Left by somebody who was killed: whole, or named here.
            self._sizes[sha256] = len(await fetch(self._store, place, sha256))
        return SnapshotObject(name, sha256, self._sizes[sha256])


def loaded_segments(records: Iterable[LogRecord]) -> list[str]:
    """Return the sha256 of segments that bulk loads among the records brought rows with."""
    return [
        segment.sha256
        for record in records
        if isinstance(record, LoadRecord)
        for segment in record.segments
        if segment.unchanged_count < segment.rows_count
    ]


def added_count(record: LogRecord) -> int:
    """Return how many rows a record added."""
    match record:
        case EnrolRecord():
            return len(record.template_ids)
        case LoadRecord():
            return sum(one.rows_count - one.unchanged_count for one in record.segments)
        case EraseRecord():
            return 0


def _outrun(gallery: str) -> CorruptError:
    return CorruptError(
        f"the gallery changes faster than it is copied, try again gallery={gallery}",
        reason="OBJECT_MISSING",
        gallery=gallery,
    )
