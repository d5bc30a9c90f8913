"""What comes next in a change of where the copies of a shard are. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from facegrid.format.operations import Operation, OperationState, Replicas
from facegrid.ids import NodeId
from facegrid.model import ShardAssignment, ShardMap
from router.plan import reshape
from router.plan.decision import (
    Decision,
    Next,
    Seen,
    VerifyCopies,
    Wait,
    absent,
    ended,
    not_following,
    not_leading,
    stepped,
    unknown,
)

ROUTERS_GRACE_MS: Final = 3000
"""How long routers may take to hear of a map. One that takes longer is told by the nodes."""
LEAVE_PATIENCE_MS: Final = 60_000
"""How long copies stay that are to leave, since others that are to be searched do not answer."""
GIVE_UP_MS: Final = 600_000
"""How long an operation past its cutover waits for nodes without which it cannot end as wanted."""


@dataclass(frozen=True, slots=True)
class _At:
    """Where a change of copies is."""

    operation: Operation
    kind: Replicas
    seen: Seen
    shard: ShardAssignment
    shard_map: ShardMap

    @property
    def waited_ms(self) -> int:
        """For how long it is at this step, whatever way the drivers' clocks differ."""
        return abs(self.seen.now_ms - self.operation.step_unix_ms)

    def stepped(self, step: str, shard_map: ShardMap | None = None) -> Next:
        """Return the transaction after which another step is next."""
        return stepped(self.operation, self.seen, step, shard_map=shard_map)


def decide(operation: Operation, kind: Replicas, seen: Seen, shard_map: ShardMap) -> Decision:
    """Return what comes next."""
    shard = reshape.shard_of(shard_map, kind.shard_id)
    if shard is None:
        note = "the map does not have the shard any more"
        return ended(operation, seen, OperationState.ABORTED, note=note)
    at = _At(operation, kind, seen, shard, shard_map)
    if operation.state is OperationState.ABORTING:
        return _back(at)
    missing = tuple(node for node in kind.node_ids if node not in shard.holders)
    strangers = [node for node in shard.joining if node not in kind.node_ids]
    if (missing or strangers) and operation.step != "leave":
        return _join(at, missing)
    step = _STEPS.get(operation.step)
    return unknown(operation) if step is None else step(at)


def _join(at: _At, missing: tuple[NodeId, ...] = ()) -> Decision:
    """Let nodes join; also where a takeover has put another one in their place, or where others
    were left joining by an operation that nobody remembers.
    """
    if problem := absent(at.seen, missing):
        return Wait(problem)
    after = reshape.joined(at.shard_map, at.kind.shard_id, at.kind.node_ids)
    if after == at.shard_map and not at.shard.joining:
        return at.stepped("cutover")
    return at.stepped("verify", after)


def _not_joined(at: _At) -> str:
    """Say what is missing before joining copies may be searched."""
    problems = [not_leading(at.seen, at.shard)]
    problems += [
        not_following(at.seen, at.shard, node, searched=True) for node in at.shard.joining
    ]
    return next(filter(None, problems), "")


def _verify(at: _At) -> Decision:
    if not at.shard.joining:
        return at.stepped("cutover")
    if problem := _not_joined(at):
        return Wait(problem)
    return VerifyCopies(at.shard, at.shard.joining, at.stepped("serve"))


def _serve(at: _At) -> Decision:
    if problem := _not_joined(at):
        return Wait(problem)
    after = reshape.served(at.shard_map, at.kind.shard_id, at.kind.node_ids)
    return at.stepped("cutover", after)


def _cutover(at: _At) -> Decision:
    wanted = at.kind.node_ids[0]
    if wanted in at.shard.joining:
        return at.stepped("verify")
    if wanted == at.shard.primary:
        return at.stepped("leave")
    if problem := not_following(at.seen, at.shard, wanted, searched=True):
        return Wait(problem)
    return at.stepped("leave", reshape.led(at.shard_map, at.kind.shard_id, wanted))


