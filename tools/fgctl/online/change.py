"""From a plan to its end: shown, agreed to, started, followed. What all changes of shape share."""

import functools
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import click

from facegrid.api.admin.v1 import admin_service_pb2 as pb
from facegrid.errors import FacegridError, InvalidError
from fgctl import render
from fgctl.online.advice import advised
from fgctl.online.cluster import first_answer
from fgctl.online.follow import check_ended, follow, get, operation_json, state_text
from fgctl.online.plans import (
    Planned,
    nodes_of,
    plan_of,
    planned_json,
    shard_ids,
    show_plans,
    spec_text,
)
from fgctl.target import Target, confirm

UNCHANGED: Final = "nothing was changed"
QUICKER: Final = ("OPERATION_CONFLICT", "PLAN_STALE", "SHARD_UNKNOWN")
"""Reasons that say that somebody else was quicker."""
ROUNDS_MAX: Final = 20
"""Times that it is asked what is still to be done."""
ATTEMPTS_MAX: Final = 5
"""Times that one of several operations is tried while others change the same map."""


@dataclass(frozen=True, slots=True)
class Way:
    """How far to go.

    Attributes:
        dry_run: only show the plan.
        yes: do not ask.
        wait: stay until it is over.
    """

    dry_run: bool
    yes: bool
    wait: bool = True


@dataclass(frozen=True, slots=True)
class First:
    """What is set before operations are started.

    Attributes:
        told: what it is, in words.
        act: does it; may be repeated.
    """

    told: str
    act: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Change:
    """What an operator wants, as far as it is planned.

    Attributes:
        plans: operations; those that change nothing are left out.
        more: what the JSON document says beside plans and operations.
        first: what is set before; None: nothing.
        again: asked once all has ended for what is still to be done; waits for others who are in
            the way. So somebody else's operation is no reason to fail.
    """

    plans: Sequence[Planned]
    more: Mapping[str, render.Json] = field(default_factory=dict)
    first: First | None = None
    again: Callable[[], Sequence[Planned]] | None = None


def asking(command: Callable[..., None]) -> Callable[..., None]:
    """Add --dry-run and --yes; the command gets them as `way`."""

    @click.option("--dry-run", is_flag=True, help="Only say what would happen.")
    @click.option("--yes", is_flag=True, help="Do not ask.")
    @functools.wraps(command)
    def with_way(*arguments: Any, **rest: Any) -> None:
        way = Way(rest.pop("dry_run"), rest.pop("yes"), rest.pop("wait", True))
        command(*arguments, way=way, **rest)

    return with_way


def changing(command: Callable[..., None]) -> Callable[..., None]:
    """Add --dry-run, --yes and --no-wait; the command gets them as `way`."""
    return click.option(
        "--wait/--no-wait",
        default=True,
        show_default=True,
        help="Stay and show progress until it is over; it goes on without you too.",
    )(asking(command))


def agree(question: str, way: Way) -> None:
    """Go on only if somebody wants it."""
    confirm(question, yes=way.yes, refusal=UNCHANGED)


def carry_out(target: Target, change: Change, way: Way) -> bool:
    """Show plans, ask, start the operations and follow them.

    Returns:
        Whether all of it was done: False after a dry run, or where nobody waited.

    Raises:
        FacegridError: an operation was refused, aborted or paused; the others were carried out.
    """
    due = [planned for planned in change.plans if not planned.plan.nothing_to_do]
    document: dict[str, render.Json] = {
        "plans": [planned_json(one) for one in due], **change.more, "operations": []
    }  # fmt: skip
    if not target.as_json:
        _show_change(due, change.first)
    if way.dry_run or not (due or change.first):
        why = "this was a dry run" if due or change.first else "there is nothing to do"
        _show(target, f"{UNCHANGED}: {why}", document)
        return False
    agree(f"Start {len(due)} operations?" if len(due) > 1 else "Do it?", way)
    if change.first is not None:
        with advised():
            change.first.act()
    operations, refusal = start_all(target, due, lenient=change.again is not None)
    names = " ".join(one.id for one in operations)
    told = f"started, and goes on by itself; fgctl ops watch {names} shows how far"
    if way.wait:
        operations = _to_the_end(target, change, operations)
        told = "\n".join(done_line(one) for one in operations)
    _show(
        target,
        told if operations else "no operation was needed",
        {**document, "operations": [operation_json(one) for one in operations]},
    )
    if way.wait:
        check_ended(operations)
    if refusal is not None:
        raise refusal
    return way.wait


