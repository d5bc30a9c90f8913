"""A loader beside a real primary, on a store in memory; the loader dies at any step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from facegrid.blob.port import BlobStore
from facegrid.ids import KEY_LAST
from facegrid.model import Token
from fgctl.bulk.journal import Journal, Parameters, Shard
from fgctl.bulk.load import Commit, Load, LoadPorts, Report
from fgctl.bulk.publish import Committed, request_id
from fgctl.bulk.segments import StoredSegment
from fgctl.online.load_sources import NpyChunks, fingerprint
from indexd.engine.requests import LoadRequest, NamedSegment
from indexd.replica.primary import Primary
from tests.unit.test_replica import DIM, GALLERY, SHARD


class Killed(BaseException):
    """The process ends here."""


@dataclass
class Dying:
    """Counts durable steps, and kills before or after one of them; nothing is done after that."""

    at: int = -1
    after: bool = False
    steps: list[str] = field(default_factory=list)
    dead: bool = False

    async def step(self, name: str, work: Callable[[], Any]) -> Any:
        """Do a durable step, if the process lives to do it."""
        self.begin(name)
        result = await work()
        self.end()
        return result

    def begin(self, name: str) -> None:
        if self.dead or (len(self.steps) == self.at and not self.after):
            self.dead = True
            raise Killed
        self.steps.append(name)

    def end(self) -> None:
        if self.dead or len(self.steps) == self.at + 1:
            self.dead = True
            raise Killed


@dataclass
class DyingStore:
    """A store whose writes are steps."""

    store: BlobStore
    dying: Dying

    async def put_new(self, name: str, data: bytes) -> None:
        kind = name.split("/")[2]
        await self.dying.step(f"put {kind}", lambda: self.store.put_new(name, data))

    async def get(self, name: str) -> bytes:
        return await self.store.get(name)

    async def list(self, prefix: str) -> Sequence[str]:
        return await self.store.list(prefix)

    async def delete(self, name: str) -> None:
        await self.dying.step("delete", lambda: self.store.delete(name))


class DyingJournal(Journal):
    """A journal whose lines are steps. A line that is torn is as one that was not begun."""

    def __init__(self, folder: Path, dying: Dying) -> None:
        self._dying = dying
        super().__init__(folder)

    @override
    def _append(self, kind: str, fields: Any) -> None:
        self._dying.begin(f"journal {kind}")
        super()._append(kind, fields)
        self._dying.end()


@dataclass
class Files:
    """An input in a folder."""

    folder: Path

    def write(self, x: np.ndarray, subjects: Sequence[str], templates: Sequence[str]) -> None:
        np.save(self.folder / "x.npy", x)
        (self.folder / "s.txt").write_text("".join(f"{one}\n" for one in subjects))
        (self.folder / "t.txt").write_text("".join(f"{one}\n" for one in templates))

    def source(self) -> NpyChunks:
        return NpyChunks(
            self.folder / "x.npy",
            subjects=self.folder / "s.txt",
            templates=self.folder / "t.txt",
        )

    def parameters(self, **changes: Any) -> Parameters:
        given = {
            "gallery": GALLERY.name,
            "gallery_uid": GALLERY.uid,
            "dim": DIM,
            "rows_count": self.source().rows_count,
            "chunk_rows": 3,
            "shards": (Shard(SHARD.shard_id, 0, KEY_LAST),),
            "inputs": tuple(
                fingerprint(self.folder / name) for name in ("x.npy", "s.txt", "t.txt")
            ),
        }
        return Parameters(**{**given, **changes})


def commit_to(primary: Primary, dying: Dying | None = None) -> Commit:
    """Return what commits to a primary; a step."""
    dying = dying or Dying()

    async def commit(gallery: str, load_id: str, segments: Sequence[StoredSegment]) -> Committed:
        del gallery
        request = LoadRequest(
            request_id(load_id, SHARD.shard_id),
            tuple(NamedSegment(one.sha256, one.rows_count) for one in segments),
        )
        outcome = await dying.step("commit", lambda: primary.load_segments(request))
        token = Token({SHARD.shard_id: outcome.position})
        return Committed(token, outcome.enrolled_count, outcome.unchanged_count)

    return commit


async def load(
    files: Files,
    store: BlobStore,
    primary: Primary,
    *,
    dying: Dying | None = None,
    parameters: Parameters | None = None,
    load_id: str = "c" * 32,
) -> Report:
    """Run a loader's process to its end."""
    dying = dying or Dying()

    ports = LoadPorts(DyingStore(store, dying), commit_to(primary, dying), lambda: load_id)
    with DyingJournal(files.folder / "work", dying) as journal:
        return await Load(ports, journal, files.source()).run(parameters or files.parameters())
