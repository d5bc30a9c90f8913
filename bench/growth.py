"""How search time grows with the gallery: `python -m bench.growth`.

One index in this process (`indexd.ann.index`), fed with templates as they are made; 10 million
through the API would take hours. At each size every profile is searched one probe at a time and 64
at a time on all cores, and compared with exact search. Told are the exponent of the time over the
number of templates, 1 for twice the time at twice the size, and the memory of each template.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench import grown, stage
from bench.grown import Asked, Grown, Point
from bench.machine import Cost, sizes, this_machine
from bench.report import Json
from bench.streamed import Maker
from facegrid.testing.synthetic import SyntheticGallery
from facegrid.tuning import Profile

DIM = 512
SIZES = [100_000, 1_000_000, 10_000_000]
K = 10


@dataclass(frozen=True, slots=True)
class Results:
    """What was found at each size.

    Attributes:
        parameters: of the gallery.
        points: every profile at every size.
        memory_bytes: of the index at each size, by its own count.
        train_s: seconds that training took.
    """

    parameters: Mapping[str, str]
    points: Sequence[Point]
    memory_bytes: Mapping[int, int]
    train_s: float

    def of(self, profile: str) -> list[Point]:
        """Return the points of a profile, by rising size."""
        return [point for point in self.points if point.profile == profile]

    def exponent(self, profile: str) -> float | None:
        """Return the power of the size that a profile's time grows with; None from one size."""
        points = self.of(profile)
        if len(points) < 2:
            return None
        return grown.exponent(
            [point.templates for point in points], [point.p50_ms for point in points]
        )

    def lines(self) -> list[str]:
        """Return what to print."""
        per_template = (
            f"memory: templates={count} bytes_per_template={used / count:.1f}"
            for count, used in self.memory_bytes.items()
        )
        exponents = ((one.value, self.exponent(one.value)) for one in Profile)
        return [
            *(point.line for point in self.points),
            *per_template,
            *(
                f"growth: profile={name} exponent={value:.3f}"
                for name, value in exponents
                if value is not None
            ),
        ]

    def as_json(self) -> dict[str, Json]:
        """Return it as JSON."""
        return {
            "parameters": dict(self.parameters),
            "in_process": True,
            "points": [point.as_json() for point in self.points],
            "memory_bytes": {str(count): used for count, used in self.memory_bytes.items()},
            "train_s": self.train_s,
            "exponents": {one.value: self.exponent(one.value) for one in Profile},
        }


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this stage."""
    parser.add_argument("--sizes", type=sizes, default=SIZES, help="templates, rising: 1e5,1e6")
    parser.add_argument("--probes", type=int, default=2000, help="half of them mated")
    parser.add_argument("--singles", type=int, default=100, help="searches of one probe timed")


def cost(given: argparse.Namespace) -> Cost:
    """Return what it takes."""
    return grown.cost(
        given.sizes, probes_count=given.probes, single_count=given.singles, efforts=len(Profile)
    )


def run(given: argparse.Namespace, place: stage.Place) -> Results:
    """Grow and measure."""
    threads = this_machine(place.folder).cores
    gallery = SyntheticGallery(DIM, templates_count=given.sizes[-1], seed=given.seed)
    # Mates lie in the smallest gallery, so that they are there at every size.
    first = SyntheticGallery(DIM, templates_count=given.sizes[0], seed=given.seed)
    asked = Asked.of(first, given.probes, seed=given.seed)
    index = Grown(DIM, asked, threads=threads, clock=place.clock)
    points: list[Point] = []
    memory: dict[int, int] = {}

    def at_size(one: Grown) -> None:
        with grown.cores(threads):
            for name, effort in one.efforts().items():
                points.append(one.point(name, effort, k=K, single_count=given.singles))
                print(f"  {points[-1].line}", flush=True)
        memory[one.index.rows_count] = one.index.memory_bytes

    maker = Maker(gallery, asked.x)
    grown.grow(index, maker, given.sizes, processes=threads, seed=given.seed, at_size=at_size)
    return Results(gallery.parameters(), points, memory, index.train_s)


STAGE = stage.Stage("growth", "How search time grows with the gallery.", options, cost, run)

if __name__ == "__main__":
    stage.run_as_command(STAGE)
