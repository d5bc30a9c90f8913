"""Answers that may never change: those about subjects that nobody writes, as an untouched cluster
gives them.

The reference is a cluster of one node that searches exactly and is left alone. Others are enrolled
and erased in the cluster under test meanwhile, and appear in its answers; what is left when they
are taken out must be the beginning of the reference's list, with the same scores.
"""

import asyncio
import gc
import itertools
import multiprocessing
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

import facegrid
from bench.chaos.ledger import DIM, template_of, vector_of, vectors_of
from bench.chaos.tally import Tally
from bench.report import percentile
from bench.steady import Timed
from facegrid.clock import SystemClock
from facegrid.errors import FacegridError
from fgctl.local.cluster import LocalCluster
from fgctl.local.plan import Wanted

PREFIX = "base-"
BATCH_ROWS = 250
K = 5
"""Ranks that are compared."""
ASKED = 50
"""Ranks that are asked for. Codes choose the rows that are scored, far more for fifty ranks than
for five: a stranger at rank 4 may be left out else, where a merge brought more rows together.
"""
DEEP = 50
"""How many ranks of the reference are known: more than others can push down."""
TIMEOUT_S = 60.0
READ_TIMEOUT_S = 10.0
PROBES_PER_CALL = 50
IN_FLIGHT_MAX = 1000
"""Searches that wait at once; beyond that the run is of no use."""

Ranked = list[tuple[str, float]]


PROFILE = "exhaustive"
"""Of the probes whose answers are compared with exact search."""


def base_ids(count: int) -> list[str]:
    """Return the ids of the subjects that nobody writes."""
    return [f"{PREFIX}{number}" for number in range(count)]


def fill(client: facegrid.Client, gallery: str, subject_ids: Sequence[str]) -> facegrid.Token:
    """Enrol subjects."""
    token = facegrid.Token()
    for first in range(0, len(subject_ids), BATCH_ROWS):
        part = subject_ids[first : first + BATCH_ROWS]
        token |= client.enrol(
            gallery,
            template_ids=[template_of(subject_id) for subject_id in part],
            subject_ids=part,
            vectors=vectors_of(part),
            request_id=f"fill-{part[0]}",
        )
    return token


def ask(
    client: facegrid.Client, gallery: str, subject_ids: Sequence[str], *, k: int
) -> list[Ranked]:
    """Return the answer to a probe for each subject."""
    answers: list[Ranked] = []
    for first in range(0, len(subject_ids), PROBES_PER_CALL):
        probes = vectors_of(subject_ids[first : first + PROBES_PER_CALL])
        answers += [ranked(one) for one in client.identify(gallery, probes, k=k)]
    return answers


def ranked(answer: facegrid.CandidateList) -> Ranked:
    """Return the subjects that nobody writes, with their scores, best first."""
    return [
        (one.subject_id, one.score)
        for one in answer.candidates
        if one.subject_id.startswith(PREFIX)
    ]


def reference(folder: Path, gallery: str, count: int) -> dict[str, Ranked]:
    """Return the deep answer for each subject from a cluster that searches exactly."""
    cluster = LocalCluster(folder, wanted=Wanted(1, 1, 1, 1))
    try:
        targets = cluster.up().router_targets
        with facegrid.Client(list(targets), timeout_s=TIMEOUT_S) as client:
            client.create_gallery(
                gallery, dim=DIM, extractor="chaos@1", shards=1, replicas=1, train_at=0
            )
            subject_ids = base_ids(count)
            fill(client, gallery, subject_ids)
            return dict(zip(subject_ids, ask(client, gallery, subject_ids, k=DEEP), strict=True))
    finally:
        cluster.down()


def difference(answer: Ranked, share: float, full: Ranked) -> str:
    """Say how an answer is another than that of an untouched cluster; empty: it is not.

    Args:
        answer: who is in it of those that nobody writes.
        share: of the key space that was searched.
        full: the untouched cluster's list, deeper than any answer.
    """
    if share != 1.0:
        return f"coverage={share}"
    if not answer or answer[:K] != full[: min(K, len(answer))]:
        return f"answer={answer[:K]} expected={full[:K]}"
    return ""


@dataclass(frozen=True, slots=True)
class Searched:
    """One search: when it was due, how long it took, and what was wrong, if anything.

    `failed` says why there was no answer, `wrong` how it was another than expected.
    """

    due_s: float
    took_s: float
    failed: str = ""
    wrong: str = ""


