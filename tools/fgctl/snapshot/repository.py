"""A snapshot repository: descriptors, the objects they share, and marks of who is at work.

It is an object store like any other. Nothing in it is ever overwritten; a descriptor is written
when all its objects are there, and deleted before any of them.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from facegrid.blob.port import BlobStore
from facegrid.blob.reader import BlobReader
from facegrid.clock import Clock
from facegrid.errors import (
    ConflictError,
    CorruptError,
    FacegridError,
    NotFoundError,
    UnavailableError,
)
from facegrid.format.checks import sha256_hex
from facegrid.format.inventory import named_sha256
from facegrid.format.snapshot import (
    DELETING,
    OBJECTS,
    PENDING,
    SNAPSHOTS,
    RepositoryMark,
    Snapshot,
    SnapshotObject,
    decode_snapshot,
    encode_mark,
    encode_snapshot,
    mark_name,
    object_name,
    parse_mark_name,
    parse_snapshot_name,
    snapshot_name,
)
from fgctl.meta_file import Meta


@dataclass(frozen=True, slots=True)
class Tools:
    """What working in a repository needs of the world.

    Attributes:
        new_digits: returns eight random hex digits.
    """

    clock: Clock
    new_digits: Callable[[], str]


@dataclass(frozen=True, slots=True)
class Named:
    """A descriptor and where it lies."""

    name: str
    snapshot: Snapshot


class SnapshotReader:
    """The cluster's store as one snapshot has it: a BlobReader by the names that were there.

    Every object is checked against the descriptor as it is read.
    """

    def __init__(self, repository: BlobReader, snapshot: Snapshot) -> None:
        self._repository = repository
        self._objects = {one.name: one for one in snapshot.objects}

    async def get(self, name: str) -> bytes:
        """Return an object's bytes. See BlobReader.

        Raises:
            NotFoundError: the snapshot has no such object.
            CorruptError: it is missing in the repository (OBJECT_MISSING), or damaged there.
        """
        known = self._objects.get(name)
        if known is None:
            raise NotFoundError(f"the snapshot has no such object name={name}", name=name)
        return await fetch(self._repository, object_name(known.sha256), known.sha256)

    async def list(self, prefix: str) -> Sequence[str]:
        """Return the names that begin with a prefix, sorted. See BlobReader."""
        return [name for name in self._objects if name.startswith(prefix)]


async def fetch(reader: BlobReader, name: str, sha256: str) -> bytes:
    """Return an object whose bytes have this hash, 64 hex digits.

    Raises:
        CorruptError: it is missing (OBJECT_MISSING) or its bytes changed (OBJECT_DAMAGED).
    """
    try:
        data = await reader.get(name)
    except NotFoundError as error:
        raise CorruptError(
            f"object is missing name={name}", reason="OBJECT_MISSING", name=name
        ) from error
    if sha256_hex(data) != sha256:
        raise CorruptError(
            f"object does not match its hash name={name}", reason="OBJECT_DAMAGED", name=name
        )
    return data


async def put(store: BlobStore, name: str, data: bytes) -> bool:
    """Store an object whose name its content gives; tell whether it was not there before.

    Raises:
        CorruptError: it is there with other bytes (OBJECT_DAMAGED).
        UnavailableError: the store cannot be reached.
    """
    try:
        await store.put_new(name, data)
    except (ConflictError, UnavailableError) as open_outcome:
        try:
            there = await store.get(name)
        except (NotFoundError, UnavailableError):
            raise open_outcome from None
        if there != data:
            raise CorruptError(
                f"object does not match its name name={name}", reason="OBJECT_DAMAGED", name=name
            ) from open_outcome
        return False
    return True


def cut_of(snapshot: Snapshot) -> Meta:
    """Return what etcd said of the gallery when the snapshot was made."""
    return Meta(snapshot.cut_revision, snapshot.created_unix_ms, dict(snapshot.records))


@dataclass(frozen=True, slots=True)
class Descriptors:
    """All descriptors of a repository, by their ids, that is by time.

    Attributes:
        damaged: what is wrong with those that cannot be read, by name.
    """

    readable: tuple[Named, ...]
    damaged: Mapping[str, CorruptError]

    def whole(self) -> tuple[Named, ...]:
        """Return all of them.

        Raises:
            CorruptError: one is damaged, so that nobody knows which objects it needs.
        """
        for error in self.damaged.values():
            raise error
        return self.readable


async def descriptors(reader: BlobReader) -> Descriptors:
    """Read all descriptors."""
    found: list[Named] = []
    damaged: dict[str, CorruptError] = {}
    for name in await reader.list(SNAPSHOTS):
        if parse_snapshot_name(name) is not None:
            try:
                found.append(await _named(reader, name))
            except CorruptError as error:
                damaged[name] = error
    return Descriptors(tuple(sorted(found, key=lambda one: one.snapshot.snapshot_id)), damaged)


async def _named(reader: BlobReader, name: str) -> Named:
    """Read the descriptor of a name.

    Raises:
        CorruptError: it is damaged, or another one (OBJECT_SWAPPED).
    """
    snapshot = decode_snapshot(await fetch(reader, name, named_sha256(name)))
    if parse_snapshot_name(name) != (snapshot.gallery_uid, snapshot.snapshot_id):
        raise CorruptError(
            f"it describes another snapshot name={name} snapshot={snapshot.snapshot_id}",
            reason="OBJECT_SWAPPED",
            name=name,
        )
    return Named(name, snapshot)


async def find(reader: BlobReader, snapshot_id: str) -> Named:
    """Return one descriptor.

    Raises:
        NotFoundError: there is none of this id (SNAPSHOT_UNKNOWN).
        CorruptError: it is damaged.
    """
    for name in await reader.list(SNAPSHOTS):
        parsed = parse_snapshot_name(name)
        if parsed is not None and parsed[1] == snapshot_id:
            return await _named(reader, name)
    raise NotFoundError(
        f"the repository has no such snapshot snapshot={snapshot_id}", reason="SNAPSHOT_UNKNOWN"
    )


async def object_hashes(reader: BlobReader) -> set[str]:
    """Return the sha256 of every object that lies in the repository."""
    return {named_sha256(name) for name in await reader.list(OBJECTS)}


async def put_snapshot(store: BlobStore, snapshot: Snapshot) -> str:
    """Store a descriptor, which makes the snapshot; return its name."""
    data = encode_snapshot(snapshot)
    name = snapshot_name(snapshot.gallery_uid, snapshot.snapshot_id, sha256_hex(data))
    await put(store, name, data)
    return name


class Mark:
    """Says that somebody makes or deletes a snapshot, as long as it is held.

    Both sides first store their own mark and then look for those of the other side. So of two that
    begin at once at least one sees the other, and gives way.

    Args:
        prefix: PENDING of those who make snapshots, who do not disturb each other; or DELETING.
        others_ended: the operator says that nobody else is at work: marks of others are left over.
    """

    def __init__(
        self,
        store: BlobStore,
        tools: Tools,
        *,
        prefix: str,
        snapshot_id: str,
        others_ended: bool = False,
    ) -> None:
        self._store = store
        self._tools = tools
        self._prefix = prefix
        self._snapshot_id = snapshot_id
        self._others_ended = others_ended
        self._name = mark_name(prefix, snapshot_id, tools.new_digits())

    async def __aenter__(self) -> None:
        """Store the mark, and look for others.

        Raises:
            ConflictError: somebody else is at work, or was killed at it (REPOSITORY_BUSY).
        """
        begun = self._tools.clock.unix_ms()
        await self._store.put_new(
            self._name, encode_mark(RepositoryMark(self._snapshot_id, begun))
        )
        try:
            await self._give_way()
        except FacegridError:
            await self._remove()
            raise

    async def _give_way(self) -> None:
        """Look for marks of the other side; those who delete also for one another's."""
        sides = [DELETING] if self._prefix == PENDING else [PENDING, DELETING]
        others = [
            name
            for side in sides
            for name in await self._store.list(side)
            if name != self._name and parse_mark_name(name) is not None
        ]
        for name in others:
            if not self._others_ended:
                raise ConflictError(
                    "another create or delete is at work in the repository, or was killed at it;"
                    f" once it has ended, repeat with --others-ended mark={name}",
                    reason="REPOSITORY_BUSY",
                )
            await self._store.delete(name)

    async def __aexit__(self, *_: object) -> None:
        """Remove the mark."""
        await self._remove()

    async def _remove(self) -> None:
        # One that stays only makes the next deletion ask.
        with suppress(UnavailableError):
            await self._store.delete(self._name)


def sizes_of(known: Sequence[Named]) -> dict[str, int]:
    """Return the size of every object that descriptors name, by sha256."""
    return {one.sha256: one.size_bytes for held in known for one in held.snapshot.objects}


def needed(known: Sequence[Named]) -> set[str]:
    """Return the sha256 of every object that descriptors name."""
    return {one.sha256 for held in known for one in held.snapshot.objects}


def bytes_of(objects: Sequence[SnapshotObject]) -> int:
    """Return the size of objects, each counted once though it has several names."""
    return sum({one.sha256: one.size_bytes for one in objects}.values())
