"""Which of the maps in a store was in force: pure, from the maps and what lies in the shards.

The map of a split or merge is stored before the transaction that puts it in force, and stays
when that fails. To take one that never was in force loses what was written to the shards that it
leaves out; not to take one that was loses what was written to the shards that it has. So those
decide: the new shards hold nothing but what the old ones brought, until somebody writes to them;
and the old ones are there as they were, until they are deleted.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from facegrid.format.stored_gallery import StoredGallery
from facegrid.ids import ShardId, shard_number
from facegrid.model import ShardMap
from fgctl.offline.shard_check import ShardReport


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the store says of shards.

    Attributes:
        reports: of each that has objects.
        closed: those whose erasure journal is closed: they are over.
    """

    reports: Mapping[ShardId, ShardReport]
    closed: Set[ShardId]

    def has_own(self, shard_id: ShardId) -> bool:
        """Tell whether a shard has a record that no other shard brought."""
        report = self.reports.get(shard_id)
        return report is not None and report.has_own


def ruling(candidates: Sequence[StoredGallery], evidence: Evidence) -> StoredGallery:
    """Return the records that were in force last, of some of which the oldest certainly were."""
    ordered = sorted(candidates, key=_standing)
    base = ordered[0]
    for one in ordered[1:]:
        if _follows(one.shard_map, base.shard_map, evidence):
            base = one
    return base


def _standing(stored: StoredGallery) -> tuple[int, bool]:
    return (stored.shard_map.version, bool(stored.gallery.codebook))


def _follows(later: ShardMap, base: ShardMap, evidence: Evidence) -> bool:
    """Tell whether a map was in force after another, as far as that matters to anybody."""
    before = {shard.shard_id for shard in base.shards}
    after = {shard.shard_id for shard in later.shards}
    made, replaced = after - before, before - after
    pending = {shard.shard_id for shard in base.pending}
    if any(shard_number(one) < base.next_number for one in made - pending):
        # Ids are used once: it comes from before, on another way.
        return False
    if not replaced:
        return True
    return any(map(evidence.has_own, made)) or bool(replaced & evidence.closed)
