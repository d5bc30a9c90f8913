"""A load that does not slow down with the cluster: searches begin when their time has come.

So a search that had to wait behind others counts from when it was due, and a cluster that stands
still shows in every search that was due meanwhile.
"""

import asyncio
import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

import facegrid
from bench.chaos.ledger import Ledger, template_of, vector_of, vectors_of
from bench.chaos.load import FRESH_S
from bench.chaos.tally import Tally, WriteGaps
from bench.report import percentile
from facegrid.clock import Clock
from facegrid.errors import FacegridError, FencedError, OverloadedError, UnavailableError

READ_TIMEOUT_S = 10.0
WRITE_TIMEOUT_S = 2.0
WRITE_PAUSE_S = 0.1
IN_FLIGHT_MAX = 2000
"""Searches that wait at once; beyond that the run is of no use."""
TRANSIENT = (UnavailableError, FencedError, OverloadedError)


@dataclass(frozen=True, slots=True)
class Timed:
    """One search: when it was due, and how long after that it was answered."""

    due_s: float
    took_s: float


@dataclass(frozen=True, slots=True)
class Target:
    """What a load is for: a gallery of a cluster, what is written down of it, by which clock."""

    routers: Sequence[str]
    gallery: str
    ledger: Ledger
    tally: Tally
    clock: Clock


class Searches:
    """Open-loop searches from several clients, in a thread of their own.

    Args:
        target: what is searched.
        per_s: how many are due in a second, at random moments.
        clients: how many take turns.
        seed: of the moments, and of who is searched for.
    """

    def __init__(self, target: Target, *, per_s: float, clients: int, seed: int) -> None:
        self._target = target
        self._per_s = per_s
        self._clients_count = clients
        self._rng = np.random.default_rng([seed, 2])
        self._stop = threading.Event()
        self.done: list[Timed] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Search until the end of the block."""
        thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="searches")
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def p99_ms(self, first_s: float, last_s: float) -> float:
        """Return the time that 99 of 100 searches due between two moments did not exceed."""
        took = [one.took_s for one in list(self.done) if first_s <= one.due_s < last_s]
        return 1000 * percentile(took, 0.99) if took else float("nan")

    def count(self, first_s: float, last_s: float) -> int:
        """Return how many were due between two moments, and answered."""
        return sum(first_s <= one.due_s < last_s for one in list(self.done))

    async def _run(self) -> None:
        clock, ledger = self._target.clock, self._target.ledger
        clients = [self._client(number) for number in range(self._clients_count)]
        due_s = clock.now_s()
        async with asyncio.TaskGroup() as tasks:
            for client in itertools.cycle(clients):
                due_s += float(self._rng.exponential(1 / self._per_s))
                await clock.sleep(max(0.0, due_s - clock.now_s()))
                if self._stop.is_set():
                    break
                assert len(asyncio.all_tasks()) < IN_FLIGHT_MAX, "the cluster is far too slow"
                subject_id = ledger.someone(self._rng)
                if subject_id is not None:
                    tasks.create_task(self._search(client, subject_id, due_s))
        for client in clients:
            await client.aclose()

    def _client(self, number: int) -> facegrid.AsyncClient:
        """Return a client that asks the routers in an order of its own."""
        routers = list(self._target.routers)
        turn = number % len(routers)
        return facegrid.AsyncClient([*routers[turn:], *routers[:turn]], timeout_s=READ_TIMEOUT_S)

    async def _search(self, client: facegrid.AsyncClient, subject_id: str, due_s: float) -> None:
        clock, tally = self._target.clock, self._target.tally
        try:
            lists = await client.identify(self._target.gallery, vector_of(subject_id), k=5)
        except FacegridError as error:
            took_s = clock.now_s() - due_s
            tally.read_failed(f"identify after {took_s:.1f} s: {error.message}")
            return
        self.done.append(Timed(due_s, clock.now_s() - due_s))
        if not lists[0].candidates or lists[0].candidates[0].subject_id != subject_id:
            self._missed(subject_id, due_s)

    def _missed(self, subject_id: str, due_s: float) -> None:
        """Note who was not found. Nobody erases here, and who is asked for was acknowledged; but a
        follower may be some seconds behind what it was not asked to have.
        """
        enrolled_s = self._target.ledger.fates[subject_id].enrolled_s
        if enrolled_s is not None and enrolled_s < due_s - FRESH_S:
            self._target.tally.lose(subject_id)
        else:
            self._target.tally.did("searches that a copy answered without the newest rows")


class Writes:
    """Enrols one row after the other into every shard, from a thread for each.

    Args:
        target: what is written to.
        gaps: knows the shards; the present ones are told of every acknowledged write.
    """

    def __init__(self, target: Target, gaps: WriteGaps) -> None:
        self._target = target
        self._stop = threading.Event()
        self._numbers = itertools.count()
        self.gaps = gaps

    @contextmanager
    def running(self) -> Iterator[None]:
        """Write until the end of the block."""
        threads = [
            threading.Thread(target=self._repeat, args=(shard,), name=f"writes {shard}")
            for shard in range(self.gaps.shards_count)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def enrol(self, client: facegrid.Client, subject_ids: Sequence[str]) -> None:
        """Enrol subjects once.

        Raises:
            FacegridError: it was not acknowledged.
        """
        request_id = f"enrol-{subject_ids[0]}"
        token = client.enrol(
            self._target.gallery,
            template_ids=[template_of(subject_id) for subject_id in subject_ids],
            subject_ids=subject_ids,
            vectors=vectors_of(subject_ids),
            request_id=request_id,
        )
        self.gaps.acked(subject_ids)
        self._target.ledger.acknowledge("enrol", request_id, subject_ids, token=token)
        self._target.tally.did("enrolments", len(subject_ids))

    def someone_in(self, shard: int) -> str:
        """Return a new subject of a shard, by the shard's number, and note that it is sent."""
        while True:
            subject_id = f"one-{next(self._numbers)}"
            if self.gaps.shard_of(subject_id) == shard:
                self._target.ledger.send("enrol", f"enrol-{subject_id}", [subject_id])
                return subject_id

    def _repeat(self, shard: int) -> None:
        with facegrid.Client(self._target.routers, timeout_s=WRITE_TIMEOUT_S) as client:
            while not self._stop.wait(WRITE_PAUSE_S):
                self._insist(client, self.someone_in(shard))

    def _insist(self, client: facegrid.Client, subject_id: str) -> None:
        """Send a write again, under the same id, until it is acknowledged."""
        while True:
            try:
                self.enrol(client, [subject_id])
            except TRANSIENT:
                self._target.tally.did("writes put off")
                if self._stop.wait(WRITE_PAUSE_S):
                    return
            except FacegridError as error:
                self._target.tally.problem(f"enrol: {error.message}")
                return
            else:
                return
