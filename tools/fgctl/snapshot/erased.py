"""What was erased after a snapshot: where that is known, and whether it is all.

Positions decide. A row of the snapshot lived at the position of its shard's cut, so an erasure
behind that position which names it took it away; what was enrolled again afterwards is not in the
snapshot. A source must account for every position behind the cut, or it is refused.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from facegrid.blob.reader import BlobReader
from facegrid.coord.port import Coordinator
from facegrid.errors import ConflictError, CorruptError
from facegrid.format.bitmap import Bool
from facegrid.format.chain import LogEntry, connect, log_entry
from facegrid.format.erasures import (
    ID_HASH_BYTES,
    Erasure,
    IdKind,
    JournalRef,
    id_hash,
)
from facegrid.format.inventory import ShardNames, gallery_of, named_sha256, take_inventory
from facegrid.format.log import LogRef, decode_log, log_ref, parse_log_name
from facegrid.format.records import ManifestPointer
from facegrid.format.snapshot import Snapshot
from facegrid.ids import ShardId, shard_number
from fgctl.meta.recovery import read_current
from fgctl.meta_file import Meta
from fgctl.offline import manifests
from fgctl.snapshot import repository, walk
from fgctl.snapshot.cut import by_uid, gallery_in, position_of
from fgctl.snapshot.repository import Named, SnapshotReader, fetch

TRIES_MAX = 20
"""How often a log is read again that a primary trims meanwhile."""

ByShard = Mapping[ShardId, Sequence[Erasure]]


class Erasures:
    """All that is known to have been erased behind a snapshot's cut, by shard.

    Attributes:
        found: erasures of each shard by position.
    """

    def __init__(self, snapshot: Snapshot, found: Iterable[ByShard]) -> None:
        self.found: dict[ShardId, dict[int, Erasure]] = {}
        self._uid = snapshot.gallery_uid
        self._snapshot = snapshot
        self._shards = shards_of(snapshot)
        for part in found:
            for shard_id, erasures in part.items():
                known = self.found.setdefault(shard_id, {})
                known.update((one.position, one) for one in erasures)

    @property
    def fingerprint(self) -> str:
        """A hash of all of it, 64 hex digits."""
        hashed = hashlib.sha256()
        for shard_id, known in sorted(self.found.items()):
            for position, one in sorted(known.items()):
                header = f"{shard_id} {position} {len(one.subjects)} {len(one.templates)} "
                hashed.update(header.encode() + one.subjects + one.templates)
        return hashed.hexdigest()

    @property
    def ids_count(self) -> int:
        """Number of ids erased, as often as they were."""
        return sum(one.ids_count for known in self.found.values() for one in known.values())

    def of(self, shard_id: ShardId) -> "ErasedIds":
        """Return what was erased of one shard of the snapshot.

        Shards that came later, out of shards that the snapshot knows, erased all that they did
        behind the cut. Those whose place others had taken before erased nothing behind it.
        """
        erasures = [
            one
            for name, known in self.found.items()
            if name == shard_id or not (name in self._shards or was_replaced(self._snapshot, name))
            for one in known.values()
        ]
        return ErasedIds(
            self._uid,
            frozenset(_split(one.subjects for one in erasures)),
            frozenset(_split(one.templates for one in erasures)),
        )


@dataclass(frozen=True, slots=True)
class ErasedIds:
    """Hashes of erased subjects and templates of one gallery."""

    gallery_uid: str
    subjects: frozenset[bytes]
    templates: frozenset[bytes]

    def mask(self, subject_ids: Sequence[str], template_ids: Sequence[str]) -> Bool:
        """Tell of each row whether it was erased, bool [n]."""
        erased = np.zeros(len(subject_ids), np.bool_)
        if self.subjects:
            erased |= self._named("subject", subject_ids, self.subjects)
        if self.templates:
            erased |= self._named("template", template_ids, self.templates)
        return erased

    def has(self, kind: IdKind, value: str) -> bool:
        """Tell whether an id was erased."""
        return id_hash(self.gallery_uid, kind, value) in (
            self.subjects if kind == "subject" else self.templates
        )

    def _named(self, kind: IdKind, values: Sequence[str], erased: frozenset[bytes]) -> Bool:
        uid = self.gallery_uid
        return np.fromiter(
            (id_hash(uid, kind, one) in erased for one in values), np.bool_, len(values)
        )


def _split(joined: Iterable[bytes]) -> Iterable[bytes]:
    for hashes in joined:
        for at in range(0, len(hashes), ID_HASH_BYTES):
            yield hashes[at : at + ID_HASH_BYTES]


def shards_of(snapshot: Snapshot) -> set[ShardId]:
    """Return the shards that a snapshot has."""
    return {shard.shard_id for shard in gallery_in(repository.cut_of(snapshot))[1].shards}


def was_replaced(snapshot: Snapshot, shard_id: ShardId) -> bool:
    """Tell whether others had taken a shard's place, or it was given up, before the cut.

    Shards are numbered as they are made, and the map says how many there were.
    """
    _, shard_map = gallery_in(repository.cut_of(snapshot))
    if shard_id in shards_of(snapshot) or shard_id in snapshot.pending:
        return False
    return shard_number(shard_id) < shard_map.next_number


class ErasureSource(Protocol):
    """Somebody who may know what was erased."""

    async def behind(self, snapshot: Snapshot) -> ByShard | None:
        """Return all that was erased behind a snapshot's cut; None: the gallery is not known.

        Raises:
            ConflictError: the source is behind the snapshot itself (SOURCE_BEHIND), or is just
                being dropped (DROP_UNDER_WAY).
            CorruptError: a part of the journal or of the log is missing or damaged.
        """
        ...


class ClusterSource:
    """A cluster, asked through etcd and its store: certain up to the moment of asking."""

    def __init__(self, coord: Coordinator, store: BlobReader) -> None:
        self._coord = coord
        self._store = store

    async def behind(self, snapshot: Snapshot) -> ByShard | None:
        """See ErasureSource."""
        held = await self._read(snapshot.gallery_uid)
        if held is None:
            return await closed_journals(self._store, snapshot)
        for _ in range(TRIES_MAX):
            try:
                return await self._of(held, snapshot)
            except CorruptError as error:
                later = await self._read(snapshot.gallery_uid)
                if error.reason != "OBJECT_MISSING" or later is None:
                    raise
                if later.values == held.values:
                    raise
                held = later
        raise CorruptError(
            "the log is trimmed faster than it is read, try again", reason="OBJECT_MISSING"
        )

    async def _of(self, held: Meta, snapshot: Snapshot) -> ByShard:
        """Return what all shards erased that there are, or were."""
        found = dict(await _of_cut(self._store, held, snapshot))
        for shard_id in await _others(self._store, held, snapshot):
            found[shard_id] = await self._replaced(held, snapshot, shard_id)
        return found

    async def _replaced(
        self, held: Meta, snapshot: Snapshot, shard_id: ShardId
    ) -> Sequence[Erasure]:
        """Return what a shard erased whose place others have taken: its journal is closed, or etcd
        still knows its log.
        """
        if await walk.closing_of(self._store, shard_id) is None:
            pointer, tip = held.pointers.get(shard_id), held.tips.get(shard_id)
            if pointer is not None or tip is not None:
                behind = position_of(repository.cut_of(snapshot), shard_id)
                _check_not_behind(shard_id, behind, pointer, tip)
                try:
                    return await walk.erasures_of(
                        partial(fetch, self._store), shard_id, pointer, tip, behind=behind
                    )
                except CorruptError as error:
                    # It may be deleted just now: then its journal was closed before.
                    if error.reason != "OBJECT_MISSING":
                        raise
        return await _of_closed(self._store, snapshot, shard_id)

    async def _read(self, uid: str) -> Meta | None:
        return by_uid((await read_current(self._coord, unix_ms=0)).meta, uid)


class StoreSource:
    """A cluster's store without its etcd.

    Nothing in a store refers to the last object of a log: if that is lost nobody notices.
    """

    def __init__(self, store: BlobReader) -> None:
        self._store = store

    async def behind(self, snapshot: Snapshot) -> ByShard | None:
        """See ErasureSource."""
        uid = snapshot.gallery_uid
        for tries in range(TRIES_MAX):
            names = take_inventory(await self._store.list("")).shards
            held = {one: names[one] for one in names if gallery_of(one)[1] == uid}
            if not held:
                return await closed_journals(self._store, snapshot)
            try:
                return await self._of(held, snapshot)
            except CorruptError as error:
                if error.reason != "OBJECT_MISSING" or tries == TRIES_MAX - 1:
                    raise
        return None

    async def _of(self, held: Mapping[ShardId, ShardNames], snapshot: Snapshot) -> ByShard:
        """Return what all shards erased that there are, or were."""
        found = {one: await self._shard(snapshot, one, held[one]) for one in held}
        gone = {*shards_of(snapshot), *await walk.journalled(self._store, snapshot.gallery_uid)}
        for shard_id in sorted(gone - held.keys()):
            if not was_replaced(snapshot, shard_id):
                found[shard_id] = await _of_closed(self._store, snapshot, shard_id)
        return found

    async def _shard(
        self, snapshot: Snapshot, shard_id: ShardId, names: ShardNames
    ) -> Sequence[Erasure]:
        behind = position_of(repository.cut_of(snapshot), shard_id)
        newest = await manifests.shown(shard_id, self._store, names)
        closing = await walk.closing_of(self._store, shard_id)
        if closing is not None and not _goes_on(names, newest.newest, closing.last_position):
            return await _of_journal(self._store, shard_id, closing, behind=behind)
        if newest.problem:
            raise CorruptError(f"a manifest is damaged shard={shard_id} {newest.problem}")
        pointer, after = None, None
        if newest.newest is not None:
            held = newest.newest.manifest
            sha256 = named_sha256(newest.newest.name)
            pointer = ManifestPointer(sha256, held.position, held.generation)
            after = held.log
        tip = await self._tip(names, after)
        _check_not_behind(shard_id, behind, pointer, tip)
        return await walk.erasures_of(self._fetch, shard_id, pointer, tip, behind=behind)

    async def _tip(self, names: ShardNames, after: LogRef | None) -> LogRef | None:
        """Return the last object of the log, as the objects tell."""
        entries: list[LogEntry] = []
        for name in names.logs:
            parsed = parse_log_name(name)
            assert parsed is not None, "the inventory has sorted the names"
            data = await self._store.get(name)
            group = decode_log(data)
            entries.append(log_entry(group, log_ref(group, parsed[2], data)))
        chain = connect(entries, after=after)
        if chain.detached:
            raise CorruptError(
                f"log does not lead back to the manifest object={chain.detached[0].ref}",
                reason="LOG_BROKEN",
            )
        return chain.entries[-1].ref if chain.entries else after

    async def _fetch(self, name: str, sha256: str) -> bytes:
        return await fetch(self._store, name, sha256)


def _goes_on(names: ShardNames, newest: manifests.Newest | None, position: int) -> bool:
    """Tell whether a shard was written to behind the position at which its journal was closed: a
    recovery of etcd brought a gallery back that was just being dropped.
    """
    parsed = [parse_log_name(name) for name in names.logs]
    firsts = [found[1] for found in parsed if found is not None]
    covered = 0 if newest is None else newest.manifest.position
    return max([covered, *firsts]) > position


async def later_snapshots(
    repo: BlobReader, known: Sequence[Named], snapshot: Snapshot
) -> list[ByShard]:
    """Return what snapshots of the same gallery that were made later say of erasures."""
    found: list[ByShard] = []
    for one in known:
        later = one.snapshot
        if later.gallery_uid == snapshot.gallery_uid and _is_later(later, snapshot):
            reader, cut = SnapshotReader(repo, later), repository.cut_of(later)
            known_then = dict(await _of_cut(reader, cut, snapshot))
            for shard_id in await _others(reader, cut, snapshot):
                end = await walk.closing_of(reader, shard_id)
                if end is not None:
                    known_then[shard_id] = await _of_closed(reader, snapshot, shard_id)
            found.append(known_then)
    return found


def _is_later(one: Snapshot, other: Snapshot) -> bool:
    """Tell whether a cut is at no lower position in any shard: what others have replaced by then
    was as far as it ever came.
    """
    mine, others = repository.cut_of(one), repository.cut_of(other)
    return one.snapshot_id != other.snapshot_id and all(
        was_replaced(one, shard_id) or position_of(mine, shard_id) >= position_of(others, shard_id)
        for shard_id in shards_of(other)
    )


async def closed_journals(store: BlobReader, snapshot: Snapshot) -> ByShard | None:
    """Return what the journal of a dropped gallery says; None where there is no journal.

    Raises:
        ConflictError: some shards' journals are not closed: the gallery is just being dropped, or
            its log could not be read when it was (DROP_UNDER_WAY).
    """
    shards = {*shards_of(snapshot), *await walk.journalled(store, snapshot.gallery_uid)}
    wanted = sorted(one for one in shards if not was_replaced(snapshot, one))
    if not any([await walk.closing_of(store, shard_id) for shard_id in wanted]):
        return None
    return {shard_id: await _of_closed(store, snapshot, shard_id) for shard_id in wanted}


async def _of_closed(
    store: BlobReader, snapshot: Snapshot, shard_id: ShardId
) -> Sequence[Erasure]:
    """Return what the closed journal of a shard says.

    Raises:
        ConflictError: it is not closed (DROP_UNDER_WAY), or ends before the cut (SOURCE_BEHIND).
    """
    end = await walk.closing_of(store, shard_id)
    if end is None:
        raise ConflictError(
            "the gallery, or a shard of it, is being dropped, try again later; or its log was"
            f" damaged when it was dropped shard={shard_id}",
            reason="DROP_UNDER_WAY",
        )
    behind = position_of(repository.cut_of(snapshot), shard_id)
    if end.last_position < behind:
        raise _behind(shard_id, behind, end.last_position)
    return await _of_journal(store, shard_id, end, behind=behind)


async def _others(store: BlobReader, held: Meta, snapshot: Snapshot) -> list[ShardId]:
    """Return the shards that do not serve any more where erasures are read, and erased something
    that matters to a snapshot: its own, and those that came and went since.
    """
    _, shard_map = gallery_in(held)
    present = {shard.shard_id for shard in shard_map.held}
    gone = {*shards_of(snapshot), *held.tips, *held.pointers}
    gone |= {*await walk.journalled(store, snapshot.gallery_uid)}
    return sorted(one for one in gone - present if not was_replaced(snapshot, one))


async def _of_journal(
    store: BlobReader, shard_id: ShardId, end: JournalRef, *, behind: int
) -> list[Erasure]:
    async def read(name: str, sha256: str) -> bytes:
        return await fetch(store, name, sha256)

    # The end may be at position 0, or where its predecessor ends; it is read in any case.
    closing = await walk.journal_of(read, shard_id, end, behind=min(behind, end.last_position - 1))
    return [one for _, journal in closing for one in journal.erasures if one.position > behind]


async def _of_cut(store: BlobReader, held: Meta, snapshot: Snapshot) -> ByShard:
    """Return what a cut's journals and logs say."""

    async def read(name: str, sha256: str) -> bytes:
        return await fetch(store, name, sha256)

    cut = repository.cut_of(snapshot)
    found: dict[ShardId, Sequence[Erasure]] = {}
    for shard in gallery_in(held)[1].shards:
        one = shard.shard_id
        pointer, tip, behind = held.pointers.get(one), held.tips.get(one), position_of(cut, one)
        _check_not_behind(one, behind, pointer, tip)
        found[one] = await walk.erasures_of(read, one, pointer, tip, behind=behind)
    return found


