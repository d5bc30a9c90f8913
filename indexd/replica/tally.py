"""What a process has done so far, counted for those who watch it."""

from dataclasses import dataclass


@dataclass(slots=True)
class Tally:
    """Counts that only grow.

    Attributes:
        flushes_count: manifests committed.
        takeovers_count: shards whose primary this process became since another one had gone.
    """

    flushes_count: int = 0
    takeovers_count: int = 0
