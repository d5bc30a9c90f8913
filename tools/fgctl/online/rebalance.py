"""fgctl rebalance and fgctl replicas: proposals of routers, and how operations are run."""

from collections.abc import Callable, Iterable, Sequence

import click

from facegrid import limits
from facegrid.api.admin.v1 import admin_service_pb2 as pb
from facegrid.errors import InvalidError
from fgctl import render
from fgctl.online.advice import advised
from fgctl.online.change import Change, First, Way, carry_out, changing
from fgctl.online.cluster import first_answer
from fgctl.online.ops import driver_line
from fgctl.online.overview import Status, node_state
from fgctl.online.plans import Planned, nodes_of, planned_json, show_plans
from fgctl.target import Target, online

LOST = click.option(
    "--lost", multiple=True, metavar="NODE", help="A node that will not come back."
)
NODE_COLUMNS = ("node", "zone", "state", "bytes", "after", "primaries", "after", "copies", "after")


@click.group()
def rebalance() -> None:
    """Bring copies where they should be: spread, replaced, and off draining nodes."""


def proposal(
    target: Target, request: pb.PlanRebalanceRequest
) -> tuple[Status, pb.PlanRebalanceResponse]:
    """Return what a router proposes, and the cluster as it was a moment before."""
    status = first_answer(target)
    known = {node.id for node in status.nodes}
    for node_id in (*request.lost_node_ids, *request.draining_node_ids):
        check_node(node_id, known)
    with advised():
        return status, target.ask(lambda stub: stub.PlanRebalance, request)


def check_node(node_id: str, known: Iterable[str]) -> None:
    """Refuse a node that nobody knows.

    Raises:
        InvalidError: no such node (NODE_UNKNOWN).
    """
    if node_id not in known:
        with advised():
            raise InvalidError(f"no such node node={node_id}", reason="NODE_UNKNOWN", node=node_id)


def planned_moves(
    status: Status,
    answer: pb.PlanRebalanceResponse,
    *,
    only: Callable[[pb.OperationSpec], bool] = lambda _: True,
) -> list[Planned]:
    """Return the moves of a proposal as operations that may be begun."""
    return [
        Planned(move.spec, move.plan, nodes_of(move.spec, status))
        for move in answer.moves
        if only(move.spec)
    ]


def proposal_json(answer: pb.PlanRebalanceResponse) -> dict[str, render.Json]:
    """Return what a proposal says beside its moves, as JSON."""
    return {
        "nodes": [
            {
                "id": node.node_id,
                "zone": node.zone,
                "registered": node.registered,
                "draining": node.draining,
                "bytes_before": node.bytes_before,
                "bytes_after": node.bytes_after,
                "primaries_before": node.primaries_before,
                "primaries_after": node.primaries_after,
                "replicas_before": node.replicas_before,
                "replicas_after": node.replicas_after,
            }
            for node in answer.nodes
        ],
        "problems": list(answer.problems),
    }


def show_nodes(answer: pb.PlanRebalanceResponse) -> None:
    """Print what nodes hold before and after, and what cannot be put right."""
    rows = [
        (
            node.node_id,
            node.zone,
            node_state(registered=node.registered, draining=node.draining),
            render.size_text(node.bytes_before),
            render.size_text(node.bytes_after),
            node.primaries_before,
            node.primaries_after,
            node.replicas_before,
            node.replicas_after,
        )
        for node in answer.nodes
    ]
    render.show(render.table_of("nodes, now and after", NODE_COLUMNS, rows, narrow=True))
    for problem in answer.problems:
        render.show_line(f"cannot be put right: {problem}")


@rebalance.command()
@LOST
@online
def plan(target: Target, lost: tuple[str, ...]) -> None:
    """Show what moves would bring copies where they should be, and why. Changes nothing."""
    status, answer = proposal(target, pb.PlanRebalanceRequest(lost_node_ids=lost))
    plans = planned_moves(status, answer)
    if target.as_json:
        moves = [planned_json(one) for one in plans]
        render.show_json({"plans": moves, **proposal_json(answer)})
        return
    _show(plans, answer)
    named = "".join(f" --lost {node_id}" for node_id in lost)
    render.show_line(
        f"fgctl rebalance apply{named} does it" if plans else "there is nothing to do"
    )


def _show(plans: Sequence[Planned], answer: pb.PlanRebalanceResponse) -> None:
    show_nodes(answer)
    if plans:
        show_plans(plans)


