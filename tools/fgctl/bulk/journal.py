"""What a load has done so far: a file of lines, each synced before the next step begins.

A line is the CRC32C of what follows, in 8 hex digits, a space, and a JSON object with one key, the
kind of the line. The last line may be torn by a crash: then the step that it tells of has to be
repeated, which is harmless. Any other line that does not fit its checksum is damage.
"""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from facegrid.errors import ConflictError, CorruptError
from facegrid.format.frame import crc32c
from facegrid.ids import ShardId
from facegrid.vectors import BITS_DEFAULT
from fgctl.bulk.segments import StoredSegment

FILE_NAME: Final = "journal"
VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Input:
    """One file as it was when the load began. `sampled` is a hash of samples of its bytes."""

    path: str
    size_bytes: int
    mtime_ns: int
    sampled: str


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard of the gallery: its id and the keys that it holds."""

    shard_id: ShardId
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Parameters:
    """All that must be the same when a load goes on."""

    gallery: str
    gallery_uid: str
    dim: int
    rows_count: int
    chunk_rows: int
    shards: tuple[Shard, ...]
    inputs: tuple[Input, ...]
    component_bits: int = BITS_DEFAULT


@dataclass(frozen=True, slots=True)
class ShardCounts:
    """What the commit of a shard came to."""

    enrolled_count: int
    unchanged_count: int


@dataclass(slots=True)
class Progress:
    """What the lines of a journal say, taken together.

    Attributes:
        load_id: empty: no load has begun.
        chunks: segments stored, by chunk of the input.
        committing: shards whose commit was sent and not answered.
        committed: shards that are committed.
        done: all of it, and no pins are left.
    """

    load_id: str = ""
    parameters: Parameters | None = None
    chunks: dict[int, tuple[StoredSegment, ...]] = field(default_factory=dict)
    committing: set[ShardId] = field(default_factory=set)
    committed: dict[ShardId, ShardCounts] = field(default_factory=dict)
    done: bool = False

    def segments(self) -> dict[ShardId, list[StoredSegment]]:
        """Return the segments of each shard, in the order of the input."""
        found: dict[ShardId, list[StoredSegment]] = {}
        for number in sorted(self.chunks):
            for one in self.chunks[number]:
                found.setdefault(one.shard_id, []).append(one)
        return found


class Journal:
    """The journal of a work folder, held by one process. Use as a context manager.

    Raises:
        ConflictError: another process loads from this folder (WORK_IN_USE).
        CorruptError: the file is damaged, or another version wrote it (JOURNAL_DAMAGED).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.progress = Progress()
        self._path = folder / FILE_NAME
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise ConflictError(
                f"another process loads from this work folder path={folder}", reason="WORK_IN_USE"
            ) from None
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        _sync_folder(folder)
        _sync_folder(folder.parent)
        self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        os.close(self._file)
        os.close(self._lock)

    def begin(self, load_id: str, parameters: Parameters) -> None:
        """Note a new load."""
        assert not self.progress.load_id, "one load for each journal"
        shards = [[one.shard_id, one.first, one.last] for one in parameters.shards]
        self._append(
            "load",
            {
                "version": VERSION,
                "load_id": load_id,
                "gallery": parameters.gallery,
                "gallery_uid": parameters.gallery_uid,
                "dim": parameters.dim,
                "rows_count": parameters.rows_count,
                "chunk_rows": parameters.chunk_rows,
                "shards": shards,
                "inputs": _listed(parameters.inputs),
                "component_bits": parameters.component_bits,
            },
        )

    def inputs(self, inputs: Sequence[Input]) -> None:
        """Note that the files lie elsewhere or were touched, with the same content."""
        self._append("inputs", {"inputs": _listed(inputs)})

    def stored(self, chunk: int, segments: Sequence[StoredSegment]) -> None:
        """Note that the segments of a chunk are stored."""
        named = [[one.shard_id, one.sha256, one.rows_count] for one in segments]
        self._append("stored", {"chunk": chunk, "segments": named})

    def committing(self, shard_id: ShardId) -> None:
        """Note that a commit is about to be sent: from now on its outcome is open."""
        self._append("committing", {"shard": shard_id})

    def refused(self, shard_id: ShardId) -> None:
        """Note that a commit was refused: it has not happened."""
        self._append("refused", {"shard": shard_id})

    def committed(self, shard_id: ShardId, counts: ShardCounts) -> None:
        """Note that a shard is committed."""
        self._append(
            "committed",
            {
                "shard": shard_id,
                "enrolled_count": counts.enrolled_count,
                "unchanged_count": counts.unchanged_count,
            },
        )

    def finish(self) -> None:
        """Note that nothing is left to do."""
        self._append("done", {})

    def set_aside(self) -> None:
        """Put the file away under the load's id: the load was given up, another may begin."""
        target = self.folder / f"{FILE_NAME}.{self.progress.load_id}.given-up"
        self._path.rename(target)
        _sync_folder(self.folder)
        os.close(self._file)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        _sync_folder(self.folder)
        self.progress = Progress()

    def _append(self, kind: str, fields: Mapping[str, object]) -> None:
        text = json.dumps({kind: fields}, ensure_ascii=False).encode()
        line = memoryview(f"{crc32c(text):08x} ".encode() + text + b"\n")
        while line:
            line = line[os.write(self._file, line) :]
        os.fsync(self._file)
        self._take(kind, json.loads(text)[kind])

    def _read(self) -> None:
        """Take in the lines that are there; cut a torn one off."""
        size = os.fstat(self._file).st_size
        data = os.pread(self._file, size, 0)
        whole = data.rfind(b"\n") + 1
        for number, line in enumerate(data[:whole].splitlines(), 1):
            crc, _, text = line.partition(b" ")
            if crc != f"{crc32c(text):08x}".encode():
                raise _damaged(self._path, f"line={number}")
            try:
                ((kind, fields),) = json.loads(text).items()
                self._take(kind, fields)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise _damaged(self._path, f"line={number} problem={error}") from None
        if whole < size:
            os.ftruncate(self._file, whole)
            os.fsync(self._file)
        os.lseek(self._file, whole, os.SEEK_SET)

    def _take(self, kind: str, fields: dict[str, Any]) -> None:
        progress = self.progress
        match kind:
            case "load":
                if fields["version"] != VERSION:
                    raise _damaged(self._path, f"version={fields['version']}")
                progress.load_id = fields["load_id"]
                progress.parameters = _parameters(fields)
            case "inputs":
                if progress.parameters is None:
                    raise _damaged(self._path, f"kind={kind}")
                inputs = tuple(Input(*one) for one in fields["inputs"])
                progress.parameters = replace(progress.parameters, inputs=inputs)
            case "stored":
                progress.chunks[fields["chunk"]] = tuple(
                    StoredSegment(ShardId(one[0]), one[1], one[2]) for one in fields["segments"]
                )
            case "committing":
                progress.committing.add(ShardId(fields["shard"]))
            case "refused":
                progress.committing.discard(ShardId(fields["shard"]))
            case "committed":
                shard_id = ShardId(fields["shard"])
                counts = ShardCounts(fields["enrolled_count"], fields["unchanged_count"])
                progress.committing.discard(shard_id)
                progress.committed[shard_id] = counts
            case "done":
                progress.done = True
            case _:
                raise _damaged(self._path, f"kind={kind}")


def _listed(inputs: Sequence[Input]) -> list[list[object]]:
    return [[one.path, one.size_bytes, one.mtime_ns, one.sampled] for one in inputs]


def _parameters(fields: dict[str, Any]) -> Parameters:
    return Parameters(
        gallery=fields["gallery"],
        gallery_uid=fields["gallery_uid"],
        dim=fields["dim"],
        rows_count=fields["rows_count"],
        chunk_rows=fields["chunk_rows"],
        shards=tuple(Shard(ShardId(one[0]), one[1], one[2]) for one in fields["shards"]),
        inputs=tuple(Input(*one) for one in fields["inputs"]),
        # Journals of versions that knew no other say nothing.
        component_bits=fields.get("component_bits", BITS_DEFAULT),
    )


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _damaged(path: Path, problem: str) -> CorruptError:
    return CorruptError(
        f"journal is damaged, or of another version path={path} {problem}",
        reason="JOURNAL_DAMAGED",
        path=path,
    )
