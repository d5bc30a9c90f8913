"""Nothing damaged is ever decoded: all bits and all lengths of small objects are tried."""

import contextlib
import struct
from collections.abc import Callable
from dataclasses import dataclass

import lz4.frame
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facegrid.errors import CorruptError
from facegrid.format import (
    codebook,
    erasures,
    frame,
    load_pin,
    log,
    manifest,
    records,
    segment,
    snapshot,
    stored_gallery,
)
from facegrid.ids import KEY_LAST, GalleryName, NodeId, ShardId
from facegrid.model import Gallery, HashRange, ShardAssignment, ShardMap

DIGEST = bytes(range(16))
REF = log.LogRef(1, 1, 4, "0b9f", "5e" * 32)


@dataclass(frozen=True, slots=True)
class Sample:
    """A small object and what decodes it."""

    data: bytes
    decode: Callable[[bytes], object]


def small_log() -> bytes:
    enrol = log.EnrolRecord(
        5, "r-1", DIGEST, 7, ["t1"] * 40, ["s1"] * 40, np.ones((40, 8), np.int8), 1
    )
    erase = log.EraseRecord(6, "r-2", DIGEST, 8, ["t1"], [])
    return log.encode_log(log.LogGroup(ShardId("g.0.0"), 2, REF, [enrol, erase]))


def small_load() -> bytes:
    loaded = [
        log.LoadedSegment("5e" * 32, 3, np.array([False, True, False])),
        log.LoadedSegment("6e" * 32, 70),
    ]
    load = log.LoadRecord(5, "r-1", DIGEST, 7, loaded)
    return log.encode_log(log.LogGroup(ShardId("g.0.0"), 2, REF, [load]))


def small_pin() -> bytes:
    return load_pin.encode_pin(load_pin.LoadPin(ShardId("g.0.0"), "a" * 32, "5e" * 32))


def small_segment() -> bytes:
    return segment.encode_segment(
        segment.Segment(
            ShardId("g.0.0"),
            8,
            ["t1", "t2", "t3"],
            ["s1", "s2"],
            np.array([0, 1, 1], np.int32),
            np.arange(24, dtype=np.int8).reshape(3, 8),
            "ab" * 32,
            np.array([0, 5, 2], np.int32),
            np.arange(3, dtype=np.uint8).reshape(3, 1),
        )
    )


def small_manifest() -> bytes:
    held = manifest.ManifestSegment("cd" * 32, 3, np.array([True, False, False]))
    done = manifest.RememberedRequest("r-1", DIGEST, 4, 3, 0, 0)
    return manifest.encode_manifest(
        manifest.Manifest(
            ShardId("g.0.0"), HashRange(0, KEY_LAST), 8, 4, 1, REF, (held,), (done,), DIGEST, 2
        )
    )


def small_codebook() -> bytes:
    return codebook.encode_codebook(
        codebook.CodebookArrays(
            4, 2, 1, 1, 1, 4, np.ones((2, 4), np.float32), np.ones((1, 2, 4), np.float32), 10, 3
        )
    )


def small_gallery() -> bytes:
    gallery = Gallery(GalleryName("g"), "0", 8, "x@1", 1, 1, 0)
    shard = ShardAssignment(ShardId("g.0.0"), HashRange(0, KEY_LAST), (NodeId("n"),))
    shard_map = ShardMap(gallery.name, gallery.uid, 1, (shard,))
    return stored_gallery.encode_stored_gallery(stored_gallery.StoredGallery(gallery, shard_map))


SNAPSHOT_ID = "20261125T150312Z-3f2a9c1e"


def small_journal() -> bytes:
    erased = log.EraseRecord(6, "r-2", DIGEST, 8, ["t1"], ["s1"])
    journal = erasures.ErasureJournal(
        "0",
        ShardId("g.0.0"),
        erasures.JournalRef(4, "5e" * 32),
        (erasures.erasure_of("0", erased),),
        7,
    )
    return erasures.encode_journal(journal)


