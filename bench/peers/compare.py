"""One system measured beside ours: built, its settings found, judged, and raced in turns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.peer import Settings
from bench.peers.process import PeerError, Process
from bench.peers.settings_search import Try, climb, misses_allowed
from bench.peers.systems_known import System
from bench.peers.truth_files import K, Truth
from bench.report import Json, Spread, spread
from facegrid.clock import Clock
from indexd.ann.miss_rate import miss_rate_bound

BATCH = 64
CHUNK = 512
"""Probes between two looks at whether too many were missed already."""
ASK_S = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What each system gets.

    Attributes:
        threads: that it may use.
        budget_s: for finding settings; another build, or another try, is begun only within it.
        limit_s: for one build, one try or the judging.
        rounds: of the race.
        round_s: of one side of one round.
    """

    threads: int
    budget_s: float
    limit_s: float
    rounds: int
    round_s: float


@dataclass(frozen=True, slots=True)
class Chosen:
    """A process that serves the best settings found."""

    process: Process
    build: Settings
    best: Try
    build_s: float
    probes_per_s: float

    @property
    def rank(self) -> tuple[bool, float]:
        """The greater the better: fast where enough is found, else whoever misses least."""
        return self.best.enough, self.probes_per_s if self.best.enough else -self.best.missed_share


@dataclass(slots=True)
class Row:
    """What is known of a system; flat, as it is written down."""

    values: dict[str, Json] = field(default_factory=dict)
    ratio_64: Spread | None = None


