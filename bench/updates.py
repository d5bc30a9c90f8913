"""What changes of a gallery cost its searches: `python -m bench.updates`.

Two parts. Searches come at a steady rate, open loop, in windows that alternate between rest and
enrolment at 10,000 templates a second from a process of its own; each window of enrolment is
compared with the windows of rest before and after it, so that the growth of the gallery does not
count as its effect. And subjects are erased while searches go on, half of them with the vectors of
who was just erased: an answer must not name anybody whose erasure was acknowledged before it was
asked for.
"""

import argparse
import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import numpy as np

import facegrid
from bench import arrivals, report, served, stage, target
from bench.arrivals import Answered
from bench.dataset import Dataset
from bench.machine import Cost, size
from bench.report import Json
from bench.served import GALLERY, TIMEOUT_S, Served
from facegrid.clock import Clock
from facegrid.vectors import Float32

TEMPLATES: Final = 200_000
ENROL_PER_S: Final = 10_000
SEARCHES_PER_S: Final = 50.0
ROUNDS: Final = 5
WINDOW_S: Final = 10.0
ANSWERS: Final = 1_000_000
CLIENTS: Final = 8
K: Final = 10
PROBES_PER_CALL: Final = 64
AT_ONCE: Final = 4
ERASED_PER_CALL: Final = 4
"""Subjects erased for every call that is answered, while there are any left to erase."""
RECENT: Final = 1024
SUSTAINED: Final = 0.98
"""Share of the wanted rate that counts as kept: the last batch is waited for within the time."""
P99_TIMES_NEED: Final = 1.5
ANSWERS_PER_S: Final = 1500.0
"""Estimate."""


@dataclass(frozen=True, slots=True)
class Window:
    """One window: searches, and templates enrolled a second meanwhile, 0 at rest."""

    searches: Answered
    enrolled_per_s: float = 0.0


@dataclass(slots=True)
class Erasures:
    """What was erased, and what was answered since.

    Attributes:
        acked_s: when the erasure of each subject was acknowledged.
        answers: candidate lists looked through.
        wrong: candidates that had been erased before they were asked for.
    """

    acked_s: dict[str, float] = field(default_factory=dict)
    answers: int = 0
    wrong: int = 0

    def check(self, lists: Sequence[facegrid.CandidateList], *, asked_s: float) -> None:
        """Look through the answers to a call that was made at that time."""
        for answer in lists:
            named = (self.acked_s.get(one.subject_id) for one in answer.candidates)
            self.wrong += sum(acked is not None and acked < asked_s for acked in named)
        self.answers += len(lists)


@dataclass(frozen=True, slots=True)
class Results:
    """Both parts. Windows are rest, enrolment, rest, and so on, and end at rest."""

    parameters: Mapping[str, str]
    windows: Sequence[Window]
    erasures: Erasures

    def ratios(self) -> list[float]:
        """Return p99 under enrolment against that of the rest around it, window by window."""
        p99_ms = [one.searches.ms(0.99) for one in self.windows]
        return [
            2 * p99_ms[at] / (p99_ms[at - 1] + p99_ms[at + 1])
            for at in range(1, len(p99_ms) - 1, 2)
        ]

    def targets(self) -> list[target.Target]:
        """Return the values of G11."""
        ratio = report.spread(self.ratios())
        enrolled = report.spread([one.enrolled_per_s for one in self.windows[1::2]])
        return [
            target.against(
                "G11", enrolled.median, "at least", SUSTAINED * ENROL_PER_S, part="enrol_per_s"
            ),
            target.against(
                "G11",
                ratio.median,
                "at most",
                P99_TIMES_NEED,
                part="search_p99",
                low=f"{ratio.low:.2f}",
                high=f"{ratio.high:.2f}",
                rounds=ratio.count,
            ),
            target.against(
                "G11",
                self.erasures.wrong,
                "at most",
                0,
                part="erased_in_answers",
                answers=self.erasures.answers,
                erased=len(self.erasures.acked_s),
            ),
        ]

    def lines(self) -> list[str]:
        """Return what to print."""
        shown = [
            f"enrolling {one.enrolled_per_s:.0f}/s: searches={len(one.searches.took_s)}"
            f" p50_ms={one.searches.ms(0.5):.2f} p99_ms={one.searches.ms(0.99):.2f}"
            for one in self.windows
        ]
        return [*shown, *target.lines_of(self.targets())]

    def as_json(self) -> dict[str, Json]:
        """Return it as JSON."""
        return {
            "parameters": dict(self.parameters),
            "windows": [
                {"enrolled_per_s": one.enrolled_per_s} | one.searches.as_json()
                for one in self.windows
            ],
            "p99_ratio": report.spread(self.ratios()).as_json(),
            "erased": len(self.erasures.acked_s),
            "answers": self.erasures.answers,
            "erased_in_answers": self.erasures.wrong,
        }


