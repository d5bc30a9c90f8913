"""Which searches go together, and when: decisions only, with no clock and no thread.

Callers who want the same of the same copies wait in one lane and are searched in one batch, since
every kernel below is several times faster per probe when it gets many at once. Nothing waits while
the device is idle. While it is busy callers collect by themselves; where a second search could run
beside the first, it is put off for a moment, so that it does not take a single probe along.

Galleries take turns, and so do the lanes of one gallery: who searches much does not hold up who
searches little.
"""

from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from facegrid.errors import OverloadedError

T = TypeVar("T")

NOTHING: Final = float("inf")


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How far batching goes.

    Attributes:
        probes_max: probes in one batch, unless one caller alone has more.
        candidates_max: probes times k of one batch, likewise.
        waiting_probes_max: probes that wait on one device; beyond it callers are told to slow
            down.
        wait_s_max: how long a search is put off for company while another one runs.
        searches_max: searches that run side by side.
    """

    probes_max: int = 256
    candidates_max: int = 65_536
    waiting_probes_max: int = 16_384
    wait_s_max: float = 0.001
    searches_max: int = 1

    def __post_init__(self) -> None:
        """Refuse limits that contradict one another."""
        assert 1 <= self.probes_max <= self.waiting_probes_max, "a full batch must fit"
        assert self.wait_s_max >= 0, "time does not go back"
        assert self.searches_max >= 1, "something must run"


@dataclass(frozen=True, slots=True, eq=False)
class Asked(Generic[T]):
    """One caller's search.

    Attributes:
        gallery: whose turn it takes.
        lane: equal for callers whose probes may be searched together.
        probes_count: at least 1.
        k: longest list wanted; the same for all of a lane.
        deadline_s: after this it is not searched any more.
        came_s: when it came.
        item: what is to be searched.
    """

    gallery: str
    lane: Hashable
    probes_count: int
    k: int
    deadline_s: float
    came_s: float
    item: T


@dataclass(slots=True)
class _Lane(Generic[T]):
    waiting: deque[Asked[T]] = field(default_factory=deque)
    probes_count: int = 0


class Batches(Generic[T]):
    """The searches that wait for one device.

    Args:
        limits: how far to go.
    """

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._galleries: OrderedDict[str, OrderedDict[Hashable, _Lane[T]]] = OrderedDict()
        self.probes_count = 0
        """Probes that wait."""

    def join(self, asked: Asked[T]) -> None:
        """Let a search wait.

        Raises:
            OverloadedError: too many probes wait already (QUEUE_FULL).
        """
        limit = self._limits.waiting_probes_max
        if self.probes_count and self.probes_count + asked.probes_count > limit:
            raise OverloadedError(
                f"too many probes are waiting limit={limit}", reason="QUEUE_FULL", limit=limit
            )
        lanes = self._galleries.setdefault(asked.gallery, OrderedDict())
        lane = lanes.setdefault(asked.lane, _Lane())
        lane.waiting.append(asked)
        self._count(lane, asked.probes_count)

    def leave(self, asked: Asked[T]) -> None:
        """Forget a search that nobody waits for any more; one that has begun is not here."""
        lanes = self._galleries.get(asked.gallery)
        lane = lanes.get(asked.lane) if lanes else None
        if lane is not None and asked in lane.waiting:
            lane.waiting.remove(asked)
            self._count(lane, -asked.probes_count)
            self._tidy(asked.gallery, asked.lane)

    def take(self, now_s: float, running_count: int) -> list[Asked[T]]:
        """Return the searches that are to begin now, together; none where none is due.

        Args:
            now_s: the time.
            running_count: searches under way.
        """
        if running_count >= self._limits.searches_max:
            return []
        for gallery, lanes in self._galleries.items():
            for key, lane in lanes.items():
                if running_count and self._due_s(lane) > now_s:
                    continue
                batch = self._taken(lane)
                # The end of the line, for both.
                lanes.move_to_end(key)
                self._galleries.move_to_end(gallery)
                self._tidy(gallery, key)
                return batch
        return []

    def due_s(self, running_count: int) -> float:
        """Return when something is due without anything else happening; infinite: nothing."""
        if running_count >= self._limits.searches_max:
            return NOTHING
        lanes = (lane for lanes in self._galleries.values() for lane in lanes.values())
        return min(map(self._due_s, lanes), default=NOTHING)

    def _due_s(self, lane: _Lane[T]) -> float:
        if lane.probes_count >= self._limits.probes_max:
            return -NOTHING
        return lane.waiting[0].came_s + self._limits.wait_s_max

    def _taken(self, lane: _Lane[T]) -> list[Asked[T]]:
        """Take the first of a lane, and those behind it that fit into one batch with it."""
        batch = [lane.waiting.popleft()]
        probes_count = batch[0].probes_count
        probes_max = min(
            self._limits.probes_max, max(1, self._limits.candidates_max // batch[0].k)
        )
        while lane.waiting and probes_count + lane.waiting[0].probes_count <= probes_max:
            batch.append(lane.waiting.popleft())
            probes_count += batch[-1].probes_count
        self._count(lane, -probes_count)
        return batch

    def _count(self, lane: _Lane[T], probes_count: int) -> None:
        lane.probes_count += probes_count
        self.probes_count += probes_count

    def _tidy(self, gallery: str, key: Hashable) -> None:
        """Let go of what nobody waits in."""
        lanes = self._galleries[gallery]
        if not lanes[key].waiting:
            del lanes[key]
        if not lanes:
            del self._galleries[gallery]
