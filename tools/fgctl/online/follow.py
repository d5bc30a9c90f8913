"""Operations at work, followed until they are over."""

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table

from facegrid.api.admin.v1 import admin_service_pb2 as pb
from facegrid.clock import Clock, SystemClock
from facegrid.errors import FacegridError, UnavailableError
from fgctl import render
from fgctl.online.advice import advised
from fgctl.online.plans import spec_json, spec_text
from fgctl.target import Target

POLL_S: Final = 0.1
LATER_POLL_S: Final = 0.5
QUICK_POLLS: Final = 10
"""Looks that follow one another quickly: small operations are over by then."""
SILENCE_S: Final = 60.0
"""How long no router may answer until following is given up."""
OVER: Final = (pb.OPERATION_STATE_DONE, pb.OPERATION_STATE_ABORTED)
TENTHS: Final = 10

Pause = Callable[[float], object]
"""Waits so many seconds."""


def wait(duration_s: float) -> None:
    """Wait outside of any event loop."""
    threading.Event().wait(duration_s)


def state_text(operation: pb.Operation) -> str:
    """Return the state of an operation as a word."""
    name: str = pb.OperationState.Name(operation.state)
    return name.removeprefix("OPERATION_STATE_").lower()


def progress_text(operation: pb.Operation) -> str:
    """Return where an operation stands, in a few words."""
    if operation.state in OVER:
        return state_text(operation)
    told = f"step {operation.step} ({operation.steps_done} of {operation.steps_count})"
    if operation.state != pb.OPERATION_STATE_RUNNING:
        told = f"{state_text(operation)}, {told}"
    if 0 < operation.progress < 1:
        told += f", {operation.progress:.0%} of the rows"
    return told


def paused_text(operation: pb.Operation) -> str:
    """Return what a paused operation waits for, in words; empty where it is not paused."""
    if operation.state != pb.OPERATION_STATE_PAUSED:
        return ""
    resume = f"fgctl ops resume {operation.id}"
    if operation.abortable:
        return f"{resume} goes on with it, fgctl ops abort {operation.id} takes it back"
    return f"it is past its cutover, so it cannot be aborted and stays like this until {resume}"


def operation_json(operation: pb.Operation) -> render.Json:
    """Return an operation as JSON."""
    return {
        "id": operation.id,
        "spec": spec_json(operation.spec),
        "state": state_text(operation),
        "step": operation.step,
        "steps_done": operation.steps_done,
        "steps_count": operation.steps_count,
        "abortable": operation.abortable,
        "note": operation.note,
        "created_unix_ms": operation.created_unix_ms,
        "step_unix_ms": operation.step_unix_ms,
        "planned_bytes": operation.planned_bytes,
        "planned_s": operation.planned_s,
        "progress": operation.progress,
        "child_ids": list(operation.child_ids),
    }


def time_text(unix_ms: int) -> str:
    """Return a moment for people; empty where there was none."""
    return f"{datetime.fromtimestamp(unix_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}" if unix_ms else ""


def get(target: Target, operation_id: str) -> pb.Operation:
    """Return an operation.

    Raises:
        NotFoundError: there is none of this id (OPERATION_UNKNOWN).
    """
    with advised(id=operation_id):
        answer = target.ask(
            lambda stub: stub.GetOperation, pb.GetOperationRequest(id=operation_id)
        )
    return answer.operation


def operations_of(target: Target, *, over: bool) -> pb.ListOperationsResponse:
    """Return the operations at work, those that are over too if that is wished."""
    with advised():
        return target.ask(lambda stub: stub.ListOperations, pb.ListOperationsRequest(all=over))


class Display(Protocol):
    """Shows operations as they go on."""

    def update(self, operations: Sequence[pb.Operation], note: str) -> None:
        """Show how they are now."""
        ...


@dataclass(slots=True)
class _Silent:
    """Shows nothing: programs read the result alone."""

    def update(self, operations: Sequence[pb.Operation], note: str) -> None:
        """Do nothing."""


