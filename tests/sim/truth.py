"""What really happened, taken from etcd as it is committed, and the checkers that compare.

Every promise is a method named after it; see FAULTS, section 1, for the numbers.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from facegrid.coord import keys
from facegrid.coord.port import Changed, KeyValue
from facegrid.format import digest as digests
from facegrid.format.erasures import Erasure, JournalRef, erasure_of
from facegrid.format.inventory import gallery_of
from facegrid.format.log import (
    EnrolRecord,
    EraseRecord,
    LoadRecord,
    LogRecord,
    LogRef,
    decode_log,
    log_name,
)
from facegrid.format.manifest import decode_manifest, manifest_name
from facegrid.format.operations import NOBODY
from facegrid.format.records import (
    decode_generation,
    decode_manifest_pointer,
    decode_shard_map,
    decode_tip,
)
from facegrid.format.segment import decode_segment, segment_name
from facegrid.ids import KEY_LAST
from facegrid.limits import STALENESS_S
from facegrid.model import HashRange, ShardAssignment, ShardMap
from facegrid.testing.memory_blob import MemoryBlobStore
from indexd.replica.primary import Primary
from indexd.replica.shard_copy import ShardCopy
from tests.sim import journal
from tests.sim.lineage import Lineage, inside
from tests.sim.world import World

Key = tuple[str, str]
"""Subject and template."""
NAMED_SLACK_S = 1.2
"""An answer takes up to a second, and a clock may go slowly."""


@dataclass(slots=True, eq=False)
class Committed:
    """One record that took effect."""

    record: LogRecord
    erased: frozenset[Key]
    enrolled: frozenset[Key]


@dataclass(eq=False)
class ShardTruth:
    """One shard as etcd committed it."""

    shard_id: str = ""
    generation: int = 0
    claimed_s: float = 0.0
    claimants: dict[int, str] = field(default_factory=dict)
    tip: LogRef | None = None
    position: int = 0
    live: dict[Key, bytes] = field(default_factory=dict)
    digests: list[int] = field(default_factory=lambda: [0])
    by_request: dict[str, Committed] = field(default_factory=dict)
    last_enrol: dict[Key, int] = field(default_factory=dict)
    last_erase: dict[Key, int] = field(default_factory=dict)
    gone: dict[Key, tuple[int, float]] = field(default_factory=dict)
    """Keys whose erasure was acknowledged: at which position, and when."""
    log: dict[str, int] = field(default_factory=dict)
    """Names of committed log objects that no manifest covers yet, with their last position."""
    loads: dict[str, int] = field(default_factory=dict)
    """Names of loaded segments that no manifest covers yet, with the position of their record."""
    referenced: set[str] = field(default_factory=set)
    """Names of the manifest and the segments that etcd points at."""
    erasures: list[Erasure] = field(default_factory=list)
    journals: set[str] = field(default_factory=set)
    """Journal objects known to have what they must."""
    named: list[tuple[float, frozenset[str]]] = field(default_factory=list)
    """Which nodes were searched, and since when."""
    dropped: bool = False
    """Whether the order to delete everything stands in etcd."""
    ordered_s: float = float("inf")
    """Since when it does."""
    retired_s: float = float("inf")
    """Since when no map has this shard any more."""
    range: HashRange = field(default=HashRange(0, KEY_LAST))
    lives: list[dict[Key, bytes]] = field(default_factory=lambda: [{}])
    """What was live at each position."""
    sources: dict[str, int] = field(default_factory=dict)
    """How far other shards were brought into this one."""
    parents: "list[ShardTruth]" = field(default_factory=list)
    children: "list[ShardTruth]" = field(default_factory=list)
    began_at: int = 0
    """The position at which it took the place of its sources."""


class Truth:
    """Watches etcd and the store from outside, and knows what clients were told."""

    def __init__(self, world: World, objects: MemoryBlobStore) -> None:
        self.world = world
        self.objects = objects
        self.shards: dict[str, ShardTruth] = {}
        self.shard_map: ShardMap | None = None
        self.sent: dict[tuple[str, str], Any] = {}
        """Write requests by shard and id, as the node sees them."""
        self.loaded: dict[str, set[Key]] = {}
        """What loads bring, by request id."""
        self.lineage = Lineage(self)
        self.wanted: dict[Key, float] = {}
        """Enrolments that were acknowledged, and since when each was asked for at the latest."""
        self.unwanted: dict[str, float] = {}
        """Subjects and templates whose erasure was asked for, and until when."""
        self._contents: dict[str, bytes] = {}
        self.damaged: set[str] = set()
        self.stored_s: dict[str, float] = {}
        self.confirmed: dict[str, str] = {}
        """Names of objects whose writers know that they are stored, and who these are."""

    def shard(self, shard_id: str) -> ShardTruth:
        """Return what is true of a shard."""
        return self.shards.setdefault(shard_id, ShardTruth(shard_id))

    # What is committed

    def on_change(self, change: Changed, origin: str) -> None:
        """Check a change in etcd as it is committed, and take it in."""
        prefix, _, name = change.key.partition("/")
        self.world.note(origin, "etcd", change.kind, change.key, change.revision)
        if change.item is None:
            return
        match f"{prefix}/":
            case keys.DROPPED:
                self.shard(name).dropped = True
                self.shard(name).ordered_s = self.world.loop.now_s
            case keys.MAPS:
                self.a_map_follows_the_last(change.item.value, origin)
            case keys.GENERATIONS:
                self.generations_only_grow(name, change.item.value, origin)
            case keys.TIPS:
                self.one_committer_per_generation(name, change.item.value, origin)
            case keys.MANIFESTS:
                self.manifest_says_what_is_committed(name, change.item.value)

    def a_map_follows_the_last(self, value: bytes, origin: str) -> None:
        """Checker 4: versions grow by one; a shard keeps its range; nobody is lost on the way, and
        nobody serves who has not joined.
        """
        shard_map, before, require = decode_shard_map(value), self.shard_map, self.world.require
        self.shard_map = shard_map
        for shard in shard_map.shards:
            named = self.shard(shard.shard_id).named
            named.append((self.world.loop.now_s, frozenset(shard.node_ids)))
        if before is None:
            for shard in shard_map.shards:
                self.shard(shard.shard_id).range = shard.range
            return
        require(shard_map.version == before.version + 1, "a map version is not the next", origin)
        self.lineage.map_changed(before, shard_map)
        held = {shard.shard_id: shard for shard in before.held}
        for new in shard_map.held:
            old = held.get(new.shard_id, new)
            require(old.range == new.range, "a range moved", new)
            moved = origin.startswith(("mover", "driver"))
            kept = set(old.holders) <= set(new.holders) or len(old.node_ids) == 1 or moved
            require(kept, "a copy was lost on the way", old, new)
            self.joined_before_it_serves(old, new, taken_over=not moved)
            if old.primary != new.primary:
                self.world.count("cutovers" if moved else "takeovers")

    def joined_before_it_serves(
        self, old: ShardAssignment, new: ShardAssignment, *, taken_over: bool
    ) -> None:
        """Checker 4: a copy serves that has joined. Only who takes over from a lonely primary
        may come from nowhere, or have only begun to join; it loads what is committed.
        """
        served = set(old.node_ids)
        for node_id in set(new.node_ids) - served:
            lonely = taken_over and node_id == new.primary
            joined = node_id in old.joining and node_id != new.primary
            self.world.require(joined or lonely, "serves without having joined", old, new)

    def generations_only_grow(self, shard_id: str, value: bytes, origin: str) -> None:
        """Checker 3: each claim is one higher than the last."""
        claim, shard = decode_generation(value), self.shard(shard_id)
        self.world.require(
            claim.generation == shard.generation + 1 or not self.world.controls.fencing,
            "a generation did not grow by one",
            shard_id,
            claim,
            shard.generation,
        )
        nobodys = claim.node_id == NOBODY and origin.startswith("driver")
        known = nobodys or origin in ("", claim.boot_id)
        self.world.require(known, "claimed in another's name", claim)
        shard.generation = claim.generation
        shard.claimed_s = self.world.loop.now_s
        shard.claimants[claim.generation] = claim.boot_id
        self.world.count("claims")

    def one_committer_per_generation(self, shard_id: str, value: bytes, origin: str) -> None:
        """Checker 3: only who holds the newest generation commits, and what it commits is there.

        Who opens a shard may also commit one object that the primary before it left unsettled.
        Checker 1: a request takes effect once, and as it was sent.
        """
        ref, shard, require = decode_tip(value).log, self.shard(shard_id), self.world.require
        require(origin == shard.claimants[shard.generation], "committed without the claim", ref)
        require(ref.generation <= shard.generation, "committed for a generation to come", ref)
        if ref.generation < shard.generation:
            self.world.count("unsettled objects committed")
        require(ref.first_position == shard.position + 1, "the log has a gap or goes back", ref)
        name = log_name(shard_id, ref)
        data = self.objects.objects.get(name)
        require(data is not None, "the committed log object is not stored", name)
        assert data is not None, "required above"
        if name not in self.damaged:
            require(hashlib.sha256(data).hexdigest() == ref.sha256, "committed other bytes", name)
        group = decode_log(self._contents[name])
        require(group.predecessor == shard.tip, "the log does not continue the tip", name)
        for record in group.records:
            self._take(shard_id, shard, record)
        shard.tip = ref
        shard.log[name] = ref.last_position
        self.world.count("groups committed")
        self.world.count("records committed", len(group.records))

    def _take(self, shard_id: str, shard: ShardTruth, record: LogRecord) -> None:
        """Carry a committed record out on the model."""
        require, request_id = self.world.require, record.request_id
        if record.source is None:
            require(request_id not in shard.by_request, "a request took effect twice", request_id)
            sent = self.sent.get((shard_id, request_id))
            require(sent is not None, "committed what nobody sent", request_id)
            same = sent.digest() == record.request_digest
            require(same, "committed another content", request_id)
        shard.position = record.position
        digest = shard.digests[-1]
        erased: set[Key] = set()
        enrolled: set[Key] = set()
        if isinstance(record, EnrolRecord | LoadRecord):
            for key, data in self._rows_of(shard, record):
                require(key not in shard.live, "enrolled over a live template", key)
                require(inside(shard, key), "enrolled in another shard's range", key)
                if record.source is None:
                    again = self.lineage.done_before(shard, request_id, key)
                    require(not again, "a request took effect again in a child", request_id, key)
                    self.lineage.enrolled(shard, key)
                shard.live[key] = data
                shard.last_enrol[key] = record.position
                enrolled.add(key)
                digest = digests.add(digest, digests.row_digest(*key, data))
        else:
            erased = _erased_by(record, shard)
            for key in sorted(erased):
                data = shard.live.pop(key)
                digest = digests.subtract(digest, digests.row_digest(*key, data))
                shard.last_erase[key] = record.position
            if record.source is None:
                shard.erasures.append(erasure_of(gallery_of(shard_id)[1], record))
        shard.digests.append(digest)
        shard.lives.append(dict(shard.live))
        if record.source is None:
            shard.by_request[request_id] = Committed(
                record, frozenset(erased), frozenset(enrolled)
            )
        else:
            self.lineage.brought(shard, record)

    def _rows_of(
        self, shard: ShardTruth, record: EnrolRecord | LoadRecord
    ) -> Iterator[tuple[Key, bytes]]:
        """Yield what a record brings; what it calls unchanged must be so."""
        if isinstance(record, EnrolRecord):
            pairs = zip(record.subject_ids, record.template_ids, strict=True)
            yield from zip(pairs, (codes.tobytes() for codes in record.codes), strict=True)
            return
        for one in record.segments:
            name = segment_name(shard.shard_id, one.sha256)
            if one.unchanged_count < one.rows_count:
                there = name in self.objects.objects
                self.world.require(there, "a committed load names what is not stored", name)
                shard.loads[name] = record.position
            segment = decode_segment(self._contents[name])
            rows = zip(segment.subject_rows, segment.template_ids, segment.codes, strict=True)
            for (number, template_id, codes), unchanged in zip(rows, one.erased, strict=True):
                key, data = (segment.subject_ids[number], template_id), codes.tobytes()
                if unchanged:
                    same = shard.live.get(key) == data
                    self.world.require(same, "a load calls unchanged what is not there", key)
                else:
                    yield key, data

    def manifest_says_what_is_committed(self, shard_id: str, value: bytes) -> None:
        """Checkers 3 and 5: a manifest names stored objects and has the digest of its position."""
        pointer, shard, require = (
            decode_manifest_pointer(value),
            self.shard(shard_id),
            self.world.require,
        )
        name = manifest_name(shard_id, pointer.sha256)
        stored = shard.dropped or name in self.objects.objects
        require(stored, "the committed manifest is not stored", name)
        manifest = decode_manifest(self._contents[name])
        names = {name, *(segment_name(shard_id, s.sha256) for s in manifest.segments)}
        missing = sorted(names - self.objects.objects.keys())
        require(shard.dropped or not missing, "the manifest names what is not stored", missing)
        require(manifest.position <= shard.position, "a manifest is ahead of the log", pointer)
        expected = digests.to_bytes(shard.digests[manifest.position])
        require(manifest.digest == expected, "a manifest differs from what was committed", pointer)
        problem = self._journal_problem(shard_id, manifest.journal, manifest.position)
        require(not problem, "the journal lacks an erasure of the log", name, problem)
        covered = [one for one in shard.erasures if one.position <= manifest.position]
        self.world.count("erasures in journals", len(covered))
        shard.referenced = names
        shard.log = {n: last for n, last in shard.log.items() if last > manifest.position}
        shard.loads = {n: at for n, at in shard.loads.items() if at > manifest.position}
        self.world.count("manifests committed")

    # What is stored

    def on_object(self, actor: str, what: str, name: str, data: bytes) -> None:
        """Checker 3: no name is written twice with different bytes; nothing needed is deleted."""
        self.world.note(actor, what, name, len(data))
        if what == "stored":
            self.confirmed[name] = actor
            return
        if what == "put":
            self.stored_s[name] = self.world.loop.now_s
            known = self._contents.setdefault(name, bytes(data))
            self.world.require(known == data, "a name was written twice, differently", name)
            return
        self.confirmed.pop(name, None)
        forgotten = name.startswith("journal/")
        self.world.require(not forgotten, "an erasure was forgotten", name, actor)
        if name.startswith("shards/"):
            shard = self.shard(name.split("/")[1])
            names = (shard.referenced, shard.log, shard.loads)
            needed = not shard.dropped and any(name in one for one in names)
            self.world.require(not needed, "deleted what is still needed", name, actor)
            self.world.count("objects deleted")

    def journal_is_closed(self, shard_id: str) -> None:
        """Every erasure of a dropped shard is in its journal, which says that it has ended."""
        shard = self.shard(shard_id)
        last = journal.closing(self._contents, shard_id)
        self.world.require(last is not None, "a dropped shard's journal is not closed", shard_id)
        problem = self._journal_problem(shard_id, last, shard.position)
        self.world.require(not problem, "the journal lacks an erasure", shard_id, problem)

    def _journal_problem(self, shard_id: str, ref: JournalRef | None, position: int) -> str:
        shard = self.shard(shard_id)
        return journal.problem(
            shard_id,
            shard.erasures,
            self._contents,
            known=shard.journals,
            ref=ref,
            position=position,
        )

    # What clients are told

    def acknowledged(self, shard_id: str, request_id: str, response: Any) -> None:
        """Checker 1: what is acknowledged has been committed, once, and did what was said."""
        shard, require = self.shard(shard_id), self.world.require
        done = shard.by_request.get(request_id)
        before = [] if done is not None else self.lineage.erasers(shard, request_id)
        require(done is not None or before, "acknowledged, but not committed", request_id)
        if done is None:
            # A late copy: those in whose place this one is have erased what there was.
            told = response.erased_templates_count
            require(told == 0, "told another count", request_id, told)
            for one in before:
                self._erased(one, one.by_request[request_id])
            self.world.count("late erasures")
            return
        require(response.position == done.record.position, "told another position", request_id)
        if isinstance(done.record, EnrolRecord):
            counts = (response.enrolled_count, response.unchanged_count)
            expected = (len(done.record.codes), done.record.unchanged_count)
            require(counts == expected, "told other counts", request_id, counts, expected)
        elif isinstance(done.record, LoadRecord):
            unchanged = sum(one.unchanged_count for one in done.record.segments)
            counts = (response.enrolled_count, response.unchanged_count)
            expected = (len(done.enrolled), unchanged)
            require(counts == expected, "told other counts", request_id, counts, expected)
        else:
            told = response.erased_templates_count
            require(told == len(done.erased), "told another count", request_id, told)
            self._erased(shard, done)
        self.world.count("acknowledged")

    def _erased(self, shard: ShardTruth, done: Committed) -> None:
        """Take in that what a record erased is acknowledged to be gone."""
        for key in done.erased:
            if shard.gone.get(key, (0, 0.0))[0] < done.record.position:
                shard.gone[key] = (done.record.position, self.world.loop.now_s)
            self.lineage.erased(shard, key, done.record.position)

    # What was replaced

    def retired(self) -> list[str]:
        """Return the shards that some map had, and the present one has not."""
        return [name for name, shard in self.shards.items() if shard.retired_s < float("inf")]

    def left_of_the_retired(self, items: Iterable[KeyValue], living: set[str]) -> list[str]:
        """Return keys and objects of such shards, but for what arrived after the order to delete
        and behind the back of its writer, or who has ended since: that is for a sweeper to find.
        """
        retired = set(self.retired())
        prefixes = (keys.GENERATIONS, keys.TIPS, keys.MANIFESTS, keys.DROPPED)
        left = [
            item.key
            for item in items
            if item.key.startswith(prefixes) and item.key.partition("/")[2] in retired
        ]
        for name in self.objects.objects:
            prefix, _, rest = name.partition("/")
            shard_id = rest.partition("/")[0]
            if prefix == "shards" and shard_id in retired:
                before = self.stored_s[name] < self.shard(shard_id).ordered_s
                if before or self.confirmed.get(name) in living:
                    left.append(name)
        return left

    def equal_at_its_position(self, name: str, copy: ShardCopy) -> None:
        """Checker 5: a copy holds what was committed up to its position, no more and no less."""
        state = copy.state
        shard = self.shard(state.shard_id)
        self.world.require(
            state.position <= shard.position, "applied before it was committed", name
        )
        self.world.require(
            state.digest == shard.digests[state.position],
            "a copy differs from what was committed",
            name,
            state.shard_id,
            state.position,
        )

    def superseded(self, copy: ShardCopy) -> bool:
        """Tell whether a newer process has claimed the shard of this primary."""
        shard = self.shard(copy.assignment.shard_id)
        return isinstance(copy, Primary) and copy.generation < shard.generation

    def only_who_is_named_is_confirmed(self, shard_id: str, node_id: str) -> None:
        """Checker 2: who gives a confirmed answer was searched by a map not long ago."""
        named, now_s = self.shard(shard_id).named, self.world.loop.now_s
        ends_s = [*(since_s for since_s, _ in named[1:]), now_s]
        lately_s = now_s - STALENESS_S - NAMED_SLACK_S
        known = any(
            node_id in node_ids and end_s >= lately_s
            for (_, node_ids), end_s in zip(named, ends_s, strict=True)
        )
        self.world.require(known, "confirmed without a map that says so", shard_id, node_id)

    def erased_stays_away(self, shard_id: str, found: list[Key], asked_s: float, who: str) -> None:
        """Checker 2: no confirmed answer contains what was erased, to whoever asks after the
        acknowledgement.
        """
        shard = self.shard(shard_id)
        back = [
            key
            for key in found
            if key in shard.gone
            and shard.gone[key][1] < asked_s
            and shard.last_enrol.get(key, 0) < shard.gone[key][0]
        ]
        self.world.require(not back, "an erased template came back", who, back)

    def acknowledged_is_found(
        self, copy: ShardCopy, found: list[Key], position_min: int, probe: Key | None
    ) -> None:
        """Checkers 1 and 6: what was enrolled up to a position, and not erased, finds itself."""
        shard = self.shard(copy.assignment.shard_id)
        require = self.world.require
        subjects = {key[0] for key in found}
        for key, position in shard.last_enrol.items():
            certain = position <= position_min and shard.last_erase.get(key, 0) < position
            if certain:
                require(key[0] in subjects, "an acknowledged subject is not found", key)
                require(key != probe or probe in found, "a template did not find itself", key)
        for key in found:
            require(key in shard.last_enrol, "found what was never enrolled", key)


def _erased_by(record: EraseRecord, shard: ShardTruth) -> set[Key]:
    """Return which live templates an erasure reaches."""
    subjects, templates = set(record.subject_ids), set(record.template_ids)
    named = {key for key in shard.live if key[0] in subjects or key[1] in templates}
    return {key for key in named if record.reaches(key[0])}
