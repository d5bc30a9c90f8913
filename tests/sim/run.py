"""Plays seeds in this process: `python -m tests.sim.run --first 1 --count 1000`."""

import argparse
import gc
import sys
import time
import traceback
import warnings

from tests.sim.scenario import run_seed
from tests.sim.world import Controls

COLLECT_EVERY = 25


def main() -> int:
    """Play the seeds given; print the counts, or the first broken promise."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--flips", action="store_true")
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--keep-going", action="store_true")
    parser.add_argument("--without", default="", help="fencing, commit_before_ack, erase_waits")
    given = parser.parse_args()
    controls = Controls(**{given.without: False}) if given.without else Controls()
    totals: dict[str, int] = {}
    failed: list[int] = []
    # Of what killed processes never came to do.
    warnings.simplefilter("ignore", RuntimeWarning)
    gc.freeze()
    gc.disable()
    began_s = time.perf_counter()
    for number in range(given.count):
        seed = given.first + number * given.step
        try:
            result = run_seed(seed, controls=controls, flips=given.flips, keep_trace=given.trace)
        except BaseException as error:
            failed.append(seed)
            if not given.keep_going:
                traceback.print_exc()
                return 1
            print(f"{seed}: {_line(error)}")  # noqa: T201 - this is what it is for
        else:
            for what, count in result.counts.items():
                totals[what] = totals.get(what, 0) + count
        if number % COLLECT_EVERY == 0:
            gc.collect()
    spent_s = time.perf_counter() - began_s
    print(f"seeds={given.count} failed={len(failed)} spent_s={spent_s:.1f}")  # noqa: T201
    print(" ".join(f"{k.replace(' ', '_')}={v}" for k, v in sorted(totals.items())))  # noqa: T201
    return 1 if failed else 0


def _line(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"[:300]


if __name__ == "__main__":
    sys.exit(main())
