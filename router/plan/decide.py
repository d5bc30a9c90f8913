"""What an operation does next: a pure function of what it is, the map, and what nodes say.

Whoever asks gets the same answer, and every answer is one transaction, a question to the nodes, or
a reason to wait. So it does not matter who drives, nor where whoever drove before has died.
"""

from facegrid.format.operations import Operation, OperationState, Replicas
from facegrid.format.records import Dropped
from router.plan import moving, replacing
from router.plan.decision import Decision, Next, Seen, Wait, ended


def decide(operation: Operation, seen: Seen) -> Decision:
    """Return what comes next. An operation that is over waits for ever, and one that is paused as
    long as its gallery is there.
    """
    shard_map = seen.shard_map
    if operation.state.over:
        return Wait(operation.note)
    if shard_map is None:
        return _gone(operation, seen)
    if operation.state is OperationState.PAUSED:
        return Wait(operation.note)
    assert shard_map.gallery_uid == operation.gallery_uid, "the map of another gallery"
    match operation.kind:
        case Replicas():
            return moving.decide(operation, operation.kind, seen, shard_map)
        case _:
            return replacing.decide(operation, seen, shard_map)


def _gone(operation: Operation, seen: Seen) -> Next:
    """End an operation whose gallery was dropped. What the map had is deleted by whoever dropped
    it; sources that were just replaced are not in it any more.
    """
    dropped: tuple[Dropped, ...] = ()
    if operation.step == "drop":
        dropped = replacing.sources_dropped(operation, seen, [])
    note = "the gallery was dropped"
    return ended(operation, seen, OperationState.ABORTED, dropped=dropped, note=note)