class Enrolling:
    """A process that enrols at a steady rate whenever it is told to."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._said()

    def begin(self) -> None:
        """Let it enrol for one window."""
        assert self._process.stdin is not None, "it was started with a pipe"
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def end_per_s(self) -> float:
        """Wait until everything of this window is acknowledged; return templates a second."""
        done = json.loads(self._said())
        return float(done["acked"]) / float(done["took_s"])

    def _said(self) -> str:
        assert self._process.stdout is not None, "it was started with a pipe"
        line = self._process.stdout.readline()
        assert line, "the enrolling process ended by itself"
        return line


@contextmanager
def enrolling_process(
    routers: Sequence[str], *, per_s: int, window_s: float
) -> Iterator[Enrolling]:
    """Start the enrolling process, and stop it at the end."""
    command = [sys.executable, "-m", "bench.pace", "--gallery", GALLERY]
    command += ["--routers", ",".join(routers), "--per-s", str(per_s), "--seconds", str(window_s)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield Enrolling(process)
        finally:
            process.terminate()


async def play_windows(
    routers: Sequence[str],
    probes: Float32,
    enrolling: Enrolling,
    *,
    given: argparse.Namespace,
    clock: Clock,
) -> list[Window]:
    """Search through all windows, rest and enrolment in turns."""
    clients = [facegrid.AsyncClient(routers, timeout_s=TIMEOUT_S) for _ in range(CLIENTS)]

    async def search(number: int) -> None:
        at = number % len(probes)
        await clients[number % CLIENTS].identify(GALLERY, probes[at : at + 1], k=K)

    windows: list[Window] = []
    try:
        for number in range(4 * CLIENTS):
            await search(number)
        count = round(given.window_s * given.per_s)
        for number in range(2 * given.rounds + 1):
            due_s = arrivals.moments(given.per_s, count, seed=given.seed + number)
            if number % 2:
                enrolling.begin()
            searches = await arrivals.play(search, due_s, per_s=given.per_s, clock=clock)
            enrolled = await asyncio.to_thread(enrolling.end_per_s) if number % 2 else 0.0
            windows.append(Window(searches, enrolled))
    finally:
        for client in clients:
            await client.aclose()
    return windows


async def play_erasures(
    routers: Sequence[str], data: Dataset, *, answers_count: int, seed: int, clock: Clock
) -> Erasures:
    """Erase subjects and look for them, until so many answers were looked through."""
    done = Erasures()
    rng = np.random.default_rng([seed, 11])
    rows_of: dict[str, int] = {name: row for row, name in enumerate(data.subject_ids)}
    order = iter(rng.permutation(list(rows_of)).tolist())
    recent: list[str] = []
    # Spread over the run, so that somebody is erased until its end.
    per_call = min(ERASED_PER_CALL, max(1, len(rows_of) * PROBES_PER_CALL // (2 * answers_count)))

    async def go_on(client: facegrid.AsyncClient) -> None:
        while done.answers < answers_count:
            gone = [name for _, name in zip(range(per_call), order, strict=False)]
            if gone:
                await client.erase(GALLERY, subject_ids=gone)
                done.acked_s |= dict.fromkeys(gone, clock.now_s())
                recent.extend(gone)
                del recent[:-RECENT]
            asked = [recent[at] for at in rng.integers(len(recent), size=PROBES_PER_CALL // 2)]
            rows = [*(rows_of[name] for name in asked), *rng.integers(len(data), size=32).tolist()]
            probes = np.asarray(data.source[data.rows[rows]], np.float32)
            asked_s = clock.now_s()
            done.check(await client.identify(GALLERY, probes, k=K), asked_s=asked_s)

    async with (
        facegrid.AsyncClient(routers, timeout_s=TIMEOUT_S) as client,
        asyncio.TaskGroup() as tasks,
    ):
        for _ in range(AT_ONCE):
            tasks.create_task(go_on(client))
    return done


def measure(one: Served, given: argparse.Namespace, clock: Clock) -> Results:
    """Measure both parts on a gallery that is there. Half of its subjects are gone afterwards."""

    async def erasures() -> Erasures:
        return await play_erasures(
            one.routers, one.data, answers_count=given.answers, seed=given.seed, clock=clock
        )

    # Erasures first: the vectors that are enrolled later under other names resemble nobody.
    erased = asyncio.run(erasures())
    with enrolling_process(one.routers, per_s=ENROL_PER_S, window_s=given.window_s) as enrolling:
        windows = asyncio.run(
            play_windows(one.routers, one.data.probes.vectors, enrolling, given=given, clock=clock)
        )
    return Results(one.data.parameters, windows, erased)


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this stage."""
    parser.add_argument("--templates", type=size, default=TEMPLATES, help="of the gallery")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="windows of enrolment")
    parser.add_argument("--window-s", type=float, default=WINDOW_S, help="seconds of each window")
    parser.add_argument("--per-s", type=float, default=SEARCHES_PER_S, help="searches due")
    parser.add_argument("--answers", type=size, default=ANSWERS, help="looked through for erased")


def cost(given: argparse.Namespace) -> Cost:
    """Return what it takes; the gallery grows by what the windows enrol."""
    windows_s = (2 * given.rounds + 1) * given.window_s
    grown = given.templates + round(given.rounds * given.window_s * ENROL_PER_S)
    return served.cost(grown, measuring_s=windows_s + given.answers / ANSWERS_PER_S)


def run(given: argparse.Namespace, place: stage.Place) -> Results:
    """Fill a gallery and measure."""
    with served.served(
        given.templates,
        probes_count=2048,
        seed=given.seed,
        folder=place.folder,
        clock=place.clock,
    ) as one:
        return measure(one, given, place.clock)


STAGE = stage.Stage("updates", "What changes of a gallery cost.", options, cost, run)

if __name__ == "__main__":
    stage.run_as_command(STAGE)
