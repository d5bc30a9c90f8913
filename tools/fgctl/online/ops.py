"""fgctl ops: operations, those at work and those of before."""

import click

from facegrid.api.admin.v1 import admin_service_pb2 as pb
from fgctl import render
from fgctl.online.advice import advised
from fgctl.online.change import UNCHANGED, Way, agree, asking, done_line
from fgctl.online.follow import (
    check_ended,
    follow,
    get,
    operation_json,
    operations_of,
    operations_table,
    paused_text,
    progress_text,
    time_text,
)
from fgctl.online.plans import cost_text, spec_text
from fgctl.target import Target, online

Action = pb.ChangeOperationRequest.Action
ONE = click.argument("operation_id", metavar="OPERATION")


@click.group()
def ops() -> None:
    """Look at operations; pause, resume and abort them."""


@ops.command(name="list")
@click.option("--all", "over", is_flag=True, help="Those that are over too.")
@online
def list_operations(target: Target, *, over: bool) -> None:
    """List operations, newest first."""
    answer = operations_of(target, over=over)
    if target.as_json:
        operations = [operation_json(one) for one in answer.operations]
        render.show_json({"operations": operations, "driver": answer.driver})
        return
    if answer.operations:
        render.show(operations_table(answer.operations))
    else:
        render.show_line("no operation is at work" if not over else "there was never an operation")
    render.show_line(driver_line(answer.driver))


def driver_line(driver: str) -> str:
    """Return who drives operations, in words."""
    return f"driven by router {driver}" if driver else "no router drives operations at present"


@ops.command()
@ONE
@online
def show(target: Target, operation_id: str) -> None:
    """Describe one operation."""
    one = get(target, operation_id)
    if target.as_json:
        render.show_json(operation_json(one))
        return
    rows: list[tuple[str, object]] = [
        ("what", spec_text(one.spec)),
        ("gallery", one.spec.gallery),
        ("why", one.spec.cause),
        ("where it stands", progress_text(one)),
        ("note", one.note),
        ("what now", paused_text(one)),
        ("can be aborted", one.abortable),
        ("planned", cost_text(one.planned_bytes, one.planned_s)),
        ("begun", f"{time_text(one.created_unix_ms)} UTC"),
        ("step since", f"{time_text(one.step_unix_ms)} UTC"),
        ("new shards", " ".join(one.child_ids)),
    ]
    render.show_table(f"operation {one.id}", ("about", "value"), [row for row in rows if row[1]])


@ops.command()
@click.argument("operation_ids", metavar="OPERATION...", nargs=-1, required=True)
@online
def watch(target: Target, operation_ids: tuple[str, ...]) -> None:
    """Follow operations until they are over; Ctrl-C leaves them running."""
    operations = follow(target, operation_ids)
    if target.as_json:
        render.show_json({"operations": [operation_json(one) for one in operations]})
    else:
        for one in operations:
            render.show_line(done_line(one))
    check_ended(operations)


@ops.command()
@ONE
@online
def pause(target: Target, operation_id: str) -> None:
    """Begin no further step of an operation until it is resumed."""
    _changed(target, operation_id, pb.ChangeOperationRequest.ACTION_PAUSE)


@ops.command()
@ONE
@online
def resume(target: Target, operation_id: str) -> None:
    """Go on with an operation that is paused."""
    _changed(target, operation_id, pb.ChangeOperationRequest.ACTION_RESUME)


@ops.command()
@ONE
@asking
@online
def abort(target: Target, operation_id: str, *, way: Way) -> None:
    """Take an operation back, up to its cutover: nothing is different then from before it."""
    one = get(target, operation_id)
    told = f"{one.id} {spec_text(one.spec)}: {progress_text(one)}"
    if way.dry_run:
        if target.as_json:
            render.show_json({"operation": operation_json(one), "abortable": one.abortable})
        else:
            can = "it can be aborted" if one.abortable else "it cannot be aborted any more"
            render.show_line(f"{told}; {can}; {UNCHANGED}: this was a dry run")
        return
    if one.abortable:
        if not target.as_json:
            render.show_note(f"{told}; what it has moved so far will be let go")
        agree("Abort it?", way)
    _changed(target, operation_id, pb.ChangeOperationRequest.ACTION_ABORT)


def _changed(target: Target, operation_id: str, action: Action.ValueType) -> None:
    with advised(id=operation_id):
        answer = target.ask(
            lambda stub: stub.ChangeOperation,
            pb.ChangeOperationRequest(id=operation_id, action=action),
        )
    if target.as_json:
        render.show_json(operation_json(answer.operation))
    else:
        one = answer.operation
        render.show_line(f"{one.id} {spec_text(one.spec)}: {progress_text(one)}")
        if text := paused_text(one):
            render.show_note(text)
