"""Enrols at a steady rate, in a process of its own: `python -m bench.pace`.

For bench.updates, whose searches would otherwise wait for the enrolling client rather than for the
cluster. Prints how many rows were acknowledged and how long that took.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator

import numpy as np

import facegrid
from facegrid.clock import Clock, SystemClock
from facegrid.testing.synthetic import BLOCK_TEMPLATES, SyntheticGallery
from facegrid.vectors import Float32

DIM = 512
POOL_BLOCKS = 8
"""Vectors are made before and used again under other ids, so that making them takes no time."""
BATCHES_PER_S = 10
TIMEOUT_S = 60.0


def pool(seed: int) -> Float32:
    """Return vectors to enrol."""
    gallery = SyntheticGallery(DIM, templates_count=POOL_BLOCKS * BLOCK_TEMPLATES, seed=seed)
    return np.concatenate([gallery.block(number).vectors for number in range(POOL_BLOCKS)])


def paced(
    vectors: Float32, *, name: str, per_s: int, seconds: float, clock: Clock
) -> Iterator[facegrid.EnrolBatch]:
    """Yield batches of new subjects, each when it is due."""
    rows = max(1, per_s // BATCHES_PER_S)
    start_s = clock.now_s()
    for number in range(round(seconds * per_s / rows)):
        early_s = start_s + number * rows / per_s - clock.now_s()
        if early_s > 0:
            asyncio.run(clock.sleep(early_s))
        first = number * rows
        taken = np.arange(first, first + rows) % len(vectors)
        ids = [f"{name}-{row}" for row in range(first, first + rows)]
        yield facegrid.EnrolBatch(template_ids=ids, subject_ids=ids, vectors=vectors[taken])


def main() -> int:
    """Wait for a line on standard input, enrol, and print what was acknowledged."""
    parser = argparse.ArgumentParser(prog="bench.pace", description="Enrols at a steady rate.")
    parser.add_argument("--routers", required=True, help="host:port, separated by commas")
    parser.add_argument("--gallery", required=True)
    parser.add_argument("--per-s", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    clock = SystemClock()
    vectors = pool(given.seed)
    with facegrid.Client(given.routers.split(","), timeout_s=TIMEOUT_S) as client:
        print("ready", flush=True)
        for number, _ in enumerate(sys.stdin):
            acked = [0]
            start_s = clock.now_s()
            batches = paced(
                vectors,
                name=f"paced-{given.seed}-{number}",
                per_s=given.per_s,
                seconds=given.seconds,
                clock=clock,
            )
            client.enrol_stream(given.gallery, batches, on_ack=acked.append)
            took_s = clock.now_s() - start_s
            print(json.dumps({"acked": acked[-1], "took_s": took_s}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
