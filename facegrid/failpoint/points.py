"""Rules that say where a process fails, and what it then does.

A rule is a line of a file: point, when, what, and at which arrival.

    etcd.txn.tip after crash 1
    store.put.* before error *

The point may have wildcards; *when* is before or after the call that it names; an error after the
call is an answer that was lost. A number means: once, at that arrival. A star means: every time,
for as long as the line is there. The file is read anew whenever it has changed. A rule that has
struck is noted in the file beside it, `<name>.struck`, and a numbered one strikes once, whatever
process reads it next.
"""

import os
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, Literal, cast

from facegrid.errors import InvalidError, UnavailableError

When = Literal["before", "after"]
Action = Literal["error", "crash", "stall"]

EVERY: Final = 0
"""The arrival that stands for all of them."""
WHENS: Final = ("before", "after")
ACTIONS: Final = ("error", "crash", "stall")

POINTS: Final = (
    "store.put.log",
    "store.put.segment",
    "store.put.manifest",
    "store.put.gallery",
    "store.put.codebook",
    "store.put.journal",
    "store.put.pin",
    "store.delete.log",
    "store.delete.segment",
    "store.delete.manifest",
    "store.delete.gallery",
    "store.delete.codebook",
    "store.delete.pin",
    "etcd.txn.operation",
    "etcd.txn.mark",
    "etcd.txn.rebalancer",
    "etcd.txn.driver",
    "etcd.txn.gallery",
    "etcd.txn.dropped",
    "etcd.txn.map",
    "etcd.txn.generation",
    "etcd.txn.manifest",
    "etcd.txn.tip",
    "etcd.txn.node",
)
"""Every durable step of nodes and routers. Reads have points too: `store.get.*`, `store.list.*`,
`etcd.get.*`, `etcd.list.*`; and leases `etcd.lease`."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the file."""

    point: str
    when: When
    action: Action
    arrival: int
    line: str

    def is_for(self, point: str, when: When) -> bool:
        """Tell whether a process that has come to a point has come to this rule's."""
        return self.when == when and fnmatchcase(point, self.point)


def parse(text: str) -> tuple[Rule, ...]:
    """Return the rules of a file.

    Raises:
        InvalidError: a line is none (FAILPOINT_MALFORMED).
    """
    return tuple(_rule(" ".join(line.split())) for line in text.splitlines() if line.split())


def _rule(line: str) -> Rule:
    parts = line.split()
    if len(parts) == 4 and parts[1] in WHENS and parts[2] in ACTIONS:
        point, when, action, arrival = parts
        if arrival == "*" or (arrival.isdecimal() and int(arrival) > EVERY):
            number = EVERY if arrival == "*" else int(arrival)
            return Rule(point, cast("When", when), cast("Action", action), number, line)
    raise InvalidError(
        f"failpoint must be POINT before|after error|crash|stall NUMBER|* line={line!r}",
        reason="FAILPOINT_MALFORMED",
        field="failpoints",
    )


class Failpoints:
    """The failpoints of one process.

    Args:
        path: the file of its rules; it need not exist.
        signal_self: sends this process a signal; SIGKILL and SIGSTOP are what it sends.
    """

    def __init__(
        self, path: Path, *, signal_self: Callable[[signal.Signals], None] | None = None
    ) -> None:
        self._path = path
        self._struck_path = path.with_name(f"{path.name}.struck")
        self._signal_self = signal_self or (lambda number: os.kill(os.getpid(), number))
        self._stamp: tuple[int, int, int] | None = None
        self._rules: tuple[Rule, ...] = ()
        self._arrivals: Counter[Rule] = Counter()

    def reach(self, point: str, when: When) -> None:
        """Fail here if a rule says so.

        Raises:
            UnavailableError: a rule demands an error (FAILPOINT).
            InvalidError: the file of rules cannot be understood.
        """
        self._refresh()
        for rule in self._rules:
            if rule.is_for(point, when):
                self._arrivals[rule] += 1
                if rule.arrival in (EVERY, self._arrivals[rule]):
                    self._strike(rule, point)

    def _refresh(self) -> None:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            stamp = None
        else:
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        self._arrivals.clear()
        rules = () if stamp is None else parse(self._path.read_text(encoding="utf-8"))
        struck = self._struck()
        self._rules = tuple(
            rule for rule in rules if rule.arrival == EVERY or rule.line not in struck
        )

    def _struck(self) -> set[str]:
        try:
            return set(self._struck_path.read_text(encoding="utf-8").splitlines())
        except FileNotFoundError:
            return set()

    def _strike(self, rule: Rule, point: str) -> None:
        """Note it first, since the process may not come to do it afterwards."""
        if rule.line not in self._struck():
            with self._struck_path.open("a", encoding="utf-8") as file:
                file.write(rule.line + "\n")
        if rule.arrival != EVERY:
            self._rules = tuple(other for other in self._rules if other is not rule)
        match rule.action:
            case "crash":
                self._signal_self(signal.SIGKILL)
            case "stall":
                self._signal_self(signal.SIGSTOP)
            case "error":
                raise UnavailableError(
                    f"a failpoint says so point={point} when={rule.when}",
                    reason="FAILPOINT",
                    point=point,
                )


def _note(rule: Rule) -> str:
    return rule.line
