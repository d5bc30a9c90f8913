"""Checks all that is stored of one shard, segment by segment and log object by log object."""

from dataclasses import dataclass

from facegrid.errors import CorruptError
from facegrid.format import digest as digests
from facegrid.format.chain import Chain, LogEntry, connect, log_entry
from facegrid.format.erasures import journal_name
from facegrid.format.inventory import ShardNames, gallery_of, named_sha256
from facegrid.format.load_pin import parse_pin_name
from facegrid.format.log import (
    LoadRecord,
    LogGroup,
    LogRef,
    decode_log,
    log_name,
    log_ref,
    parse_log_name,
)
from facegrid.format.manifest import (
    Manifest,
    ManifestSegment,
    decode_manifest,
    manifest_name,
    manifest_prefix,
)
from facegrid.format.records import ManifestPointer
from facegrid.format.replay import Replay
from facegrid.format.segment import Segment, decode_segment, segment_name
from facegrid.ids import ShardId
from fgctl.offline.findings import Objects
from fgctl.offline.load_check import LoadCheck


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What a shard is at the end of its log.

    Attributes:
        manifest: sha256 of the ruling one; empty: none.
        generation: of the ruling manifest, or of the last log object where that is higher.
        digest: of the live rows, 32 hex digits, to be compared with what a node says; empty where
            damage stood in the way.
        tip: the last object of the log, or the one that the manifest ends with; None: no log.
        pointer: names the ruling manifest; None: there is none.
        generation_max: the highest that any object names, committed or not.
        whole: nothing was wrong.
        has_own: it has a record that no other shard brought.
    """

    shard_id: ShardId
    gallery: str
    manifest: str
    generation: int
    position: int
    templates_count: int
    digest: str
    segments_count: int
    log_objects_count: int
    tip: LogRef | None
    pointer: ManifestPointer | None
    generation_max: int
    whole: bool
    has_own: bool


@dataclass(frozen=True, slots=True)
class Expected:
    """What etcd said about a shard when it was saved; the store may have gone on since."""

    tip: LogRef | None = None
    pointer: ManifestPointer | None = None


class ShardCheck:
    """Checks one shard.

    Attributes:
        codebooks: names of codebooks that its segments need, with the segment that says so.
        journals: the name of the end of its erasure journal, with the manifest that says so.
    """

    def __init__(
        self, shard_id: ShardId, names: ShardNames, *, objects: Objects, expected: Expected
    ) -> None:
        self.codebooks: dict[tuple[str, str], str] = {}
        self.journals: dict[str, str] = {}
        self._shard_id = shard_id
        self._names = names
        self._objects = objects
        self._findings = objects.findings
        self._expected = expected
        self._unreadable: set[str] = set()
        self._loads = LoadCheck(shard_id, objects)
        self._manifest_sha256 = ""

    async def run(self) -> ShardReport:
        """Check everything; findings go where the objects' do."""
        before = len(self._findings.problems)
        manifests = await self._manifests()
        ruling = self._ruling(manifests)
        replay = Replay(0 if ruling is None else ruling.dim)
        chain = await self._log(ruling, replay)
        rows_known = await self._segments(ruling, chain, replay)
        if rows_known:
            await self._replay(chain, replay)
        self._check_expected(ruling, chain)
        whole = len(self._findings.problems) == before
        ends = [entry.ref for entry in chain.entries[-1:]]
        covered = None if ruling is None else ruling.log
        generation = 0 if ruling is None else ruling.generation
        return ShardReport(
            shard_id=self._shard_id,
            gallery=gallery_of(self._shard_id)[0],
            manifest=self._manifest_sha256,
            generation=max([generation, *(ref.generation for ref in ends)]),
            position=replay.position,
            templates_count=replay.templates_count,
            digest=digests.to_bytes(replay.digest).hex() if whole else "",
            segments_count=0 if ruling is None else len(ruling.segments),
            log_objects_count=len(chain.entries),
            tip=ends[0] if ends else covered,
            pointer=(
                None
                if ruling is None
                else ManifestPointer(self._manifest_sha256, ruling.position, ruling.generation)
            ),
            generation_max=self._generation_max(manifests),
            whole=whole,
            has_own=replay.has_own,
        )

    # Manifests

    async def _manifests(self) -> dict[str, Manifest]:
        """Return the manifests that are in order, by name."""
        found: dict[str, Manifest] = {}
        for name in self._names.manifests:
            manifest = await self._objects.hashed(name, decode_manifest)
            if manifest is None:
                self._unreadable.add(name)
            elif manifest.shard_id != self._shard_id:
                self._swapped(name, manifest.shard_id)
            else:
                found[name] = manifest
        return found

    def _ruling(self, manifests: dict[str, Manifest]) -> Manifest | None:
        """Return the newest manifest.

        One process may have written several at one position, with the same rows in other segments;
        those of the older ones may be deleted already. So the one that is complete rules.
        """
        pointer = self._expected.pointer
        named = "" if pointer is None else manifest_name(self._shard_id, pointer.sha256)
        if pointer is not None:
            self._check_pointer(pointer, manifests)
        if not manifests:
            return None
        newest = max((one.position, one.generation) for one in manifests.values())
        level = [
            name for name, one in manifests.items() if (one.position, one.generation) == newest
        ]
        complete = [name for name in level if not self._lacking(manifests[name])]
        chosen = named if named in level else (complete or level)[-1]
        for segment in self._lacking(manifests[chosen]):
            self._missing(segment, f"segment is missing; named by {chosen}")
        for name in manifests:
            if name != chosen:
                self._findings.note(name, "replaced by another manifest")
        self._manifest_sha256 = named_sha256(chosen)
        journal = manifests[chosen].journal
        if journal is not None:
            self.journals[journal_name(self._shard_id, journal)] = chosen
        return manifests[chosen]

    def _lacking(self, manifest: Manifest) -> list[str]:
        """Return the names of segments that a manifest needs and that are not there."""
        names = [segment_name(self._shard_id, entry.sha256) for entry in manifest.segments]
        return [name for name in names if name not in self._objects.names]

    def _check_pointer(self, pointer: ManifestPointer, manifests: dict[str, Manifest]) -> None:
        """Find that the committed manifest is gone and no newer one has replaced it."""
        name = manifest_name(self._shard_id, pointer.sha256)
        if name in self._objects.names:
            return
        saved = (pointer.position, pointer.generation)
        if not any((one.position, one.generation) >= saved for one in manifests.values()):
            self._missing(name, "manifest is missing; named by the saved records of etcd")

    # Log

    async def _log(self, ruling: Manifest | None, replay: Replay) -> Chain:
        """Read all log objects and sort them out."""
        after = None if ruling is None else ruling.log
        covered = 0 if after is None else after.last_position
        entries: list[LogEntry] = []
        for name in self._names.logs:
            read = await self._log_object(name)
            if read is None:
                self._unreadable.add(name)
                continue
            group, ref = read
            entries.append(log_entry(group, ref))
            self._loads.note(group, ref)
            if ref.first_position > covered:
                for record in group.records:
                    replay.watch(record)
        chain = connect(entries, after=after)
        refs = {log_name(self._shard_id, entry.ref): entry.ref for entry in entries}
        if after is not None and refs.get(name := log_name(self._shard_id, after), after) != after:
            problem = "bytes do not match the hash that the manifest states"
            self._findings.problem(name, "OBJECT_DAMAGED", problem)
        self._judge(chain, refs)
        await self._loads.pins(self._names.pins, chain)
        return chain

    async def _log_object(self, name: str) -> tuple[LogGroup, LogRef] | None:
        """Return a log object if it is what its name says."""
        parsed = parse_log_name(name)
        assert parsed is not None, "the inventory has sorted the names"
        generation, first, uuid = parsed

        def decode(data: bytes) -> tuple[LogGroup, LogRef]:
            group = decode_log(data)
            return group, log_ref(group, uuid, data)

        read = await self._objects.decoded(name, decode)
        if read is None:
            return None
        group, _ = read
        if group.shard_id != self._shard_id:
            self._swapped(name, group.shard_id)
            return None
        if (group.generation, group.first_position) != (generation, first):
            self._findings.problem(
                name,
                "OBJECT_SWAPPED",
                f"it holds another object generation={group.generation}"
                f" position={group.first_position}",
            )
            return None
        return read

    def _judge(self, chain: Chain, refs: dict[str, LogRef]) -> None:
        """Say what is wrong with the log, and what nothing needs."""
        for entry in chain.superseded:
            self._note(entry, "covered by the manifest")
        for entry in chain.orphans:
            self._note(entry, "orphan: never committed")
        for entry in chain.forked:
            name = log_name(self._shard_id, entry.ref)
            self._findings.problem(
                name, "LOG_FORKED", "the log goes another way, yet goes on here"
            )
        detached = {entry.ref for entry in chain.detached}
        for entry in chain.detached:
            if entry.predecessor is None or entry.predecessor not in detached:
                self._judge_gap(entry, refs)

    def _judge_gap(self, entry: LogEntry, refs: dict[str, LogRef]) -> None:
        """Say why an object is connected with nothing before it."""
        name, before = log_name(self._shard_id, entry.ref), entry.predecessor
        lost = "" if before is None else log_name(self._shard_id, before)
        if before is None:
            self._findings.problem(name, "LOG_BROKEN", "it names no predecessor")
        elif lost in self._unreadable:
            self._findings.note(name, f"not reached: {lost} before it is damaged")
        elif self._unreadable & set(self._names.manifests):
            self._findings.note(name, "not reached: a manifest is damaged")
        elif lost not in refs:
            self._missing(lost, f"log object is missing; {name} follows it")
        elif refs[lost] != before:
            self._findings.problem(
                lost, "OBJECT_DAMAGED", f"bytes do not match the hash that {name} states"
            )
        else:
            self._findings.problem(name, "LOG_BROKEN", "it does not lead back to the manifest")

    # Rows

    async def _segments(self, ruling: Manifest | None, chain: Chain, replay: Replay) -> bool:
        """Check all segments; tell whether the rows at the manifest's position are known."""
        entries = {} if ruling is None else {one.sha256: one for one in ruling.segments}
        dim = 0 if ruling is None else ruling.dim
        damaged = False
        for name in self._names.segments:
            segment = await self._objects.hashed(name, decode_segment)
            if segment is None:
                self._unreadable.add(name)
            entry = entries.pop(named_sha256(name), None)
            if entry is not None and (
                segment is None or not self._fits(name, segment, entry, dim)
            ):
                damaged = True
            elif segment is not None and entry is not None:
                damaged |= not self._counted(name, segment, entry, replay)
            elif segment is not None and not self._loads.names(name):
                self._findings.note(name, "no manifest names it")
        if ruling is None:
            self._check_beginning(chain)
            return not self._unreadable & set(self._names.manifests)
        if damaged or entries:
            return False
        replay.begin(ruling)
        return self._check_digest(ruling, replay)

    def _fits(self, name: str, segment: Segment, entry: ManifestSegment, dim: int) -> bool:
        """Tell whether a segment is what the manifest says it is."""
        if segment.shard_id != self._shard_id:
            self._swapped(name, segment.shard_id)
            return False
        rows = len(segment.template_ids)
        if (rows, segment.dim) != (entry.rows_count, dim):
            self._findings.problem(
                name,
                "SEGMENT_MISMATCH",
                f"the manifest says otherwise rows={rows} dim={segment.dim}"
                f" expected_rows={entry.rows_count} expected_dim={dim}",
            )
            return False
        return True

    def _counted(
        self, name: str, segment: Segment, entry: ManifestSegment, replay: Replay
    ) -> bool:
        """Count a segment's rows; tell whether they can be."""
        if segment.codebook:
            uid = gallery_of(self._shard_id)[1]
            self.codebooks.setdefault((uid, segment.codebook), name)
        try:
            replay.take_segment(segment, entry.erased)
        except CorruptError as error:
            self._findings.corrupt(name, error)
            return False
        return True

    def _check_beginning(self, chain: Chain) -> None:
        """Find that there are segments, but neither a manifest nor the log that they came from.
        Those that are pinned are of a load that is not committed yet.
        """
        pins = [parse_pin_name(name) for name in self._names.pins]
        pinned = {pin.sha256 for pin in pins if pin is not None}
        committed = [name for name in self._names.segments if named_sha256(name) not in pinned]
        if committed and not self._names.manifests and not chain.entries:
            self._missing(
                manifest_prefix(self._shard_id),
                "manifest is missing: there are segments, and no log from the beginning",
                reason="MANIFEST_MISSING",
            )

    def _check_digest(self, ruling: Manifest, replay: Replay) -> bool:
        """Tell whether the segments hold exactly the rows that the manifest's digest is of."""
        found = digests.to_bytes(replay.digest)
        if found == ruling.digest and replay.templates_count == ruling.templates_count:
            return True
        self._findings.problem(
            manifest_name(self._shard_id, self._manifest_sha256),
            "DIGEST_MISMATCH",
            f"rows do not match the digest found={found.hex()} expected={ruling.digest.hex()}",
        )
        return False

    async def _replay(self, chain: Chain, replay: Replay) -> None:
        """Carry the log out on the rows of the segments."""
        for entry in chain.entries:
            name = log_name(self._shard_id, entry.ref)
            read = await self._log_object(name)
            if read is None:
                return
            group, ref = read
            if ref != entry.ref:
                self._findings.problem(name, "OBJECT_DAMAGED", "it changed while it was checked")
                return
            try:
                for record in group.records:
                    if isinstance(record, LoadRecord) and not await self._loads.take(
                        record, replay, by=name, unreadable=self._unreadable
                    ):
                        return
                    replay.apply(record)
            except CorruptError as error:
                self._findings.corrupt(name, error)
                return

    # What etcd said

    def _check_expected(self, ruling: Manifest | None, chain: Chain) -> None:
        """Find that the log does not reach what was committed when etcd's records were saved."""
        tip = self._expected.tip
        covered = 0 if ruling is None else ruling.position
        if tip is None or tip.last_position <= covered:
            return
        if any(entry.ref == tip for entry in chain.entries):
            return
        name = log_name(self._shard_id, tip)
        if name in self._unreadable:
            return
        if name not in self._objects.names:
            if not any(problem.name == name for problem in self._findings.problems):
                self._missing(name, "log object is missing; the saved records of etcd name it")
        elif not chain.detached:
            self._findings.problem(
                name, "LOG_BROKEN", "the saved records of etcd name it, yet the log goes elsewhere"
            )

    # Words

    def _generation_max(self, manifests: dict[str, Manifest]) -> int:
        """Return the highest generation that any object of the shard names."""
        parsed = [parse_log_name(name) for name in self._names.logs]
        seen = [found[0] for found in parsed if found is not None]
        return max([0, *seen, *(manifest.generation for manifest in manifests.values())])

    def _missing(self, name: str, problem: str, *, reason: str = "OBJECT_MISSING") -> None:
        self._findings.problem(name, reason, problem)

    def _swapped(self, name: str, shard_id: str) -> None:
        self._unreadable.add(name)
        self._findings.problem(name, "OBJECT_SWAPPED", f"it belongs to another shard {shard_id}")

    def _note(self, entry: LogEntry, why: str) -> None:
        self._findings.note(log_name(self._shard_id, entry.ref), why)
