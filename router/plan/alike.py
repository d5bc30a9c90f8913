"""Whether two sides that were asked the same say the same. Pure."""

from collections.abc import Sequence
from typing import Final

Row = tuple[str, str, float]
"""Subject, template, score."""
Lists = Sequence[Sequence[Row]]
"""One list for each probe, best first."""

SPLIT_RANKS: Final = 10
"""Ranks at which the halves of a shard may not be worse than it: each of them looks as deep."""
MERGE_RANKS: Final = 1
"""The same of one shard in the place of several. An index over more rows leaves others out, far
down a list of strangers; who is searched for it finds all the same."""


def copies_differ(one: Lists, other: Lists) -> str:
    """Say where two copies of one shard answer probes differently; empty: exactly alike."""
    if len(one) != len(other):
        return f"lists={len(one)} other={len(other)}"
    for probe, (first, second) in enumerate(zip(one, other, strict=True)):
        if list(first) != list(second):
            return f"probe={probe}"
    return ""


def merged(sides: Sequence[Lists]) -> list[list[Row]]:
    """Return the answers of several shards as one list for each probe."""
    return [
        sorted((row for rows in lists for row in rows), key=lambda row: (-row[2], row[:2]))
        for lists in zip(*sides, strict=True)
    ]


def sides_differ(old: Lists, new: Lists, *, ranks: int) -> str:
    """Say where the shards that are to replace others answer worse; empty: nowhere.

    Every candidate that both have must have the same score, and at each of the first `ranks` the
    new side's score may not be lower.
    """
    if len(old) != len(new):
        return f"lists={len(old)} other={len(new)}"
    for probe, (before, after) in enumerate(zip(old, new, strict=True)):
        scores = {row[:2]: row[2] for row in before}
        if any(scores.get(row[:2], row[2]) != row[2] for row in after):
            return f"another score probe={probe}"
        worse = [after[at][2] < row[2] for at, row in enumerate(before[:ranks]) if at < len(after)]
        if len(after) < min(ranks, len(before)) or any(worse):
            return f"a worse list probe={probe}"
    return ""
