"""From what an operator asks for to an operation that makes sense, or to a refusal. Pure."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Final

from facegrid import limits
from facegrid.errors import InvalidError, NotFoundError
from facegrid.format.operations import (
    Merge,
    Operation,
    OperationKind,
    OperationState,
    Replicas,
    Split,
)
from facegrid.ids import NodeId, ShardId
from facegrid.model import ShardAssignment, ShardMap
from router.plan import reshape

REPLICAS_STEPS: Final = ("join", "verify", "serve", "cutover", "leave")
RESHAPE_STEPS: Final = ("fill", "follow", "cutover", "drop")
"""Steps of a split or merge. A record names the step that comes next."""


def steps_of(kind: OperationKind) -> tuple[str, ...]:
    """Return the names of an operation's steps, in order."""
    return REPLICAS_STEPS if isinstance(kind, Replicas) else RESHAPE_STEPS


def abortable(operation: Operation) -> bool:
    """Tell whether an operation can be aborted: until its cutover was made."""
    if operation.state.over or operation.state is OperationState.ABORTING:
        return False
    steps = steps_of(operation.kind)
    return operation.step in steps[: steps.index("cutover") + 1]


def replicas(
    shard_map: ShardMap,
    shard_id: ShardId,
    node_ids: Sequence[NodeId],
    *,
    registered: Collection[NodeId],
) -> Replicas:
    """Return the operation that has a shard held by given nodes.

    Raises:
        NotFoundError: no such shard (SHARD_UNKNOWN), or a node that does not hold it yet is not
            registered (NODE_UNKNOWN).
        InvalidError: no nodes, too many, or one twice (NODES_MALFORMED).
    """
    shard = _known(shard_map, shard_id)
    if not 1 <= len(node_ids) <= limits.REPLICAS_MAX or len(set(node_ids)) < len(node_ids):
        raise InvalidError(
            f"name 1 to {limits.REPLICAS_MAX} nodes, each once nodes={','.join(node_ids)[:200]!r}",
            reason="NODES_MALFORMED",
            field="node_ids",
            limit=limits.REPLICAS_MAX,
        )
    for node_id in node_ids:
        if node_id not in registered and node_id not in shard.holders:
            raise NotFoundError(
                f"the node is not registered; start it, or name another one node={node_id}",
                reason="NODE_UNKNOWN",
                node=node_id,
            )
    return Replicas(shard_id, tuple(node_ids))


def split(shard_map: ShardMap, shard_id: ShardId, *, taken: Collection[ShardId]) -> Split:
    """Return the operation that cuts a shard's range into halves.

    Raises:
        NotFoundError: no such shard (SHARD_UNKNOWN).
        InvalidError: it has one key only (SHARD_TOO_SMALL), or the gallery has as many shards as
            it may have (TOO_MANY_SHARDS).
    """
    shard = _known(shard_map, shard_id)
    if shard.range.size < 2:
        raise InvalidError(
            f"the shard has one key only, which cannot be split shard={shard_id}",
            reason="SHARD_TOO_SMALL",
            shard=shard_id,
        )
    if len(shard_map.held) + 2 > limits.SHARDS_MAX:
        raise InvalidError(
            f"a gallery has at most {limits.SHARDS_MAX} shards; merge some first",
            reason="TOO_MANY_SHARDS",
            limit=limits.SHARDS_MAX,
        )
    children = reshape.next_shard_ids(shard_map, 2, taken=taken)
    return Split(shard_id, reshape.middle(shard.range), children)


def merge(
    shard_map: ShardMap, shard_ids: Sequence[ShardId], *, taken: Collection[ShardId]
) -> Merge:
    """Return the operation that makes one shard of neighbours.

    Raises:
        NotFoundError: no such shard (SHARD_UNKNOWN).
        InvalidError: fewer than two, too many, or one twice (SHARDS_MALFORMED), or there is a gap
            between them (NOT_NEIGHBOURS).
    """
    if not 2 <= len(set(shard_ids)) == len(shard_ids) <= limits.MERGED_SHARDS_MAX:
        raise InvalidError(
            f"name 2 to {limits.MERGED_SHARDS_MAX} shards, each once shards={len(shard_ids)}",
            reason="SHARDS_MALFORMED",
            field="shard_ids",
            limit=limits.MERGED_SHARDS_MAX,
        )
    shards = sorted((_known(shard_map, one) for one in shard_ids), key=lambda one: one.range)
    if not reshape.neighbours(shards):
        raise InvalidError(
            "the shards do not follow one another in the key space; name those between them too"
            f" shards={','.join(shard.shard_id for shard in shards)[:200]}",
            reason="NOT_NEIGHBOURS",
            field="shard_ids",
        )
    child = reshape.next_shard_ids(shard_map, 1, taken=taken)[0]
    return Merge(tuple(shard.shard_id for shard in shards), child)


def making(kind: OperationKind, child_ids: Sequence[ShardId]) -> OperationKind:
    """Return an operation that makes shards of other names."""
    match kind, tuple(child_ids):
        case Split(), names:
            return replace(kind, child_ids=names)
        case Merge(), (name,):
            return replace(kind, child_id=name)
        case _:
            raise AssertionError(f"it makes other shards: {kind} {child_ids}")


def nothing_to_do(shard_map: ShardMap, kind: OperationKind) -> bool:
    """Tell whether a map is already as the operation would have it."""
    if not isinstance(kind, Replicas):
        return False
    shard = _known(shard_map, kind.shard_id)
    return shard.node_ids == kind.node_ids and not shard.joining


def former_nodes(shard_map: ShardMap, kind: OperationKind) -> tuple[NodeId, ...]:
    """Return the nodes that hold what an operation changes, in the order of the map."""
    match kind:
        case Replicas(shard_id=shard_id) | Split(shard_id=shard_id):
            return _known(shard_map, shard_id).node_ids
        case Merge(shard_ids=shard_ids):
            nodes = [node for one in shard_ids for node in _known(shard_map, one).node_ids]
            return tuple(dict.fromkeys(nodes))


def _known(shard_map: ShardMap, shard_id: ShardId) -> ShardAssignment:
    shard = reshape.shard_of(shard_map, shard_id)
    if shard is None:
        raise NotFoundError(
            f"the gallery has no such shard gallery={shard_map.gallery} shard={shard_id[:80]!r}",
            reason="SHARD_UNKNOWN",
            gallery=shard_map.gallery,
            shard=shard_id,
        )
    return shard
