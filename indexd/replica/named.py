"""Which shards a map has a node searched for: what must be true of a copy that is confirmed."""

from facegrid.coord.port import KeyValue
from facegrid.errors import CorruptError
from facegrid.format.records import decode_shard_map
from facegrid.ids import NodeId, ShardId


def searched_on(item: KeyValue | None, gallery_uid: str, node_id: NodeId) -> frozenset[ShardId]:
    """Return the shards of a gallery that a map, as etcd has it, sends searches to a node for: not
    those that the node joins, nor those that are being filled. None without such a map.
    """
    if item is None:
        return frozenset()
    try:
        shard_map = decode_shard_map(item.value)
    except CorruptError:
        # The watch has told, and logs it.
        return frozenset()
    if shard_map.gallery_uid != gallery_uid:
        return frozenset()
    return frozenset(shard.shard_id for shard in shard_map.shards if node_id in shard.node_ids)
