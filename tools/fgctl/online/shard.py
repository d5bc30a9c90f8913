"""fgctl shard: list, show, move, split, merge."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from facegrid.api.admin.v1 import admin_service_pb2 as pb
from facegrid.errors import InvalidError, NotFoundError
from facegrid.ids import KEY_LAST
from fgctl import render
from fgctl.online.advice import advised
from fgctl.online.change import Change, Way, carry_out, changing
from fgctl.online.cluster import first_answer
from fgctl.online.overview import ShardStatus, Status, reports_of, role_name, state_name
from fgctl.online.plans import plan_of
from fgctl.target import Target, online

Command = TypeVar("Command", bound=Callable[..., Any])

BY_HAND = "asked for with fgctl shard"
CAUSE = click.option("--cause", default=BY_HAND, help="Why, for whoever looks at the operation.")


def only_one(
    _context: click.Context, option: click.Parameter, node_ids: tuple[str, ...]
) -> str | None:
    """Return the node that an option names, None without it; refuse it when given twice."""
    if len(node_ids) > 1:
        raise click.UsageError(
            f"a move is of one copy: name one node with {option.opts[0]}, not"
            f" {' and '.join(node_ids)}"
        )
    return node_ids[0] if node_ids else None


def one_node(flag: str, name: str, text: str) -> Callable[[Command], Command]:
    """Return an option that names a node. The last of several would count without a word."""
    return click.option(flag, name, metavar="NODE", multiple=True, callback=only_one, help=text)


@click.group()
def shard() -> None:
    """Look at shards; move, split and merge them while they serve."""


@shard.command(name="list")
@click.option("--gallery", help="Of this gallery only.")
@online
def list_all(target: Target, gallery: str | None) -> None:
    """List shards in the order of their ranges."""
    answer = first_answer(target)
    shards = [one for one in answer.shards if gallery in (None, one.gallery)]
    if (
        gallery is not None
        and not shards
        and gallery not in {one.name for one in answer.galleries}
    ):
        with advised():
            raise NotFoundError(
                f"no such gallery gallery={gallery}", reason="GALLERY_UNKNOWN", gallery=gallery
            )
    if target.as_json:
        render.show_json({"shards": [_shard_json(one, answer) for one in shards]})
        return
    rows = [
        (
            one.id,
            range_text(one),
            " ".join(one.node_ids),
            _doing(one),
            _largest(reports_of(one, answer), "templates_count"),
            render.size_text(_largest(reports_of(one, answer), "memory_bytes")),
        )
        for one in shards
    ]
    columns = ("shard", "keys", "nodes", "doing", "templates", "memory")
    render.show(render.table_of("shards", columns, rows, narrow=True))


@shard.command()
@click.argument("shard_id", metavar="SHARD")
@online
def show(target: Target, shard_id: str) -> None:
    """Describe one shard and each of its copies."""
    answer = first_answer(target)
    found = find(answer, shard_id)
    if target.as_json:
        render.show_json(_shard_json(found, answer))
        return
    render.show_line(f"{found.id} of gallery {found.gallery}, keys {range_text(found)}")
    if doing := _doing(found):
        render.show_line(doing)
    columns = ("node", "role", "state", "position", "templates", "memory", "confirmed", "problem")
    render.show_table("copies", columns, _copy_rows(found, answer))


@shard.command()
@click.argument("shard_id", metavar="SHARD")
@one_node("--from", "source", "The node that gives its copy up.")
@one_node("--to", "goal", "The node that gets a copy.")
@one_node("--primary", "primary", "The copy that shall take writes afterwards.")
@CAUSE
@changing
@online
def move(  # noqa: PLR0913 - one for each option
    target: Target,
    *,
    shard_id: str,
    source: str | None,
    goal: str | None,
    primary: str | None,
    cause: str,
    way: Way,
) -> None:
    """Move a copy of SHARD to another node, or make another copy the primary.

    A move that has gone through is undone by moving the copy back. --to without --from adds a
    copy, --from without --to takes one away.
    """
    answer = first_answer(target)
    found = find(answer, shard_id)
    node_ids = moved(found, source=source, goal=goal, primary=primary)
    wanted = next(
        (one.replicas_count for one in answer.galleries if one.name == found.gallery),
        len(node_ids),
    )
    if len(node_ids) != wanted and not target.as_json:
        render.show_note(
            f"gallery {found.gallery} is to have {wanted} copies of each shard, this makes"
            f" {len(node_ids)}: fgctl replicas set says how many, or a rebalance takes it back"
        )
    spec = pb.OperationSpec(
        gallery=found.gallery,
        replicas=pb.OperationSpec.Replicas(shard_id=shard_id, node_ids=node_ids),
        cause=cause,
    )
    carry_out(target, Change([plan_of(target, spec, answer)]), way)


def moved(
    found: Status.Shard, *, source: str | None, goal: str | None, primary: str | None
) -> list[str]:
    """Return the nodes of a shard after a move, the primary first.

    Raises:
        InvalidError: it would be no move: nothing was named, a node that does not hold the shard
            gives it up, or one that holds it gets it, or nobody would be left (MOVE_MALFORMED).
    """
    node_ids = list(found.node_ids)
    held = " ".join(node_ids)
    if source is None and goal is None and primary is None:
        raise click.UsageError("say what to move: --from NODE --to NODE, or --primary NODE")
    if source is not None and source not in node_ids:
        raise _malformed(f"{source} has no copy of it, these have: {held}", found)
    if goal is not None and goal in node_ids:
        raise _malformed(f"{goal} has a copy of it already, as have: {held}", found)
    if source is not None and goal is not None:
        node_ids[node_ids.index(source)] = goal
    elif source is not None:
        node_ids.remove(source)
    elif goal is not None:
        node_ids.append(goal)
    if not node_ids:
        raise _malformed(f"{source} has the only copy; name with --to where it shall go", found)
    if primary is not None:
        if primary not in node_ids:
            raise _malformed(
                f"{primary} would have no copy of it, these would: {' '.join(node_ids)}", found
            )
        node_ids.remove(primary)
        node_ids.insert(0, primary)
    return node_ids


def _malformed(why: str, found: Status.Shard) -> InvalidError:
    return InvalidError(f"{why} shard={found.id}", reason="MOVE_MALFORMED", shard=found.id)


@shard.command()
@click.argument("shard_id", metavar="SHARD")
@CAUSE
@changing
@online
def split(target: Target, *, shard_id: str, cause: str, way: Way) -> None:
    """Put two shards, each of half the keys, in the place of SHARD. A merge undoes it."""
    answer = first_answer(target)
    spec = pb.OperationSpec(
        gallery=find(answer, shard_id).gallery,
        split=pb.OperationSpec.Split(shard_id=shard_id),
        cause=cause,
    )
    carry_out(target, Change([plan_of(target, spec, answer)]), way)


@shard.command()
@click.argument("shard_ids", metavar="SHARD SHARD...", nargs=-1, required=True)
@CAUSE
@changing
@online
def merge(target: Target, *, shard_ids: tuple[str, ...], cause: str, way: Way) -> None:
    """Put one shard in the place of neighbours. A split undoes it."""
    answer = first_answer(target)
    galleries = {find(answer, shard_id).gallery for shard_id in shard_ids}
    if len(set(shard_ids)) < 2 or len(galleries) > 1:
        raise InvalidError(
            "name two or more different shards of one gallery"
            f" shards={','.join(shard_ids)} galleries={','.join(sorted(galleries))}",
            reason="MERGE_MALFORMED",
        )
    spec = pb.OperationSpec(
        gallery=galleries.pop(),
        merge=pb.OperationSpec.Merge(shard_ids=shard_ids),
        cause=cause,
    )
    carry_out(target, Change([plan_of(target, spec, answer)]), way)


def find(answer: Status, shard_id: str) -> Status.Shard:
    """Return a shard.

    Raises:
        NotFoundError: no map has it (SHARD_UNKNOWN).
    """
    for one in answer.shards:
        if one.id == shard_id:
            return one
    with advised():
        raise NotFoundError(
            f"no such shard shard={shard_id}", reason="SHARD_UNKNOWN", shard=shard_id
        )


def range_text(one: Status.Shard) -> str:
    """Return which keys a shard has, to four digits, and what share of all they are."""
    share = (one.last - one.first + 1) / (KEY_LAST + 1)
    return f"{one.first >> 48:04x}-{one.last >> 48:04x} ({share:.3g} of all)"


def _doing(one: Status.Shard) -> str:
    told = []
    if one.joining_node_ids:
        told.append(f"joining: {' '.join(one.joining_node_ids)}")
    if one.source_shard_ids:
        told.append(f"pending, filled from {' '.join(one.source_shard_ids)}")
    return ", ".join(told)


def _largest(reports: dict[str, ShardStatus], name: str) -> int:
    return max((getattr(report, name) for report in reports.values()), default=0)


def _copy_rows(found: Status.Shard, answer: Status) -> Sequence[Sequence[object]]:
    reports = reports_of(found, answer)
    rows: list[Sequence[object]] = []
    for node_id in (*found.node_ids, *found.joining_node_ids):
        report = reports.get(node_id)
        if report is None:
            rows.append((node_id, "", "no report", 0, 0, "", "", ""))
            continue
        rows.append(
            (
                node_id,
                "joining" if node_id in found.joining_node_ids else role_name(report),
                state_name(report),
                report.position,
                report.templates_count,
                render.size_text(report.memory_bytes),
                report.confirmed,
                report.problem,
            )
        )
    return rows


def _shard_json(one: Status.Shard, answer: Status) -> render.Json:
    return {
        "id": one.id,
        "gallery": one.gallery,
        "first": f"{one.first:016x}",
        "last": f"{one.last:016x}",
        "node_ids": list(one.node_ids),
        "joining_node_ids": list(one.joining_node_ids),
        "source_shard_ids": list(one.source_shard_ids),
        "copies": [
            {
                "node_id": node_id,
                "role": role_name(report),
                "state": state_name(report),
                "position": report.position,
                "templates_count": report.templates_count,
                "memory_bytes": report.memory_bytes,
                "stored_bytes": report.stored_bytes,
                "confirmed": report.confirmed,
                "map_version": report.map_version,
                "digest": report.digest,
                "problem": report.problem,
            }
            for node_id, report in reports_of(one, answer).items()
        ],
    }
