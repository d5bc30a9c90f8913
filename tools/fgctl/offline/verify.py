"""Checks a whole store: every shard, every codebook, and lists what does not belong."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from facegrid.blob.reader import BlobReader, DirectoryReader
from facegrid.coord import keys
from facegrid.errors import NotFoundError
from facegrid.format.codebook import codebook_name, decode_codebook
from facegrid.format.inventory import Inventory, ShardNames, take_inventory
from facegrid.ids import ShardId
from fgctl.meta_file import Meta
from fgctl.offline.findings import Findings, Objects
from fgctl.offline.gallery_check import check_galleries
from fgctl.offline.journal_check import check_journals
from fgctl.offline.shard_check import Expected, ShardCheck, ShardReport


@dataclass(frozen=True, slots=True)
class StoreReport:
    """All that a check found. `strangers` are files that are no objects; `closed` are shards whose
    erasure journals say that they were dropped.
    """

    shards: tuple[ShardReport, ...]
    codebooks_count: int
    findings: Findings
    strangers: tuple[str, ...]
    closed: frozenset[ShardId]

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings.problems


@dataclass(frozen=True, slots=True)
class Scope:
    """What to check: one shard or all, against saved records of etcd or not; `records`: whether
    the store must keep records of its galleries, as a cluster's must, but no snapshot.
    """

    shard_id: ShardId | None = None
    meta: Meta | None = None
    records: bool = False

    def shards(self, inventory: Inventory) -> list[ShardId]:
        """Return the shards to check, sorted; those that only etcd knows too.

        Raises:
            NotFoundError: the one asked for is nowhere (SHARD_UNKNOWN).
        """
        known = {*inventory.shards}
        if self.meta is not None:
            known |= {*self.meta.tips, *self.meta.pointers} - self._dropped()
        if self.shard_id is None:
            return sorted(known)
        if self.shard_id not in known:
            raise NotFoundError(
                f"the store has no such shard shard={self.shard_id}",
                reason="SHARD_UNKNOWN",
                shard=self.shard_id,
            )
        return [self.shard_id]

    def recorded(self, inventory: Inventory, closed: Collection[ShardId]) -> list[ShardId]:
        """Return the shards whose gallery the store must keep records of: those that have a
        log or a manifest, and were not dropped, as the journals in `closed` and etcd tell.
        """
        gone = self._dropped().union(closed)
        held = inventory.shards
        return [
            one
            for one in self.shards(inventory)
            if self.records
            and one in held
            and (held[one].logs or held[one].manifests)
            and one not in gone
        ]

    def expected(self, shard_id: ShardId) -> Expected:
        """Return what etcd said about a shard."""
        if self.meta is None or shard_id in self._dropped():
            return Expected()
        return Expected(self.meta.tips.get(shard_id), self.meta.pointers.get(shard_id))

    def codebooks(self) -> dict[tuple[str, str], str]:
        """Return the codebooks that galleries use: uid and sha256, and who says so."""
        if self.meta is None or self.shard_id is not None:
            return {}
        return {
            (gallery.uid, gallery.codebook): f"gallery {name} in the saved records of etcd"
            for name, gallery in self.meta.galleries.items()
            if gallery.codebook
        }

    def _dropped(self) -> set[ShardId]:
        keys_held = () if self.meta is None else self.meta.values
        return {
            ShardId(keys.name_of(key, keys.DROPPED))
            for key in keys_held
            if key.startswith(keys.DROPPED)
        }


@dataclass(frozen=True, slots=True)
class Survey:
    """A store about to be checked."""

    reader: BlobReader
    names: tuple[str, ...]
    inventory: Inventory
    strangers: tuple[str, ...]

    def work(self, scope: Scope) -> int:
        """Return how many objects will be read."""
        shards = [
            self.inventory.shards.get(shard_id, ShardNames())
            for shard_id in scope.shards(self.inventory)
        ]
        others = len(self.inventory.codebooks) + len(self.inventory.galleries)
        return sum(one.count for one in shards) + others + len(self.journals(scope))

    def journals(self, scope: Scope) -> list[str]:
        """Return the names of the journal objects to check."""
        inside = "" if scope.shard_id is None else f"/{scope.shard_id}/"
        return [name for name in self.inventory.journals if inside in name]


async def survey(reader: BlobReader) -> Survey:
    """List a store, and in a folder also the files that are no objects."""
    names = await reader.list("")
    strangers = await reader.strangers() if isinstance(reader, DirectoryReader) else ()
    return Survey(reader, tuple(names), take_inventory(names), tuple(strangers))


async def verify(
    store: Survey, scope: Scope, *, on_read: Callable[[], None] = lambda: None
) -> StoreReport:
    """Check a store and return all that is wrong with it, and all that nothing needs.

    Args:
        store: what lies there.
        scope: what to check.
        on_read: called for every object read.
    """
    findings = Findings()
    objects = Objects(store.reader, store.names, findings, on_read)
    codebooks = scope.codebooks()
    journals: dict[str, str] = {}
    reports = []
    for shard_id in scope.shards(store.inventory):
        held = store.inventory.shards.get(shard_id, ShardNames())
        check = ShardCheck(shard_id, held, objects=objects, expected=scope.expected(shard_id))
        reports.append(await check.run())
        codebooks = {**check.codebooks, **codebooks}
        journals |= check.journals
    closed = await check_journals(objects, store.journals(scope), journals)
    for name in store.inventory.codebooks:
        await objects.hashed(name, decode_codebook)
    recorded = scope.recorded(store.inventory, closed)
    await check_galleries(objects, store.inventory.galleries, recorded)
    for (uid, sha256), needed_by in sorted(codebooks.items()):
        name = codebook_name(uid, sha256)
        if name not in objects.names:
            problem = f"codebook is missing; needed by {needed_by}"
            findings.problem(name, "OBJECT_MISSING", problem)
    for name in store.inventory.others:
        findings.note(name, "unknown: no format of this version has such a name")
    return StoreReport(
        shards=tuple(reports),
        codebooks_count=len(store.inventory.codebooks),
        findings=findings,
        strangers=store.strangers,
        closed=frozenset(closed),
    )
