"""Objects written by earlier versions decode to what they meant, and are written the same today.

The files in tests/golden/vN were written once, by the first release of frame version N, and are
never changed: a change of the format that breaks this test breaks stored galleries. To add files
for a new kind or version, name them in GOLDEN and run this module as a program; it overwrites
nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facegrid.format import (
    codebook,
    erasures,
    load_pin,
    log,
    manifest,
    operations,
    records,
    segment,
    snapshot,
    sources,
    stored_gallery,
)
from facegrid.ids import KEY_LAST, GalleryName, NodeId, ShardId
from facegrid.model import Gallery, HashRange, NodeInfo, ShardAssignment, ShardMap

FOLDER = Path(__file__).parent.parent / "golden" / "v1"

SHARD = ShardId("staff.1f00aa23.0003")
DIGEST = bytes(range(16))
CODES = np.array([[127, -127, 0, 1, -1, 64, -64, 2], [3, 127, -5, 7, -11, 13, -17, 19]], np.int8)
FIRST_REF = log.LogRef(1, 1, 3, "9c2f4f0e-0000-4000-8000-000000000001", "0f" * 32)


@dataclass(frozen=True, slots=True)
class Golden:
    """A committed file: the value in it, and how it is written and read."""

    value: Any
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


FIRST_GROUP = log.LogGroup(
    SHARD,
    1,
    None,
    [
        log.EnrolRecord(
            1, "request-1", DIGEST, 1_790_000_000_000, ["t-1", "t-2"], ["s-1", "s-ä"], CODES
        )
    ],
)
LATER_GROUP = log.LogGroup(
    SHARD,
    2,
    FIRST_REF,
    [
        log.EraseRecord(4, "request-4", DIGEST, 1_790_000_000_400, ["t-1"], ["s-1", "s-2"]),
        log.EnrolRecord(
            5,
            "request-5",
            DIGEST,
            1_790_000_000_500,
            [f"t-{number}" for number in range(20)],
            ["s-1"] * 20,
            np.tile(CODES[:1], (20, 1)),
            unchanged_count=7,
        ),
        log.EnrolRecord(
            6, "request-6", DIGEST, 1_790_000_000_600, [], [], np.zeros((0, 8), np.int8), 2
        ),
    ],
)
LOAD_GROUP = log.LogGroup(
    SHARD,
    2,
    FIRST_REF,
    [
        log.LoadRecord(
            4,
            "load-aaaaaaaa-0003",
            DIGEST,
            1_790_000_000_700,
            [
                log.LoadedSegment("cd" * 32, 10, np.arange(10) % 4 == 1),
                log.LoadedSegment("ef" * 32, 131_072),
            ],
        )
    ],
)
MIRRORED_GROUP = log.LogGroup(
    SHARD,
    2,
    FIRST_REF,
    [
        log.LoadRecord(
            4,
            "base0001aaaaaaaa",
            DIGEST,
            1_790_000_000_700,
            [log.LoadedSegment("cd" * 32, 10)],
            source=sources.SourcePosition(ShardId("staff.1f00aa23.0001"), 41),
        ),
        log.EraseRecord(
            5,
            "request-42",
            DIGEST,
            1_790_000_000_800,
            ["t-1"],
            [],
            source=sources.SourcePosition(ShardId("staff.1f00aa23.0001"), 42),
            within=HashRange(2**62, 2**63 - 1),
        ),
        log.EnrolRecord(
            6,
            "request-43",
            DIGEST,
            1_790_000_000_900,
            ["t-1"],
            ["s-1"],
            CODES[:1],
            source=sources.SourcePosition(ShardId("staff.1f00aa23.0001"), 45),
        ),
    ],
)
PLAIN_SEGMENT = segment.Segment(
    SHARD,
    8,
    ["t-1", "t-1", "t-2"],
    ["s-1", "s-ä"],
    np.array([0, 1, 0], np.int32),
    CODES[[0, 1, 1]],
)
INDEXED_SEGMENT = segment.Segment(
    SHARD,
    8,
    [f"template-{number}" for number in range(16)],
    ["subject-0", "subject-1"],
    (np.arange(16) % 2).astype(np.int32),
    np.tile(CODES, (8, 1)),
    "ab" * 32,
    np.arange(16, dtype=np.int32) * 1000,
    np.arange(16, dtype=np.uint8).reshape(16, 1) * 17,
)
LOADED_SEGMENT = segment.Segment(
    SHARD,
    8,
    ["t-1", "t-1", "t-2"],
    ["s-1", "s-ä"],
    np.array([0, 1, 0], np.int32),
    CODES[[0, 1, 1]],
    load_id="a" * 32,
)
MANIFEST = manifest.Manifest(
    shard_id=SHARD,
    range=HashRange(2**63, KEY_LAST),
    dim=8,
    position=3,
    generation=2,
    log=FIRST_REF,
    segments=(
        manifest.ManifestSegment("cd" * 32, 10, np.arange(10) % 3 == 0),
        manifest.ManifestSegment("ef" * 32, 8, np.zeros(8, np.bool_)),
    ),
    requests=(
        manifest.RememberedRequest("request-1", DIGEST, 1, enrolled_count=2, unchanged_count=1),
        manifest.RememberedRequest("request-2", DIGEST, 2, erased_count=4),
    ),
    digest=DIGEST,
    templates_count=14,
)
CODEBOOK = codebook.CodebookArrays(
    dim=8,
    nlist=3,
    pq_m=2,
    pq_bits=4,
    nprobe=2,
    rescore_factor=8,
    centroids=np.arange(24, dtype=np.float32).reshape(3, 8) / np.float32(32),
    pq=np.arange(128, dtype=np.float32).reshape(2, 16, 4) / np.float32(-256),
    sample_count=1000,
    seed=2**64 - 1,
)
EMPTY_MANIFEST = manifest.Manifest(
    shard_id=SHARD,
    range=HashRange(0, 0),
    dim=512,
    position=0,
    generation=1,
    log=None,
    segments=(),
    requests=(),
    digest=bytes(16),
    templates_count=0,
)
GALLERY = Gallery(
    name=GalleryName("staff"),
    uid="1f00aa23",
    dim=512,
    extractor="arcface-r100@1",
    shards_count=2,
    replicas_count=1,
    train_at_templates_count=262_144,
    codebook="ab" * 32,
    created_unix_ms=1_790_000_000_000,
)
SHARD_MAP = ShardMap(
    gallery=GalleryName("staff"),
    gallery_uid="1f00aa23",
    version=7,
    shards=(
        ShardAssignment(
            ShardId("staff.1f00aa23.0000"), HashRange(0, 2**63 - 1), (NodeId("n1"), NodeId("n2"))
        ),
        ShardAssignment(
            ShardId("staff.1f00aa23.0001"), HashRange(2**63, KEY_LAST), (NodeId("n2"),)
        ),
    ),
)
CHANGING_MAP = replace(
    SHARD_MAP,
    version=SHARD_MAP.version + 1,
    shards=(replace(SHARD_MAP.shards[0], joining=(NodeId("n9"),)), *SHARD_MAP.shards[1:]),
    pending=(
        ShardAssignment(
            ShardId("staff.1f00aa23.0007"),
            SHARD_MAP.shards[-1].range,
            (NodeId("n9"), NodeId("n1")),
            (NodeId("n8"),),
            sources=(SHARD_MAP.shards[-1].shard_id,),
        ),
    ),
    made_count=8,
)

FIRST_JOURNAL = erasures.ErasureJournal(
    "1f00aa23",
    SHARD,
    None,
    (
        erasures.erasure_of(
            "1f00aa23",
            log.EraseRecord(2, "request-2", DIGEST, 1_790_000_000_200, ["t-1"], ["s-1", "s-ä"]),
        ),
    ),
    3,
)
CLOSING_JOURNAL = erasures.ErasureJournal(
    "1f00aa23", SHARD, erasures.JournalRef(3, "0f" * 32), (), 7, closing=True
)
JOURNALLED_MANIFEST = replace(MANIFEST, journal=erasures.JournalRef(2, "0f" * 32))
MIRRORED_MANIFEST = replace(
    MANIFEST,
    sources=(
        sources.SourcePosition(ShardId("staff.1f00aa23.0001"), 45),
        sources.SourcePosition(ShardId("staff.1f00aa23.0002"), 2**40),
    ),
)
SNAPSHOT = snapshot.Snapshot(
    snapshot_id="20261125T150312Z-3f2a9c1e",
    gallery_uid="1f00aa23",
    created_unix_ms=1_790_000_000_000,
    cut_revision=42,
    records=(("galleries/staff", b"gallery"), ("map/staff", b"map")),
    objects=(
        snapshot.SnapshotObject(f"shards/{SHARD}/manifests/{'cd' * 32}", "cd" * 32, 1000),
        snapshot.SnapshotObject(f"shards/{SHARD}/segments/{'ef' * 32}", "ef" * 32, 2**31),
    ),
    templates_count_max=14,
)
REPLICAS = operations.Operation(
    operation_id="op-1",
    gallery=GalleryName("staff"),
    gallery_uid="1f00aa23",
    kind=operations.Replicas(SHARD, (NodeId("n2"), NodeId("n3"))),
    state=operations.OperationState.RUNNING,
    step="verify",
    cause="n1 is drained",
    note="waits for the copy to load node=n3",
    created_unix_ms=1_790_000_000_000,
    step_unix_ms=1_790_000_001_000,
    former_node_ids=(NodeId("n1"), NodeId("n2")),
    planned_bytes=2**31,
    planned_s=62.5,
)

GOLDEN = {
    "erasure-journal.bin": Golden(FIRST_JOURNAL, erasures.encode_journal, erasures.decode_journal),
    "erasure-journal-closing.bin": Golden(
        CLOSING_JOURNAL, erasures.encode_journal, erasures.decode_journal
    ),
    "manifest-journal.bin": Golden(
        JOURNALLED_MANIFEST, manifest.encode_manifest, manifest.decode_manifest
    ),
    "snapshot.bin": Golden(SNAPSHOT, snapshot.encode_snapshot, snapshot.decode_snapshot),
    "repository-mark.bin": Golden(
        snapshot.RepositoryMark("20261125T150312Z-3f2a9c1e", 1_790_000_000_000),
        snapshot.encode_mark,
        snapshot.decode_mark,
    ),
    "log-first.bin": Golden(FIRST_GROUP, log.encode_log, log.decode_log),
    "log-later.bin": Golden(LATER_GROUP, log.encode_log, log.decode_log),
    "log-load.bin": Golden(LOAD_GROUP, log.encode_log, log.decode_log),
    "log-mirrored.bin": Golden(MIRRORED_GROUP, log.encode_log, log.decode_log),
    "manifest-mirrored.bin": Golden(
        MIRRORED_MANIFEST, manifest.encode_manifest, manifest.decode_manifest
    ),
    "load-pin.bin": Golden(
        load_pin.LoadPin(SHARD, "a" * 32, "cd" * 32), load_pin.encode_pin, load_pin.decode_pin
    ),
    "segment-loaded.bin": Golden(LOADED_SEGMENT, segment.encode_segment, segment.decode_segment),
    "segment-plain.bin": Golden(PLAIN_SEGMENT, segment.encode_segment, segment.decode_segment),
    "segment-indexed.bin": Golden(INDEXED_SEGMENT, segment.encode_segment, segment.decode_segment),
    "manifest.bin": Golden(MANIFEST, manifest.encode_manifest, manifest.decode_manifest),
    "manifest-empty.bin": Golden(
        EMPTY_MANIFEST, manifest.encode_manifest, manifest.decode_manifest
    ),
    "codebook.bin": Golden(CODEBOOK, codebook.encode_codebook, codebook.decode_codebook),
    "stored-gallery.bin": Golden(
        stored_gallery.StoredGallery(GALLERY, SHARD_MAP),
        stored_gallery.encode_stored_gallery,
        stored_gallery.decode_stored_gallery,
    ),
    "etcd-gallery.bin": Golden(GALLERY, records.encode_gallery, records.decode_gallery),
    "etcd-map.bin": Golden(SHARD_MAP, records.encode_shard_map, records.decode_shard_map),
    "etcd-map-changing.bin": Golden(
        CHANGING_MAP, records.encode_shard_map, records.decode_shard_map
    ),
    "etcd-node.bin": Golden(
        NodeInfo(NodeId("n1"), "b-1", "10.0.0.1:7401", "0.1.0", "rack-1"),
        records.encode_node,
        records.decode_node,
    ),
    "etcd-generation.bin": Golden(
        records.GenerationClaim(3, NodeId("n1"), "b-1"),
        records.encode_generation,
        records.decode_generation,
    ),
    "etcd-tip.bin": Golden(records.Tip(FIRST_REF), records.encode_tip, records.decode_tip),
    "etcd-manifest-pointer.bin": Golden(
        records.ManifestPointer("cd" * 32, 3, 2),
        records.encode_manifest_pointer,
        records.decode_manifest_pointer,
    ),
    "etcd-dropped.bin": Golden(
        records.Dropped(SHARD, "1f00aa23", (NodeId("n1"), NodeId("n2"))),
        records.encode_dropped,
        records.decode_dropped,
    ),
    "etcd-operation-replicas.bin": Golden(
        REPLICAS, operations.encode_operation, operations.decode_operation
    ),
    "etcd-operation-split.bin": Golden(
        replace(
            REPLICAS,
            kind=operations.Split(SHARD, 2**62, (ShardId("a.0.0004"), ShardId("a.0.0005"))),
            state=operations.OperationState.ABORTED,
            step="fill",
        ),
        operations.encode_operation,
        operations.decode_operation,
    ),
    "etcd-operation-merge.bin": Golden(
        replace(
            REPLICAS,
            kind=operations.Merge((SHARD, ShardId("a.0.0004")), ShardId("a.0.0005")),
            state=operations.OperationState.DONE,
            step="drop",
        ),
        operations.encode_operation,
        operations.decode_operation,
    ),
    "etcd-operation-lock.bin": Golden(
        operations.OperationLock("op-1"), operations.encode_lock, operations.decode_lock
    ),
    "etcd-node-mark.bin": Golden(
        operations.NodeMark(NodeId("n1"), draining=True, marked_unix_ms=1_790_000_000_000),
        operations.encode_mark,
        operations.decode_mark,
    ),
    "etcd-rebalancer.bin": Golden(
        operations.RebalancerSettings(automatic=True, at_once_max=3, p99_limit_ms=250),
        operations.encode_rebalancer,
        operations.decode_rebalancer,
    ),
    "etcd-gallery-coarse.bin": Golden(
        replace(GALLERY, component_bits=4),
        records.encode_gallery,
        records.decode_gallery,
    ),
    "etcd-dropped-alone.bin": Golden(
        records.Dropped(SHARD, "1f00aa23", (NodeId("n1"),), gallery_lives=True),
        records.encode_dropped,
        records.decode_dropped,
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_stored_object_still_means_the_same(name: str) -> None:
    golden = GOLDEN[name]
    assert golden.decode((FOLDER / name).read_bytes()) == golden.value


@pytest.mark.parametrize("name", GOLDEN)
def test_it_is_still_written_byte_for_byte_the_same(name: str) -> None:
    golden = GOLDEN[name]
    assert golden.encode(golden.value) == (FOLDER / name).read_bytes()


def test_every_golden_file_is_tested() -> None:
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(GOLDEN)


def write_missing() -> None:
    """Write the golden files that are not there."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, golden in GOLDEN.items():
        if not (FOLDER / name).exists():
            (FOLDER / name).write_bytes(golden.encode(golden.value))


if __name__ == "__main__":
    write_missing()
