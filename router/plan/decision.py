"""What is known when it is decided what an operation does next, and what can come of that."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from facegrid.format.operations import Operation, OperationState
from facegrid.format.records import Dropped, GenerationClaim
from facegrid.ids import NodeId, ShardId
from facegrid.model import ShardAssignment, ShardMap
from router.plan.reshape import next_version


@dataclass(frozen=True, slots=True)
class CopySeen:
    """What a node says of its copy of a shard.

    Attributes:
        serving: it has loaded it.
        primary: it has claimed it.
        confirmed: it could make sure lately that it has everything.
        position: of its last record.
        map_version: of the map by which it acts.
        generation: that it has claimed, as far as it is the primary.
        sources: how far other shards have been brought in.
        problem: why it does not serve, in words.
    """

    serving: bool = True
    primary: bool = False
    confirmed: bool = True
    position: int = 0
    map_version: int = 0
    generation: int = 0
    sources: Mapping[ShardId, int] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the driver sees.

    Attributes:
        shard_map: of the operation's gallery; None: that gallery is there no more.
        registered: the nodes that are there.
        copies: what those said that answered.
        claims: who claimed the operation's shards last, read when the map had been read: whoever
            claims later does so by this map or a later one.
        now_ms: wall clock, ms since 1970.
    """

    shard_map: ShardMap | None
    registered: Collection[NodeId]
    copies: Mapping[tuple[NodeId, ShardId], CopySeen]
    claims: Mapping[ShardId, GenerationClaim]
    now_ms: int
    taken: Collection[ShardId] = ()


@dataclass(frozen=True, slots=True)
class Next:
    """One transaction: the record as it is to be, with the map if that changes, and shards to be
    deleted. Locks are given back where the operation is over, and exchanged where it is to make
    shards of other names.
    """

    operation: Operation
    shard_map: ShardMap | None = None
    dropped: tuple[Dropped, ...] = ()


@dataclass(frozen=True, slots=True)
class VerifyCopies:
    """Compare joining copies with the primary of their shard, and go on if they are alike."""

    shard: ShardAssignment
    node_ids: tuple[NodeId, ...]
    then: Next


@dataclass(frozen=True, slots=True)
class HandOver:
    """Hold the sources, compare them with their children, and go on if they are alike: all of it
    within the hold, and only if nothing was written meanwhile.
    """

    sources: tuple[ShardAssignment, ...]
    children: tuple[ShardAssignment, ...]
    then: Next


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can be done now; why, in words that stay the same as long as the reason does."""

    reason: str


Decision = Next | VerifyCopies | HandOver | Wait


def stepped(
    operation: Operation,
    seen: Seen,
    step: str,
    *,
    shard_map: ShardMap | None = None,
    note: str = "",
) -> Next:
    """Return the transaction after which another step is next."""
    after = replace(operation, step=step, note=note, step_unix_ms=seen.now_ms)
    return Next(after, _changed(seen, shard_map))


def ended(
    operation: Operation,
    seen: Seen,
    state: OperationState,
    *,
    shard_map: ShardMap | None = None,
    dropped: tuple[Dropped, ...] = (),
    note: str = "",
) -> Next:
    """Return the transaction after which an operation is over."""
    after = replace(operation, state=state, note=note, step_unix_ms=seen.now_ms)
    return Next(after, _changed(seen, shard_map), dropped)


def _changed(seen: Seen, shard_map: ShardMap | None) -> ShardMap | None:
    """Return the map with its new version; None where it stays as it is."""
    if shard_map is None or seen.shard_map is None or shard_map == seen.shard_map:
        return None
    return next_version(seen.shard_map, shard_map)


def absent(seen: Seen, node_ids: Collection[NodeId]) -> str:
    """Say which nodes are needed and not registered; empty when all are."""
    gone = [node for node in node_ids if node not in seen.registered]
    return f"waits for a node that is not registered node={','.join(gone)}" if gone else ""


def not_leading(seen: Seen, shard: ShardAssignment) -> str:
    """Say why a shard's primary does not lead it by the present map; empty when it does.

    What an older process of the same node says does not count, though it may have heard of the map
    before it hears that it is the primary no more: erasures wait for those copies that the process
    knows which claimed the shard last.
    """
    copy = seen.copies.get((shard.primary, shard.shard_id))
    claim = seen.claims.get(shard.shard_id)
    where = f"shard={shard.shard_id} node={shard.primary}"
    assert seen.shard_map is not None, "shards are of a map"
    if copy is None:
        return f"waits for the primary to tell its status {where}"
    if not (copy.serving and copy.primary):
        return f"waits for the primary to claim and serve the shard {where}"
    if claim is None or (claim.node_id, claim.generation) != (shard.primary, copy.generation):
        return f"waits for the process that claimed the shard last {where}"
    if copy.map_version < seen.shard_map.version:
        return f"waits for the primary to hear of the map {where}"
    return ""


def not_following(seen: Seen, shard: ShardAssignment, node_id: NodeId, *, searched: bool) -> str:
    """Say why a copy has not arrived; empty when it has.

    Args:
        seen: what nodes say.
        shard: of the present map.
        node_id: whose copy.
        searched: whether it is to be confirmed, too, as copies that are searched are.
    """
    copy = seen.copies.get((node_id, shard.shard_id))
    where = f"shard={shard.shard_id} node={node_id}"
    assert seen.shard_map is not None, "shards are of a map"
    if problem := absent(seen, [node_id]):
        return problem
    if copy is None:
        return f"waits for the copy to be opened {where}"
    if not copy.serving:
        return f"waits for the copy to be loaded {where} {copy.problem}".rstrip()
    if copy.map_version < seen.shard_map.version:
        return f"waits for the copy to hear of the map {where}"
    if searched and not copy.confirmed:
        return f"waits for the copy to be confirmed {where}"
    return ""


def unknown(operation: Operation) -> Wait:
    """Return what to do at a step that only a later version knows."""
    return Wait(f"this version does not know the step step={operation.step}")
