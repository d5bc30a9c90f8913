"""Whatever goes onto the wire comes back as it was."""

from contextlib import suppress

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from facegrid import wire
from facegrid.api.v1 import types_pb2
from facegrid.errors import InvalidError
from facegrid.ids import KEY_LAST, GalleryName, ShardId
from facegrid.model import Candidate, CandidateList, Coverage, Gallery, HashRange, Token

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
counts = st.integers(0, 2**31)
positions = st.integers(0, 2**63 - 1)
keys = st.integers(0, KEY_LAST)
scores = st.floats(-1, 1, width=32)

ranges = st.tuples(keys, keys).map(sorted).map(lambda pair: HashRange(*pair))
tokens = st.builds(Token, st.dictionaries(texts.map(ShardId), positions, max_size=5))
coverages = st.builds(
    Coverage,
    st.floats(0, 1),
    counts,
    counts,
    st.lists(ranges, max_size=3).map(tuple),
    st.floats(0, 1),
)
candidates = st.builds(Candidate, texts, texts, scores, counts)
galleries = st.builds(
    Gallery,
    name=texts.map(GalleryName),
    uid=texts,
    dim=counts,
    extractor=texts,
    shards_count=counts,
    replicas_count=counts,
    train_at_templates_count=positions,
    codebook=texts,
    created_unix_ms=positions,
    templates_count=st.integers(-1, 2**63 - 1),
)


@given(galleries)
def test_galleries_come_back(gallery: Gallery) -> None:
    data = wire.to_wire_gallery(gallery).SerializeToString()
    assert wire.from_wire_gallery(types_pb2.Gallery.FromString(data)) == gallery


@given(tokens)
def test_tokens_come_back(token: Token) -> None:
    data = wire.to_wire_token(token).SerializeToString()
    assert wire.from_wire_token(types_pb2.Token.FromString(data)) == token


@given(st.lists(candidates, max_size=5).map(tuple), coverages)
def test_candidate_lists_and_coverages_come_back(
    items: tuple[Candidate, ...], coverage: Coverage
) -> None:
    data = wire.to_wire_coverage(coverage).SerializeToString()
    returned = wire.from_wire_coverage(types_pb2.Coverage.FromString(data))
    sent = CandidateList(items, coverage)
    data = wire.to_wire_candidate_list(sent).SerializeToString()
    message = types_pb2.CandidateList.FromString(data)
    assert wire.from_wire_candidate_list(message, returned) == sent


@given(
    st.sampled_from([np.float32, np.float16]),
    st.tuples(st.integers(0, 6), st.sampled_from([8, 12, 64])),
    st.data(),
)
def test_vectors_come_back_from_either_dtype_and_any_layout(
    dtype: type[np.float32] | type[np.float16], shape: tuple[int, int], data: st.DataObject
) -> None:
    raw = data.draw(hnp.arrays(np.int8, shape[::-1], elements=st.integers(1, 127))).T
    unit = raw / np.linalg.norm(raw.astype(np.float64), axis=1, keepdims=True)
    x: npt.NDArray[np.float32] | npt.NDArray[np.float16] = np.asfortranarray(unit.astype(dtype))
    back = wire.from_wire_vectors(wire.to_wire_vectors(x), dim=shape[1])
    assert back.dtype == np.float32
    assert np.array_equal(back, x.astype(np.float32))


@given(st.binary(max_size=200), counts, st.integers(0, 3))
def test_arbitrary_vector_messages_are_read_or_refused(data: bytes, dim: int, dtype: int) -> None:
    message = types_pb2.Vectors(data=data, dim=dim)
    message.dtype = dtype  # type: ignore[assignment]  # what another client may send
    with suppress(InvalidError):
        assert np.isfinite(wire.from_wire_vectors(message, dim=dim)).all()


@pytest.mark.parametrize(
    ("message", "dim", "reason"),
    [
        (types_pb2.Vectors(data=bytes(32), dim=8), 8, "DTYPE_UNKNOWN"),
        (
            types_pb2.Vectors(data=bytes(32), dim=8, dtype=types_pb2.DTYPE_FLOAT32),
            16,
            "DIM_MISMATCH",
        ),
        (
            types_pb2.Vectors(data=bytes(31), dim=8, dtype=types_pb2.DTYPE_FLOAT32),
            8,
            "VECTOR_LENGTH",
        ),
        (
            types_pb2.Vectors(data=bytes(32), dim=8, dtype=types_pb2.DTYPE_FLOAT32),
            8,
            "VECTOR_NORM",
        ),
        (
            types_pb2.Vectors(data=b"\xff" * 32, dim=8, dtype=types_pb2.DTYPE_FLOAT32),
            8,
            "VECTOR_NOT_FINITE",
        ),
    ],
)
def test_each_way_to_be_wrong_has_its_reason(
    message: types_pb2.Vectors, dim: int, reason: str
) -> None:
    with pytest.raises(InvalidError) as caught:
        wire.from_wire_vectors(message, dim=dim)
    assert caught.value.reason == reason


def test_an_empty_range_and_a_negative_position_are_refused() -> None:
    with pytest.raises(InvalidError, match="hash range is empty"):
        wire.from_wire_hash_range(types_pb2.Coverage.Range(first=2, last=1))
    position = types_pb2.Token.Position(shard_id="s", position=-1)
    with pytest.raises(InvalidError, match="negative position"):
        wire.from_wire_token(types_pb2.Token(positions=[position]))


def test_of_a_shard_named_twice_the_later_position_counts() -> None:
    twice = [types_pb2.Token.Position(shard_id="s", position=position) for position in (7, 3)]
    assert wire.from_wire_token(types_pb2.Token(positions=twice)) == Token({ShardId("s"): 7})
