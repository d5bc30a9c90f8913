"""Bytes on the wire and at rest: a batch of 1,024 enrolled rows, an answer for 64 probes."""

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from facegrid import vectors, wire
from facegrid.api.shard.v1 import shard_service_pb2 as pb
from facegrid.format.log import EnrolRecord, LogGroup, decode_log, encode_log
from facegrid.ids import ShardId
from router.dispatch.question import part_of

DIM = 512
ROWS = 1024
PROBES = 64
K = 10


@pytest.fixture(scope="module")
def x() -> vectors.Float32:
    """Return random unit vectors."""
    drawn = np.random.default_rng(1).standard_normal((ROWS, DIM), dtype=np.float32)
    unit: vectors.Float32 = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return unit


@pytest.fixture(scope="module")
def group(x: vectors.Float32) -> LogGroup:
    """Return what a primary writes for one batch."""
    record = EnrolRecord(
        position=1,
        request_id="r-1",
        request_digest=bytes(16),
        written_unix_ms=1,
        template_ids=[f"t-{row}" for row in range(ROWS)],
        subject_ids=[f"s-{row}" for row in range(ROWS)],
        codes=vectors.quantize(x),
    )
    return LogGroup(ShardId("s0"), 1, None, [record])


def answer() -> pb.SearchResponse:
    """Return the answer of a node."""
    rng = np.random.default_rng(2)
    return pb.SearchResponse(
        counts=[K] * PROBES,
        scores=(-np.sort(-rng.random((PROBES, K), np.float32), axis=1)).tobytes(),
        subject_ids=[f"subject-{number:09d}" for number in range(PROBES * K)],
        template_ids=[f"template-{number:09d}" for number in range(PROBES * K)],
    )


def test_encode_vectors(benchmark: BenchmarkFixture, x: vectors.Float32) -> None:
    """Vectors into a message."""
    assert benchmark(wire.to_wire_vectors, x).dim == DIM


def test_decode_vectors(benchmark: BenchmarkFixture, x: vectors.Float32) -> None:
    """Vectors out of a message, checked."""
    message = wire.to_wire_vectors(x)
    assert benchmark(wire.from_wire_vectors, message, dim=DIM, field="rows").shape == x.shape


def test_encode_answer(benchmark: BenchmarkFixture) -> None:
    """The answer of a node into bytes."""
    assert benchmark(answer().SerializeToString)


def test_decode_answer(benchmark: BenchmarkFixture) -> None:
    """The answer of a node into columns."""
    data = answer().SerializeToString()
    part = benchmark(lambda: part_of(pb.SearchResponse.FromString(data)))
    assert len(part.scores) == PROBES * K


def test_write_log(benchmark: BenchmarkFixture, group: LogGroup) -> None:
    """A batch as the bytes of a log object."""
    assert benchmark(encode_log, group)


def test_read_log(benchmark: BenchmarkFixture, group: LogGroup) -> None:
    """The bytes of a log object as a batch."""
    assert len(benchmark(decode_log, encode_log(group)).records) == 1
