"""The shape of NIST's identification test: `python -m bench.nist`.

12 million templates, one core, one thread, candidate lists of 50, one probe at a time; the time
from 1.6 million on, with its exponent. In process, the gallery streamed and searched exactly
meanwhile, so that every time has its extra FNIR beside it. Making the gallery and the truth takes
all cores; searches that are timed are kept to one, and the processor time that they used is told
as a check.

Beside what training chooses, an index with many lists is searched to several depths: the curve of
time against extra FNIR, from which `pruned` takes the fastest that the `fast` profile would allow.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import faiss
import numpy as np

from bench import grown, stage, target
from bench.grown import Asked, Grown, Point
from bench.machine import Cost, size, this_machine
from bench.report import Json
from bench.streamed import Maker
from facegrid import vectors
from facegrid.testing.synthetic import SyntheticGallery
from facegrid.tuning import MISS_RATE_MAX_DEFAULT, Effort, Profile
from facegrid.vectors import Float32
from indexd.ann.codebook import Codebook

DIM = 512
TEMPLATES = 12_000_000
STEPS = (1_600_000, 3_000_000, 6_000_000)
K = 50
PROBES = 4000
SINGLES = 60
NLIST = 256
SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Of the lists, looked into for the curve."""
LEARNT_ROWS = 131_072
EXHAUSTIVE_MS_NEED = 150.0
PRUNED_MS_NEED = 40.0
FNIR_MAX = {one.value: one.miss_rate_max(MISS_RATE_MAX_DEFAULT) for one in Profile}


@dataclass(frozen=True, slots=True)
class Results:
    """What was found.

    Attributes:
        parameters: of the gallery.
        profiles: each profile at each size, by the codebook of training.
        curve: the index of many lists at the last size, by rising nprobe.
    """

    parameters: Mapping[str, str]
    profiles: Sequence[Point]
    curve: Sequence[Point]

    def exponent(self, profile: str) -> float | None:
        """Return the power of the size that a profile's time grows with; None from one size."""
        points = [point for point in self.profiles if point.profile == profile]
        if len(points) < 2:
            return None
        return grown.exponent(
            [point.templates for point in points], [point.p50_ms for point in points]
        )

    def pruned(self) -> Point | None:
        """Return the fastest of the curve that may be called `fast`, else the most thorough."""
        allowed = [point for point in self.curve if point.miss.bound <= FNIR_MAX["fast"]]
        if allowed:
            return min(allowed, key=lambda point: point.p50_ms)
        return self.curve[-1] if self.curve else None

    def targets(self) -> list[target.Target]:
        """Return the values of G9; none for a gallery smaller than the target is for."""
        if self.profiles[-1].templates < TEMPLATES:
            return []
        last = {point.profile: point for point in self.profiles}
        found = [_g9("exhaustive", last[Profile.EXHAUSTIVE], EXHAUSTIVE_MS_NEED)]
        pruned = self.pruned()
        if pruned is not None:
            found.append(_g9("pruned", pruned, PRUNED_MS_NEED))
        return found

    def lines(self) -> list[str]:
        """Return what to print."""
        exponents = ((one.value, self.exponent(one.value)) for one in Profile)
        return [
            *(point.line for point in (*self.profiles, *self.curve)),
            *(
                f"growth: profile={name} exponent={value:.3f}"
                for name, value in exponents
                if value is not None
            ),
            *target.lines_of(self.targets()),
        ]

    def as_json(self) -> dict[str, Json]:
        """Return it as JSON."""
        return {
            "parameters": dict(self.parameters),
            "in_process": True,
            "k": K,
            "points": [point.as_json() for point in self.profiles],
            "curve": [point.as_json() for point in self.curve],
            "exponents": {one.value: self.exponent(one.value) for one in Profile},
        }


