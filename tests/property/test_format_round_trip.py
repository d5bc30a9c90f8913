"""What is encoded is decoded to the same, and equal values give equal bytes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from facegrid import limits
from facegrid.api.storage.v1 import storage_pb2
from facegrid.errors import CorruptError, InvalidError
from facegrid.format import (
    codebook,
    erasures,
    frame,
    log,
    manifest,
    operations,
    records,
    segment,
    sources,
)
from facegrid.ids import KEY_LAST, GalleryName, NodeId, ShardId
from facegrid.model import Gallery, HashRange, NodeInfo, ShardAssignment, ShardMap

IDS = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=12)
ID_LISTS = st.lists(IDS, max_size=5)
DIGESTS = st.binary(min_size=16, max_size=16)
SHA256 = st.binary(min_size=32, max_size=32).map(bytes.hex)
COUNTS = st.integers(0, 2**63 - 1)
GENERATIONS = st.integers(1, 2**62)
DIMS = st.sampled_from([8, 12, 512])
UUIDS = st.text("0123456789abcdef-", min_size=1, max_size=64)


def int8_rows(rows: int, dim: int, seed: int) -> np.ndarray[Any, np.dtype[np.int8]]:
    return np.random.default_rng(seed).integers(-127, 128, (rows, dim), np.int8)


@st.composite
def log_refs(draw: st.DrawFn, *, generation_max: int = 2**62, last: int = 0) -> log.LogRef:
    last = last or draw(st.integers(1, 2**62))
    return log.LogRef(
        generation=draw(st.integers(1, generation_max)),
        first_position=draw(st.integers(1, last)),
        last_position=last,
        uuid=draw(UUIDS),
        sha256=draw(SHA256),
    )


@st.composite
def loaded_segments(draw: st.DrawFn) -> log.LoadedSegment:
    rows = draw(st.integers(1, 40))
    unchanged = draw(st.none() | st.lists(st.booleans(), min_size=rows, max_size=rows))
    mask = None if unchanged is None else np.array(unchanged, np.bool_)
    return log.LoadedSegment(draw(SHA256), rows, mask)


SOURCES = st.builds(sources.SourcePosition, IDS.map(ShardId), st.integers(1, 2**62))


@st.composite
def log_records(draw: st.DrawFn, position: int) -> log.LogRecord:
    request_id, digest, written = draw(IDS), draw(DIGESTS), draw(COUNTS)
    source = draw(st.none() | SOURCES)
    kind = draw(st.sampled_from(["enrol", "erase", "load"]))
    if kind == "erase":
        return log.EraseRecord(
            position,
            request_id,
            digest,
            written,
            draw(ID_LISTS),
            draw(ID_LISTS),
            source,
            draw(st.none() | st.builds(HashRange, st.integers(0, 9), st.integers(9, KEY_LAST))),
        )
    if kind == "load":
        loaded = draw(st.lists(loaded_segments(), max_size=3))
        return log.LoadRecord(position, request_id, digest, written, loaded, source)
    template_ids = draw(ID_LISTS)
    rows = len(template_ids)
    return log.EnrolRecord(
        position,
        request_id,
        digest,
        written,
        template_ids,
        draw(st.lists(IDS, min_size=rows, max_size=rows)),
        int8_rows(rows, draw(DIMS), draw(st.integers(0, 99))),
        draw(COUNTS),
        source,
    )


@st.composite
def log_groups(draw: st.DrawFn) -> log.LogGroup:
    generation = draw(GENERATIONS)
    predecessor = draw(st.none() | log_refs(generation_max=generation))
    first = 1 if predecessor is None else predecessor.last_position + 1
    count = draw(st.integers(1, 4))
    found = [draw(log_records(position)) for position in range(first, first + count)]
    return log.LogGroup(ShardId(draw(IDS)), generation, predecessor, found)


@st.composite
def segments(draw: st.DrawFn) -> segment.Segment:
    template_ids = draw(ID_LISTS)
    rows, dim, seed = len(template_ids), draw(DIMS), draw(st.integers(0, 99))
    subject_ids = draw(st.lists(IDS, min_size=1, max_size=5, unique=True))
    rng = np.random.default_rng(seed)
    plain = segment.Segment(
        ShardId(draw(IDS)),
        dim,
        template_ids,
        subject_ids,
        rng.integers(0, len(subject_ids), rows, np.int32),
        int8_rows(rows, dim, seed),
        generation=draw(st.integers(0, 9)),
        position=draw(st.integers(0, 9)),
        load_id=draw(st.sampled_from(["", "a" * 32])),
    )
    if draw(st.booleans()):
        return plain
    return segment.Segment(
        plain.shard_id,
        dim,
        template_ids,
        subject_ids,
        plain.subject_rows,
        plain.codes,
        draw(SHA256),
        rng.integers(0, 2**31 - 1, rows, np.int32),
        rng.integers(0, 256, (rows, draw(st.integers(1, 64))), np.uint8),
    )


@st.composite
def manifests(draw: st.DrawFn) -> manifest.Manifest:
    held = []
    for sha256 in draw(st.lists(SHA256, max_size=3)):
        erased = np.array(draw(st.lists(st.booleans(), max_size=20)), np.bool_)
        held.append(manifest.ManifestSegment(sha256, len(erased), erased))
    requests = draw(
        st.lists(
            st.builds(manifest.RememberedRequest, IDS, DIGESTS, COUNTS, COUNTS, COUNTS, COUNTS),
            max_size=3,
        )
    )
    first, last = sorted((draw(st.integers(0, KEY_LAST)), draw(st.integers(0, KEY_LAST))))
    ref = draw(st.none() | log_refs())
    return manifest.Manifest(
        shard_id=ShardId(draw(IDS)),
        range=HashRange(first, last),
        dim=draw(DIMS),
        position=0 if ref is None else ref.last_position,
        generation=draw(GENERATIONS),
        log=ref,
        segments=tuple(held),
        requests=tuple(requests),
        digest=draw(DIGESTS),
        templates_count=sum(int(np.count_nonzero(~one.erased)) for one in held),
        journal=(
            None
            if ref is None
            else draw(
                st.none()
                | st.builds(erasures.JournalRef, st.integers(1, ref.last_position), SHA256)
            )
        ),
        sources=tuple(
            sorted(draw(st.lists(SOURCES, max_size=3, unique_by=lambda one: one.shard_id)))
        ),
    )


@st.composite
def codebooks(draw: st.DrawFn) -> codebook.CodebookArrays:
    dim, nlist, bits = draw(DIMS), draw(st.integers(1, 9)), draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return codebook.CodebookArrays(
        dim=dim,
        nlist=nlist,
        pq_m=dim // 4,
        pq_bits=bits,
        nprobe=draw(st.integers(1, nlist)),
        rescore_factor=draw(st.integers(1, 100)),
        centroids=rng.standard_normal((nlist, dim), np.float32),
        pq=rng.standard_normal((dim // 4, 2**bits, 4), np.float32),
        sample_count=draw(COUNTS),
        seed=draw(st.integers(0, 2**64 - 1)),
        coding_error=draw(st.floats(0, 2)),
    )


@st.composite
def shard_maps(draw: st.DrawFn) -> ShardMap:
    cuts = draw(st.lists(st.integers(1, KEY_LAST), unique=True, max_size=4).map(sorted))
    starts, ends = [0, *cuts], [*(cut - 1 for cut in cuts), KEY_LAST]
    assigned = tuple(
        ShardAssignment(ShardId(f"g.0.{number}"), HashRange(*ends_of), *draw(holders()))
        for number, ends_of in enumerate(zip(starts, ends, strict=True))
    )
    pending = draw(st.just(()) | children(assigned))
    made = len(assigned) + len(pending)
    made_count = draw(st.integers(made, made + 9))
    return ShardMap(
        GalleryName("staff"), draw(IDS), draw(GENERATIONS), assigned, pending, made_count
    )


@st.composite
def holders(draw: st.DrawFn) -> tuple[tuple[NodeId, ...], tuple[NodeId, ...]]:
    """Nodes that serve a shard, and others that join it."""
    found = draw(st.lists(IDS.map(NodeId), min_size=1, max_size=5, unique=True))
    serving = draw(st.integers(1, len(found)))
    return tuple(found[:serving]), tuple(found[serving:])


@st.composite
def children(
    draw: st.DrawFn, assigned: tuple[ShardAssignment, ...]
) -> tuple[ShardAssignment, ...]:
    """What is to take the place of one or more neighbours: one shard, or two."""
    first = draw(st.integers(0, len(assigned) - 1))
    last = draw(st.integers(first, len(assigned) - 1))
    sources = tuple(shard.shard_id for shard in assigned[first : last + 1])
    begin, end = assigned[first].range.first, assigned[last].range.last
    firsts = [begin]
    if begin < end and draw(st.booleans()):
        firsts.append(draw(st.integers(begin + 1, end)))
    lasts = [*(one - 1 for one in firsts[1:]), end]
    return tuple(
        ShardAssignment(
            ShardId(f"g.0.{len(assigned) + number}"),
            HashRange(*ends_of),
            *draw(holders()),
            sources=sources,
        )
        for number, ends_of in enumerate(zip(firsts, lasts, strict=True))
    )


GALLERIES = st.builds(
    Gallery,
    st.just(GalleryName("staff")),
    IDS,
    st.integers(1, 1024),
    IDS,
    st.integers(1, 1024),
    st.integers(1, 5),
    COUNTS,
    st.just("") | SHA256,
    COUNTS,
    retrained_unix_ms=COUNTS,
)


@given(group=log_groups())
def test_log_objects(group: log.LogGroup) -> None:
    data = log.encode_log(group)
    assert log.decode_log(data) == group
    assert log.encode_log(log.decode_log(data)) == data


@given(value=segments())
def test_segments(value: segment.Segment) -> None:
    data = segment.encode_segment(value)
    assert segment.decode_segment(data) == value
    assert segment.encode_segment(segment.decode_segment(data)) == data


@given(value=manifests())
def test_manifests(value: manifest.Manifest) -> None:
    data = manifest.encode_manifest(value)
    assert manifest.decode_manifest(data) == value
    assert manifest.encode_manifest(manifest.decode_manifest(data)) == data


@given(value=codebooks())
def test_codebooks(value: codebook.CodebookArrays) -> None:
    data = codebook.encode_codebook(value)
    assert codebook.decode_codebook(data) == value
    assert codebook.encode_codebook(codebook.decode_codebook(data)) == data


@dataclass(frozen=True, slots=True)
class Codec:
    """A record in etcd: how it is made, encoded and decoded."""

    values: st.SearchStrategy[Any]
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]
    message: Any


CODECS = {
    "gallery": Codec(
        GALLERIES, records.encode_gallery, records.decode_gallery, storage_pb2.GalleryRecord
    ),
    "map": Codec(
        shard_maps(),
        records.encode_shard_map,
        records.decode_shard_map,
        storage_pb2.ShardMapRecord,
    ),
    "node": Codec(
        st.builds(NodeInfo, IDS.map(NodeId), IDS, IDS, IDS, IDS),
        records.encode_node,
        records.decode_node,
        storage_pb2.NodeRecord,
    ),
    "generation": Codec(
        st.builds(records.GenerationClaim, GENERATIONS, IDS.map(NodeId), IDS),
        records.encode_generation,
        records.decode_generation,
        storage_pb2.GenerationRecord,
    ),
    "tip": Codec(
        st.builds(records.Tip, log_refs()),
        records.encode_tip,
        records.decode_tip,
        storage_pb2.TipRecord,
    ),
    "manifest pointer": Codec(
        st.builds(records.ManifestPointer, SHA256, COUNTS, GENERATIONS),
        records.encode_manifest_pointer,
        records.decode_manifest_pointer,
        storage_pb2.ManifestPointer,
    ),
    "dropped": Codec(
        st.builds(
            records.Dropped,
            IDS.map(ShardId),
            IDS,
            st.lists(IDS.map(NodeId)).map(tuple),
            st.booleans(),
        ),
        records.encode_dropped,
        records.decode_dropped,
        storage_pb2.DroppedRecord,
    ),
}

SHARD_IDS = st.integers(0, 9999).map(lambda number: ShardId(f"g.0.{number:04d}"))
KINDS = st.one_of(
    st.builds(
        operations.Replicas,
        SHARD_IDS,
        st.lists(IDS.map(NodeId), min_size=1, max_size=5, unique=True).map(tuple),
    ),
    st.lists(SHARD_IDS, min_size=3, max_size=3, unique=True).flatmap(
        lambda ids: st.builds(
            operations.Split, st.just(ids[0]), st.integers(1, KEY_LAST), st.just((ids[1], ids[2]))
        )
    ),
    st.lists(SHARD_IDS, min_size=3, max_size=6, unique=True).map(
        lambda ids: operations.Merge(tuple(ids[1:]), ids[0])
    ),
)
CODECS |= {
    "operation": Codec(
        st.builds(
            operations.Operation,
            IDS,
            st.just(GalleryName("staff")),
            IDS,
            KINDS,
            st.sampled_from(operations.OperationState),
            IDS,
            IDS,
            IDS,
            COUNTS,
            COUNTS,
            st.lists(IDS.map(NodeId)).map(tuple),
            COUNTS,
            st.floats(0, 1e9),
        ),
        operations.encode_operation,
        operations.decode_operation,
        storage_pb2.OperationRecord,
    ),
    "operation lock": Codec(
        st.builds(operations.OperationLock, IDS),
        operations.encode_lock,
        operations.decode_lock,
        storage_pb2.OperationLock,
    ),
    "node mark": Codec(
        st.builds(operations.NodeMark, IDS.map(NodeId), st.booleans(), COUNTS),
        operations.encode_mark,
        operations.decode_mark,
        storage_pb2.NodeMark,
    ),
    "rebalancer": Codec(
        st.builds(
            operations.RebalancerSettings,
            st.booleans(),
            st.integers(1, 2**32 - 1),
            st.integers(0, 2**32 - 1),
        ),
        operations.encode_rebalancer,
        operations.decode_rebalancer,
        storage_pb2.RebalancerSettings,
    ),
}


@pytest.mark.parametrize("name", CODECS)
@given(data=st.data())
def test_records_in_etcd(name: str, data: st.DataObject) -> None:
    codec = CODECS[name]
    value = data.draw(codec.values)
    assert codec.decode(codec.encode(value)) == value


@pytest.mark.parametrize("name", CODECS)
@given(data=st.data())
def test_a_record_that_needs_an_unknown_feature_is_refused(name: str, data: st.DataObject) -> None:
    codec = CODECS[name]
    message = codec.message.FromString(codec.encode(data.draw(codec.values)))
    message.required_features.append("encrypted")
    with pytest.raises(CorruptError) as refused:
        codec.decode(message.SerializeToString())
    assert refused.value.reason == "FEATURE_UNKNOWN"


@given(
    kind=st.integers(0, 2**16 - 1),
    payload=st.binary(max_size=100).map(lambda part: part * 50),
    compress=st.sampled_from(["none", "lz4"]),
)
def test_frames(kind: int, payload: bytes, compress: Literal["none", "lz4"]) -> None:
    data = frame.encode_frame(kind, payload, compress=compress)
    assert len(data) % frame.ALIGNMENT == 0
    assert len(data) <= frame.HEADER_BYTES + len(payload) + frame.ALIGNMENT
    found = [(held.kind, bytes(held.payload)) for held in frame.decode_frames(data * 3)]
    assert found == [(kind, payload)] * 3


@pytest.mark.parametrize("size", [0, 1, 262_143, 262_144, 262_145, 3_000_000])
@pytest.mark.parametrize("noise", [0, 1, 256])
def test_large_frames_and_views_of_them(size: int, noise: int) -> None:
    payload = np.random.default_rng(1).integers(0, max(noise, 1), size, np.uint8).tobytes()
    for compress in ("none", "lz4"):
        data = frame.encode_frame(7, memoryview(payload), compress=compress)
        for held in (data, memoryview(data), memoryview(b"1" + data)[1:]):
            (one,) = frame.decode_frames(held)
            assert bytes(one.payload) == payload


def test_a_payload_longer_than_a_frame_is_refused() -> None:
    # Never touched, so it takes no memory.
    payload = np.zeros(limits.FRAME_BYTES_MAX + 1, np.uint8).data
    with pytest.raises(InvalidError) as refused:
        frame.encode_frame(1, payload, compress="none")
    assert refused.value.reason == "FRAME_TOO_LARGE"


@given(ref=log_refs(), other=log_refs())
def test_log_names_sort_in_the_order_written(ref: log.LogRef, other: log.LogRef) -> None:
    assume(max(ref.generation, other.generation) < 10**10)
    assume((ref.generation, ref.first_position) < (other.generation, other.first_position))
    assert log.log_name("g.0.0", ref) < log.log_name("g.0.0", other)
    parsed = log.parse_log_name(log.log_name("g.0.0", ref))
    assert parsed == (ref.generation, ref.first_position, ref.uuid)


def test_other_names_are_no_log_names() -> None:
    for name in ("", "shards/g.0.0/segments/aa", "shards/g.0.0/log/1-2-u", "log/1-2-u"):
        assert log.parse_log_name(name) is None


def test_arrays_decoded_from_a_segment_share_its_bytes() -> None:
    value = segment.Segment(
        ShardId("g"), 8, ["t"], ["s"], np.zeros(1, np.int32), np.ones((1, 8), np.int8)
    )
    data = segment.encode_segment(value)
    found = segment.decode_segment(data)
    whole = np.frombuffer(data, np.uint8)
    assert np.shares_memory(found.codes, whole)
    assert np.shares_memory(found.subject_rows, whole)
    assert not found.codes.flags.writeable
    assert found.subject_rows.flags.aligned