def small_snapshot() -> bytes:
    held = snapshot.SnapshotObject("shards/g.0.0/segments/" + "cd" * 32, "cd" * 32, 100)
    return snapshot.encode_snapshot(
        snapshot.Snapshot(SNAPSHOT_ID, "0", 7, 9, (("galleries/g", b"g"),), (held,), 3)
    )


OBJECTS = {
    "log": Sample(small_log(), log.decode_log),
    "load": Sample(small_load(), log.decode_log),
    "pin": Sample(small_pin(), load_pin.decode_pin),
    "segment": Sample(small_segment(), segment.decode_segment),
    "manifest": Sample(small_manifest(), manifest.decode_manifest),
    "gallery": Sample(small_gallery(), stored_gallery.decode_stored_gallery),
    "codebook": Sample(small_codebook(), codebook.decode_codebook),
    "erasure journal": Sample(small_journal(), erasures.decode_journal),
    "snapshot": Sample(small_snapshot(), snapshot.decode_snapshot),
    "mark": Sample(
        snapshot.encode_mark(snapshot.RepositoryMark(SNAPSHOT_ID, 7)), snapshot.decode_mark
    ),
}
DECODERS: list[Callable[[bytes], object]] = [
    frame.decode_frames,
    *(sample.decode for sample in OBJECTS.values()),
    records.decode_gallery,
    records.decode_shard_map,
    records.decode_node,
    records.decode_generation,
    records.decode_tip,
    records.decode_manifest_pointer,
    records.decode_dropped,
]


@pytest.mark.parametrize("name", OBJECTS)
def test_every_flipped_bit_is_noticed(name: str) -> None:
    sample = OBJECTS[name]
    sample.decode(sample.data)
    for bit in range(8 * len(sample.data)):
        damaged = bytearray(sample.data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptError):
            sample.decode(bytes(damaged))


@pytest.mark.parametrize("name", OBJECTS)
def test_every_truncation_is_noticed(name: str) -> None:
    sample = OBJECTS[name]
    for length in range(len(sample.data)):
        with pytest.raises(CorruptError):
            sample.decode(sample.data[:length])


@pytest.mark.parametrize("name", OBJECTS)
def test_anything_that_follows_is_noticed(name: str) -> None:
    sample = OBJECTS[name]
    for extra in (b"\0", bytes(24), sample.data, frame.encode_frame(99, b"", compress="none")):
        with pytest.raises(CorruptError):
            sample.decode(sample.data + extra)


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("other", OBJECTS)
def test_an_object_is_never_taken_for_one_of_another_kind(name: str, other: str) -> None:
    if OBJECTS[name].decode != OBJECTS[other].decode:
        with pytest.raises(CorruptError):
            OBJECTS[name].decode(OBJECTS[other].data)


@pytest.mark.parametrize("decode", DECODERS, ids=lambda decode: decode.__name__)
@given(data=st.binary(max_size=200))
def test_random_bytes_are_decoded_or_refused_and_nothing_else(
    decode: Callable[[bytes], object], data: bytes
) -> None:
    with contextlib.suppress(CorruptError):
        decode(data)


KINDS = st.sampled_from(list(frame.Kind))


@pytest.mark.parametrize("decode", DECODERS[1:5], ids=lambda decode: decode.__name__)
@given(frames=st.lists(st.tuples(KINDS, st.binary(max_size=60)), max_size=6))
def test_whole_frames_of_random_bytes_are_decoded_or_refused_and_nothing_else(
    decode: Callable[[bytes], object], frames: list[tuple[int, bytes]]
) -> None:
    data = b"".join(frame.encode_frame(kind, raw, compress="none") for kind, raw in frames)
    with contextlib.suppress(CorruptError):
        decode(data)


@pytest.mark.parametrize("name", OBJECTS)
@given(data=st.data())
def test_payloads_damaged_before_they_were_framed_are_decoded_or_refused_and_nothing_else(
    name: str, data: st.DataObject
) -> None:
    sample = OBJECTS[name]
    pieces = []
    for held in frame.decode_frames(sample.data):
        payload = bytearray(held.payload)
        for _ in range(data.draw(st.integers(0, 2))):
            if payload:
                at = data.draw(st.integers(0, len(payload) - 1))
                payload[at] = data.draw(st.integers(0, 255))
        pieces.append(frame.encode_frame(held.kind, bytes(payload), compress="none"))
    with contextlib.suppress(CorruptError):
        sample.decode(b"".join(pieces))


