"""Limits under which short runs flush and repack often."""

from collections.abc import Iterator
from contextlib import contextmanager

from facegrid import limits

SMALL = {
    "FLUSH_ROWS": 7,
    "FLUSH_RECORDS": 15,
    "FLUSH_STEP_ROWS": 3,
    "ERASURES_NOTED": 2,
    "REPACK_ERASED_MIN": 2,
    "REPACK_STEP_ROWS": 3,
}


@contextmanager
def small_limits() -> Iterator[None]:
    """Flush and repack after a few rows."""
    before = {name: getattr(limits, name) for name in SMALL}
    for name, value in SMALL.items():
        setattr(limits, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(limits, name, value)
