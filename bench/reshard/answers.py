"""Answers that may never change: those about subjects that nobody writes, as an untouched cluster
gives them.

The reference is a cluster of one node that searches exactly and is left alone. Others are enrolled
and erased in the cluster under test meanwhile, and appear in its answers; what is left when they
are taken out must be the beginning of the reference's list, with the same scores.
"""

import asyncio
import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import facegrid
from bench.chaos.ledger import DIM, template_of, vector_of, vectors_of
from bench.chaos.tally import Tally
from bench.report import percentile
from bench.steady import Timed
from facegrid.clock import Clock
from facegrid.errors import FacegridError
from fgctl.local.cluster import LocalCluster
from fgctl.local.plan import Wanted

PREFIX = "base-"
BATCH_ROWS = 250
K = 5
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
    if not answer or answer != full[: len(answer)]:
        return f"answer={answer} expected={full[:K]}"
    return ""


class Comparison:
    """Open-loop searches whose answers are compared, in a thread of their own.

    Args:
        routers: who is asked.
        gallery: what is searched.
        expected: of each subject that may be searched for, its list.
        tally: told of reads that failed.
        clock: for moments and durations.
    """

    def __init__(
        self,
        routers: Sequence[str],
        gallery: str,
        expected: Mapping[str, Ranked],
        *,
        tally: Tally,
        clock: Clock,
    ) -> None:
        self._routers = list(routers)
        self._gallery = gallery
        self._expected = expected
        self._subjects = sorted(expected)
        self._tally = tally
        self._clock = clock
        self._stop = threading.Event()
        self.done: list[Timed] = []
        self.wrong: list[str] = []
        self.probes_count = 0

    @contextmanager
    def running(self, *, per_s: float, seed: int) -> Iterator[None]:
        """Search until the end of the block."""
        thread = threading.Thread(
            target=lambda: asyncio.run(self._run(per_s, seed)), name="comparison"
        )
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def p99_ms(self, windows: Sequence[tuple[float, float]]) -> float:
        """Return the time that 99 of 100 searches due in some windows did not exceed."""
        took = [
            one.took_s
            for one in list(self.done)
            if any(first_s <= one.due_s < last_s for first_s, last_s in windows)
        ]
        return 1000 * percentile(took, 0.99) if took else float("nan")

    async def _run(self, per_s: float, seed: int) -> None:
        rng = np.random.default_rng([seed, 3])
        clients = [
            facegrid.AsyncClient(turned, timeout_s=READ_TIMEOUT_S)
            for turned in (self._routers, self._routers[::-1])
        ]
        due_s = self._clock.now_s()
        async with asyncio.TaskGroup() as tasks:
            for client in itertools.cycle(clients):
                due_s += float(rng.exponential(1 / per_s))
                await self._clock.sleep(max(0.0, due_s - self._clock.now_s()))
                if self._stop.is_set():
                    break
                assert len(asyncio.all_tasks()) < IN_FLIGHT_MAX, "the cluster is far too slow"
                chosen = self._subjects[int(rng.integers(len(self._subjects)))]
                tasks.create_task(self._search(client, chosen, due_s))
        for client in clients:
            await client.aclose()

    async def _search(self, client: facegrid.AsyncClient, subject_id: str, due_s: float) -> None:
        try:
            # Far down a list the index leaves out other strangers in other shards, except where
            # all lists are searched and many rows rescored.
            lists = await client.identify(
                self._gallery, vector_of(subject_id), k=K, profile=PROFILE
            )
        except FacegridError as error:
            took_s = self._clock.now_s() - due_s
            self._tally.read_failed(f"identify after {took_s:.1f} s: {error.message}")
            return
        self.done.append(Timed(due_s, self._clock.now_s() - due_s))
        self.probes_count += 1
        full = self._expected[subject_id]
        if problem := difference(ranked(lists[0]), lists[0].coverage.share, full):
            self.wrong.append(f"subject={subject_id} {problem}")
