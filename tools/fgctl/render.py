"""What people and programs see: tables, JSON documents, progress.

Results go to stdout, everything else to stderr, so that `--json` can be piped.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

PIPE_COLUMNS = 200
"""Width of tables that do not go to a terminal, which has none of its own."""
PLAIN_STEPS = 10
"""Lines of progress, at most, where there is no terminal to draw a bar on."""

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]


def show_json(value: Json) -> None:
    """Print one JSON document on one line."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; numbers are aligned to the right."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        numeric = bool(rows) and all(_is_number(row[number]) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    width = None if sys.stdout.isatty() else PIPE_COLUMNS
    Console(file=sys.stdout, width=width, highlight=False, markup=False).print(table)


def show_line(text: str) -> None:
    """Print a line of a result."""
    sys.stdout.write(text + "\n")


def show_note(text: str) -> None:
    """Print a line about what happens, beside the result."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.4f}"
        case _:
            return str(value)


class Meter(Protocol):
    """Counts work that is done."""

    def advance(self, count: int) -> None:
        """Add to what is done."""
        ...


@dataclass(slots=True)
class _Silent:
    """Counts nothing: programs read the result alone."""

    def advance(self, count: int) -> None:
        """Do nothing."""


@dataclass(slots=True)
class _Bar:
    """Draws a bar on a terminal."""

    progress: Progress
    task: TaskID

    def advance(self, count: int) -> None:
        """Move the bar."""
        self.progress.advance(self.task, count)


@dataclass(slots=True)
class _Lines:
    """Prints a line for each tenth of the work."""

    title: str
    total: int
    done: int = 0
    steps: int = 0

    def advance(self, count: int) -> None:
        """Print a line when another tenth is done."""
        self.done += count
        steps = self.done * PLAIN_STEPS // max(self.total, 1)
        if steps > self.steps:
            self.steps = steps
            show_note(f"{self.title}: {self.done:,} of {self.total:,}")


@contextmanager
def metered(title: str, total: int, *, quiet: bool) -> Iterator[Meter]:
    """Show how far a long task has come: a bar on a terminal, lines elsewhere, or nothing."""
    if quiet:
        yield _Silent()
    elif sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(file=sys.stderr)) as progress:
            yield _Bar(progress, progress.add_task(title, total=total))
    else:
        yield _Lines(title, total)


@contextmanager
def waiting(title: str, *, quiet: bool) -> Iterator[None]:
    """Show that something of unknown length goes on."""
    if quiet:
        yield
    elif sys.stderr.isatty():
        with Console(file=sys.stderr).status(title):
            yield
    else:
        show_note(title)
        yield