def _to_the_end(
    target: Target, change: Change, operations: Sequence[pb.Operation]
) -> list[pb.Operation]:
    """Follow operations to their end, and what is still to be done then."""
    ended: list[pb.Operation] = []
    for _ in range(ROUNDS_MAX):
        if operations:
            ended += follow(target, [one.id for one in operations])
        # What was aborted or paused would be begun over and over.
        if change.again is None or any(one.state != pb.OPERATION_STATE_DONE for one in ended):
            break
        more = change.again()
        if not more:
            break
        operations, _ = start_all(target, more, lenient=True)
    return ended


def _show_change(due: Sequence[Planned], first: First | None) -> None:
    if first is not None:
        render.show_line(first.told)
    if due:
        show_plans(due)


def _show(target: Target, line: str, document: render.Json) -> None:
    if target.as_json:
        render.show_json(document)
    else:
        render.show_line(line)


def done_line(operation: pb.Operation) -> str:
    """Return what an operation has come to."""
    children = f": {' '.join(operation.child_ids)}" if operation.child_ids else ""
    return f"{state_text(operation)}: {operation.id} {spec_text(operation.spec)}{children}"


def start_all(
    target: Target, plans: Sequence[Planned], *, lenient: bool
) -> tuple[list[pb.Operation], FacegridError | None]:
    """Start operations, each by the plan that was shown.

    Those that are refused leave the others alone.

    Args:
        target: the cluster.
        plans: what was shown.
        lenient: that others were quicker counts as no refusal.

    Returns:
        The operations that were started, and the first refusal.

    Raises:
        FacegridError: none was started.
    """
    operations: list[pb.Operation] = []
    refused: FacegridError | None = None
    begun: set[str] = set()
    for planned in plans:
        try:
            # The first operation changes the map, so the version that was shown is gone. What must
            # be as it was then are the nodes of the shard.
            later = planned.spec.gallery in begun
            started = _start_later(target, planned) if later else _start_or_join(target, planned)
        except FacegridError as error:
            if not (lenient and error.reason in QUICKER):
                refused = refused or error
            if len(plans) > 1 or lenient:
                _note(target, f"not started: {spec_text(planned.spec)}: {error.message}")
            continue
        begun.add(planned.spec.gallery)
        operations.append(started)
        _note(target, f"started {started.id}: {spec_text(planned.spec)}")
    if refused is not None and not operations:
        raise refused
    return operations, refused


def _start_or_join(target: Target, planned: Planned) -> pb.Operation:
    """Start an operation, or return that which somebody else has started to the same end."""
    try:
        return _start(target, planned, planned.plan.map_version)
    except FacegridError as error:
        if error.reason != "OPERATION_CONFLICT" or "operation" not in error.facts:
            raise
        other = get(target, error.facts["operation"])
        if other.spec.WhichOneof("kind") != "replicas" or other.spec.replicas != (
            planned.spec.replicas
        ):
            raise
        return other


def _note(target: Target, text: str) -> None:
    if not target.as_json:
        render.show_note(text)


def _start(target: Target, planned: Planned, map_version: int) -> pb.Operation:
    with advised():
        answer = target.ask(
            lambda stub: stub.StartOperation,
            pb.StartOperationRequest(
                request_id=secrets.token_hex(8), spec=planned.spec, map_version=map_version
            ),
        )
    return answer.operation


def _start_later(target: Target, planned: Planned) -> pb.Operation:
    for attempt in range(1, ATTEMPTS_MAX + 1):
        status = first_answer(target)
        if nodes_of(planned.spec, status) != planned.former:
            break
        try:
            return _start_or_join(target, plan_of(target, planned.spec, status))
        except InvalidError as error:
            if error.reason != "PLAN_STALE" or attempt == ATTEMPTS_MAX:
                raise
    raise _stale(planned)


def _stale(planned: Planned) -> InvalidError:
    names = ",".join(shard_ids(planned.spec))
    return InvalidError(
        f"the shard lies elsewhere than when it was planned; run the same command again"
        f" shards={names}",
        reason="PLAN_STALE",
    )