class Comparison:
    """Open-loop searches whose answers are compared, in a process of their own: what else the
    command does must not be measured with them.

    Args:
        routers: who is asked.
        gallery: what is searched.
        expected: of each subject that may be searched for, its list.
        tally: told of reads that failed.
    """

    def __init__(
        self,
        routers: Sequence[str],
        gallery: str,
        expected: Mapping[str, Ranked],
        *,
        tally: Tally,
    ) -> None:
        self._searches = Searches(list(routers), gallery, dict(expected))
        self._tally = tally
        self.done: list[Timed] = []
        self.wrong: list[str] = []

    @property
    def probes_count(self) -> int:
        """Searches that were answered."""
        return len(self.done)

    @contextmanager
    def running(self, *, per_s: float, seed: int) -> Iterator[None]:
        """Search until the end of the block."""
        # Started anew, since gRPC does not outlive a fork.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=self._searches.play, args=(theirs, per_s, seed))
        process.start()
        theirs.close()
        listener = threading.Thread(target=self._listen, args=(ours,), name="comparison")
        listener.start()
        try:
            yield
        finally:
            # It may have ended before: its exit code tells.
            with suppress(OSError):
                ours.send(None)
            listener.join()
            process.join()
        if process.exitcode:
            self._tally.problem(f"the process that compares ended with {process.exitcode}")

    def p99_ms(self, windows: Sequence[tuple[float, float]]) -> float:
        """Return the time that 99 of 100 searches due in some windows did not exceed."""
        took = [
            one.took_s
            for one in list(self.done)
            if any(first_s <= one.due_s < last_s for first_s, last_s in windows)
        ]
        return 1000 * percentile(took, 0.99) if took else float("nan")

    def _listen(self, connection: Connection) -> None:
        """Take up what the other process tells, until it has told all."""
        while True:
            try:
                one: Searched = connection.recv()
            except (EOFError, ConnectionResetError):
                return
            if one.failed:
                self._tally.read_failed(one.failed)
                continue
            self.done.append(Timed(one.due_s, one.took_s))
            if one.wrong:
                self.wrong.append(one.wrong)


@dataclass(frozen=True, slots=True)
class Searches:
    """What the other process does.

    Attributes:
        routers: who is asked.
        gallery: what is searched.
        expected: of each subject that may be searched for, its list.
    """

    routers: list[str]
    gallery: str
    expected: dict[str, Ranked]

    def play(self, connection: Connection, per_s: float, seed: int) -> None:
        """Search, and tell of each search, until something comes from the other end."""
        # Where this process stops to collect garbage is nobody's latency.
        gc.freeze()
        asyncio.run(self._run(connection, per_s, seed))
        connection.close()

    async def _run(self, connection: Connection, per_s: float, seed: int) -> None:
        rng = np.random.default_rng([seed, 3])
        clock = SystemClock()
        clients = [
            facegrid.AsyncClient(turned, timeout_s=READ_TIMEOUT_S)
            for turned in (self.routers, self.routers[::-1])
        ]
        subjects = sorted(self.expected)
        due_s = clock.now_s()
        async with asyncio.TaskGroup() as tasks:
            for client in itertools.cycle(clients):
                due_s += float(rng.exponential(1 / per_s))
                await clock.sleep(max(0.0, due_s - clock.now_s()))
                if connection.poll():
                    connection.recv()
                    break
                assert len(asyncio.all_tasks()) < IN_FLIGHT_MAX, "the cluster is far too slow"
                chosen = subjects[int(rng.integers(len(subjects)))]
                tasks.create_task(self._search(connection, client, chosen, due_s))
        for client in clients:
            await client.aclose()

    async def _search(
        self, connection: Connection, client: facegrid.AsyncClient, subject_id: str, due_s: float
    ) -> None:
        clock = SystemClock()
        try:
            # Far down a list the index leaves out other strangers in other shards, except where
            # all lists are searched and many rows rescored.
            lists = await client.identify(
                self.gallery, vector_of(subject_id), k=ASKED, profile=PROFILE
            )
        except FacegridError as error:
            took_s = clock.now_s() - due_s
            failed = f"identify after {took_s:.1f} s: {error.message}"
            connection.send(Searched(due_s, took_s, failed=failed))
            return
        took_s = clock.now_s() - due_s
        full = self.expected[subject_id]
        problem = difference(ranked(lists[0]), lists[0].coverage.share, full)
        wrong = f"subject={subject_id} {problem}" if problem else ""
        connection.send(Searched(due_s, took_s, wrong=wrong))
