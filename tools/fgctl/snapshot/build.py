"""Turns rows into segments of a bulk load for the shards of another gallery."""

import asyncio
from collections.abc import Sequence

import numpy as np

from facegrid import limits
from facegrid.format import digest as digests
from facegrid.format.segment import segment_rows_max
from facegrid.ids import ShardId, subject_keys
from facegrid.model import ShardMap
from fgctl.bulk.publish import LoadStore
from fgctl.bulk.rows import Rows, ShardRows
from fgctl.bulk.segments import StoredSegment, build_segment

ROWS_MAX = limits.FLUSH_ROWS
"""Rows of a segment: as many as a flush writes."""


class Builder:
    """Sorts rows by shard and stores them as segments, unseen until they are committed.

    Args:
        store: of one load.
        load_id: of the same.
        shard_map: of the gallery that the rows are for.
        codebook: the one that this gallery uses; codes of others are left out.

    Attributes:
        segments: what was stored, by shard.
        templates_count: rows taken.
        digest: of all of them.
    """

    def __init__(
        self, store: LoadStore, load_id: str, shard_map: ShardMap, *, codebook: str
    ) -> None:
        self.segments: dict[ShardId, list[StoredSegment]] = {}
        self.templates_count = 0
        self.digest = 0
        self._store = store
        self._load_id = load_id
        self._codebook = codebook
        self._shards = [shard.shard_id for shard in shard_map.shards]
        self._lasts = np.array([shard.range.last for shard in shard_map.shards], np.uint64)
        self._waiting: dict[tuple[ShardId, bool], list[Rows]] = {}

    async def add(self, block: Rows) -> None:
        """Take rows; store segments that are full."""
        if not len(block):
            return
        self.templates_count += len(block)
        self.digest = digests.add(self.digest, await asyncio.to_thread(block.digest))
        keys = subject_keys([one.encode() for one in block.subject_ids])
        owners = np.searchsorted(self._lasts, keys)
        coded = block.codebook == self._codebook and block.lists is not None
        for number in np.unique(owners).tolist():
            shard_id = self._shards[number]
            waiting = self._waiting.setdefault((shard_id, coded), [])
            waiting.append(block.only(owners == number))
            if sum(map(len, waiting)) >= min(ROWS_MAX, segment_rows_max(block.codes.shape[1])):
                await self._store_waiting(shard_id, coded=coded)

    async def flush(self) -> None:
        """Store what waits."""
        for shard_id, coded in sorted(self._waiting):
            await self._store_waiting(shard_id, coded=coded)

    async def _store_waiting(self, shard_id: ShardId, *, coded: bool) -> None:
        blocks = self._waiting.pop((shard_id, coded))
        for rows in _cut(_joined(blocks, self._codebook if coded else ""), shard_id):
            built = await asyncio.to_thread(build_segment, rows, self._load_id)
            await self._store.put(built)
            self.segments.setdefault(shard_id, []).append(built.named)


def _joined(blocks: Sequence[Rows], codebook: str) -> Rows:
    """Return blocks as one."""
    lists = [block.lists for block in blocks if block.lists is not None]
    pq_codes = [block.pq_codes for block in blocks if block.pq_codes is not None]
    return Rows(
        template_ids=[one for block in blocks for one in block.template_ids],
        subject_ids=[one for block in blocks for one in block.subject_ids],
        codes=np.concatenate([block.codes for block in blocks]),
        codebook=codebook,
        lists=np.concatenate(lists) if codebook else None,
        pq_codes=np.concatenate(pq_codes) if codebook else None,
    )


def _cut(rows: Rows, shard_id: ShardId) -> list[ShardRows]:
    """Return rows of a shard in pieces that fit into a segment."""
    step = min(ROWS_MAX, segment_rows_max(rows.codes.shape[1]))
    return [rows.of_shard(shard_id, at, at + step) for at in range(0, len(rows), step)]
