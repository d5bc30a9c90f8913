"""Coalescing: concurrent callers of one gallery share a batch.

Every kernel below is several times faster per probe when it gets many at once, and every call
costs the same whatever it carries. So a batch goes out at once while the gallery is idle; while
one is under way, further callers collect, and go out together when it returns, when they are many
enough to fill a batch, or when it takes oddly long. An idle router adds no wait at all.

Where callers are many but do not fill two batches, they go in two halves, so that nodes search
for one while the router hears and answers the other; with one batch at a time they would wait for
each other.

A batch is searched with the largest k and the lowest threshold of its callers, and each is given
its own cut: exactly what it would have got alone. No caller can harm another: everything is
checked before it joins, a batch waits as long as its most patient caller, each caller leaves by
its own deadline, a token that no shard has been seen to reach is searched for alone, and nobody
shares a batch with callers who make something else of answers that cannot be confirmed, or who
want another profile.
"""

import asyncio
import dataclasses
from collections import deque
from collections.abc import Container
from dataclasses import dataclass, field

from facegrid.clock import Clock
from facegrid.errors import DeadlineError, OverloadedError, UnavailableError
from facegrid.tuning import Profile
from router.dispatch.positions import Positions
from router.dispatch.question import Answer, Question
from router.dispatch.scatter import Searcher
from router.dispatch.supervisor import Broken, Outcome, Supervisor
from router.plan.confirmed import Unconfirmed

TOOK_WEIGHT = 0.2
"""Share of the newest batch in the recent duration of batches."""
LATE_FACTOR = 2.0
"""A batch that takes this many times as long as recent ones no longer holds others up."""

LANES_KEPT_MAX = 1024
"""Galleries whose recent durations are remembered while nobody searches them."""


@dataclass(frozen=True, slots=True)
class CoalesceLimits:
    """How far coalescing goes.

    Attributes:
        rows_max: probes in one batch, unless one caller alone has more.
        candidates_max: probes times k of one batch, unless one caller alone wants more; so a few
            long lists never make many short ones long.
        rows_full: waiting probes that go out without waiting for the batch before.
        rows_half: waiting probes that do so if they are half of all, those under way included.
        batches_max: batches under way per gallery that full ones may make.
        late_batches_max: batches under way per gallery, late ones included.
        wait_s_min: shortest time after which a batch counts as late.
        waiting_rows_max: probes waiting in the whole router; beyond it callers are told to slow
            down.
    """

    rows_max: int = 256
    candidates_max: int = 65_536
    rows_full: int = 64
    rows_half: int = 16
    batches_max: int = 2
    late_batches_max: int = 8
    wait_s_min: float = 0.025
    waiting_rows_max: int = 65_536

    def __post_init__(self) -> None:
        """Refuse limits that contradict one another."""
        assert 1 <= self.rows_full <= self.rows_max, "a full batch must fit"
        assert self.rows_half >= 1, "nothing is no half"
        assert 1 <= self.batches_max <= self.late_batches_max, "late ones are beyond full ones"


@dataclass(frozen=True, slots=True)
class Share:
    """A caller's part of a batch: its probes are `first` to `first + rows_count - 1`."""

    answer: Answer
    first: int
    rows_count: int

    def names(self) -> list[tuple[str, str]]:
        """Return subject and template of all candidates."""
        return self.answer.merged.names(self.first, self.rows_count)

    def without(self, gone: Container[tuple[str, str]]) -> "Share":
        """Return this without some candidates."""
        merged = self.answer.merged.without(gone, self.first, self.rows_count)
        return Share(dataclasses.replace(self.answer, merged=merged), 0, self.rows_count)


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    question: Question
    deadline_s: float
    share: asyncio.Future[Share]


@dataclass(slots=True, eq=False)
class _Batch:
    waiters: list[_Waiter]
    rows_count: int
    started_s: float
    task: asyncio.Task[Outcome[Answer]] | None = None


