"""fgctl node: list, drain, undrain."""

import click

from facegrid.api.admin.v1 import admin_service_pb2 as pb
from facegrid.errors import UnavailableError
from fgctl import render
from fgctl.online.advice import advised
from fgctl.online.change import UNCHANGED, Change, First, Way, agree, asking, carry_out, changing
from fgctl.online.cluster import first_answer
from fgctl.online.follow import follow, operations_of
from fgctl.online.overview import Status, held_by, node_state, primaries_of
from fgctl.online.plans import Planned, shard_ids
from fgctl.online.rebalance import check_node, planned_moves, proposal, proposal_json
from fgctl.target import Target, online

NODE = click.argument("node_id", metavar="NODE")


@click.group()
def node() -> None:
    """Look at nodes; empty one for maintenance."""


@node.command(name="list")
@online
def list_all(target: Target) -> None:
    """List nodes with what they hold."""
    answer = first_answer(target)
    if target.as_json:
        render.show_json({"nodes": [node_json(one, answer) for one in answer.nodes]})
        return
    columns = ("node", "state", "zone", "shards", "primaries", "memory", "free", "version")
    rows = [
        (
            one.id,
            node_state(registered=one.registered, draining=one.draining, problem=one.problem),
            one.zone,
            len(held_by(answer, one.id)),
            primaries_of(answer, one.id),
            render.size_text(one.memory_bytes),
            free_text(one),
            one.version,
        )
        for one in answer.nodes
    ]
    render.show(render.table_of("nodes", columns, rows, narrow=True))
    for one in answer.nodes:
        if one.problem:
            render.show_line(f"{one.id}: {one.problem}")
        elif one.draining and not held_by(answer, one.id):
            render.show_line(f"{one.id} is empty: it can be stopped")


def free_text(one: Status.Node) -> str:
    """Return how much memory a node has left, of how much."""
    if not one.memory_total_bytes:
        return ""
    return (
        f"{render.size_text(one.memory_available_bytes)} of"
        f" {render.size_text(one.memory_total_bytes)}"
    )


def node_json(one: Status.Node, answer: Status) -> render.Json:
    """Return a node with what it holds as JSON."""
    return {
        "id": one.id,
        "address": one.address,
        "registered": one.registered,
        "draining": one.draining,
        "zone": one.zone,
        "version": one.version,
        "problem": one.problem,
        "shard_ids": list(held_by(answer, one.id)),
        "primaries_count": primaries_of(answer, one.id),
        "memory_bytes": one.memory_bytes,
        "memory_total_bytes": one.memory_total_bytes,
        "memory_available_bytes": one.memory_available_bytes,
    }


@node.command()
@NODE
@changing
@online
def drain(target: Target, *, node_id: str, way: Way) -> None:
    """Empty NODE: nothing comes to it any more, and what it holds goes elsewhere.

    It goes on serving meanwhile. `fgctl node undrain` undoes the mark; what has moved stays where
    it is until the next rebalance. Of a node that is gone, the copies are made anew elsewhere.
    """
    status, answer = proposal(target, pb.PlanRebalanceRequest(draining_node_ids=[node_id]))
    plans = _moves_off(node_id, status, answer)
    if not target.as_json:
        held = render.many(len(held_by(status, node_id)), "shard")
        render.show_line(f"{node_id} holds {held}; {len(plans)} can go elsewhere at once")
        for problem in answer.problems:
            if node_id in problem:
                render.show_line(f"cannot be put right: {problem}")
    change = Change(
        plans,
        proposal_json(answer),
        first=First(
            f"{node_id} is marked as draining", lambda: _mark(target, node_id, draining=True)
        ),
        again=lambda: _still_to_move(target, node_id),
    )
    if carry_out(target, change, way):
        _check_empty(target, node_id)


def _moves_off(node_id: str, status: Status, answer: pb.PlanRebalanceResponse) -> list[Planned]:
    """Return the moves of a proposal that take something from a node."""
    held = {*held_by(status, node_id)}
    return planned_moves(
        status,
        answer,
        only=lambda spec: spec.replicas.shard_id in held and node_id not in spec.replicas.node_ids,
    )


def _still_to_move(target: Target, node_id: str) -> list[Planned]:
    """Return what can be moved off a node now. Waits for operations that have its shards."""
    left = {*held_by(first_answer(target), node_id)}
    if not left:
        return []
    at_work = [
        one.id
        for one in operations_of(target, over=False).operations
        if left.intersection(shard_ids(one.spec))
    ]
    if at_work:
        follow(target, at_work)
    status, answer = proposal(target, pb.PlanRebalanceRequest(draining_node_ids=[node_id]))
    return _moves_off(node_id, status, answer)


def _check_empty(target: Target, node_id: str) -> None:
    """Say that a node is empty.

    Raises:
        UnavailableError: it is not (NODE_NOT_EMPTY).
    """
    left = held_by(first_answer(target), node_id)
    if left:
        raise UnavailableError(
            f"the node still holds {render.many(len(left), 'shard')} that could not go elsewhere;"
            " it stays marked; fgctl rebalance plan says what is in the way, fgctl node undrain"
            f" takes the mark away node={node_id} shards={','.join(left[:5])}",
            reason="NODE_NOT_EMPTY",
            node=node_id,
        )
    if not target.as_json:
        render.show_line(f"{node_id} is empty: it can be stopped")


@node.command()
@NODE
@asking
@online
def undrain(target: Target, *, node_id: str, way: Way) -> None:
    """Let copies come to NODE again. Moves nothing by itself: `fgctl rebalance plan` does."""
    answer = first_answer(target)
    check_node(node_id, {one.id for one in answer.nodes})
    draining = any(one.draining for one in answer.nodes if one.id == node_id)
    if way.dry_run or not draining:
        why = "this was a dry run" if draining else f"{node_id} is not draining"
        told = f"{UNCHANGED}: {why}"
    else:
        if not target.as_json:
            render.show_line(f"{node_id} is not marked as draining any more")
        agree("Do it?", way)
        _mark(target, node_id, draining=False)
        told = f"copies may come to {node_id} again; fgctl rebalance plan shows which would"
    if target.as_json:
        render.show_json({"node": node_id, "was_draining": draining})
    else:
        render.show_line(told)


def _mark(target: Target, node_id: str, *, draining: bool) -> None:
    with advised():
        target.ask(
            lambda stub: stub.MarkNode, pb.MarkNodeRequest(node_id=node_id, draining=draining)
        )
