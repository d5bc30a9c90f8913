"""Placement: into which ranges a gallery is cut and which nodes hold them."""

from collections import Counter
from collections.abc import Iterable, Sequence

from facegrid.errors import UnavailableError
from facegrid.ids import KEY_LAST, NodeId, ShardId
from facegrid.model import Gallery, HashRange, ShardAssignment, ShardMap
from router.plan.tiles import KEYS_COUNT


def equal_ranges(count: int) -> tuple[HashRange, ...]:
    """Return `count` ranges that tile the key space in order, alike in size to within one key."""
    firsts = [number * KEYS_COUNT // count for number in range(count)]
    lasts = [first - 1 for first in firsts[1:]] + [KEY_LAST]
    return tuple(HashRange(first, last) for first, last in zip(firsts, lasts, strict=True))


def shard_id(gallery: str, uid: str, number: int) -> ShardId:
    """Return the name of a gallery's shard: unique over all galleries that ever were."""
    return ShardId(f"{gallery}.{uid}.{number:04d}")


def place(
    gallery: Gallery, *, live: Iterable[NodeId], present: Sequence[ShardMap] = ()
) -> ShardMap:
    """Return the first map of a new gallery: equal ranges, replicas of a shard on distinct nodes.

    Primaries go to the nodes with the fewest primaries, further replicas to those with the fewest
    replicas, counted over all galleries; equals are taken by name, so the same cluster gives the
    same map.

    Raises:
        UnavailableError: fewer nodes are live than the gallery wants replicas (TOO_FEW_NODES).
    """
    nodes = sorted(set(live))
    if len(nodes) < gallery.replicas_count:
        raise UnavailableError(
            "too few live nodes for that many replicas: start more, or ask for fewer replicas"
            f" nodes={len(nodes)} replicas={gallery.replicas_count}",
            reason="TOO_FEW_NODES",
            gallery=gallery.name,
            limit=len(nodes),
        )
    old = [shard for shard_map in present for shard in shard_map.held]
    primaries = Counter(shard.primary for shard in old)
    replicas = Counter(node_id for shard in old for node_id in shard.holders)
    shards = []
    for number, hash_range in enumerate(equal_ranges(gallery.shards_count)):
        chosen = [min(nodes, key=lambda node: (primaries[node], replicas[node], node))]
        primaries[chosen[0]] += 1
        others = sorted(
            (node for node in nodes if node != chosen[0]), key=lambda node: (replicas[node], node)
        )
        chosen += others[: gallery.replicas_count - 1]
        replicas.update(chosen)
        name = shard_id(gallery.name, gallery.uid, number)
        shards.append(ShardAssignment(name, hash_range, tuple(chosen)))
    return ShardMap(gallery.name, gallery.uid, version=1, shards=tuple(shards))