def forged(
    stored: bytes, *, raw_bytes: int, flags: int = frame.FLAG_LZ4, version: int = 1
) -> bytes:
    """Return a frame whose checksums hold, whatever its header claims."""
    head = struct.pack(
        "<4sBBHIII", b"FGRD", version, flags, 1, len(stored), raw_bytes, frame.crc32c(stored)
    )
    return head + struct.pack("<I", frame.crc32c(head)) + stored + bytes(-len(stored) % 8)


BOMB = lz4.frame.compress(bytes(64 << 20), store_size=False)


def reason(data: bytes, *, raw_bytes_max: int = 2**31 - 1) -> str:
    with pytest.raises(CorruptError) as refused:
        frame.decode_frames(data, raw_bytes_max=raw_bytes_max)
    return refused.value.reason


def test_a_bomb_that_hides_its_size_stops_at_the_size_it_claims() -> None:
    assert reason(forged(BOMB, raw_bytes=1000)) == "CORRUPT"


def test_a_bomb_that_admits_its_size_is_refused_unread() -> None:
    assert reason(forged(BOMB, raw_bytes=64 << 20), raw_bytes_max=1 << 20) == "FRAME_TOO_LARGE"


def test_a_claim_that_lz4_could_not_hold_is_refused_unread() -> None:
    stored = lz4.frame.compress(b"x", store_size=False)
    assert reason(forged(stored, raw_bytes=2**31 - 1)) == "LZ4_BOMB"


def test_a_log_object_may_not_unpack_to_more_than_a_log_object_can_hold() -> None:
    data = forged(BOMB, raw_bytes=64 << 20)
    assert log.LOG_RAW_BYTES_MAX < 64 << 20
    with pytest.raises(CorruptError) as refused:
        log.decode_log(data)
    assert refused.value.reason == "FRAME_TOO_LARGE"


@pytest.mark.parametrize(
    "stored",
    [
        lz4.frame.compress(b"x" * 1000)[:-4],
        lz4.frame.compress(b"x" * 1000) + b"more",
        lz4.frame.compress(b"x" * 999),
        lz4.frame.compress(b"x" * 1001),
        lz4.frame.compress(b"x" * 500) + lz4.frame.compress(b"x" * 500),
        b"no lz4 frame at all",
        b"",
    ],
)
def test_what_is_not_exactly_one_lz4_frame_of_the_claimed_length_is_refused(stored: bytes) -> None:
    assert reason(forged(stored, raw_bytes=1000)) in {"CORRUPT", "LZ4_BOMB"}


def test_something_behind_a_large_lz4_frame_is_refused() -> None:
    raw = np.random.default_rng(1).integers(0, 256, 300_000, np.uint8).tobytes()
    stored = lz4.frame.compress(raw)
    assert bytes(frame.decode_frames(forged(stored, raw_bytes=len(raw)))[0].payload) == raw
    assert reason(forged(stored + bytes(300_000), raw_bytes=len(raw))) == "CORRUPT"


@pytest.mark.parametrize("flags", [2, 4, 0x80, 3])
def test_an_unknown_flag_is_refused(flags: int) -> None:
    assert reason(forged(b"x", raw_bytes=1, flags=flags)) == "FLAG_UNKNOWN"


@pytest.mark.parametrize("version", [0, 2, 255])
def test_an_unknown_version_is_refused(version: int) -> None:
    assert reason(forged(b"x", raw_bytes=1, flags=0, version=version)) == "VERSION_UNKNOWN"


def test_an_error_says_where() -> None:
    good = frame.encode_frame(1, b"12345678", compress="none")
    with pytest.raises(CorruptError) as refused:
        frame.decode_frames(good + good[:-1])
    assert refused.value.facts == {"offset": str(len(good)), "what": "frame"}