def _g9(part: str, point: Point, need: float) -> target.Target:
    return target.against(
        "G9",
        point.p50_ms,
        "at most",
        need,
        part=part,
        unit="ms",
        templates=point.templates,
        nprobe=f"{point.nprobe}/{point.nlist}",
        extra_fnir=f"{point.miss.extra_fnir:.2g}",
        extra_fnir_max=f"{point.miss.bound:.2g}",
        cores_used=f"{point.cpu_share:.2f}",
    )


def many_lists(codebook: Codebook, sample: Float32, *, nlist: int, seed: int) -> Codebook:
    """Return a codebook with the same codes and that many lists, learnt from float32 [n, dim]."""
    # faiss has no types worth the name: Any at its edge.
    kmeans: Any = faiss.Kmeans(codebook.dim, nlist, niter=10, seed=seed, spherical=True)
    kmeans.cp.max_points_per_centroid = max(256, len(sample) // nlist)
    kmeans.train(sample)
    return replace(codebook, nlist=nlist, nprobe=nlist, centroids=kmeans.centroids)


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this stage."""
    parser.add_argument("--templates", type=size, default=TEMPLATES, help="of the last size")
    parser.add_argument("--probes", type=int, default=PROBES, help="half of them mated")
    parser.add_argument("--singles", type=int, default=SINGLES, help="searches timed")
    parser.add_argument("--nlist", type=int, default=NLIST, help="lists of the pruned index")


def steps(templates_count: int) -> list[int]:
    """Return the sizes to measure at: those of NIST below the last one."""
    return [*(step for step in STEPS if step < templates_count), templates_count]


def cost(given: argparse.Namespace) -> Cost:
    """Return what it takes: the pruned index codes everything once more."""
    sizes = steps(given.templates)
    whole = grown.cost(
        sizes, probes_count=given.probes, single_count=given.singles, efforts=len(Profile)
    )
    curve_s = given.templates * (
        grown.CODING_S + grown.SCAN_S * sum(SHARES) * (given.probes / 2 + given.singles)
    )
    return replace(whole, took_s=whole.took_s + curve_s)


def run(given: argparse.Namespace, place: stage.Place) -> Results:
    """Grow, and measure at every step."""
    all_cores = this_machine(place.folder).cores
    sizes = steps(given.templates)
    gallery = SyntheticGallery(DIM, templates_count=given.templates, seed=given.seed)
    # Mates lie in the smallest gallery, so that they are there at every size.
    first = SyntheticGallery(DIM, templates_count=sizes[0], seed=given.seed)
    asked = Asked.of(first, given.probes, seed=given.seed)
    index = Grown(DIM, asked, threads=all_cores, clock=place.clock)
    profiles: list[Point] = []

    def measured(one: Grown, name: str, effort: Effort) -> Point:
        one.index.absorb()
        with grown.cores(1):
            point = one.point(name, effort, k=K, single_count=given.singles)
        print(f"  {point.line}", flush=True)
        return point

    def at_size(one: Grown) -> None:
        profiles.extend(measured(one, name, effort) for name, effort in one.efforts().items())

    maker = Maker(gallery, asked.x)
    grown.grow(index, maker, sizes, processes=all_cores, seed=given.seed, at_size=at_size)
    rows = np.arange(min(LEARNT_ROWS, index.index.rows_count))
    sample = vectors.dequantize(index.index.codes(rows))
    codebook = many_lists(index.codebook, sample, nlist=given.nlist, seed=given.seed)
    depth = index.efforts()[Profile.BALANCED].depth
    index.index.swap(index.index.rebuilt(codebook))
    nprobes = sorted({max(1, round(share * given.nlist)) for share in SHARES})
    curve = [measured(index, "", Effort(nprobe=nprobe, depth=depth)) for nprobe in nprobes]
    return Results(gallery.parameters(), profiles, curve)


STAGE = stage.Stage(
    "nist", "The shape of NIST's identification test, on one core.", options, cost, run
)

if __name__ == "__main__":
    stage.run_as_command(STAGE)
