"""Snapshots of galleries, as a snapshot repository keeps them.

A descriptor is one frame of kind SNAPSHOT: what etcd said of a gallery at one revision, and every
object of the cluster's store that this needs, by name, sha256 and size. The objects themselves lie
in the repository under their sha256 alone, so snapshots share what they have in common.

A mark is one frame of kind REPOSITORY_MARK: whoever makes or deletes a snapshot leaves one while
at work, so that nobody deletes what another is about to refer to.
"""

import re
from dataclasses import dataclass
from typing import Final

from facegrid import limits
from facegrid.api.storage.v1 import storage_pb2
from facegrid.format.checks import Buffer, parse, require, serialized, sha256_problem
from facegrid.format.frame import Kind, encode_frame, expect_frames
from facegrid.ids import ShardId

SNAPSHOTS: Final = "snapshots/"
OBJECTS: Final = "objects/"
PENDING: Final = "pending/"
DELETING: Final = "deleting/"

SNAPSHOT_RAW_BYTES_MAX: Final = 512 * limits.MIB
"""Room for two million objects."""
MARK_RAW_BYTES_MAX: Final = 4096

_WHAT: Final = "snapshot"
_MARK_WHAT: Final = "repository mark"
_ID: Final = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")
_NAME: Final = re.compile(r"snapshots/([^/]+)/(\d{8}T\d{6}Z-[0-9a-f]{8})-([0-9a-f]{64})")
_OBJECT: Final = re.compile(r"objects/([0-9a-f]{64})")
_MARK: Final = re.compile(r"(?:pending|deleting)/(\d{8}T\d{6}Z-[0-9a-f]{8})-([0-9a-f]{8})")


@dataclass(frozen=True, slots=True, order=True)
class SnapshotObject:
    """An object that a snapshot needs: its name in the cluster's store, sha256 in hex, size."""

    name: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A descriptor.

    Attributes:
        snapshot_id: when it was begun and eight random digits, `20261125T150312Z-3f2a9c1e`.
        created_unix_ms: when the cut was read.
        cut_revision: of etcd; all records are as of this revision.
        records: keys without the cluster's prefix, and their values, sorted.
        objects: sorted by name.
        templates_count_max: templates in the manifests and enrolments in the log behind them: the
            snapshot has no more than that, and fewer by what the log erased.
        pending: shards that were being filled from others at the cut, sorted; none is in it.
    """

    snapshot_id: str
    gallery_uid: str
    created_unix_ms: int
    cut_revision: int
    records: tuple[tuple[str, bytes], ...]
    objects: tuple[SnapshotObject, ...]
    templates_count_max: int
    pending: tuple[ShardId, ...] = ()


@dataclass(frozen=True, slots=True)
class RepositoryMark:
    """Somebody is making or deleting this snapshot, since that time."""

    snapshot_id: str
    begun_unix_ms: int


def is_snapshot_id(text: str) -> bool:
    """Tell whether a text has the form of a snapshot's id."""
    return _ID.fullmatch(text) is not None


def object_name(sha256: str) -> str:
    """Return where a repository keeps the object with this sha256 in hex."""
    return OBJECTS + sha256


def snapshot_name(gallery_uid: str, snapshot_id: str, sha256: str) -> str:
    """Return where a repository keeps the descriptor with this sha256 in hex."""
    return f"{SNAPSHOTS}{gallery_uid}/{snapshot_id}-{sha256}"


def parse_snapshot_name(name: str) -> tuple[str, str] | None:
    """Return the gallery's uid and the snapshot's id; None for names of other objects."""
    found = _NAME.fullmatch(name)
    return (found[1], found[2]) if found else None


def parse_object_name(name: str) -> str | None:
    """Return the sha256 of an object's name; None for names of others."""
    found = _OBJECT.fullmatch(name)
    return found[1] if found else None


def mark_name(prefix: str, snapshot_id: str, unique: str) -> str:
    """Return the name of a mark: PENDING or DELETING, the snapshot, and eight random digits."""
    return f"{prefix}{snapshot_id}-{unique}"


