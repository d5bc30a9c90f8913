"""Which log objects of a store were committed, told without etcd.

Every object names its predecessor and its hash, so the objects form a tree. A writer builds on a
committed object only, which decides between two objects that follow the same one:

1. What has a follower was committed.
2. Else the higher generation: whoever claimed it read the tip after the claim, when older
   generations could not commit any more. Its object would follow the other, had that been
   committed.
3. Else, in one generation, the one written last: a process gives an object up before it writes
   another in its place, and never commits what it gave up.

The last object of a chain may never have been committed: its writer may have died between storing
and committing it. Nobody heard of it then, and keeping it is as right as leaving it out.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from facegrid.format.log import LogGroup, LogRef


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One log object without its records. `written_unix_ms` is that of its last record."""

    ref: LogRef
    predecessor: LogRef | None
    written_unix_ms: int


@dataclass(frozen=True, slots=True)
class Chain:
    """The log objects of a shard, sorted out.

    Attributes:
        entries: the log behind the manifest, oldest first.
        superseded: objects that the manifest covers, not deleted yet.
        orphans: objects that follow a committed one but were not committed.
        forked: objects that others follow although the log goes another way. Nothing that facegrid
            does leaves such.
        detached: objects that nothing connects with the manifest: a predecessor is not there.
    """

    entries: tuple[LogEntry, ...]
    superseded: tuple[LogEntry, ...]
    orphans: tuple[LogEntry, ...]
    forked: tuple[LogEntry, ...]
    detached: tuple[LogEntry, ...]


def log_entry(group: LogGroup, ref: LogRef) -> LogEntry:
    """Return a decoded object's place in the log."""
    return LogEntry(ref, group.predecessor, group.records[-1].written_unix_ms)


def connect(entries: Iterable[LogEntry], *, after: LogRef | None) -> Chain:
    """Sort out the log objects of a shard.

    Args:
        entries: all that can be read, in any order.
        after: the object that the manifest covers last; None: there is no manifest, or no log in
            it.
    """
    covered = 0 if after is None else after.last_position
    given = sorted(entries, key=lambda entry: (entry.ref.first_position, entry.ref.generation))
    newer = [entry for entry in given if entry.ref.first_position > covered]
    followers: dict[LogRef | None, list[LogEntry]] = {}
    for entry in newer:
        if entry.predecessor is not None or entry.ref.first_position == 1:
            followers.setdefault(entry.predecessor, []).append(entry)
    chain: list[LogEntry] = []
    at = after
    while siblings := followers.get(at):
        best = max(siblings, key=lambda entry: _standing(entry, followers))
        chain.append(best)
        at = best.ref
    committed = {after, *(entry.ref for entry in chain)}
    rest = [entry for entry in newer if entry.ref not in committed]
    rejected = [entry for entry in rest if entry.predecessor in committed and _rooted(entry)]
    forked = _with_followers([one for one in rejected if one.ref in followers], followers)
    known = {entry.ref for entry in (*rejected, *forked)}
    return Chain(
        entries=tuple(chain),
        superseded=tuple(entry for entry in given if entry.ref.first_position <= covered),
        orphans=tuple(entry for entry in rejected if entry.ref not in followers),
        forked=tuple(forked),
        detached=tuple(entry for entry in rest if entry.ref not in known),
    )


def _standing(
    entry: LogEntry, followers: dict[LogRef | None, list[LogEntry]]
) -> tuple[bool, int, int, str]:
    """Return what decides between objects that follow the same one; the greatest stands."""
    return (entry.ref in followers, entry.ref.generation, entry.written_unix_ms, entry.ref.uuid)


def _rooted(entry: LogEntry) -> bool:
    """Tell whether an object has a predecessor, or is the first of a shard."""
    return entry.predecessor is not None or entry.ref.first_position == 1


def _with_followers(
    roots: list[LogEntry], followers: dict[LogRef | None, list[LogEntry]]
) -> list[LogEntry]:
    """Return these objects and all that follow them."""
    found: list[LogEntry] = []
    waiting = list(roots)
    while waiting:
        entry = waiting.pop()
        found.append(entry)
        waiting += followers.get(entry.ref, [])
    return found
