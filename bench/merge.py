"""What the router does with the answers of many shards: `python -m bench.merge`.

Answers are messages as nodes send them, of random unit vectors' scores and ids of some 20 bytes.
Nothing is asserted: times depend on the machine. What the answer must be is tested in
tests/property/test_merge.py.
"""

import argparse
from collections.abc import Callable, Sequence

import numpy as np

from bench.report import percentile
from facegrid.api.shard.v1 import shard_service_pb2 as shard_pb2
from facegrid.clock import Clock, SystemClock
from facegrid.ids import GalleryName
from facegrid.model import Coverage
from router.dispatch.coalesce import Share
from router.dispatch.question import Answer, Question, part_of
from router.plan import merge
from router.service.identification import to_wire_answer

SCORE_DEVIATION = 1 / 16
"""Of the scores of strangers, about."""


def answer(rng: np.random.Generator, *, shard: int, probes: int, k: int) -> bytes:
    """Return the answer of one shard as it comes over the wire."""
    scores = np.sort(rng.normal(0, SCORE_DEVIATION, (probes, k)).astype("<f4"))[:, ::-1]
    subjects = rng.integers(10**9, size=probes * k).tolist()
    return shard_pb2.SearchResponse(
        counts=[k] * probes,
        scores=scores.tobytes(),
        subject_ids=[f"subject-{number:09d}-{shard:02d}" for number in subjects],
        template_ids=[f"template-{number:09d}-{shard:02d}" for number in subjects],
    ).SerializeToString()


def show(what: str, work: Callable[[], object], *, rounds: int, clock: Clock) -> None:
    """Do some work many times and print how long it takes."""
    took_s = []
    for _ in range(rounds):
        started_s = clock.now_s()
        work()
        took_s.append(clock.now_s() - started_s)
    print(
        f"{what:<40} median {percentile(took_s, 0.5) * 1000:7.3f} ms"
        f"   best {min(took_s) * 1000:7.3f} ms"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Time each step of bringing answers together."""
    parser = argparse.ArgumentParser(prog="bench.merge", description=__doc__)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--probes", type=int, default=64)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=100)
    given = parser.parse_args(argv)
    rng = np.random.default_rng(1)
    raw = [
        answer(rng, shard=shard, probes=given.probes, k=given.k) for shard in range(given.shards)
    ]
    messages = [shard_pb2.SearchResponse.FromString(data) for data in raw]
    parts = [part_of(message) for message in messages]

    def merged() -> merge.Merged:
        return merge.merge(parts, probes_count=given.probes, k=given.k, threshold=-2.0)

    def from_messages() -> merge.Merged:
        checked = [part_of(message) for message in messages]
        for part in checked:
            merge.check_part(part, probes_count=given.probes)
        return merge.merge(checked, probes_count=given.probes, k=given.k, threshold=-2.0)

    once = merged()
    covered = Coverage(1.0, given.shards, given.shards)
    share = Share(Answer(once, covered, 1), 0, given.probes)
    question = Question(GalleryName("g"), b"", given.probes, 4, given.k, -2.0)
    clock = SystemClock()
    for what, work in (
        ("bytes to messages (in gRPC)", lambda: [*map(type(messages[0]).FromString, raw)]),
        ("merge", merged),
        ("messages to merged lists", from_messages),
        ("ids of the lists to strings", lambda: once.names(0, given.probes)),
        (
            "lists to the answer's message",
            lambda: to_wire_answer(share, question),
        ),
    ):
        show(what, work, rounds=given.rounds, clock=clock)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
