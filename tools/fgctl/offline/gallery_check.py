"""Checks the copies of etcd's records of galleries: every object, and that none is missing."""

from collections.abc import Collection, Sequence

from facegrid.format.inventory import gallery_of
from facegrid.format.stored_gallery import (
    decode_stored_gallery,
    parse_stored_gallery_name,
    stored_gallery_prefix,
)
from facegrid.ids import ShardId
from fgctl.offline.findings import Objects


async def check_galleries(
    objects: Objects, names: Sequence[str], shards: Collection[ShardId]
) -> None:
    """Find what is damaged, exchanged or missing; findings go where the objects' do.

    Nothing in a store refers to these records. But a primary stores them before it acknowledges
    anything, and without them nobody could tell after a loss of etcd what gallery a shard belongs
    to. When a gallery is dropped they go first, after the journal of one of its shards was closed;
    those of the others are closed soon after. A cluster that was stopped in between looks as if
    they were lost, unless saved records of etcd tell.

    Args:
        objects: the store.
        names: of the records to check.
        shards: those that need records of their galleries.
    """
    known = set()
    for name in names:
        parsed = parse_stored_gallery_name(name)
        assert parsed is not None, "the inventory has sorted the names"
        known.add(parsed[0])
        await objects.hashed(name, decode_stored_gallery)
    needed_by: dict[str, ShardId] = {}
    for shard_id in sorted(shards):
        uid = gallery_of(shard_id)[1]
        if uid and uid not in known:
            needed_by.setdefault(uid, shard_id)
    for uid, shard_id in needed_by.items():
        objects.findings.problem(
            stored_gallery_prefix(uid),
            "RECORDS_MISSING",
            f"etcd's records of the gallery are missing; needed by shard {shard_id}, unless the"
            " gallery was being dropped: let that end, or use records saved meanwhile",
        )
