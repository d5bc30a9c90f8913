"""What a node's error means to a caller of the router, who knows of no nodes."""

from facegrid.errors import FacegridError, NotFoundError, UnavailableError
from facegrid.ids import NodeId, ShardId

SHARD_NOT_HERE = "SHARD_NOT_HERE"


def blamed(error: FacegridError, shard_id: ShardId, node_id: NodeId) -> FacegridError:
    """Return a node's error with the shard and the node that it came from.

    A shard that a node does not hold is no fault of the caller: the map is about to change.
    """
    if isinstance(error, NotFoundError) and error.reason == SHARD_NOT_HERE:
        moved = UnavailableError(
            f"{error.message} shard={shard_id} node={node_id}",
            reason=SHARD_NOT_HERE,
            shard=shard_id,
            node=node_id,
        )
        moved.facts.update(error.facts)
        return moved
    if isinstance(error, UnavailableError) and "shard" not in error.facts:
        named = "" if f"node={node_id}" in error.message else f" node={node_id}"
        error.message = f"{error.message} shard={shard_id}{named}"
    error.facts.setdefault("shard", shard_id)
    error.facts.setdefault("node", node_id)
    return error
