"""What people and programs see: tables, JSON documents, progress.

Results go to stdout, everything else to stderr, so that `--json` can be piped.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rich import box
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

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
    show(table_of(title, columns, rows))


def table_of(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, narrow: bool = False
) -> Table:
    """Return a table; numbers are aligned to the right. Narrow ones have no frame."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD if narrow else box.HEAVY_HEAD,
        show_edge=not narrow,
        pad_edge=not narrow,
        padding=(0, 1, 0, 0) if narrow else (0, 1),
    )
    for number, column in enumerate(columns):
        values = [row[number] for row in rows if row[number] != ""]
        numeric = bool(values) and all(_is_number(value) for value in values)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    return table


def show(*parts: RenderableType) -> None:
    """Print tables and the like, as wide as the terminal, or PIPE_COLUMNS where there is none."""
    width = None if sys.stdout.isatty() else PIPE_COLUMNS
    Console(file=sys.stdout, width=width, highlight=False, markup=False).print(*parts, sep="")


def show_line(text: str) -> None:
    """Print a line of a result."""
    sys.stdout.write(text + "\n")


def show_note(text: str) -> None:
    """Print a line about what happens, beside the result."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def unconfirmed_note(share: float) -> str:
    """Return what to know of an answer of which a share could not be confirmed."""
    return (
        f"{share:.0%} of the gallery was answered unconfirmed: the copies asked could not make"
        " sure that they have everything, so what was erased lately may be shown, and what was"
        " enrolled lately be missing"
    )


def size_text(count: float) -> str:
    """Return a number of bytes for people.

    >>> size_text(3 * 1024**2)
    '3.0 MiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def many(count: int, what: str, plural: str = "") -> str:
    """Return a count with the word for what is counted.

    >>> many(2, "shard")
    '2 shards'
    """
    return f"{count:,} {what if count == 1 else plural or what + 's'}"


def duration_text(duration_s: float) -> str:
    """Return a duration for people.

    >>> duration_text(75)
    '1 min 15 s'
    """
    minutes, seconds = divmod(round(max(duration_s, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


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