def _leave(at: _At) -> Decision:
    if at.shard.primary not in at.kind.node_ids:
        return _led_again(at)
    problem = not_leading(at.seen, at.shard)
    others = [node for node in at.kind.node_ids if node in at.shard.node_ids[1:]]
    missing = {node: why for node in others if (why := _not_there(at, node))}
    if not problem and at.waited_ms < LEAVE_PATIENCE_MS:
        problem = next(iter(missing.values()), "")
    if problem:
        return Wait(problem)
    # A copy that is there is not given up for one that is not.
    unwanted = [node for node in at.shard.node_ids[1:] if node not in at.kind.node_ids]
    kept = [node for node in unwanted if not _not_there(at, node)][: len(missing)]
    after = reshape.left(at.shard_map, at.kind.shard_id, [*at.kind.node_ids, *kept])
    if after != at.shard_map and at.waited_ms < ROUTERS_GRACE_MS:
        return Wait("waits for routers to hear of the map")
    note = f"{', '.join(missing)} did not come back" if missing else ""
    note += f"; {', '.join(kept)} kept its copy" if kept else ""
    return ended(at.operation, at.seen, OperationState.DONE, shard_map=after, note=note)


def _not_there(at: _At, node: NodeId) -> str:
    """Say what a copy that is to be searched lacks; empty: nothing."""
    return not_following(at.seen, at.shard, node, searched=True)


def _led_again(at: _At) -> Decision:
    """Give the shard to a wanted node once more: it died, and one that is to leave took over."""
    ready = _ready(at.seen, at.shard, at.kind.node_ids)
    if ready is not None:
        return at.stepped("leave", reshape.led(at.shard_map, at.kind.shard_id, ready))
    left = [node for node in at.kind.node_ids if node in at.shard.node_ids]
    if left and at.waited_ms < GIVE_UP_MS:
        return Wait(f"waits for a wanted node that can lead the shard={at.shard.shard_id}")
    why = "came back" if left else "has a copy any more"
    note = f"no wanted node {why}; {at.shard.primary} leads the shard"
    return ended(at.operation, at.seen, OperationState.ABORTED, note=note)


def _back(at: _At) -> Decision:
    """Return to where the operation began: whoever came by it leaves. Copies that came by a
    takeover stay.
    """
    operation, shard, seen = at.operation, at.shard, at.seen
    former = operation.former_node_ids
    added = {node for node in at.kind.node_ids if node not in former}
    stay = tuple(node for node in shard.node_ids if node not in added)
    if shard.primary in added:
        # It was searched already, and took over since the primary died.
        ready = _ready(seen, shard, former)
        if ready is not None:
            after = reshape.led(at.shard_map, at.kind.shard_id, ready)
            return stepped(operation, seen, operation.step, shard_map=after, note=operation.note)
        if any(node in seen.registered for node in former if node in shard.node_ids):
            return Wait(f"waits for a former copy that can lead the shard={shard.shard_id}")
    elif added.intersection(shard.node_ids) and (problem := not_leading(seen, shard)):
        return Wait(problem)
    after = reshape.left(at.shard_map, at.kind.shard_id, _in_order(stay, former))
    return ended(operation, seen, OperationState.ABORTED, shard_map=after, note=operation.note)


def _in_order(nodes: tuple[NodeId, ...], former: tuple[NodeId, ...]) -> list[NodeId]:
    """Return nodes as they stood before, others behind them."""
    return [
        *(node for node in former if node in nodes),
        *(node for node in nodes if node not in former),
    ]


def _ready(seen: Seen, shard: ShardAssignment, node_ids: tuple[NodeId, ...]) -> NodeId | None:
    """Return the first of some nodes that could lead a shard now."""
    for node in node_ids:
        if node in shard.node_ids and not not_following(seen, shard, node, searched=True):
            return node
    return None


_STEPS: Final[Mapping[str, Callable[[_At], Decision]]] = {
    "join": _join,
    "verify": _verify,
    "serve": _serve,
    "cutover": _cutover,
    "leave": _leave,
}
