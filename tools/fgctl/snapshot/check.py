"""Checks a snapshot repository: every byte of it, and every snapshot as the store it would be."""

from collections.abc import Callable
from dataclasses import dataclass

from facegrid.blob.reader import BlobReader
from facegrid.errors import FacegridError, NotFoundError
from facegrid.format.snapshot import (
    Snapshot,
    decode_mark,
    decode_snapshot,
    object_name,
    parse_mark_name,
    parse_object_name,
    parse_snapshot_name,
)
from fgctl.offline.findings import Findings, Objects
from fgctl.offline.verify import Scope, survey, verify
from fgctl.snapshot import repository
from fgctl.snapshot.cut import gallery_in
from fgctl.snapshot.repository import SnapshotReader


@dataclass(frozen=True, slots=True)
class SnapshotReport:
    """One snapshot: whether it can be restored, and what it holds if so."""

    snapshot: Snapshot
    whole: bool
    templates_count: int


@dataclass(frozen=True, slots=True)
class RepositoryReport:
    """All that a check found."""

    snapshots: tuple[SnapshotReport, ...]
    findings: Findings

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings.problems


class RepositoryCheck:
    """Checks one snapshot, or the whole repository.

    Args:
        reader: the repository.
        names: of all objects in it.
        wanted: id of the only snapshot to check; empty: all of them, and all other objects.
        on_read: called for every object read for the first time.
    """

    def __init__(
        self,
        reader: BlobReader,
        names: list[str],
        *,
        wanted: str = "",
        on_read: Callable[[], None] = lambda: None,
    ) -> None:
        self.findings = Findings()
        self._reader = reader
        self._wanted = wanted
        self._objects = Objects(reader, names, self.findings, on_read)
        self._sound: dict[str, int] = {}
        """Size of each object that matches its name."""

    async def run(self) -> RepositoryReport:
        """Check everything.

        Raises:
            NotFoundError: there is no snapshot of the id asked for (SNAPSHOT_UNKNOWN).
        """
        snapshots = await self._descriptors()
        needed = {one.sha256 for snapshot in snapshots for one in snapshot.objects}
        for name in sorted(self._objects.names):
            await self._check(name, needed)
        reports = [await self._snapshot(one) for one in snapshots]
        return RepositoryReport(tuple(reports), self.findings)

    async def _descriptors(self) -> list[Snapshot]:
        """Read the descriptors to check."""
        found: list[Snapshot] = []
        seen = False
        for name in sorted(self._objects.names):
            parsed = parse_snapshot_name(name)
            if parsed is None or self._wanted not in ("", parsed[1]):
                continue
            seen = True
            snapshot = await self._objects.hashed(name, decode_snapshot)
            if snapshot is None:
                continue
            if parsed != (snapshot.gallery_uid, snapshot.snapshot_id):
                problem = f"it describes another snapshot {snapshot.snapshot_id}"
                self.findings.problem(name, "OBJECT_SWAPPED", problem)
                continue
            found.append(snapshot)
        if self._wanted and not seen:
            raise NotFoundError(
                f"the repository has no such snapshot snapshot={self._wanted}",
                reason="SNAPSHOT_UNKNOWN",
            )
        return sorted(found, key=lambda one: one.snapshot_id)

    async def _check(self, name: str, needed: set[str]) -> None:
        """Check an object that is no descriptor, by itself."""
        sha256 = parse_object_name(name)
        if sha256 is not None and (sha256 in needed or not self._wanted):
            size = await self._objects.hashed(name, len)
            if size is not None:
                self._sound[sha256] = size
            if sha256 not in needed:
                self.findings.note(name, "no snapshot needs it; the next delete removes it")
        elif sha256 is not None or parse_snapshot_name(name) is not None or self._wanted:
            return
        elif parse_mark_name(name) is not None:
            mark = await self._objects.decoded(name, decode_mark)
            if mark is not None and mark.snapshot_id == parse_mark_name(name):
                self.findings.note(name, "somebody is at work, or was killed at it")
            elif mark is not None:
                self.findings.problem(name, "OBJECT_SWAPPED", "it is of another snapshot")
        else:
            self.findings.note(name, "unknown: no format of this version has such a name")

    async def _snapshot(self, snapshot: Snapshot) -> SnapshotReport:
        """Check that a snapshot has all that it needs, and that this adds up."""
        lacking = False
        for one in snapshot.objects:
            name = object_name(one.sha256)
            if name not in self._objects.names:
                problem = f"object is missing; {one.name} of {snapshot.snapshot_id}"
                self.findings.problem(name, "OBJECT_MISSING", problem)
            elif self._sound.get(one.sha256, one.size_bytes) != one.size_bytes:
                problem = f"{snapshot.snapshot_id} states another size"
                self.findings.problem(name, "OBJECT_DAMAGED", problem)
            lacking |= self._sound.get(one.sha256) != one.size_bytes
        if lacking:
            return SnapshotReport(snapshot, whole=False, templates_count=0)
        return await self._as_a_store(snapshot)

    async def _as_a_store(self, snapshot: Snapshot) -> SnapshotReport:
        """Check a snapshot as the cluster's store that it was, down to the digests of its rows."""
        cut = repository.cut_of(snapshot)
        before = len(self.findings.problems)
        try:
            _, shard_map = gallery_in(cut)
            report = await verify(
                await survey(SnapshotReader(self._reader, snapshot)), Scope(meta=cut)
            )
        except (FacegridError, ValueError) as error:
            self._inside(snapshot, "", "SNAPSHOT_DAMAGED", str(error))
            return SnapshotReport(snapshot, whole=False, templates_count=0)
        for one in report.findings.problems:
            self._inside(snapshot, one.name, one.reason, one.problem)
        mapped = {shard.shard_id for shard in shard_map.shards}
        for shard in report.shards:
            if shard.shard_id not in mapped:
                self._inside(snapshot, shard.shard_id, "SHARD_UNKNOWN", "no map names the shard")
        count = sum(shard.templates_count for shard in report.shards)
        return SnapshotReport(snapshot, len(self.findings.problems) == before, count)

    def _inside(self, snapshot: Snapshot, name: str, reason: str, problem: str) -> None:
        self.findings.problem(f"{snapshot.snapshot_id}:{name}", reason, problem)


async def check(
    reader: BlobReader, *, wanted: str = "", on_read: Callable[[], None] = lambda: None
) -> RepositoryReport:
    """Check a repository, or one snapshot of it, and return all that is wrong."""
    names = list(await reader.list(""))
    return await RepositoryCheck(reader, names, wanted=wanted, on_read=on_read).run()