class Bench:
    """Measures systems on one gallery.

    Args:
        truth: the gallery.
        folder: for the systems' files.
        python_of: the interpreter of a system.
        limits: of each.
        clock: for budgets.
    """

    def __init__(
        self,
        truth: Truth,
        folder: Path,
        *,
        python_of: Callable[[System], Path],
        limits: Limits,
        clock: Clock,
    ) -> None:
        self._truth = truth
        self._folder = folder
        self._python_of = python_of
        self._limits = limits
        self._clock = clock
        self._started = 0

    def choose(self, system: System) -> Chosen:
        """Build a system in its ways and return the best settings found, ready to search.

        Raises:
            PeerError: not one build could be tried.
        """
        end_s = self._clock.now_s() + self._limits.budget_s
        asked = self._start(system)
        rows, dim = self._truth.templates.shape
        variants = asked.ask("variants", timeout_s=ASK_S, rows=rows, dim=dim)["variants"]
        asked.close()
        best: Chosen | None = None
        problem: PeerError | None = None
        for number, variant in enumerate(variants):
            if number and self._clock.now_s() >= end_s:
                break
            try:
                found = self._tried(system, variant, end_s)
            except PeerError as error:
                problem = problem or error
                print(f"note: {system.name} {variant['build']} {error.state}: {error.reason}")
                continue
            best, loser = (
                (found, best) if best is None or found.rank > best.rank else (best, found)
            )
            if loser is not None:
                loser.process.close()
        if best is None:
            assert problem is not None, "a system has variants"
            raise problem
        best.process.ask("use", timeout_s=ASK_S, settings=best.best.settings)
        return best

    def judged(self, chosen: Chosen) -> dict[str, Json]:
        """Return what a chosen system costs and misses, on probes that chose nothing."""
        process, limit_s = chosen.process, self._limits.limit_s
        probes = self._truth.judging
        out = self._folder / "judged.npy"
        words = {"probes": str(probes.path), "batch": BATCH, "k": K, "out": str(out)}
        process.ask("search", timeout_s=limit_s, first=0, last=len(probes.mates), **words)
        rows = np.load(out)
        seen = self._truth.accuracy(rows)
        assert seen.extra_fnir is not None, "there are mated probes"
        misses = round(seen.extra_fnir * seen.mated_count)
        count = len(self._truth.templates)
        memory = process.ask("memory", timeout_s=ASK_S)
        disk = process.ask("save", timeout_s=limit_s)["disk_bytes"]
        return {
            "state": "measured",
            "settings": {**chosen.build, **chosen.best.settings},
            "enough_in_tuning": chosen.best.enough,
            "extra_fnir": seen.extra_fnir,
            "extra_fnir_max": miss_rate_bound(misses, seen.mated_count),
            "mated_probes": seen.mated_count,
            "recall_at_10": self._truth.recall(rows),
            "build_s": chosen.build_s,
            "memory_bytes_per_template": memory["grown_bytes"] / count,
            "peak_rss_bytes": memory["peak_bytes"],
            "disk_bytes_per_template": disk / count if disk else None,
        }

    def raced(self, ours: Chosen, peer: Chosen) -> Row:
        """Let both search in turns; return the peer's speeds, and ours by its."""
        rates: dict[tuple[int, str], list[float]] = {}
        for number in range(self._limits.rounds + 1):
            for batch in (BATCH, 1):
                for name, one in (("ours", ours), ("peer", peer)):
                    rate = self._rate(one.process, batch)
                    # The first round warms both.
                    if number:
                        rates.setdefault((batch, name), []).append(rate)
        row = Row()
        for batch in (BATCH, 1):
            mine, theirs = rates[batch, "ours"], rates[batch, "peer"]
            ratio = spread([a / b for a, b in zip(mine, theirs, strict=True)])
            row.values |= _flat(f"probes_per_s_{batch}", spread(theirs))
            row.values |= _flat(f"ours_by_it_{batch}", ratio)
            row.ratio_64 = row.ratio_64 or ratio
        return row

    def _rate(self, process: Process, batch: int) -> float:
        words = {"probes": str(self._truth.judging.path), "batch": batch, "k": K}
        limit_s = self._limits.limit_s
        found = process.ask("rate", timeout_s=limit_s, seconds=self._limits.round_s, **words)
        return float(found["probes_per_s"])

    def _tried(self, system: System, variant: Mapping[str, Any], end_s: float) -> Chosen:
        process = self._start(system)
        try:
            build_s = process.ask(
                "build",
                timeout_s=self._limits.limit_s,
                templates=str(self._truth.templates_path),
                subjects=str(self._truth.subjects_path),
                settings=variant["build"],
            )["build_s"]
            tops: list[tuple[Try, float]] = []
            for ladder in variant["ladders"]:
                if tops and self._clock.now_s() >= end_s:
                    break
                top = self._climbed(process, ladder, end_s)
                process.ask("use", timeout_s=ASK_S, settings=top.settings)
                tops.append((top, self._rate(process, BATCH)))
        except PeerError:
            process.close()
            raise
        found = [Chosen(process, variant["build"], top, build_s, rate) for top, rate in tops]
        return max(found, key=lambda one: one.rank)

    def _climbed(self, process: Process, ladder: list[Settings], end_s: float) -> Try:
        attempt = lambda settings: self._attempt(process, settings)  # noqa: E731 - one use
        return climb(ladder, attempt, lambda: self._clock.now_s() < end_s)[-1]

    def _attempt(self, process: Process, settings: Settings) -> Try:
        process.ask("use", timeout_s=ASK_S, settings=settings)
        probes = self._truth.tuning
        accepted = set(probes.accepted())
        allowed = misses_allowed(len(probes.mates))
        out = self._folder / "tried.npy"
        misses = asked = 0
        for first in range(0, len(probes.mates), CHUNK):
            last = min(first + CHUNK, len(probes.mates))
            words = {"probes": str(probes.path), "batch": BATCH, "k": K, "out": str(out)}
            process.ask("search", timeout_s=self._limits.limit_s, first=first, last=last, **words)
            places = [at for at in range(first, last) if at in accepted]
            rows = np.load(out)[[at - first for at in places]]
            misses += self._truth.misses(places, rows, probes)
            asked += len(places)
            if misses > max(allowed, 0):
                break
        return Try(settings, misses, max(asked, 1), enough=misses <= allowed)

    def _start(self, system: System) -> Process:
        self._started += 1
        return Process(
            system.adapter,
            python=self._python_of(system),
            folder=self._folder / f"{self._started}-{system.name}",
            threads=self._limits.threads,
            clock=self._clock,
        )


def _flat(name: str, values: Spread) -> dict[str, Json]:
    return {name: values.median, f"{name}_low": values.low, f"{name}_high": values.high}
