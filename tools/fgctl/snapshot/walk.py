"""Follows a shard in a store: its manifest, its log back from the tip, its erasure journal."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from facegrid.blob.reader import BlobReader
from facegrid.errors import CorruptError
from facegrid.format.erasures import (
    Erasure,
    ErasureJournal,
    JournalRef,
    decode_journal,
    erasure_of,
    journal_name,
    journal_prefix,
    parse_journal_name,
)
from facegrid.format.inventory import gallery_of
from facegrid.format.log import EraseRecord, LogGroup, LogRef, decode_log, log_name
from facegrid.format.manifest import Manifest, decode_manifest, manifest_name
from facegrid.format.records import ManifestPointer
from facegrid.ids import ShardId
from fgctl.snapshot import repository

Fetch = Callable[[str, str], Awaitable[bytes]]
"""Returns the object of a name that has this sha256, or raises CorruptError (OBJECT_MISSING,
OBJECT_DAMAGED)."""


@dataclass(frozen=True, slots=True)
class LogObject:
    """One object of a log, decoded, and what names it."""

    ref: LogRef
    group: LogGroup


async def manifest_of(
    fetch: Fetch, shard_id: ShardId, pointer: ManifestPointer | None
) -> Manifest | None:
    """Return the manifest that etcd points at; None where there is none yet."""
    if pointer is None:
        return None
    data = await fetch(manifest_name(shard_id, pointer.sha256), pointer.sha256)
    manifest = decode_manifest(data)
    _same_shard(manifest.shard_id, shard_id, "manifest")
    return manifest


async def log_of(
    fetch: Fetch, shard_id: ShardId, manifest: Manifest | None, tip: LogRef | None
) -> list[LogObject]:
    """Return the log behind a manifest up to the tip, oldest first. See `log_refs`."""
    found: list[LogObject] = []
    await log_refs(fetch, shard_id, manifest, tip, take=found.append)
    return found[::-1]


async def log_refs(
    fetch: Fetch,
    shard_id: ShardId,
    manifest: Manifest | None,
    tip: LogRef | None,
    *,
    take: Callable[[LogObject], None] = lambda _: None,
) -> list[LogRef]:
    """Return what names the log behind a manifest up to the tip, oldest first.

    Args:
        fetch: returns objects.
        shard_id: whose log.
        manifest: that the log goes on from.
        tip: the last object.
        take: called with each object, the last one first.

    Raises:
        CorruptError: an object is missing or damaged, or the log does not lead back to the
            manifest (LOG_BROKEN).
    """
    after = None if manifest is None else manifest.log
    covered = 0 if after is None else after.last_position
    found: list[LogRef] = []
    ref = tip
    while ref is not None and ref.last_position > covered:
        group = decode_log(await fetch(log_name(shard_id, ref), ref.sha256))
        _same_shard(group.shard_id, shard_id, "log object")
        take(LogObject(ref, group))
        found.append(ref)
        ref = group.predecessor
    if ref != after and found:
        raise CorruptError(
            f"log does not lead back to the manifest shard={shard_id}", reason="LOG_BROKEN"
        )
    return found[::-1]


async def journal_of(
    fetch: Fetch, shard_id: ShardId, end: JournalRef | None, *, behind: int = 0
) -> list[tuple[JournalRef, ErasureJournal]]:
    """Return the objects of a journal that speak for records behind a position, oldest first."""
    found: list[tuple[JournalRef, ErasureJournal]] = []
    ref = end
    while ref is not None and ref.last_position > behind:
        journal = decode_journal(await fetch(journal_name(shard_id, ref), ref.sha256))
        _same_shard(journal.shard_id, shard_id, "erasure journal")
        if journal.last_position != ref.last_position:
            raise CorruptError(
                f"journal ends elsewhere shard={shard_id} position={journal.last_position}",
                reason="OBJECT_SWAPPED",
            )
        found.append((ref, journal))
        ref = journal.predecessor
    return found[::-1]


async def erasures_of(
    fetch: Fetch,
    shard_id: ShardId,
    pointer: ManifestPointer | None,
    tip: LogRef | None,
    *,
    behind: int,
) -> list[Erasure]:
    """Return what a shard erased behind a position: what its journal says, then its log."""
    manifest = await manifest_of(fetch, shard_id, pointer)
    end = None if manifest is None else manifest.journal
    erased = [
        one
        for _, journal in await journal_of(fetch, shard_id, end, behind=behind)
        for one in journal.erasures
    ]
    uid = gallery_of(shard_id)[1]
    erased += [
        erasure_of(uid, record)
        for held in await log_of(fetch, shard_id, manifest, tip)
        for record in held.group.records
        # What came from another shard is in that one's journal, by its positions.
        if isinstance(record, EraseRecord) and record.source is None
    ]
    return [one for one in erased if one.position > behind]


async def journalled(store: BlobReader, uid: str) -> list[ShardId]:
    """Return the shards of which a store has an erasure journal, sorted."""
    names = [parse_journal_name(name) for name in await store.list(journal_prefix(uid))]
    return sorted({parsed[1] for parsed in names if parsed is not None})


async def closing_of(store: BlobReader, shard_id: ShardId) -> JournalRef | None:
    """Return the object that closes a shard's journal, if one does."""
    prefix = f"{journal_prefix(gallery_of(shard_id)[1])}{shard_id}/"
    for name in reversed(await store.list(prefix)):
        parsed = parse_journal_name(name)
        if parsed is None:
            continue
        if decode_journal(await repository.fetch(store, name, parsed[2].sha256)).closing:
            return parsed[2]
    return None


def _same_shard(found: ShardId, expected: ShardId, what: str) -> None:
    if found != expected:
        raise CorruptError(
            f"{what} belongs to another shard shard={expected} found={found}",
            reason="OBJECT_SWAPPED",
            shard=expected,
        )
