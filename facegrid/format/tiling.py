"""Whether the shards of a map fit together: pure, and asked wherever a map is read or written."""

from itertools import pairwise

from facegrid.ids import KEY_LAST, ShardId
from facegrid.model import HashRange, ShardAssignment, ShardMap


def tiling_problem(shard_map: ShardMap) -> str:
    """Say what is wrong with a map's shards; empty when nothing is.

    The invariant: the ranges cover the key space exactly once, in order, and every shard has an
    id of its own and a node. Else a subject could be enrolled twice, or searched for nowhere.
    Pending shards cover exactly what those cover whose place they take.
    """
    return _shards_problem(shard_map) or _ranges_problem(shard_map) or _pending_problem(shard_map)


def _shards_problem(shard_map: ShardMap) -> str:
    """Say which shard lacks something, or has it twice."""
    for shard in shard_map.held:
        if not shard.shard_id or not all(shard.holders) or not shard.node_ids:
            return f"a shard lacks its id or its nodes shard={shard.shard_id}"
        if len(set(shard.holders)) != len(shard.holders):
            return f"a node holds a shard twice shard={shard.shard_id}"
    if len({shard.shard_id for shard in shard_map.held}) != len(shard_map.held):
        return "a shard id stands twice"
    if shard_map.next_number < len(shard_map.held):
        return f"fewer shards were ever made than there are made_count={shard_map.made_count}"
    return ""


def _ranges_problem(shard_map: ShardMap) -> str:
    """Say where the shards that serve do not tile the key space."""
    expected = 0
    for shard in shard_map.shards:
        if shard.sources:
            return f"a shard that serves has sources shard={shard.shard_id}"
        if shard.range.first != expected:
            return f"ranges do not tile the key space shard={shard.shard_id}"
        expected = shard.range.last + 1
    return "" if expected == KEY_LAST + 1 else "ranges do not cover the key space"


def _pending_problem(shard_map: ShardMap) -> str:
    """Say where pending shards would not cover what they are to replace."""
    serving = {shard.shard_id: shard for shard in shard_map.shards}
    groups: dict[tuple[ShardId, ...], list[ShardAssignment]] = {}
    for shard in shard_map.pending:
        if not shard.sources or not serving.keys() >= set(shard.sources):
            return f"a pending shard has no sources in the map shard={shard.shard_id}"
        groups.setdefault(shard.sources, []).append(shard)
    taken = [source for sources in groups for source in sources]
    if len(set(taken)) != len(taken):
        return "a shard is the source of two operations"
    for sources, members in groups.items():
        old = _joined([serving[source].range for source in sources])
        if old is None or old != _joined([shard.range for shard in members]):
            return f"pending shards do not cover their sources shard={members[0].shard_id}"
    return ""


def _joined(ranges: list[HashRange]) -> HashRange | None:
    """Return the range that ranges cover exactly once; None where they do not."""
    ordered = sorted(ranges)
    for before, after in pairwise(ordered):
        if after.first != before.last + 1:
            return None
    return HashRange(ordered[0].first, ordered[-1].last)