def parse_mark_name(name: str) -> str | None:
    """Return the snapshot's id of a mark's name; None for names of other objects."""
    found = _MARK.fullmatch(name)
    return found[1] if found else None


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """Return a descriptor's bytes."""
    problem = snapshot_problem(snapshot)
    assert not problem, problem
    message = storage_pb2.Snapshot(
        snapshot_id=snapshot.snapshot_id,
        gallery_uid=snapshot.gallery_uid,
        created_unix_ms=snapshot.created_unix_ms,
        cut_revision=snapshot.cut_revision,
        records=[
            storage_pb2.Snapshot.Record(key=key, value=value) for key, value in snapshot.records
        ],
        objects=[
            storage_pb2.Snapshot.Object(
                name=one.name, sha256=bytes.fromhex(one.sha256), size_bytes=one.size_bytes
            )
            for one in snapshot.objects
        ],
        templates_count_max=snapshot.templates_count_max,
        pending_shard_ids=snapshot.pending,
    )
    return encode_frame(Kind.SNAPSHOT, serialized(message), compress="lz4")


def decode_snapshot(data: Buffer) -> Snapshot:
    """Return what a descriptor says.

    Raises:
        CorruptError: damaged, or made by a version that writes what this one cannot read.
    """
    kinds = [Kind.SNAPSHOT]
    (payload,) = expect_frames(data, kinds, what=_WHAT, raw_bytes_max=SNAPSHOT_RAW_BYTES_MAX)
    message = parse(storage_pb2.Snapshot(), payload, what=_WHAT)
    snapshot = Snapshot(
        snapshot_id=message.snapshot_id,
        gallery_uid=message.gallery_uid,
        created_unix_ms=message.created_unix_ms,
        cut_revision=message.cut_revision,
        records=tuple((record.key, record.value) for record in message.records),
        objects=tuple(
            SnapshotObject(one.name, one.sha256.hex(), one.size_bytes) for one in message.objects
        ),
        templates_count_max=message.templates_count_max,
        pending=tuple(map(ShardId, message.pending_shard_ids)),
    )
    problem = snapshot_problem(snapshot)
    require(not problem, _WHAT, problem)
    return snapshot


def snapshot_problem(snapshot: Snapshot) -> str:
    """Say what is wrong with a descriptor; empty when nothing is."""
    if not is_snapshot_id(snapshot.snapshot_id) or not snapshot.gallery_uid:
        return f"ids snapshot={snapshot.snapshot_id!r} gallery={snapshot.gallery_uid!r}"
    keys = [key for key, _ in snapshot.records]
    if not keys or keys != sorted(set(keys)):
        return "records are missing, or not in order"
    names = [one.name for one in snapshot.objects]
    if names != sorted(set(names)):
        return "objects are not in order"
    for one in snapshot.objects:
        problem = sha256_problem(one.sha256)
        if problem or one.size_bytes < 0:
            return problem or f"size_bytes={one.size_bytes}"
    return ""


def encode_mark(mark: RepositoryMark) -> bytes:
    """Return a mark's bytes."""
    message = storage_pb2.RepositoryMark(
        snapshot_id=mark.snapshot_id, begun_unix_ms=mark.begun_unix_ms
    )
    return encode_frame(Kind.REPOSITORY_MARK, serialized(message), compress="none")


def decode_mark(data: Buffer) -> RepositoryMark:
    """Return what a mark says.

    Raises:
        CorruptError: damaged, or made by a version that writes what this one cannot read.
    """
    kinds = [Kind.REPOSITORY_MARK]
    (payload,) = expect_frames(data, kinds, what=_MARK_WHAT, raw_bytes_max=MARK_RAW_BYTES_MAX)
    message = parse(storage_pb2.RepositoryMark(), payload, what=_MARK_WHAT)
    require(is_snapshot_id(message.snapshot_id), _MARK_WHAT, "it names no snapshot")
    return RepositoryMark(message.snapshot_id, message.begun_unix_ms)