def _check_not_behind(
    shard_id: ShardId, behind: int, pointer: ManifestPointer | None, tip: LogRef | None
) -> None:
    covered = 0 if pointer is None else pointer.position
    position = covered if tip is None else max(covered, tip.last_position)
    if position < behind:
        raise _behind(shard_id, behind, position)


def _behind(shard_id: ShardId, behind: int, position: int) -> ConflictError:
    return ConflictError(
        "where erasures should be known, the shard has not come as far as the snapshot: it was set"
        f" back shard={shard_id} position={position} snapshot={behind}",
        reason="SOURCE_BEHIND",
        shard=shard_id,
    )


async def gather(
    snapshot: Snapshot,
    repo: BlobReader,
    sources: Sequence[ErasureSource],
    *,
    accept_lost: bool,
) -> Erasures:
    """Return what was erased behind a snapshot's cut, from everybody who knows of it.

    Args:
        snapshot: to be restored.
        repo: the repository, whose later snapshots are always asked.
        sources: the cluster or store that the gallery was in; one that knows it is enough.
        accept_lost: go on although nobody else knows: what was erased after the last snapshot
            comes back.

    Raises:
        ConflictError: nobody knows the gallery (ERASURES_UNKNOWN), or see ErasureSource.
        CorruptError: what should be known cannot be read.
    """
    known = await repository.descriptors(repo)
    found = await later_snapshots(repo, known.readable, snapshot)
    answers = [await source.behind(snapshot) for source in sources]
    heard = [answer for answer in answers if answer is not None]
    if not heard and not accept_lost:
        raise ConflictError(
            "nobody knows what was erased after the snapshot: name the store that the gallery was"
            " in with --erasures, or accept with --accept-lost-erasures that it comes back"
            f" gallery_uid={snapshot.gallery_uid}",
            reason="ERASURES_UNKNOWN",
        )
    return Erasures(snapshot, [*found, *heard])
