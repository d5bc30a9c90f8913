"""Mixed load from several threads: enrol, one by one and in streams, erase, identify, look up.

Reads without a token must see what was acknowledged FRESH_S before they began: a follower that
may be further behind than that does not answer.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from types import TracebackType
from typing import Self

import numpy as np

import facegrid
from bench.chaos.ledger import Fate, Ledger, template_of, vector_of, vectors_of
from bench.chaos.tally import Tally, WriteGaps
from facegrid.clock import Clock
from facegrid.errors import FencedError, NotFoundError, OverloadedError, UnavailableError

GALLERY = "chaos"
READ_TIMEOUT_S = 10.0
WRITE_TIMEOUT_S = 5.0
FRESH_S = 4.0
"""The staleness bound of followers, 3 s, and a margin."""
SCORE_MIN = 0.99
K = 5
PAUSE_S = 0.03
STREAM_BATCHES = 8
STREAM_BATCH_ROWS = 6
ROWS_MAX = 4
GIVE_UP_SHARE = 0.25
"""How often a write whose outcome is unknown is left at that; else it is sent again."""
REPLAY_SHARE = 0.1
"""How often an enrolment is sent again, under its old request id, after it was acknowledged."""

TRANSIENT = (UnavailableError, FencedError, OverloadedError)


class Load:
    """Starts the threads on entry and ends them on exit.

    Args:
        targets: of all routers.
        ledger: notes every write.
        tally: told what was seen.
        gaps: told of every acknowledged write.
        clock: the one for all times compared.
        seed: for what is chosen by chance.
    """

    def __init__(
        self,
        targets: Sequence[str],
        ledger: Ledger,
        tally: Tally,
        *,
        gaps: WriteGaps,
        clock: Clock,
        seed: int,
    ) -> None:
        self.pause_s = PAUSE_S
        """Of each thread after each call."""
        self._targets = list(targets)
        self._ledger = ledger
        self._tally = tally
        self.gaps = gaps
        self._clock = clock
        self._seed = seed
        self._stop = threading.Event()
        self._ended: list[threading.Thread] = []
        self._numbers = count()
        works = (
            self._enrol,
            self._enrol,
            self._enrol_stream,
            self._erase,
            self._identify,
            self._identify,
            self._look_up,
        )
        self._threads = [
            threading.Thread(target=self._repeat, args=(number, work), name=work.__name__)
            for number, work in enumerate(works)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
            if thread not in self._ended:
                self._tally.problem(f"a thread of the load broke off name={thread.name}")

    def fresh_ids(self, kind: str, size: int) -> list[str]:
        """Return ids of subjects that nobody had before."""
        return [f"{kind}-{next(self._numbers)}" for _ in range(size)]

    def _repeat(
        self, number: int, work: Callable[[facegrid.Client, np.random.Generator], None]
    ) -> None:
        rng = np.random.default_rng([self._seed, 1, number])
        writes = work in (self._enrol, self._enrol_stream, self._erase)
        timeout_s = WRITE_TIMEOUT_S if writes else READ_TIMEOUT_S
        with facegrid.Client(self._targets, timeout_s=timeout_s) as client:
            while not self._stop.wait(self.pause_s):
                with self._watched(work.__name__):
                    work(client, rng)
        self._ended.append(threading.current_thread())

    @contextmanager
    def _watched(self, what: str) -> Iterator[None]:
        """Note what no fault excuses."""
        try:
            yield
        except facegrid.FacegridError as error:
            self._tally.problem(f"{what} {type(error).__name__} {error.reason}: {error.message}")

    # Writes

    def _enrol(self, client: facegrid.Client, rng: np.random.Generator) -> None:
        # Single rows for the most part: a request of several shards needs all their primaries.
        size = 1 if rng.random() < 0.7 else int(rng.integers(2, ROWS_MAX + 1))
        subject_ids = self.fresh_ids("one", size)
        request_id = f"enrol-{subject_ids[0]}"
        self._ledger.send("enrol", request_id, subject_ids)
        self._insist(rng, lambda: self._enrol_once(client, request_id, subject_ids))

    def _enrol_once(
        self, client: facegrid.Client, request_id: str, subject_ids: Sequence[str]
    ) -> None:
        token = client.enrol(
            GALLERY,
            template_ids=[template_of(subject_id) for subject_id in subject_ids],
            subject_ids=subject_ids,
            vectors=vectors_of(subject_ids),
            request_id=request_id,
        )
        self.gaps.acked(subject_ids)
        self._ledger.acknowledge("enrol", request_id, subject_ids, token=token)
        self._tally.did("enrolments", len(subject_ids))

    def _insist(self, rng: np.random.Generator, write: Callable[[], None]) -> None:
        """Send a write again, under the same id, until it is acknowledged or given up."""
        while True:
            try:
                write()
            except TRANSIENT:
                self._tally.did("writes put off")
                if self._stop.is_set() or rng.random() < GIVE_UP_SHARE:
                    self._tally.did("writes of unknown outcome")
                    return
            else:
                return

    def _enrol_stream(self, client: facegrid.Client, _rng: np.random.Generator) -> None:
        parts = [self.fresh_ids("stream", STREAM_BATCH_ROWS) for _ in range(STREAM_BATCHES)]
        request_ids = [f"stream-{part[0]}" for part in parts]
        acked = 0

        def batches() -> Iterator[facegrid.EnrolBatch]:
            for request_id, part in zip(request_ids, parts, strict=True):
                self._ledger.send("enrol", request_id, part)
                yield facegrid.EnrolBatch(
                    [template_of(subject_id) for subject_id in part],
                    part,
                    vectors_of(part),
                    request_id,
                )
                self._stop.wait(PAUSE_S)

        def on_ack(rows: int) -> None:
            nonlocal acked
            while (acked + 1) * STREAM_BATCH_ROWS <= rows:
                self.gaps.acked(parts[acked])
                self._ledger.acknowledge("enrol", request_ids[acked], parts[acked])
                self._tally.did("enrolments", STREAM_BATCH_ROWS)
                acked += 1

        try:
            self._ledger.extend(client.enrol_stream(GALLERY, batches(), on_ack=on_ack))
        except TRANSIENT:
            self._tally.did("streams broken")

    def _erase(self, client: facegrid.Client, rng: np.random.Generator) -> None:
        subject_id = self._ledger.someone(rng)
        if subject_id is None or self._ledger.fates[subject_id].erasing:
            return
        request_id = f"erase-{subject_id}"
        self._ledger.send("erase", request_id, [subject_id])
        by_template = rng.random() < 0.2
        subjects = [] if by_template else [subject_id]
        templates = [template_of(subject_id)] if by_template else []

        def once() -> None:
            done = client.erase(
                GALLERY, subject_ids=subjects, template_ids=templates, request_id=request_id
            )
            self._ledger.acknowledge("erase", request_id, [subject_id], token=done.token)
            self._tally.did("erasures")

        self._insist(rng, once)
        fate = self._ledger.fates[subject_id]
        if subject_id.startswith("one-") and fate.must_be_gone and rng.random() < REPLAY_SHARE:
            self._replay(client, fate)

    def _replay(self, client: facegrid.Client, fate: Fate) -> None:
        """Let a late copy of the enrolment arrive after the erasure: it must change nothing."""
        part = self._ledger.request(fate.request_id)
        try:
            client.enrol(
                GALLERY,
                template_ids=[template_of(one) for one in part],
                subject_ids=part,
                vectors=vectors_of(part),
                request_id=fate.request_id,
            )
        except TRANSIENT:
            return
        self._tally.did("late copies")

    # Reads

    def _identify(self, client: facegrid.Client, rng: np.random.Generator) -> None:
        chosen = [self._ledger.someone(rng) for _ in range(int(rng.integers(1, 5)))]
        wanted = [subject_id for subject_id in chosen if subject_id is not None]
        if not wanted:
            return
        after = self._ledger.token if rng.random() < 0.5 else None
        with self._reading("identify") as started_s:
            lists = client.identify(GALLERY, vectors_of(wanted), k=K, after=after)
            self._tally.did("probes", len(wanted))
            for subject_id, one in zip(wanted, lists, strict=True):
                self._check_list(subject_id, one, started_s, after)

    def _check_list(
        self,
        wanted: str,
        answer: facegrid.CandidateList,
        started_s: float,
        after: facegrid.Token | None,
    ) -> None:
        if answer.coverage.unconfirmed_share > 0:
            self._tally.did("unconfirmed lists")  # and so promised nothing
            return
        found = [candidate.subject_id for candidate in answer.candidates]
        for subject_id in found:
            self._check_not_gone(subject_id, started_s)
        if len(set(found)) != len(found):
            self._tally.problem(f"a subject stands twice in a list subjects={found}")
        best = answer.candidates[0] if answer.candidates else None
        hit = best is not None and best.subject_id == wanted and best.score > SCORE_MIN
        if not hit and self._must_see(wanted, started_s, after):
            self._tally.lose(wanted)

    def _look_up(self, client: facegrid.Client, rng: np.random.Generator) -> None:
        subject_id = self._ledger.someone(rng)
        if subject_id is None:
            return
        after = self._ledger.token if rng.random() < 0.5 else None
        verify = rng.random() < 0.5
        with self._reading("verify" if verify else "get") as started_s:
            found: facegrid.Verification | facegrid.Template | None = None
            unconfirmed = False
            try:
                if verify:
                    found = client.verify(GALLERY, subject_id, vector_of(subject_id), after=after)
                else:
                    found = client.get_template(
                        GALLERY, template_of(subject_id), subject_id=subject_id, after=after
                    )
                unconfirmed = found.unconfirmed
            except NotFoundError as error:
                unconfirmed = "unconfirmed" in error.facts
            self._tally.did("unconfirmed look-ups" if unconfirmed else "look-ups")
            if unconfirmed:
                return
            if found is not None:
                self._check_not_gone(subject_id, started_s)
            elif self._must_see(subject_id, started_s, after):
                self._tally.lose(subject_id)

    @contextmanager
    def _reading(self, what: str) -> Iterator[float]:
        """Give the time at which a read began, and note if it fails."""
        started_s = self._clock.now_s()
        try:
            yield started_s
        except TRANSIENT as error:
            took_s = self._clock.now_s() - started_s
            self._tally.read_failed(
                f"{what} after {took_s:.1f} s: {type(error).__name__} {error.reason}:"
                f" {error.message}"
            )
        self._tally.read_took(self._clock.now_s() - started_s)

    def _check_not_gone(self, subject_id: str, started_s: float) -> None:
        fate = self._ledger.fates.get(subject_id)
        if fate is None:
            self._tally.problem(f"found a subject that was never sent subject={subject_id}")
        elif fate.erased_s is not None and fate.erased_s < started_s:
            self._tally.resurrect(subject_id)

    def _must_see(self, subject_id: str, started_s: float, after: facegrid.Token | None) -> bool:
        """Tell whether a read that began at a time, and is over, had to find a subject."""
        fate = self._ledger.fates[subject_id]
        if not fate.must_be_there or fate.enrolled_s is None:
            return False
        # The token of a stream comes at its end, so there time alone tells.
        covered = after is not None and subject_id.startswith("one-")
        return covered or fate.enrolled_s < started_s - FRESH_S
