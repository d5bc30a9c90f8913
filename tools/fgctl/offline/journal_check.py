"""Checks erasure journals: every object, and that none is missing before another."""

from collections.abc import Mapping, Sequence

from facegrid.format.erasures import decode_journal, journal_name, parse_journal_name
from facegrid.ids import ShardId
from fgctl.offline.findings import Objects


async def check_journals(
    objects: Objects, names: Sequence[str], ends: Mapping[str, str]
) -> set[ShardId]:
    """Find what is damaged, exchanged or missing; findings go where the objects' do. Return the
    shards whose journals are closed: they were dropped.

    Args:
        objects: the store.
        names: of the journal objects to check.
        ends: names of those that manifests lead to, and the manifests that say so.
    """
    needed = dict(ends)
    closed = set()
    for name in names:
        journal = await objects.hashed(name, decode_journal)
        parsed = parse_journal_name(name)
        assert parsed is not None, "the inventory has sorted the names"
        uid, shard_id, ref = parsed
        if journal is None:
            continue
        found = (journal.gallery_uid, journal.shard_id, journal.last_position)
        if found != (uid, shard_id, ref.last_position):
            problem = f"it belongs to another place shard={journal.shard_id}"
            objects.findings.problem(name, "OBJECT_SWAPPED", problem)
            continue
        if journal.predecessor is not None:
            needed.setdefault(journal_name(shard_id, journal.predecessor), name)
        if journal.closing:
            closed.add(shard_id)
    for name, needed_by in sorted(needed.items()):
        if name not in objects.names:
            problem = f"erasure journal is missing; needed by {needed_by}"
            objects.findings.problem(name, "OBJECT_MISSING", problem)
    return closed