@rebalance.command()
@LOST
@changing
@online
def apply(target: Target, *, lost: tuple[str, ...], way: Way) -> None:
    """Carry out what `fgctl rebalance plan` shows."""
    status, answer = proposal(target, pb.PlanRebalanceRequest(lost_node_ids=lost))
    if not target.as_json:
        show_nodes(answer)
    carry_out(target, Change(planned_moves(status, answer), proposal_json(answer)), way)


@rebalance.command()
@click.argument("setting", type=click.Choice(["on", "off"]))
@online
def auto(target: Target, setting: str) -> None:
    """Have the routers carry out proposals by themselves, or not. It is off at first."""
    _set(target, pb.RebalancerRequest(automatic=setting == "on"))


@rebalance.command("limits")
@click.option("--at-once", type=click.IntRange(1, 64), help="Operations at work at one time.")
@click.option(
    "--p99-ms",
    type=click.IntRange(min=0),
    help="Begin no step while searches take longer than this; 0: no limit.",
)
@online
def set_limits(target: Target, at_once: int | None, p99_ms: int | None) -> None:
    """Show how operations are run, and change it."""
    _set(target, pb.RebalancerRequest(at_once_max=at_once, p99_limit_ms=p99_ms))


def _set(target: Target, request: pb.RebalancerRequest) -> None:
    with advised():
        answer = target.ask(lambda stub: stub.Rebalancer, request)
    if target.as_json:
        render.show_json(
            {
                "automatic": answer.automatic,
                "at_once_max": answer.at_once_max,
                "p99_limit_ms": answer.p99_limit_ms,
                "p99_ms": answer.p99_ms,
                "driver": answer.driver,
            }
        )
        return
    rows: list[tuple[str, object]] = [
        ("by itself", "on" if answer.automatic else "off"),
        ("operations at once", answer.at_once_max),
        ("99th percentile of searches, limit", _ms(answer.p99_limit_ms, "none")),
        ("99th percentile of searches, now", _ms(answer.p99_ms, "not known")),
    ]
    render.show_table("rebalancing", ("setting", "value"), rows)
    render.show_line(driver_line(answer.driver))


def _ms(count: int, otherwise: str) -> str:
    return f"{count:,} ms" if count else otherwise


@click.group()
def replicas() -> None:
    """Say how many copies of each shard a gallery has."""


@replicas.command(name="set")
@click.argument("gallery")
@click.argument("count", metavar="N", type=click.IntRange(1, limits.REPLICAS_MAX))
@changing
@online
def set_count(target: Target, *, gallery: str, count: int, way: Way) -> None:
    """Have N copies of each shard of GALLERY: adds copies, or takes some away."""
    wanted = pb.PlanRebalanceRequest.Replicas(gallery=gallery, replicas_count=count)
    status, answer = proposal(target, pb.PlanRebalanceRequest(replicas=[wanted]))
    _check_copies(status, gallery, count)
    shards = {one.id: one for one in answer_shards(status, gallery)}
    plans = planned_moves(
        status,
        answer,
        only=lambda spec: (
            spec.replicas.shard_id in shards
            and len(spec.replicas.node_ids) != len(shards[spec.replicas.shard_id].node_ids)
        ),
    )
    first = First(
        f"gallery {gallery} is to have {count} copies of each shard",
        lambda: target.ask(
            lambda stub: stub.SetReplicas,
            pb.SetReplicasRequest(gallery=gallery, replicas_count=count),
        ),
    )
    carry_out(target, Change(plans, proposal_json(answer), first), way)


def answer_shards(status: Status, gallery: str) -> list[Status.Shard]:
    """Return the shards of a gallery that serve."""
    return [one for one in status.shards if one.gallery == gallery and not one.source_shard_ids]


def _check_copies(status: Status, gallery: str, count: int) -> None:
    """Refuse a gallery that is not there, and more copies than there are nodes for.

    Raises:
        InvalidError: GALLERY_UNKNOWN, TOO_FEW_NODES.
    """
    with advised():
        if gallery not in {one.name for one in status.galleries}:
            raise InvalidError(
                f"no such gallery gallery={gallery}", reason="GALLERY_UNKNOWN", gallery=gallery
            )
        ready = [node for node in status.nodes if node.registered and not node.draining]
        if len(ready) < count:
            raise InvalidError(
                f"fewer nodes than copies nodes={len(ready)} copies={count}",
                reason="TOO_FEW_NODES",
            )
