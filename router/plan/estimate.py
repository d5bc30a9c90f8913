"""What an operation costs and what it does, in words: what is read before it is begun."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from facegrid import limits
from facegrid.errors import InvalidError, PreconditionError
from facegrid.format.operations import Merge, OperationKind, Replicas, Split
from facegrid.ids import NodeId, ShardId
from facegrid.model import ShardAssignment, ShardMap
from router.plan import kinds

LOAD_BYTES_PER_S: Final = 10 * limits.MIB
"""How fast a shard comes to a node. An assumption: what it takes for a shard of 1 M templates with
512 dimensions, about 600 MiB, to move within the 60 s that it may take on two cores."""
STEPS_S: Final = 10.0
"""What the steps take that move nothing: confirmation, comparing, and the graces."""


@dataclass(frozen=True, slots=True)
class ShardSize:
    """What a shard's primary tells of it."""

    templates_count: int
    stored_bytes: int
    memory_bytes: int

    @property
    def moved_bytes(self) -> int:
        """What a new copy reads; nodes that do not tell it hold about as much in memory."""
        return self.stored_bytes or self.memory_bytes


@dataclass(frozen=True, slots=True)
class Room:
    """Memory that a node needs beyond what it has in use, and what it has left; 0: not told."""

    node_id: NodeId
    needed_bytes: int
    available_bytes: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """What an operation costs.

    Attributes:
        steps: what happens, in words, in order.
        moved_bytes: bytes read from the store, over all nodes.
        duration_s: how long it takes, by LOAD_BYTES_PER_S.
        rooms: of each node that takes something in.
        nothing_to_do: it is so already.
    """

    steps: tuple[str, ...]
    moved_bytes: int
    duration_s: float
    rooms: tuple[Room, ...]
    nothing_to_do: bool


def estimate(
    kind: OperationKind,
    shard_map: ShardMap,
    *,
    sizes: Mapping[ShardId, ShardSize],
    available: Mapping[NodeId, int],
) -> Estimate:
    """Return what an operation would cost now.

    Args:
        kind: the operation; its shards are in the map.
        shard_map: as it is now.
        sizes: of all shards that it changes.
        available: memory that is left on each node, where it is told.
    """
    if kinds.nothing_to_do(shard_map, kind):
        return Estimate((), 0, 0.0, (), nothing_to_do=True)
    loads: dict[NodeId, int] = defaultdict(int)
    moved: dict[NodeId, int] = defaultdict(int)
    for source_id, nodes in _takers(kind, shard_map).items():
        for node_id in nodes:
            loads[node_id] += sizes[source_id].memory_bytes
            moved[node_id] += sizes[source_id].moved_bytes
    return Estimate(
        steps=_words(kind, shard_map),
        moved_bytes=sum(moved.values()),
        duration_s=STEPS_S + max(moved.values(), default=0) / LOAD_BYTES_PER_S,
        rooms=tuple(
            Room(node_id, needed, available.get(node_id, 0))
            for node_id, needed in sorted(loads.items())
        ),
        nothing_to_do=False,
    )


def check_size(kind: OperationKind, sizes: Mapping[ShardId, ShardSize]) -> None:
    """Raise InvalidError where a shard is too small to be split (SHARD_TOO_SMALL)."""
    if not isinstance(kind, Split):
        return
    count = sizes[kind.shard_id].templates_count
    if count < limits.SPLIT_TEMPLATES_MIN:
        raise InvalidError(
            "the shard is too small to be split: it is searched in no time as it is"
            f" templates={count} limit={limits.SPLIT_TEMPLATES_MIN} shard={kind.shard_id}",
            reason="SHARD_TOO_SMALL",
            shard=kind.shard_id,
            limit=limits.SPLIT_TEMPLATES_MIN,
        )


def check_room(found: Estimate) -> None:
    """Raise PreconditionError where a node has less memory than it needs (NO_ROOM)."""
    for room in found.rooms:
        if room.available_bytes and room.needed_bytes > room.available_bytes:
            raise PreconditionError(
                "the node has not enough memory left; name another one, or move something away"
                f" first node={room.node_id} needed_bytes={room.needed_bytes}"
                f" available_bytes={room.available_bytes}",
                reason="NO_ROOM",
                node=room.node_id,
                needed_bytes=room.needed_bytes,
                available_bytes=room.available_bytes,
            )


def _takers(kind: OperationKind, shard_map: ShardMap) -> Mapping[ShardId, tuple[NodeId, ...]]:
    """Return which nodes take in the rows of which shard."""
    shards = {shard.shard_id: shard for shard in shard_map.shards}
    match kind:
        case Replicas(shard_id=shard_id, node_ids=node_ids):
            present = shards[shard_id].node_ids
            return {shard_id: tuple(node for node in node_ids if node not in present)}
        case Split(shard_id=shard_id):
            return {shard_id: shards[shard_id].node_ids}
        case Merge(shard_ids=shard_ids):
            return dict.fromkeys(shard_ids, shards[shard_ids[0]].node_ids)


def _words(kind: OperationKind, shard_map: ShardMap) -> tuple[str, ...]:
    shards = {shard.shard_id: shard for shard in shard_map.shards}
    match kind:
        case Replicas(shard_id=shard_id):
            return _words_of_replicas(kind, shards[shard_id])
        case Split(shard_id=shard_id, child_ids=(lower, upper)):
            what = f"{lower} and {upper}, each with half of {shard_id}"
            return _words_of_reshape(what, (shard_id,), shards[shard_id].node_ids)
        case Merge(shard_ids=shard_ids, child_id=child_id):
            what = f"{child_id} with all of {', '.join(shard_ids)}"
            return _words_of_reshape(what, shard_ids, shards[shard_ids[0]].node_ids)
        case Split():
            raise AssertionError(f"a split makes two shards: {kind}")


def _words_of_replicas(kind: Replicas, shard: ShardAssignment) -> tuple[str, ...]:
    new = [node for node in kind.node_ids if node not in shard.node_ids]
    gone = [node for node in shard.node_ids if node not in kind.node_ids]
    words: list[str] = []
    if new:
        names = ", ".join(new)
        words += [
            f"join: {names} load {shard.shard_id} and follow its log, not searched yet",
            f"verify: {names} have the digest of the primary, and answer sampled probes alike",
            f"serve: {names} are searched",
        ]
    if kind.node_ids[0] != shard.primary:
        words.append(f"cutover: {kind.node_ids[0]} takes the writes, in place of {shard.primary}")
    if gone:
        words.append(f"leave: {', '.join(gone)} let go of it, once routers have heard of that")
    return tuple(words) or ("leave: the copies stand in the wanted order",)


def _words_of_reshape(
    what: str, sources: tuple[ShardId, ...], nodes: tuple[NodeId, ...]
) -> tuple[str, ...]:
    old, held_s = ", ".join(sources), limits.HOLD_MS_MAX / 1000
    return (
        f"fill: {what}, is made on {', '.join(nodes)}, neither searched nor written yet",
        "follow: what is there is brought over, then what is written meanwhile",
        f"cutover: writes to {old} wait, {held_s:g} s at most; both sides are compared; cut over",
        f"drop: {old} is deleted, once routers have heard of that",
    )