@dataclass(slots=True)
class _Lines:
    """Prints a line whenever something has changed."""

    shown: dict[str, tuple[object, ...]] = field(default_factory=dict)

    def update(self, operations: Sequence[pb.Operation], note: str) -> None:
        """Print what is new."""
        for one in operations:
            news = (one.state, one.step, one.note, int(one.progress * TENTHS))
            if self.shown.get(one.id) != news:
                self.shown[one.id] = news
                why = f": {one.note}" if one.note else ""
                render.show_note(f"{one.id} {spec_text(one.spec)}: {progress_text(one)}{why}")
        if note and self.shown.get("") != (note,):
            self.shown[""] = (note,)
            render.show_note(note)


@dataclass(slots=True)
class _Drawn:
    """Draws a table on a terminal, over and over."""

    live: Live

    def update(self, operations: Sequence[pb.Operation], note: str) -> None:
        """Draw it again."""
        self.live.update(operations_table(operations, note), refresh=True)


def operations_table(operations: Sequence[pb.Operation], note: str = "") -> Table:
    """Return a table of operations that fits into 80 columns."""
    rows = [
        (one.id, spec_text(one.spec), progress_text(one), one.note or one.spec.cause)
        for one in operations
    ]
    columns = ("operation", "what", "where it stands", "note")
    table = render.table_of("operations", columns, rows, narrow=True)
    table.caption = note or None
    return table


@contextmanager
def _display(*, quiet: bool) -> Iterator[Display]:
    if quiet:
        yield _Silent()
    elif sys.stderr.isatty():
        with Live(console=Console(file=sys.stderr), auto_refresh=False) as live:
            yield _Drawn(live)
    else:
        yield _Lines()


def follow(
    target: Target,
    operation_ids: Sequence[str],
    *,
    pause: Pause = wait,
    clock: Clock | None = None,
) -> list[pb.Operation]:
    """Show operations until each is over, or paused: then nothing happens until somebody acts.

    Raises:
        UnavailableError: no router answered for a minute. The operations go on.
        KeyboardInterrupt: the person has seen enough. The operations go on.
    """
    clock = clock or SystemClock()
    heard_s = clock.now_s()
    still = (*OVER, pb.OPERATION_STATE_PAUSED)
    operations: list[pb.Operation] = []
    try:
        with _display(quiet=target.as_json) as display:
            polls_count = 0
            while True:
                note = ""
                try:
                    operations, note = _now(target, operation_ids)
                    heard_s = clock.now_s()
                except UnavailableError as error:
                    if clock.now_s() - heard_s > SILENCE_S:
                        raise
                    note = f"trying again: {error.message}"
                display.update(operations, note)
                if operations and all(one.state in still for one in operations):
                    return operations
                polls_count += 1
                pause(POLL_S if polls_count < QUICK_POLLS else LATER_POLL_S)
    except (KeyboardInterrupt, UnavailableError):
        names = " ".join(operation_ids)
        render.show_note(
            f"the operations go on: fgctl ops watch {names} shows them again;"
            " fgctl ops pause ID and fgctl ops abort ID stop one"
        )
        raise


def _now(target: Target, operation_ids: Sequence[str]) -> tuple[list[pb.Operation], str]:
    answer = operations_of(target, over=False)
    listed = {one.id: one for one in answer.operations}
    operations = [listed.get(one) or get(target, one) for one in operation_ids]
    note = "" if answer.driver else "no router drives operations at present; one will soon"
    return operations, note


def check_ended(operations: Sequence[pb.Operation]) -> None:
    """Raise unless all operations were done.

    Raises:
        FacegridError: one was aborted (OPERATION_ABORTED) or paused (OPERATION_PAUSED).
    """
    for one in operations:
        why = f": {one.note}" if one.note else ""
        if one.state == pb.OPERATION_STATE_ABORTED:
            raise FacegridError(
                f"the operation was aborted{why} operation={one.id}",
                reason="OPERATION_ABORTED",
            )
        if one.state == pb.OPERATION_STATE_PAUSED:
            raise FacegridError(
                f"the operation is paused{why}; go on with fgctl ops resume {one.id}"
                f" operation={one.id}",
                reason="OPERATION_PAUSED",
            )
