"""Operations as operators see them: the messages of AdminService from values, and back."""

from collections.abc import Mapping

from facegrid.api.admin.v1 import admin_service_pb2 as pb
from facegrid.errors import InvalidError
from facegrid.format.operations import Merge, Operation, OperationState, Replicas, Split
from router.operate.planner import Planned
from router.operate.register import Action
from router.plan import kinds
from router.plan.estimate import Estimate

STATES: Mapping[OperationState, pb.OperationState.ValueType] = {
    OperationState.RUNNING: pb.OPERATION_STATE_RUNNING,
    OperationState.PAUSED: pb.OPERATION_STATE_PAUSED,
    OperationState.ABORTING: pb.OPERATION_STATE_ABORTING,
    OperationState.DONE: pb.OPERATION_STATE_DONE,
    OperationState.ABORTED: pb.OPERATION_STATE_ABORTED,
}
ACTIONS: Mapping[int, Action] = {
    pb.ChangeOperationRequest.ACTION_PAUSE: Action.PAUSE,
    pb.ChangeOperationRequest.ACTION_RESUME: Action.RESUME,
    pb.ChangeOperationRequest.ACTION_ABORT: Action.ABORT,
}


def to_wire_plan(planned: Planned) -> pb.OperationPlan:
    """Return a plan as a message."""
    plan = to_wire_estimate(planned.estimate, map_version=planned.shard_map.version)
    match planned.kind:
        case Split(child_ids=child_ids):
            plan.child_ids.extend(child_ids)
        case Merge(child_id=child_id):
            plan.child_ids.append(child_id)
        case Replicas():
            pass
    return plan


def to_wire_estimate(found: Estimate, *, map_version: int) -> pb.OperationPlan:
    """Return what an operation costs as a message.

    Args:
        found: the costs.
        map_version: of the map that they were estimated for.
    """
    plan = pb.OperationPlan(
        map_version=map_version,
        steps=found.steps,
        moved_bytes=found.moved_bytes,
        duration_s=found.duration_s,
        nothing_to_do=found.nothing_to_do,
    )
    for room in found.rooms:
        plan.rooms.add(
            node_id=room.node_id,
            needed_bytes=room.needed_bytes,
            available_bytes=room.available_bytes,
        )
    return plan


def to_wire_operation(operation: Operation, *, progress: float) -> pb.Operation:
    """Return an operation as a message.

    Args:
        operation: which.
        progress: share of the rows that have arrived where they shall be.
    """
    steps = kinds.steps_of(operation.kind)
    done = len(steps) if operation.state is OperationState.DONE else 0
    if operation.state is not OperationState.DONE and operation.step in steps:
        done = steps.index(operation.step)
    return pb.Operation(
        id=operation.operation_id,
        spec=_spec(operation),
        state=STATES[operation.state],
        step=operation.step,
        steps_done=done,
        steps_count=len(steps),
        abortable=kinds.abortable(operation),
        note=operation.note,
        created_unix_ms=operation.created_unix_ms,
        step_unix_ms=operation.step_unix_ms,
        planned_bytes=operation.planned_bytes,
        planned_s=operation.planned_s,
        progress=1.0 if operation.state is OperationState.DONE else progress,
        child_ids=operation.child_ids,
    )


def action_of(request: pb.ChangeOperationRequest) -> Action:
    """Return what is to be done with an operation, or raise InvalidError (ACTION_MISSING)."""
    if request.action not in ACTIONS:
        raise InvalidError(
            "say what is to be done: pause, resume or abort",
            reason="ACTION_MISSING",
            field="action",
        )
    return ACTIONS[request.action]


def _spec(operation: Operation) -> pb.OperationSpec:
    spec = pb.OperationSpec(gallery=operation.gallery, cause=operation.cause)
    match operation.kind:
        case Replicas(shard_id, node_ids):
            spec.replicas.shard_id = shard_id
            spec.replicas.node_ids.extend(node_ids)
        case Split(shard_id=shard_id):
            spec.split.shard_id = shard_id
        case Merge(shard_ids=shard_ids):
            spec.merge.shard_ids.extend(shard_ids)
    return spec
