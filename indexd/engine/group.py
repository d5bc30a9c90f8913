"""Forms groups: which waiting writes go into one log object together."""

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from facegrid.errors import FacegridError
from facegrid.format.log import EraseRecord, LoadRecord, LogRecord
from indexd.engine.planning import overlay_of, plan, plan_mirrored
from indexd.engine.requests import LoadRequest, MirrorRequest, Outcome, WriteRequest
from indexd.engine.state import ShardState


class Ticket(Protocol):
    """A waiting write."""

    @property
    def request(self) -> WriteRequest:
        """What is asked."""
        ...


T = TypeVar("T", bound=Ticket)


@dataclass(slots=True)
class Group(Generic[T]):
    """Writes that share a log object, and those that need none."""

    records: list[tuple[LogRecord, T]] = field(default_factory=list)
    settled: list[tuple[Outcome | FacegridError, T]] = field(default_factory=list)


def form_group(state: ShardState, waiting: deque[T], *, bytes_max: int, unix_ms: int) -> Group[T]:
    """Take writes from the front of the queue, in order, until the group is full.

    An erasure ends its group: what follows must be planned against what it left. So does a request
    whose id is in the group already: its answer is that of the first. A bulk load is alone in its
    group, since it was staged for the rows that there are now; so are records of another shard.
    """
    group: Group[T] = Group()
    overlay = overlay_of(state)
    size_bytes = 0
    while waiting and (size_bytes == 0 or size_bytes + waiting[0].request.size_bytes <= bytes_max):
        request = waiting[0].request
        if request.request_id in overlay.requests:
            break
        if isinstance(request, LoadRequest | MirrorRequest) and group.records:
            break
        ticket = waiting.popleft()
        if isinstance(request, MirrorRequest):
            mirrored = plan_mirrored(state, request, unix_ms)
            if isinstance(mirrored, Outcome):
                group.settled.append((mirrored, ticket))
                continue
            group.records += [(record, ticket) for record in mirrored]
            break
        try:
            planned = plan(state, ticket.request, overlay, unix_ms)
        except FacegridError as refused:
            group.settled.append((refused, ticket))
            continue
        if isinstance(planned, Outcome):
            group.settled.append((planned, ticket))
            continue
        group.records.append((planned, ticket))
        size_bytes += ticket.request.size_bytes
        if isinstance(planned, EraseRecord | LoadRecord):
            break
    return group
