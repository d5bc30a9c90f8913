"""A store of a few small objects made with the real encoders: two shards and a codebook.

Shard 0: a manifest at position 2 with one segment of three rows, one of them erased, and the
journal of that erasure; a log of two objects behind it, at positions 3 (enrol) and 4 (erase); and
what a zombie left at position 3.
Shard 1: a log of two objects from the beginning.
"""

from dataclasses import dataclass, replace

import numpy as np

from facegrid.coord import keys
from facegrid.format import digest as digests
from facegrid.format.checks import sha256_hex
from facegrid.format.codebook import CodebookArrays, codebook_name, encode_codebook
from facegrid.format.erasures import erasure_of, journal_objects
from facegrid.format.log import (
    EnrolRecord,
    EraseRecord,
    LogGroup,
    LogRecord,
    LogRef,
    encode_log,
    log_name,
    log_ref,
)
from facegrid.format.manifest import (
    Manifest,
    ManifestSegment,
    RememberedRequest,
    encode_manifest,
    manifest_name,
)
from facegrid.format.records import (
    GenerationClaim,
    ManifestPointer,
    Tip,
    encode_gallery,
    encode_generation,
    encode_manifest_pointer,
    encode_shard_map,
    encode_tip,
)
from facegrid.format.segment import Segment, encode_segment, segment_name
from facegrid.format.stored_gallery import (
    StoredGallery,
    encode_stored_gallery,
    stored_gallery_name,
)
from facegrid.ids import KEY_LAST, GalleryName, NodeId, ShardId
from facegrid.model import Gallery, HashRange, ShardAssignment, ShardMap
from facegrid.testing.fake_tuning import exact_tuning
from facegrid.testing.memory_blob import MemoryBlobStore
from facegrid.tuning import Profile
from fgctl.meta_file import Meta

DIM = 8
UID = "1f00aa23"
FIRST, SECOND = ShardId(f"g.{UID}.0000"), ShardId(f"g.{UID}.0001")
RANGES = (HashRange(0, 2**63 - 1), HashRange(2**63, KEY_LAST))
TRIMMED = LogRef(1, 1, 2, "u0", "5e" * 32)
"""The log object that the manifest covers, deleted since."""


@dataclass(frozen=True, slots=True)
class Small:
    """The store, what etcd says of it and said before the last writes, and names of objects."""

    store: MemoryBlobStore
    meta: Meta
    earlier: Meta
    segment: str
    manifest: str
    codebook: str
    journal: str
    record: str
    enrol: str
    erase: str
    zombie: str
    second: tuple[str, str]
    tips: tuple[LogRef, LogRef]
    pointer: ManifestPointer


def codes(*numbers: int) -> np.ndarray[tuple[int, int], np.dtype[np.int8]]:
    """Rows that differ."""
    return np.array([[number, *range(1, DIM)] for number in numbers], np.int8)


def enrol(position: int, number: int) -> EnrolRecord:
    """A record of one row."""
    return EnrolRecord(
        position, f"r-{position}", bytes(16), 1000 * position, [f"t-{number}"],
        [f"s-{number}"], codes(number),
    )  # fmt: skip


def erase(position: int, *, template_ids: list[str], subject_ids: list[str]) -> EraseRecord:
    """A record that erases."""
    return EraseRecord(
        position, f"r-{position}", bytes(16), 1000 * position, template_ids, subject_ids
    )


def add_log(
    store: MemoryBlobStore,
    shard_id: ShardId,
    before: LogRef | None,
    records: list[LogRecord],
    *,
    generation: int,
    uuid: str,
) -> LogRef:
    """Store a log object and return what names it."""
    group = LogGroup(shard_id, generation, before, records)
    data = encode_log(group)
    ref = log_ref(group, uuid, data)
    store.objects[log_name(shard_id, ref)] = data
    return ref


