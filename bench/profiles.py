"""Accuracy and cost of a served gallery, by profile: `python -m bench.profiles`.

Through client, router and two nodes: what each profile misses against exact float32 search, how
long one probe takes and how many are answered a second 64 at a time, in turns; and what a template
takes of memory and disk. A miss rate is given as the bound that the number of mates allows: no
miss among n of them shows 3 / n and nothing finer.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from bench import measure, served, stage, target
from bench.accuracy import Accuracy
from bench.accuracy import measure as measure_accuracy
from bench.machine import Cost, size
from bench.report import Json, percentile, spread
from bench.served import GALLERY, Served
from facegrid.clock import Clock
from facegrid.tuning import MISS_RATE_MAX_DEFAULT, Profile
from indexd.ann.miss_rate import miss_rate_bound

TEMPLATES: Final = 400_000
PROBES: Final = 64_000
PROBES_PER_CALL: Final = 64
SINGLES: Final = 200
ROUNDS: Final = 5
K: Final = 10
EXACT_S: Final = 1.2e-8
"""Estimates of exact search for each template and probe on two cores, and of a served probe."""
SERVED_S: Final = 1 / 1200
TARGETED: Final = (Profile.BALANCED, Profile.EXHAUSTIVE)


@dataclass(frozen=True, slots=True)
class Found:
    """One profile.

    Attributes:
        singles_ms: of every call of one probe.
        per_s: probes a second, 64 in each call, round by round.
    """

    accuracy: Accuracy
    singles_ms: Sequence[float]
    per_s: Sequence[float]

    @property
    def misses(self) -> int:
        """Mates that exact search accepts and the index missed."""
        share = self.accuracy.extra_fnir
        assert share is not None, "synthetic data has mated probes"
        return round(share * self.accuracy.mated_count)

    @property
    def bound(self) -> float:
        """The highest extra FNIR that agrees with what was seen, at 95 %."""
        return min(1.0, miss_rate_bound(self.misses, self.accuracy.mated_count))


@dataclass(frozen=True, slots=True)
class Results:
    """All profiles, and what a template takes."""

    parameters: Mapping[str, str]
    profiles: Mapping[str, Found]
    enrolled_per_s: float
    memory_per_template: float
    disk_per_template: float

    def targets(self) -> list[target.Target]:
        """Return the values of G1."""
        return [g1(profile, self.profiles[profile.value]) for profile in TARGETED]

    def lines(self) -> list[str]:
        """Return what to print."""
        shown = [
            f"{name}: misses={one.misses} of {one.accuracy.mated_count} mates,"
            f" extra FNIR at most {one.bound:.2g}, recall={one.accuracy.recall:.4f}"
            f" p50_ms={percentile(one.singles_ms, 0.5):.2f}"
            f" p99_ms={percentile(one.singles_ms, 0.99):.2f} probes/s {spread(one.per_s).text}"
            for name, one in self.profiles.items()
        ]
        return [
            *shown,
            f"enrolled: templates/s {self.enrolled_per_s:.0f}",
            f"memory of the nodes: bytes_per_template={self.memory_per_template:.0f}",
            f"disk: bytes_per_template={self.disk_per_template:.0f}",
            *target.lines_of(self.targets()),
        ]

    def as_json(self) -> dict[str, Json]:
        """Return it as JSON."""
        return {
            "parameters": dict(self.parameters),
            "k": K,
            "probes_per_call": PROBES_PER_CALL,
            "profiles": {
                name: {
                    "accuracy": asdict(one.accuracy),
                    "misses": one.misses,
                    "extra_fnir_max": one.bound,
                    "p50_ms": percentile(one.singles_ms, 0.5),
                    "p99_ms": percentile(one.singles_ms, 0.99),
                    "probes_per_s": spread(one.per_s).as_json(),
                }
                for name, one in self.profiles.items()
            },
            "enrolled_per_s": self.enrolled_per_s,
            "memory_bytes_per_template": self.memory_per_template,
            "disk_bytes_per_template": self.disk_per_template,
        }


def g1(profile: Profile, found: Found) -> target.Target:
    """Return the bound of a profile's extra FNIR against what it may miss."""
    need = profile.miss_rate_max(MISS_RATE_MAX_DEFAULT)
    mates = found.accuracy.mated_count
    facts: dict[str, object] = {"part": profile.value, "misses": found.misses, "mates": mates}
    if miss_rate_bound(0, mates) > need:
        # Not even a perfect index could be shown to meet it.
        facts["unproven"] = "too few mates"
    return target.against("G1", found.bound, "at most", need, **facts)


def profiles(one: Served, *, clock: Clock) -> dict[str, Found]:
    """Measure every profile, their rounds in turns."""
    data, client = one.data, one.client
    probes = data.probes.vectors
    exact = measure.exact_rankings(data, k=K)
    found: dict[str, Found] = {}
    singles: dict[str, list[float]] = {profile.value: [] for profile in Profile}
    rates: dict[str, list[float]] = {profile.value: [] for profile in Profile}
    part = probes[: max(PROBES_PER_CALL, len(probes) // ROUNDS // 4)]
    for number in range(ROUNDS):
        for name in singles:
            one_by_one = probes[number * SINGLES // ROUNDS : (number + 1) * SINGLES // ROUNDS]
            for rows, x in ((1, one_by_one), (PROBES_PER_CALL, part)):
                timed = measure.identify(
                    client, GALLERY, x, k=K, rows=rows, clock=clock, profile=name
                )
                if rows == 1:
                    singles[name] += [1000 * call_s for call_s in timed.calls_s]
                else:
                    rates[name].append(timed.probes_per_s)
    for name, singles_ms in singles.items():
        answers = measure.identify(
            client, GALLERY, probes, k=K, rows=PROBES_PER_CALL, clock=clock, profile=name
        )
        lists = [measure.ranking(answer) for answer in answers.lists]
        accuracy = measure_accuracy(data.probes.mate_subject_ids, exact=exact, found=lists)
        found[name] = Found(accuracy, singles_ms, rates[name])
    return found


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this stage."""
    parser.add_argument("--templates", type=size, default=TEMPLATES, help="of the gallery")
    parser.add_argument("--probes", type=size, default=PROBES, help="half of them mated")


def cost(given: argparse.Namespace) -> Cost:
    """Return what it takes."""
    exact_s = given.templates * given.probes * EXACT_S
    served_s = given.probes * SERVED_S * 2 * len(Profile)
    return served.cost(given.templates, measuring_s=exact_s + served_s)


def run(given: argparse.Namespace, place: stage.Place) -> Results:
    """Fill a gallery and measure."""
    with served.served(
        given.templates,
        probes_count=given.probes,
        seed=given.seed,
        folder=place.folder,
        clock=place.clock,
    ) as one:
        found = profiles(one, clock=place.clock)
        return Results(
            parameters=one.data.parameters,
            profiles=found,
            enrolled_per_s=one.enrolled_per_s,
            memory_per_template=measure.nodes_memory_bytes(one.cluster) / given.templates,
            disk_per_template=measure.stored_bytes(one.cluster.store) / given.templates,
        )


STAGE = stage.Stage("profiles", "Accuracy and cost by profile.", options, cost, run)

if __name__ == "__main__":
    stage.run_as_command(STAGE)
