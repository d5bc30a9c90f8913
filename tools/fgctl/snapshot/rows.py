"""The live rows of one shard of a snapshot, at its cut, in pieces that fit into memory."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from facegrid.blob.reader import BlobReader
from facegrid.errors import CorruptError
from facegrid.format import digest as digests
from facegrid.format.bitmap import Bool
from facegrid.format.log import (
    EnrolRecord,
    EraseRecord,
    LoadRecord,
    LogRecord,
    LogRef,
    decode_log,
    log_name,
)
from facegrid.format.manifest import Manifest
from facegrid.format.segment import Segment, decode_segment, segment_name
from facegrid.ids import ShardId
from fgctl.bulk.rows import Rows
from fgctl.meta_file import Meta
from fgctl.snapshot import walk
from fgctl.snapshot.repository import fetch


@dataclass(slots=True)
class _Erased:
    """The last position at which the log behind the manifest erased each subject, and the records
    that erased each template.
    """

    subjects: dict[str, int] = field(default_factory=dict)
    templates: dict[str, list[EraseRecord]] = field(default_factory=dict)

    def note(self, record: LogRecord) -> None:
        if isinstance(record, EraseRecord):
            reached = filter(record.reaches, record.subject_ids)
            self.subjects |= dict.fromkeys(reached, record.position)
            for template_id in record.template_ids:
                self.templates.setdefault(template_id, []).append(record)

    def live(self, block: Rows, position: int) -> Rows:
        """Return the rows of a block, enrolled at a position, that were not erased later."""
        if not self.subjects and not self.templates:
            return block
        pairs = zip(block.subject_ids, block.template_ids, strict=True)
        kept = (
            self.subjects.get(subject_id, 0) <= position
            and not any(
                record.position > position and record.reaches(subject_id)
                for record in self.templates.get(template_id, ())
            )
            for subject_id, template_id in pairs
        )
        return block.only(np.fromiter(kept, np.bool_, len(block)))


class CutRows:
    """One shard of a snapshot, or of a store, at the cut.

    Args:
        reader: has the objects.
        cut: what etcd said.
        shard_id: of the shard.
    """

    def __init__(self, reader: BlobReader, cut: Meta, shard_id: ShardId) -> None:
        self._reader = reader
        self._shard_id = shard_id
        self._pointer = cut.pointers.get(shard_id)
        self._tip = cut.tips.get(shard_id)

    async def blocks(self) -> AsyncIterator[Rows]:
        """Yield all live rows.

        Raises:
            CorruptError: an object is missing or damaged, or the rows are not those that the
                manifest's digest is of (DIGEST_MISMATCH).
        """
        manifest = await walk.manifest_of(self._fetch, self._shard_id, self._pointer)
        log = await walk.log_refs(self._fetch, self._shard_id, manifest, self._tip)
        erased = _Erased()
        for ref in log:
            for record in await self._records(ref):
                erased.note(record)
        if manifest is not None:
            async for block in self._persisted(manifest, erased):
                yield block
        for ref in log:
            for record in await self._records(ref):
                async for block in self._added(record):
                    yield erased.live(block, record.position)

    async def _persisted(self, manifest: Manifest, erased: _Erased) -> AsyncIterator[Rows]:
        """Yield what the manifest's segments hold, once it is known to be what it says."""
        found = 0
        for entry in manifest.segments:
            block = _block(await self._segment(entry.sha256, entry.rows_count), ~entry.erased)
            found = digests.add(found, block.digest())
            yield erased.live(block, manifest.position)
        if digests.to_bytes(found) != manifest.digest:
            raise CorruptError(
                f"rows do not match the digest of the manifest shard={self._shard_id}",
                reason="DIGEST_MISMATCH",
            )

    async def _added(self, record: LogRecord) -> AsyncIterator[Rows]:
        """Yield the rows that a record added."""
        match record:
            case EnrolRecord():
                if len(record.codes):
                    subjects, templates = list(record.subject_ids), list(record.template_ids)
                    yield Rows(templates, subjects, record.codes)
            case LoadRecord():
                for entry in record.segments:
                    if entry.unchanged_count < entry.rows_count:
                        segment = await self._segment(entry.sha256, entry.rows_count)
                        yield _block(segment, ~entry.erased)
            case EraseRecord():
                return

    async def _segment(self, sha256: str, rows_count: int) -> Segment:
        name = segment_name(self._shard_id, sha256)
        segment = decode_segment(await self._fetch(name, sha256))
        if segment.shard_id != self._shard_id or len(segment.codes) != rows_count:
            raise CorruptError(
                f"segment does not belong here name={name}", reason="OBJECT_SWAPPED"
            )
        return segment

    async def _records(self, ref: LogRef) -> Sequence[LogRecord]:
        return decode_log(await self._fetch(log_name(self._shard_id, ref), ref.sha256)).records

    async def _fetch(self, name: str, sha256: str) -> bytes:
        return await fetch(self._reader, name, sha256)


def _block(segment: Segment, kept: Bool) -> Rows:
    """Return rows of a segment."""
    return Rows(
        list(segment.template_ids),
        [segment.subject_ids[row] for row in segment.subject_rows.tolist()],
        segment.codes,
        segment.codebook,
        segment.lists,
        segment.pq_codes,
    ).only(kept)
