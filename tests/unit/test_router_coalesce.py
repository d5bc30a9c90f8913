"""Callers share batches without getting in each other's way."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest

from facegrid.clock import SystemClock
from facegrid.errors import DeadlineError, OverloadedError, UnavailableError
from facegrid.ids import GalleryName, NodeId, ShardId
from facegrid.model import Coverage
from router.dispatch.coalesce import CoalesceLimits, Coalescer, Share, joined
from router.dispatch.positions import Positions
from router.dispatch.question import Answer, Question
from router.dispatch.supervisor import Supervisor
from router.plan.merge import Merged
from tests.fakes.router_cluster import cluster, faces

FOREVER_S = 1e6
ANSWER = Answer(Merged([0], np.empty(0, np.float32), [], []), Coverage(1.0, 1, 1), 1)


@dataclass
class FakeSearcher:
    """Notes what is asked and answers when the test says."""

    asked: list[Question] = field(default_factory=list)
    answers: list[asyncio.Future[Answer]] = field(default_factory=list)
    deadlines_s: list[float] = field(default_factory=list)
    came: asyncio.Event = field(default_factory=asyncio.Event)

    async def search(self, question: Question, *, deadline_s: float) -> Answer:
        self.asked.append(question)
        self.deadlines_s.append(deadline_s)
        self.answers.append(asyncio.get_running_loop().create_future())
        self.came.set()
        return await self.answers[-1]

    async def batches(self, count: int) -> None:
        """Wait until that many batches were asked."""
        while len(self.asked) < count:
            self.came.clear()
            await self.came.wait()


@dataclass
class Bench:
    """A coalescer over a searcher that the test answers for."""

    searcher: FakeSearcher
    coalescer: Coalescer
    positions: Positions
    clock: SystemClock
    group: asyncio.TaskGroup

    def ask(
        self, name: str, *, rows: int = 1, left_s: float = 60.0, **fields: object
    ) -> asyncio.Task[Share]:
        """Start a caller whose probes are its name, repeated."""
        given = question(name, rows=rows, **fields)
        return self.group.create_task(
            self.coalescer.search(given, deadline_s=self.clock.now_s() + left_s)
        )


def question(name: str, *, rows: int = 1, **fields: object) -> Question:
    values = {"gallery": GalleryName("g"), "dim": 8, "k": 1, "threshold": -2.0}
    return Question(probes=name.encode() * rows, rows_count=rows, **{**values, **fields})


@asynccontextmanager
async def bench(**limits: float) -> AsyncIterator[Bench]:
    clock, searcher, positions = SystemClock(), FakeSearcher(), Positions()
    supervisor = Supervisor()
    coalescer = Coalescer(
        searcher,
        supervisor,
        clock,
        positions=positions,
        limits=CoalesceLimits(**{"wait_s_min": FOREVER_S, **limits}),
    )
    async with asyncio.TaskGroup() as group:
        supervising = group.create_task(supervisor.run())
        await asyncio.wait([supervising], timeout=0)
        yield Bench(searcher, coalescer, positions, clock, group)
        supervising.cancel()


async def turn() -> None:
    """Let everybody run until they wait."""
    for _ in range(10):
        await asyncio.wait([asyncio.get_running_loop().create_future()], timeout=0)


async def test_callers_collect_while_a_batch_is_under_way() -> None:
    async with bench() as b:
        first = b.ask("a")
        await b.searcher.batches(1)
        others = [b.ask("b", rows=2), b.ask("c"), b.ask("d", rows=3)]
        await turn()
        sent_before = [asked.probes for asked in b.searcher.asked]
        b.searcher.answers[0].set_result(ANSWER)
        await b.searcher.batches(2)
        b.searcher.answers[1].set_result(ANSWER)

        shares = [await task for task in (first, *others)]

    assert sent_before == [b"a"]
    assert [asked.probes for asked in b.searcher.asked] == [b"a", b"bbcddd"]
    assert shares == [Share(ANSWER, *part) for part in [(0, 1), (0, 2), (2, 1), (3, 3)]]


async def test_many_waiting_probes_go_out_without_waiting() -> None:
    async with bench(rows_full=4, rows_max=8, batches_max=2) as b:
        tasks = [b.ask(name, rows=2) for name in "abcdef"]
        await b.searcher.batches(2)
        await turn()
        sent = [asked.probes for asked in b.searcher.asked]
        b.searcher.answers[0].set_result(ANSWER)
        await b.searcher.batches(3)
        for answer in b.searcher.answers[1:]:
            answer.set_result(ANSWER)
        for task in tasks:
            await task

    assert sent == [b"aa", b"bbcc"]
    assert b.searcher.asked[2].probes == b"ddeeff"


async def test_callers_who_do_not_fill_two_batches_go_in_two_halves() -> None:
    """1 one goes at once, and the first four beside it; 2 half of the thirteen left follow."""
    async with bench(rows_full=64, rows_half=4, batches_max=2) as b:
        tasks = [b.ask("a")]
        await b.searcher.batches(1)
        tasks += [b.ask(name) for name in "bcdefghijklmn"]
        await turn()
        sent = [asked.probes for asked in b.searcher.asked]
        b.searcher.answers[0].set_result(ANSWER)
        await turn()
        left = [asked.probes for asked in b.searcher.asked[len(sent) :]]
        b.searcher.answers[1].set_result(ANSWER)
        while not all(task.done() for task in tasks):
            await turn()
            for answer in b.searcher.answers:
                if not answer.done():
                    answer.set_result(ANSWER)

    assert sent == [b"a", b"bcde"]
    assert left == [b"fghijkl"]


@pytest.mark.parametrize(
    ("rows_half", "batches_max", "callers"), [(4, 1, "bcdefghijklmn"), (16, 2, "bcdefghi")]
)
async def test_no_halves_are_made_of_few_or_where_one_batch_goes_at_a_time(
    rows_half: int, batches_max: int, callers: str
) -> None:
    async with bench(rows_full=64, rows_half=rows_half, batches_max=batches_max) as b:
        tasks = [b.ask("a")]
        await b.searcher.batches(1)
        tasks += [b.ask(name) for name in callers]
        await turn()
        sent = [asked.probes for asked in b.searcher.asked]
        b.searcher.answers[0].set_result(ANSWER)
        await b.searcher.batches(2)
        b.searcher.answers[1].set_result(ANSWER)
        for task in tasks:
            await task

    assert sent == [b"a"]
    assert b.searcher.asked[1].probes == callers.encode()


async def test_a_few_long_lists_never_make_many_short_ones_long() -> None:
    async with bench(candidates_max=100) as b:
        tasks = [b.ask("a")]
        await b.searcher.batches(1)
        tasks += [b.ask("b", k=90), b.ask("c", rows=2), b.ask("d", k=30)]
        await turn()
        for number in range(3):
            await b.searcher.batches(number + 1)
            b.searcher.answers[number].set_result(ANSWER)
        for task in tasks:
            await task

    assert [(asked.probes, asked.k) for asked in b.searcher.asked] == [
        (b"a", 1),
        (b"b", 90),
        (b"ccd", 30),
    ]


async def test_a_batch_that_takes_oddly_long_holds_nobody_up() -> None:
    async with bench(wait_s_min=0.001) as b:
        slow = b.ask("a")
        await b.searcher.batches(1)
        quick = b.ask("b")
        await b.searcher.batches(2)
        b.searcher.answers[1].set_result(ANSWER)
        await quick
        b.searcher.answers[0].set_result(ANSWER)
        await slow


async def test_an_impatient_caller_leaves_and_the_others_are_answered() -> None:
    async with bench() as b:
        first = b.ask("a")
        await b.searcher.batches(1)
        impatient = b.group.create_task(outcome(b, "b", left_s=0.05))
        patient = b.ask("c")
        await turn()
        b.searcher.answers[0].set_result(ANSWER)
        await b.searcher.batches(2)
        kind = await impatient
        b.searcher.answers[1].set_result(ANSWER)

        shares = [await first, await patient]

    assert kind is DeadlineError
    assert b.searcher.asked[1].probes == b"bc"
    assert b.searcher.deadlines_s[1] > b.searcher.deadlines_s[0]  # that of the patient caller
    assert shares == [Share(ANSWER, 0, 1), Share(ANSWER, 1, 1)]


async def test_a_batch_that_everybody_left_is_cancelled() -> None:
    async with bench() as b:
        callers = [b.ask("a")]
        await b.searcher.batches(1)
        callers += [b.ask("b"), b.ask("c")]
        await turn()
        callers[1].cancel()
        callers[0].cancel()
        await b.searcher.batches(2)
        callers[2].cancel()
        await turn()

    assert [asked.probes for asked in b.searcher.asked] == [b"a", b"c"]
    assert all(answer.cancelled() for answer in b.searcher.answers)


async def test_an_error_is_everybodys_in_the_batch_and_nobody_elses() -> None:
    async with bench() as b:
        outcomes = [b.group.create_task(outcome(b, name)) for name in "a"]
        await b.searcher.batches(1)
        outcomes += [b.group.create_task(outcome(b, name)) for name in "bc"]
        await turn()
        b.searcher.answers[0].set_exception(ValueError("a bug"))
        await b.searcher.batches(2)
        b.searcher.answers[1].set_exception(UnavailableError("away"))
        found = [await task for task in outcomes]

    assert found == [ValueError, UnavailableError, UnavailableError]


async def outcome(b: Bench, name: str, *, left_s: float = 60.0) -> type[BaseException]:
    """Return the kind of error that a caller gets."""
    with pytest.raises((ValueError, UnavailableError)) as caught:
        await b.coalescer.search(question(name), deadline_s=b.clock.now_s() + left_s)
    return caught.type


async def test_too_many_waiting_probes_are_told_to_slow_down() -> None:
    async with bench(waiting_rows_max=4) as b:
        first = b.ask("a")
        await b.searcher.batches(1)
        waiting = b.ask("b", rows=3)
        await turn()
        with pytest.raises(OverloadedError) as caught:
            await b.coalescer.search(question("c", rows=2), deadline_s=b.clock.now_s() + 60)
        first.cancel()
        waiting.cancel()
        await turn()
        last = b.ask("d", rows=4)
        await b.searcher.batches(2)
        b.searcher.answers[1].set_result(ANSWER)
        await last

    assert caught.value.reason == "QUEUE_FULL"


async def test_a_token_that_nobody_was_seen_to_reach_is_searched_for_alone() -> None:
    shard = ShardId("g.1.0000")
    async with bench() as b:
        b.positions.note(NodeId("n1"), [(shard, 5)])
        first = b.ask("a")
        await b.searcher.batches(1)
        known = b.ask("b", positions={shard: 5})
        unknown = b.ask("c", positions={shard: 6})
        await b.searcher.batches(2)
        await turn()
        sent = [asked.probes for asked in b.searcher.asked]
        for answer in list(b.searcher.answers):
            answer.set_result(ANSWER)
        await b.searcher.batches(3)
        b.searcher.answers[2].set_result(ANSWER)
        for task in (first, known, unknown):
            await task

    assert sent == [b"a", b"c"]
    assert b.searcher.asked[2].positions == {shard: 5}


def test_a_joined_question_asks_for_the_most_that_anybody_wants() -> None:
    one, two = ShardId("g.1.0000"), ShardId("g.1.0001")

    assert joined(
        [
            question("a", k=3, threshold=0.5, positions={one: 4}),
            question("b", rows=2, k=9, threshold=0.2, positions={one: 2, two: 7}),
        ]
    ) == Question(
        gallery=GalleryName("g"),
        probes=b"abb",
        rows_count=3,
        dim=8,
        k=9,
        threshold=0.2,
        positions={one: 4, two: 7},
    )


async def test_sharing_a_batch_changes_no_answer() -> None:
    x = faces(30)
    wishes = [{"k": 1}, {"k": 5, "threshold": 0.3}, {"k": 20, "threshold": -0.2}, {"k": 30}]
    async with cluster() as running:
        await running.client.create()
        await running.client.enrol(x, [f"s{row % 20}" for row in range(30)])
        alone = [
            await running.client.identify(x[row : row + 3], **wish)
            for row, wish in enumerate(wishes)
        ]
        for node in running.nodes:
            node.searches.clear()
            node.mischief.hold["Search"] = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            blocker = group.create_task(running.client.identify(x[:1]))
            while not running.nodes[0].searches:
                await asyncio.wait([blocker], timeout=0.001)
            tasks = [
                group.create_task(running.client.identify(x[row : row + 3], **wish))
                for row, wish in enumerate(wishes)
            ]
            await asyncio.wait(tasks, timeout=0.01)
            for node in running.nodes:
                node.mischief.hold["Search"].set()

    assert [task.result() for task in tasks] == alone
    assert len(running.nodes[0].searches) < 5
