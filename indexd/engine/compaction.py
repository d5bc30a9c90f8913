"""When to flush, and which segments to rewrite: pure decisions about numbers of rows.

Segments are rewritten for two reasons. A shard that is flushed often gathers many small ones, and
each costs time when it is opened. And the bytes of an erased row lie in its segment until that is
rewritten.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

from facegrid import limits

FEW_SEGMENTS = 8
"""So many small segments side by side are worth one larger one."""


@dataclass(frozen=True, slots=True)
class SegmentSize:
    """How many rows a segment holds, and how many of them are erased."""

    rows_count: int
    erased_count: int


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring segments, first to last - 1, to be rewritten as one."""

    first: int
    last: int


def flush_rows(shard_id: str) -> int:
    """Return from how many rows in the log on a shard is flushed: a little earlier than it must
    be, one shard than the other, since the shards of a gallery fill equally fast.
    """
    return limits.FLUSH_ROWS - crc32(shard_id.encode()) % (limits.FLUSH_ROWS // 8 + 1)


def small_runs(segments: Sequence[SegmentSize], rows_max: int = limits.FLUSH_ROWS) -> list[Run]:
    """Return runs of FEW_SEGMENTS or more small neighbours that together stay within rows_max.

    Small is what would fit FEW_SEGMENTS times. Only neighbours are joined, so that rows keep their
    order, and with it answers in which scores tie.
    """
    runs: list[Run] = []
    first, rows_count = 0, 0
    for number, segment in enumerate(segments):
        small = segment.rows_count * FEW_SEGMENTS <= rows_max
        if not small or rows_count + segment.rows_count > rows_max:
            _add(runs, first, number)
            first, rows_count = (number, 0) if small else (number + 1, 0)
        rows_count += segment.rows_count if small else 0
    _add(runs, first, len(segments))
    return runs


def erased_runs(segments: Sequence[SegmentSize]) -> list[Run]:
    """Return every segment with an erased row, each by itself."""
    return [
        Run(number, number + 1) for number, segment in enumerate(segments) if segment.erased_count
    ]


def _add(runs: list[Run], first: int, last: int) -> None:
    """Keep a run that is long enough to be worth it."""
    if last - first >= FEW_SEGMENTS:
        runs.append(Run(first, last))
