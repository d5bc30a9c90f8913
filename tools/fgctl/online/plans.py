"""What a change of shape would do, for people and for programs, before anybody agrees to it."""

from collections.abc import Sequence
from dataclasses import dataclass

from facegrid.api.admin.v1 import admin_service_pb2 as pb
from fgctl import render
from fgctl.online.advice import advised
from fgctl.target import Target


@dataclass(frozen=True, slots=True)
class Planned:
    """An operation that is not begun yet.

    Attributes:
        spec: what is to be done.
        plan: what it costs, as a router estimates it.
        former: nodes of each of its shards when it was planned.
    """

    spec: pb.OperationSpec
    plan: pb.OperationPlan
    former: tuple[tuple[str, ...], ...] = ()


def shard_ids(spec: pb.OperationSpec) -> tuple[str, ...]:
    """Return the shards that an operation changes."""
    match spec.WhichOneof("kind"):
        case "replicas":
            return (spec.replicas.shard_id,)
        case "split":
            return (spec.split.shard_id,)
        case "merge":
            return tuple(spec.merge.shard_ids)
        case _:
            return ()


def nodes_of(
    spec: pb.OperationSpec, status: pb.ClusterStatusResponse
) -> tuple[tuple[str, ...], ...]:
    """Return the nodes that hold the shards of an operation now."""
    held = {shard.id: (*shard.node_ids, *shard.joining_node_ids) for shard in status.shards}
    return tuple(held.get(shard_id, ()) for shard_id in shard_ids(spec))


def plan_of(target: Target, spec: pb.OperationSpec, status: pb.ClusterStatusResponse) -> Planned:
    """Have a router plan one operation."""
    with advised():
        answer = target.ask(lambda stub: stub.PlanOperation, pb.PlanOperationRequest(spec=spec))
    return Planned(spec, answer.plan, nodes_of(spec, status))


def spec_text(spec: pb.OperationSpec) -> str:
    """Return what is to be done, in a few words."""
    match spec.WhichOneof("kind"):
        case "replicas":
            return f"{spec.replicas.shard_id} on {' '.join(spec.replicas.node_ids)}"
        case "split":
            return f"split {spec.split.shard_id}"
        case "merge":
            return f"merge {' '.join(spec.merge.shard_ids)}"
        case _:
            return "something that this fgctl does not know"


def spec_json(spec: pb.OperationSpec) -> render.Json:
    """Return what is to be done as JSON."""
    return {
        "kind": spec.WhichOneof("kind"),
        "gallery": spec.gallery,
        "shard_ids": list(shard_ids(spec)),
        "node_ids": list(spec.replicas.node_ids),
        "cause": spec.cause,
    }


def planned_json(planned: Planned) -> render.Json:
    """Return an operation that is not begun yet as JSON."""
    plan = planned.plan
    return {
        "spec": spec_json(planned.spec),
        "former_node_ids": [list(node_ids) for node_ids in planned.former],
        "map_version": plan.map_version,
        "steps": list(plan.steps),
        "moved_bytes": plan.moved_bytes,
        "duration_s": plan.duration_s,
        "rooms": [
            {
                "node_id": room.node_id,
                "needed_bytes": room.needed_bytes,
                "available_bytes": room.available_bytes,
            }
            for room in plan.rooms
        ],
        "nothing_to_do": plan.nothing_to_do,
        "child_ids": list(plan.child_ids),
    }


def show_plans(plans: Sequence[Planned]) -> None:
    """Print what would happen: one operation in full, several as a table."""
    if len(plans) == 1:
        _show_one(plans[0])
    else:
        _show_many(plans)
    if rows := room_rows(plans):
        render.show_table("room", ("node", "needs", "has free", "enough"), rows)


def _show_one(planned: Planned) -> None:
    spec, plan = planned.spec, planned.plan
    render.show_line(f"{spec_text(spec)} (gallery {spec.gallery}, map version {plan.map_version})")
    for shard_id, node_ids in zip(shard_ids(spec), planned.former, strict=False):
        render.show_line(f"  now:   {shard_id} on {' '.join(node_ids)}")
    if spec.cause:
        render.show_line(f"  why:   {spec.cause}")
    render.show_line(f"  cost:  {cost_text(plan.moved_bytes, plan.duration_s)}")
    for number, step in enumerate(plan.steps, start=1):
        render.show_line(f"  {number}. {step}")


def _show_many(plans: Sequence[Planned]) -> None:
    rows = [
        (
            shard_ids(one.spec)[0],
            " ".join(one.former[0]) if one.former else "",
            " ".join(one.spec.replicas.node_ids) or spec_text(one.spec),
            render.size_text(one.plan.moved_bytes),
            one.spec.cause,
        )
        for one in plans
    ]
    render.show_table("operations", ("shard", "on", "shall be on", "moves", "why"), rows)
    total_bytes = sum(one.plan.moved_bytes for one in plans)
    total_s = sum(one.plan.duration_s for one in plans)
    render.show_line(
        f"{len(plans)} operations, {cost_text(total_bytes, total_s)} if one follows the other"
    )


def cost_text(moved_bytes: int, duration_s: float) -> str:
    """Return what an operation costs, in words."""
    moved = f"moves {render.size_text(moved_bytes)}" if moved_bytes else "moves no bytes"
    return f"{moved}, about {render.duration_text(duration_s)}"


def room_rows(plans: Sequence[Planned]) -> list[tuple[object, ...]]:
    """Return of each node what all operations together need there, and what it has."""
    needed: dict[str, int] = {}
    free: dict[str, int] = {}
    for planned in plans:
        for room in planned.plan.rooms:
            needed[room.node_id] = needed.get(room.node_id, 0) + room.needed_bytes
            free[room.node_id] = room.available_bytes
    return [
        (
            node_id,
            render.size_text(count),
            render.size_text(free[node_id]) if free[node_id] else "not told",
            "yes" if count <= free[node_id] else "NO" if free[node_id] else "unknown",
        )
        for node_id, count in sorted(needed.items())
    ]