def small_store() -> Small:
    """Return the store."""
    store = MemoryBlobStore()
    book = encode_codebook(
        CodebookArrays(
            DIM, 1, 2, 1, 1, 4, np.ones((1, DIM), np.float32), np.ones((2, 2, 4), np.float32), 9, 3
        )
    )
    book_sha256 = sha256_hex(book)
    store.objects[codebook_name(UID, book_sha256)] = book
    data = encode_stored_gallery(stored := StoredGallery(gallery(book_sha256), shard_map()))
    record = stored_gallery_name(stored, sha256_hex(data))
    store.objects[record] = data
    segment, manifest, journal = _flushed(store, book_sha256)
    third = add_log(store, FIRST, TRIMMED, [enrol(3, 3)], generation=2, uuid="u3")
    doomed = erase(4, template_ids=["t-3"], subject_ids=["s-1"])
    fourth = add_log(store, FIRST, third, [doomed], generation=2, uuid="u4")
    zombie = add_log(store, FIRST, TRIMMED, [enrol(3, 9)], generation=1, uuid="zombie")
    one = add_log(store, SECOND, None, [enrol(1, 5)], generation=1, uuid="v1")
    two = add_log(store, SECOND, one, [enrol(2, 6)], generation=1, uuid="v2")
    pointer = ManifestPointer(manifest.rsplit("/", 1)[1], 2, 1)
    values = {
        keys.gallery(GalleryName("g")): encode_gallery(gallery(book_sha256)),
        keys.shard_map(GalleryName("g")): encode_shard_map(shard_map()),
        keys.generation(FIRST): encode_generation(GenerationClaim(2, NodeId("n1"), "b2")),
        keys.generation(SECOND): encode_generation(GenerationClaim(1, NodeId("n1"), "b1")),
        keys.manifest(FIRST): encode_manifest_pointer(pointer),
        keys.tip(FIRST): encode_tip(Tip(fourth)),
        keys.tip(SECOND): encode_tip(Tip(two)),
    }
    earlier = {keys.tip(FIRST): encode_tip(Tip(third)), keys.tip(SECOND): encode_tip(Tip(one))}
    return Small(
        store=store,
        meta=Meta(revision=7, saved_unix_ms=1, values=values),
        earlier=Meta(revision=6, saved_unix_ms=1, values={**values, **earlier}),
        segment=segment,
        manifest=manifest,
        codebook=codebook_name(UID, book_sha256),
        journal=journal,
        record=record,
        enrol=log_name(FIRST, third),
        erase=log_name(FIRST, fourth),
        zombie=log_name(FIRST, zombie),
        second=(log_name(SECOND, one), log_name(SECOND, two)),
        tips=(fourth, two),
        pointer=pointer,
    )


def gallery(codebook: str) -> Gallery:
    """Return the settings of the gallery."""
    plain = Gallery(GalleryName("g"), UID, DIM, "x@1", 2, 1, 0, codebook)
    return replace(
        plain,
        profile=Profile.FAST,
        miss_rate_max=0.01,
        tuning=exact_tuning(plain, mates_count_max=0),
    )


def shard_map() -> ShardMap:
    """Return the map of the gallery."""
    shards = zip((FIRST, SECOND), RANGES, strict=True)
    return ShardMap(
        GalleryName("g"), UID, 1, tuple(ShardAssignment(*one, (NodeId("n1"),)) for one in shards)
    )


def _flushed(store: MemoryBlobStore, codebook: str) -> tuple[str, str, str]:
    """Store the first shard's segment, manifest and journal; return their names."""
    ids = [("s-0", "t-0"), ("s-1", "t-1"), ("s-1", "t-2")]
    rows = codes(0, 1, 2)
    data = encode_segment(
        Segment(
            FIRST, DIM, [t for _, t in ids], ["s-0", "s-1"], np.array([0, 1, 1], np.int32), rows,
            codebook, np.zeros(3, np.int32), np.zeros((3, 1), np.uint8),
        )
    )  # fmt: skip
    sha256 = sha256_hex(data)
    store.objects[segment_name(FIRST, sha256)] = data
    digest = 0
    for (subject_id, template_id), row in zip(ids[1:], rows[1:], strict=True):
        one = digests.row_digest(subject_id, template_id, row.tobytes())
        digest = digests.add(digest, one)
    gone = erasure_of(UID, erase(2, template_ids=[], subject_ids=["s-0"]))
    (journal,) = journal_objects(FIRST, None, [gone], last_position=2)
    store.objects[journal.name] = journal.data
    manifest = encode_manifest(
        Manifest(
            FIRST, RANGES[0], DIM, 2, 1, TRIMMED,
            (ManifestSegment(sha256, 3, np.array([True, False, False])),),
            (RememberedRequest("r-1", bytes(16), 1, 3),), digests.to_bytes(digest), 2,
            journal.ref,
        )
    )  # fmt: skip
    name = manifest_name(FIRST, sha256_hex(manifest))
    store.objects[name] = manifest
    return segment_name(FIRST, sha256), name, journal.name
