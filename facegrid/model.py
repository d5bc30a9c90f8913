"""The values that facegrid is about, without any I/O. Wire and storage forms live elsewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from facegrid.ids import KEY_LAST, GalleryName, NodeId, ShardId
from facegrid.tuning import MISS_RATE_MAX_DEFAULT, Profile, Tuning

COMPONENT_BITS_DEFAULT: Final = 8
"""What a component of a template is rounded to where its gallery says nothing."""


@dataclass(frozen=True, slots=True, order=True)
class HashRange:
    """A part of the key space, both ends included."""

    first: int
    last: int

    def __post_init__(self) -> None:
        """Refuse a range that is empty or outside the key space."""
        assert 0 <= self.first <= self.last <= KEY_LAST, f"no range: {self.first} {self.last}"

    @property
    def size(self) -> int:
        """The number of keys in it."""
        return self.last - self.first + 1

    def contains(self, key: int) -> bool:
        """Tell whether a key lies in it."""
        return self.first <= key <= self.last


@dataclass(frozen=True, slots=True)
class ShardAssignment:
    """Which nodes hold one shard; the first is the primary.

    Attributes:
        shard_id: which.
        range: its keys.
        node_ids: those that serve it.
        joining: those that load it and follow its log, and are not searched yet.
        sources: of a pending shard, those whose rows are brought into it.
    """

    shard_id: ShardId
    range: HashRange
    node_ids: tuple[NodeId, ...]
    joining: tuple[NodeId, ...] = ()
    sources: tuple[ShardId, ...] = ()

    @property
    def primary(self) -> NodeId:
        """The node that takes writes."""
        return self.node_ids[0]

    @property
    def holders(self) -> tuple[NodeId, ...]:
        """All nodes that hold it, searched or not."""
        return (*self.node_ids, *self.joining)


@dataclass(frozen=True, slots=True)
class ShardMap:
    """Which nodes serve which hash range of a gallery, at one version.

    Attributes:
        gallery: its name.
        gallery_uid: what no other gallery ever has.
        version: grows by one with each change.
        shards: tile the key space; what clients read and write.
        pending: shards that are filled from some of `shards`, to take their place (RFC 0009).
        made_count: how many shards the gallery ever had; 0: as many as there are.
    """

    gallery: GalleryName
    gallery_uid: str
    version: int
    shards: tuple[ShardAssignment, ...]
    pending: tuple[ShardAssignment, ...] = ()
    made_count: int = 0

    @property
    def held(self) -> tuple[ShardAssignment, ...]:
        """All shards that nodes hold, those too that are being filled."""
        return (*self.shards, *self.pending)

    @property
    def next_number(self) -> int:
        """The number in the name of the next shard."""
        return self.made_count or len(self.shards)


@dataclass(frozen=True, slots=True)
class Gallery:
    """A gallery's settings. `templates_count` is -1 where nobody counted.

    `profile` is of searches that name none; `miss_rate_max` the share of mates that `balanced` may
    miss because of the index; `tuning` what that was measured to be, None before it was.
    `component_bits` is what a component of a template is rounded to, 8 or 4: see facegrid.vectors.
    `retrained_unix_ms` is when a node last began to train it because of an alarm, 0: never.
    """

    name: GalleryName
    uid: str
    dim: int
    extractor: str
    shards_count: int
    replicas_count: int
    train_at_templates_count: int
    codebook: str = ""
    created_unix_ms: int = 0
    templates_count: int = -1
    profile: Profile = Profile.BALANCED
    miss_rate_max: float = MISS_RATE_MAX_DEFAULT
    tuning: Tuning | None = None
    retrained_unix_ms: int = 0
    component_bits: int = COMPONENT_BITS_DEFAULT


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A registered node: a hint where to connect."""

    node_id: NodeId
    boot_id: str
    address: str
    version: str = ""
    zone: str = ""


@dataclass(frozen=True, slots=True)
class Token:
    """How far the shards' logs had come. Tokens of several writes are joined with `|`."""

    positions: Mapping[ShardId, int] = field(default_factory=dict)

    def __or__(self, other: "Token") -> "Token":
        """Return the token that demands what both demand."""
        joined = dict(self.positions)
        for shard_id, position in other.positions.items():
            joined[shard_id] = max(position, joined.get(shard_id, 0))
        return Token(joined)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One row of a candidate list. `score` is a cosine, -1 to 1; `rank` is 1 for the best."""

    subject_id: str
    template_id: str
    score: float
    rank: int


@dataclass(frozen=True, slots=True)
class Coverage:
    """What share of the key space an answer really searched, and what is missing.

    `unconfirmed_share` is the share that was searched on copies which could not confirm that they
    have everything: there the answer may lack what was enrolled in the last moments, and contain
    what was erased. `scanned_share` is the share of the rows there that the index looked at, on
    average over the probes: 1 when searched exhaustively; None where a node did not tell.
    """

    share: float
    shards_answered_count: int
    shards_count: int
    missing: tuple[HashRange, ...] = ()
    unconfirmed_share: float = 0.0
    scanned_share: float | None = None


@dataclass(frozen=True, slots=True)
class CandidateList:
    """The answer to one probe: subjects by falling score, each at most once."""

    candidates: Sequence[Candidate]
    coverage: Coverage