@dataclass(slots=True, eq=False)
class _Lane:
    """The callers of one gallery who want the same profile and make the same of answers that
    cannot be confirmed: those that wait, and the batches under way.
    """

    waiting: deque[_Waiter] = field(default_factory=deque)
    rows_count: int = 0
    batches: set[_Batch] = field(default_factory=set)
    took_s: float = 0.0
    alarm: asyncio.TimerHandle | None = None

    @property
    def half(self) -> int:
        """Half of the probes that wait or are under way."""
        searched = sum(batch.rows_count for batch in self.batches)
        return -(-(self.rows_count + searched) // 2)


class Coalescer:
    """Gathers questions into batches.

    Args:
        searcher: searches one batch.
        supervisor: owns the batches, which belong to no single caller.
        clock: for deadlines and durations.
        positions: how far the shards have been seen to come.
        limits: how far to go.
    """

    def __init__(
        self,
        searcher: Searcher,
        supervisor: Supervisor,
        clock: Clock,
        *,
        positions: Positions,
        limits: CoalesceLimits,
    ) -> None:
        self._searcher = searcher
        self._supervisor = supervisor
        self._clock = clock
        self._positions = positions
        self._limits = limits
        self._lanes: dict[tuple[str, int, Unconfirmed, Profile], _Lane] = {}
        self._waiting_rows_count = 0

    async def search(self, question: Question, *, deadline_s: float) -> Share:
        """Return the answer to a question, searched together with others or alone.

        Raises:
            OverloadedError: too many probes wait already (QUEUE_FULL).
            DeadlineError: the answer did not come in time.
            FacegridError: what the search raised.
        """
        if not self._positions.reached(question.positions):
            answer = await self._searcher.search(question, deadline_s=deadline_s)
            return Share(answer, 0, question.rows_count)
        if self._waiting_rows_count + question.rows_count > self._limits.waiting_rows_max:
            raise OverloadedError(
                f"too many probes are waiting limit={self._limits.waiting_rows_max}",
                reason="QUEUE_FULL",
                limit=self._limits.waiting_rows_max,
            )
        key = (question.gallery, question.dim, question.unconfirmed, question.profile)
        lane = self._lanes.setdefault(key, _Lane())
        waiter = _Waiter(question, deadline_s, asyncio.get_running_loop().create_future())
        lane.waiting.append(waiter)
        self._count(lane, question.rows_count)
        try:
            self._pump(lane)
            async with asyncio.timeout(deadline_s - self._clock.now_s()):
                return await waiter.share
        except TimeoutError as error:
            raise DeadlineError("the answer did not come in time") from error
        finally:
            self._leave(lane, waiter)
            if len(self._lanes) > LANES_KEPT_MAX and not lane.waiting and not lane.batches:
                self._lanes.pop(key, None)

    def _count(self, lane: _Lane, rows_count: int) -> None:
        lane.rows_count += rows_count
        self._waiting_rows_count += rows_count

    def _pump(self, lane: _Lane) -> None:
        """Send what may go now."""
        limits = self._limits
        while lane.waiting and (
            not lane.batches
            or (lane.rows_count >= self._full(lane) and len(lane.batches) < limits.batches_max)
        ):
            self._send(lane)
        if lane.waiting and lane.alarm is None:
            wait_s = max(limits.wait_s_min, LATE_FACTOR * lane.took_s)
            lane.alarm = asyncio.get_running_loop().call_later(wait_s, self._late, lane)

    def _full(self, lane: _Lane) -> int:
        """Return how many probes go out without waiting for the batch before."""
        return min(self._limits.rows_full, max(self._limits.rows_half, lane.half))

    def _late(self, lane: _Lane) -> None:
        """Let those that wait for a batch that takes oddly long go on without it."""
        lane.alarm = None
        if lane.waiting and len(lane.batches) < self._limits.late_batches_max:
            self._send(lane)
        self._pump(lane)

    def _send(self, lane: _Lane) -> None:
        """Send those that wait: as many as fit into one batch, or half where halves are made."""
        limits, rows_max = self._limits, self._limits.rows_max
        if limits.batches_max > 1 and limits.rows_half <= lane.half < limits.rows_full:
            rows_max = lane.half
        waiters = [lane.waiting.popleft()]
        rows_count, k = waiters[0].question.rows_count, waiters[0].question.k
        while lane.waiting:
            following = lane.waiting[0].question
            more, k = rows_count + following.rows_count, max(k, following.k)
            if more > rows_max or more * k > self._limits.candidates_max:
                break
            waiters.append(lane.waiting.popleft())
            rows_count = more
        self._count(lane, -rows_count)
        deadline_s = max(waiter.deadline_s for waiter in waiters)
        search = self._searcher.search(
            joined([waiter.question for waiter in waiters]), deadline_s=deadline_s
        )
        batch = _Batch(waiters, rows_count, self._clock.now_s())
        try:
            batch.task = self._supervisor.start(search)
        except UnavailableError as error:
            _hand_out(batch, Broken(error))
            return
        lane.batches.add(batch)
        batch.task.add_done_callback(lambda task: self._finish(lane, batch, task))

    def _finish(self, lane: _Lane, batch: _Batch, task: asyncio.Task[Outcome[Answer]]) -> None:
        """Give everybody their part, and send the next."""
        lane.batches.discard(batch)
        if lane.alarm is not None:
            lane.alarm.cancel()
            lane.alarm = None
        if task.cancelled():
            for waiter in batch.waiters:
                waiter.share.cancel()
        else:
            took_s = self._clock.now_s() - batch.started_s
            lane.took_s += (TOOK_WEIGHT if lane.took_s else 1.0) * (took_s - lane.took_s)
            _hand_out(batch, task.result())
        self._pump(lane)

    def _leave(self, lane: _Lane, waiter: _Waiter) -> None:
        """Forget a caller; a batch that nobody waits for any more is cancelled."""
        if waiter in lane.waiting:
            lane.waiting.remove(waiter)
            self._count(lane, -waiter.question.rows_count)
        if not waiter.share.cancel() and not waiter.share.cancelled():
            waiter.share.exception()  # seen: an error that came as the caller left is nobody's
        for batch in lane.batches:
            if all(other.share.done() for other in batch.waiters) and batch.task is not None:
                batch.task.cancel()


def _hand_out(batch: _Batch, outcome: Outcome[Answer]) -> None:
    first = 0
    for waiter in batch.waiters:
        rows_count = waiter.question.rows_count
        if not waiter.share.done():
            if isinstance(outcome, Broken):
                waiter.share.set_exception(outcome.error)
            else:
                waiter.share.set_result(Share(outcome.result, first, rows_count))
        first += rows_count


def joined(questions: list[Question]) -> Question:
    """Return the question whose answer holds the answers to all of these, of one lane."""
    if len(questions) == 1:
        return questions[0]
    positions = dict(questions[0].positions)
    for question in questions[1:]:
        for shard_id, position in question.positions.items():
            positions[shard_id] = max(position, positions.get(shard_id, 0))
    return Question(
        gallery=questions[0].gallery,
        probes=b"".join(question.probes for question in questions),
        rows_count=sum(question.rows_count for question in questions),
        dim=questions[0].dim,
        k=max(question.k for question in questions),
        threshold=min(question.threshold for question in questions),
        positions=positions,
        unconfirmed=questions[0].unconfirmed,
        profile=questions[0].profile,
    )
