"""What really happened, taken from etcd as it is committed, and the checkers that compare.

Every promise is a method named after it; see FAULTS, section 1, for the numbers.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any

from facegrid.coord import keys
from facegrid.coord.port import Changed
from facegrid.format import digest as digests
from facegrid.format.log import EnrolRecord, LogRecord, LogRef, decode_log, log_name
from facegrid.format.manifest import decode_manifest, manifest_name
from facegrid.format.records import decode_generation, decode_manifest_pointer, decode_tip
from facegrid.format.segment import segment_name
from facegrid.testing.memory_blob import MemoryBlobStore
from indexd.replica.primary import Primary
from indexd.replica.shard_copy import ShardCopy
from tests.sim.world import World

Key = tuple[str, str]
"""Subject and template."""

HEARING_S = 3.0
"""A superseded primary that can hear etcd has stopped answering after this time."""


@dataclass(slots=True, eq=False)
class Committed:
    """One record that took effect."""

    record: LogRecord
    erased: frozenset[Key]
    enrolled: frozenset[Key]


@dataclass(eq=False)
class ShardTruth:
    """One shard as etcd committed it."""

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
    referenced: set[str] = field(default_factory=set)
    """Names of the manifest and the segments that etcd points at."""
    dropped: bool = False
    """Whether the order to delete everything stands in etcd."""


class Truth:
    """Watches etcd and the store from outside, and knows what clients were told."""

    def __init__(self, world: World, objects: MemoryBlobStore) -> None:
        self.world = world
        self.objects = objects
        self.shards: dict[str, ShardTruth] = {}
        self.sent: dict[str, Any] = {}
        """Write requests by id, as the node sees them."""
        self._contents: dict[str, bytes] = {}
        self.damaged: set[str] = set()
        self.stored_s: dict[str, float] = {}
        self.confirmed: set[str] = set()
        """Names of objects whose writers know that they are stored."""

    def shard(self, shard_id: str) -> ShardTruth:
        """Return what is true of a shard."""
        return self.shards.setdefault(shard_id, ShardTruth())

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
            case keys.GENERATIONS:
                self.generations_only_grow(name, change.item.value, origin)
            case keys.TIPS:
                self.one_committer_per_generation(name, change.item.value, origin)
            case keys.MANIFESTS:
                self.manifest_says_what_is_committed(name, change.item.value)

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
        self.world.require(origin in ("", claim.boot_id), "claimed in another's name", claim)
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
            self._take(shard, record)
        shard.tip = ref
        shard.log[name] = ref.last_position
        self.world.count("groups committed")
        self.world.count("records committed", len(group.records))

    def _take(self, shard: ShardTruth, record: LogRecord) -> None:
        """Carry a committed record out on the model."""
        require, request_id = self.world.require, record.request_id
        require(request_id not in shard.by_request, "a request took effect twice", request_id)
        sent = self.sent.get(request_id)
        require(sent is not None, "committed what nobody sent", request_id)
        require(sent.digest() == record.request_digest, "committed another content", request_id)
        shard.position = record.position
        digest = shard.digests[-1]
        erased: set[Key] = set()
        enrolled: set[Key] = set()
        if isinstance(record, EnrolRecord):
            rows = zip(record.subject_ids, record.template_ids, record.codes, strict=True)
            for subject_id, template_id, codes in rows:
                key, data = (subject_id, template_id), codes.tobytes()
                require(key not in shard.live, "enrolled over a live template", key)
                shard.live[key] = data
                shard.last_enrol[key] = record.position
                enrolled.add(key)
                digest = digests.add(digest, digests.row_digest(subject_id, template_id, data))
        else:
            subjects, templates = set(record.subject_ids), set(record.template_ids)
            erased = {key for key in shard.live if key[0] in subjects or key[1] in templates}
            for key in sorted(erased):
                data = shard.live.pop(key)
                digest = digests.subtract(digest, digests.row_digest(*key, data))
                shard.last_erase[key] = record.position
        shard.digests.append(digest)
        shard.by_request[request_id] = Committed(record, frozenset(erased), frozenset(enrolled))

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
        shard.referenced = names
        shard.log = {n: last for n, last in shard.log.items() if last > manifest.position}
        self.world.count("manifests committed")

    # What is stored

    def on_object(self, actor: str, what: str, name: str, data: bytes) -> None:
        """Checker 3: no name is written twice with different bytes; nothing needed is deleted."""
        self.world.note(actor, what, name, len(data))
        if what == "stored":
            self.confirmed.add(name)
        elif what == "put":
            self.stored_s[name] = self.world.loop.now_s
            known = self._contents.setdefault(name, bytes(data))
            self.world.require(known == data, "a name was written twice, differently", name)
        elif name.startswith("shards/"):
            self.confirmed.discard(name)
            shard = self.shard(name.split("/")[1])
            needed = not shard.dropped and (name in shard.referenced or name in shard.log)
            self.world.require(not needed, "deleted what is still needed", name, actor)
            self.world.count("objects deleted")

    # What clients are told

    def acknowledged(self, shard_id: str, request_id: str, response: Any) -> None:
        """Checker 1: what is acknowledged has been committed, once, and did what was said."""
        shard, require = self.shard(shard_id), self.world.require
        done = shard.by_request.get(request_id)
        require(done is not None, "acknowledged, but not committed", request_id)
        assert done is not None, "required above"
        require(response.position == done.record.position, "told another position", request_id)
        if isinstance(done.record, EnrolRecord):
            counts = (response.enrolled_count, response.unchanged_count)
            expected = (len(done.record.codes), done.record.unchanged_count)
            require(counts == expected, "told other counts", request_id, counts, expected)
        else:
            told = response.erased_templates_count
            require(told == len(done.erased), "told another count", request_id, told)
            for key in done.erased:
                if shard.gone.get(key, (0, 0.0))[0] < done.record.position:
                    shard.gone[key] = (done.record.position, self.world.loop.now_s)
        self.world.count("acknowledged")

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

    def erased_stays_away(
        self, copy: ShardCopy, found: list[Key], asked_s: float, who: Any
    ) -> None:
        """Checker 2: what was erased is not returned to whoever asks after the acknowledgement.

        A primary that another process has superseded, and that was paused or cut off from etcd
        until just now, may not know it yet: etcd being away must not end reads.
        """
        shard = self.shard(copy.assignment.shard_id)
        now_s = self.world.loop.now_s
        back = [
            key
            for key in found
            if key in shard.gone
            and shard.gone[key][1] < asked_s
            and shard.last_enrol.get(key, 0) < shard.gone[key][0]
        ]
        if not back:
            return
        if self.superseded(copy) and now_s - max(who.hears_since_s, shard.claimed_s) < HEARING_S:
            self.world.count("answers of a primary that does not know it is superseded")
            return
        self.world.require(False, "an erased template came back", who.name, back)  # noqa: FBT003 - a condition

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
