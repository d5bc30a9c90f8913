"""Where snapshots are tested: a cluster to restore into, in memory, and chance that repeats.

`FakeCluster` keeps of a primary what a restore relies on: segments are looked at only when they
are committed, all rows of a shard become visible at once, a request has the effect of once, a
template that is there counts as unchanged. `tests/cluster/test_snapshot.py` does the same on real
processes.
"""

import random  # noqa: TID251 - seeded
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from facegrid.clock import SystemClock
from facegrid.coord import keys
from facegrid.coord.port import Put
from facegrid.format import digest as digests
from facegrid.format.load_pin import LoadPin, pin_name
from facegrid.format.records import decode_gallery, encode_gallery, encode_shard_map
from facegrid.format.segment import decode_segment, segment_name
from facegrid.ids import KEY_LAST, NodeId, ShardId, subject_key
from facegrid.model import Gallery, HashRange, ShardAssignment, ShardMap
from facegrid.testing.manual_clock import ManualClock
from facegrid.testing.memory_blob import MemoryBlobStore
from facegrid.testing.memory_coord import MemoryCoordinator
from fgctl.bulk.segments import StoredSegment
from fgctl.snapshot.repository import Tools
from fgctl.snapshot.restore import Holding

Key = tuple[str, str]
"""Subject and template."""


def tools(seed: int = 1) -> Tools:
    """Return tools that give the same digits in every run."""
    chance = random.Random(seed)
    return Tools(ManualClock(), lambda: f"{chance.getrandbits(32):08x}")


@dataclass(eq=False)
class FakeCluster:
    """A cluster. `rows` are those that a search could find, by shard."""

    coord: MemoryCoordinator = field(default_factory=lambda: MemoryCoordinator(SystemClock()))
    store: MemoryBlobStore = field(default_factory=MemoryBlobStore)
    rows: dict[ShardId, dict[Key, bytes]] = field(default_factory=dict)
    commits: list[tuple[ShardId, int]] = field(default_factory=list)
    codebook_after: int = 0
    """How often a shard is asked before it searches with the codebook."""
    asked_level: int = 0
    _maps: dict[str, ShardMap] = field(default_factory=dict)
    _done: set[tuple[str, ShardId]] = field(default_factory=set)
    _uids: "count[int]" = field(default_factory=count)

    async def create_gallery(self, like: Gallery) -> None:
        """See Cluster."""
        uid = f"{next(self._uids) + 0xC0FFEE00:08x}"
        gallery = replace(like, uid=uid, codebook="", tuning=None)
        size = 2**64 // gallery.shards_count
        shards = tuple(
            ShardAssignment(
                ShardId(f"{gallery.name}.{gallery.uid}.{number:04d}"),
                HashRange(
                    size * number,
                    KEY_LAST if number == gallery.shards_count - 1 else size * (number + 1) - 1,
                ),
                (NodeId("n1"),),
            )
            for number in range(gallery.shards_count)
        )
        shard_map = ShardMap(gallery.name, gallery.uid, 1, shards)
        self._maps[gallery.name] = shard_map
        self.rows |= {shard.shard_id: {} for shard in shards}
        await self.coord.txn(
            [],
            [
                Put(keys.gallery(gallery.name), encode_gallery(gallery)),
                Put(keys.shard_map(gallery.name), encode_shard_map(shard_map)),
            ],
        )

    async def commit(self, gallery: str, load_id: str, segments: Sequence[StoredSegment]) -> None:
        """See Cluster."""
        (shard_id,) = {one.shard_id for one in segments}
        if (load_id, shard_id) in self._done:
            return
        (shard,) = [one for one in self._maps[gallery].shards if one.shard_id == shard_id]
        added: dict[Key, bytes] = {}
        for one in segments:
            assert pin_name(LoadPin(shard_id, load_id, one.sha256)) in self.store.objects, "pinned"
            segment = decode_segment(await self.store.get(segment_name(shard_id, one.sha256)))
            assert (segment.load_id, len(segment.codes)) == (load_id, one.rows_count)
            for row, template_id in enumerate(segment.template_ids):
                subject_id = segment.subject_ids[segment.subject_rows[row]]
                assert shard.range.contains(subject_key(subject_id)), "in its shard"
                assert (subject_id, template_id) not in added, "no template twice"
                added[subject_id, template_id] = segment.codes[row].tobytes()
        there = self.rows[shard_id]
        assert all(there.get(key, data) == data for key, data in added.items())
        there |= added
        self._done.add((load_id, shard_id))
        self.commits.append((shard_id, len(added)))

    async def erase(
        self, gallery: str, subject_ids: Sequence[str], template_ids: Sequence[str]
    ) -> None:
        """See Cluster."""
        for shard in self._maps[gallery].shards:
            rows = self.rows[shard.shard_id]
            for key in [k for k in rows if k[0] in subject_ids or k[1] in template_ids]:
                del rows[key]

    async def holdings(self, gallery: str) -> list[Holding]:
        """See Cluster."""
        item = await self.coord.get(keys.gallery(self._maps[gallery].gallery))
        assert item is not None
        self.codebook_after -= 1
        codebook = decode_gallery(item.value).codebook if self.codebook_after < 0 else ""
        return [
            Holding(shard.shard_id, codebook, len(rows), digest_of(rows))
            for shard in self._maps[gallery].shards
            for rows in [self.rows[shard.shard_id]]
        ]

    async def level(self, gallery: str) -> bool:
        """See Cluster."""
        self.asked_level += 1
        return self.asked_level > 2 and gallery in self._maps

    def found(self, gallery: str) -> dict[Key, bytes]:
        """Return all rows of a gallery that a search could find."""
        shards = self._maps[gallery].shards
        return {key: data for one in shards for key, data in self.rows[one.shard_id].items()}


def digest_of(rows: dict[Key, bytes]) -> int:
    """Return the digest of rows."""
    total = 0
    for key, data in rows.items():
        total = digests.add(total, digests.row_digest(*key, data))
    return total
