"""Plays seeds in this process: `python -m tests.sim.run --seeds 1-1000`.

The last two lines say how many failed, and what happened in all of them together.
"""

import argparse
import gc
import sys
import time
import traceback
import warnings

from facegrid.errors import FacegridError
from tests.sim.scenario import Result, run_seed
from tests.sim.world import Controls

COLLECT_EVERY = 25
FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BaseExceptionGroup,
    FacegridError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Every way in which a bug may end a run: each is to be told with its seed."""


def main() -> int:
    """Play the seeds given; say which broke a promise."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", default="1-100", help="7 or 1-100 or 1,2,5-9")
    parser.add_argument("--part", default="0/1", help="play the seeds whose rank modulo n is i")
    parser.add_argument("--flips", action="store_true", help="flip bits of stored objects")
    parser.add_argument("--loads", action="store_true", help="let a loader load, too")
    parser.add_argument("--deaf", action="store_true", help="move copies beside deaf processes")
    parser.add_argument("--splits", action="store_true", help="split and merge shards")
    parser.add_argument("--trace", action="store_true", help="print what led to a failure")
    parser.add_argument("--keep-going", action="store_true", help="play the rest after a failure")
    parser.add_argument("--digests", action="store_true", help="print what stands for each run")
    parser.add_argument("--without", default="", help="a field of Controls, such as fencing")
    given = parser.parse_args()
    controls = Controls(**{given.without: False}) if given.without else Controls()
    # Of what killed processes never came to do.
    warnings.simplefilter("ignore", RuntimeWarning)
    gc.freeze()
    gc.disable()
    began_s = time.perf_counter()
    results: list[Result] = []
    failed: list[int] = []
    part, parts = map(int, given.part.split("/"))
    for number, seed in enumerate(seeds_of(given.seeds)[part::parts]):
        try:
            result = run_seed(
                seed,
                controls=controls,
                flips=given.flips,
                loads=given.loads,
                deaf=given.deaf,
                splits=given.splits,
                keep_trace=given.trace,
            )
        except FAILURES as error:
            failed.append(seed)
            say(f"{seed}: {_line(error)}")
            if given.trace:
                traceback.print_exc()
            if not given.keep_going:
                break
        else:
            results.append(result)
            if given.digests:
                say(f"{seed}: {result.digest}")
        if number % COLLECT_EVERY == 0:
            gc.collect()
    spent_s = time.perf_counter() - began_s
    say(f"seeds={len(results)} failed={len(failed)} spent_s={spent_s:.1f}")
    say(_totals(results))
    return 1 if failed else 0


def seeds_of(text: str) -> list[int]:
    """Return the seeds that a text such as 1,2,5-9 names."""
    seeds: list[int] = []
    for piece in text.split(","):
        first, _, last = piece.partition("-")
        seeds.extend(range(int(first), int(last or first) + 1))
    return seeds


def say(line: str) -> None:
    """Print a line."""
    print(line, flush=True)  # noqa: T201 - whoever started this reads it


def _totals(results: list[Result]) -> str:
    totals: dict[str, int] = {}
    for result in results:
        for what, count in result.counts.items():
            totals[what] = totals.get(what, 0) + count
    return " ".join(f"{what.replace(' ', '_')}={totals[what]}" for what in sorted(totals))


def _line(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"[:600]


if __name__ == "__main__":
    sys.exit(main())
