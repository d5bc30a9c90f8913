"""The values that facegrid is about, without any I/O. Wire and storage forms live elsewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from facegrid.ids import KEY_LAST, GalleryName, NodeId, ShardId


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
    """Which nodes hold one shard; the first is the primary."""

    shard_id: ShardId
    range: HashRange
    node_ids: tuple[NodeId, ...]

    @property
    def primary(self) -> NodeId:
        """The node that takes writes."""
        return self.node_ids[0]


@dataclass(frozen=True, slots=True)
class ShardMap:
    """Which nodes serve which hash range of a gallery, at one version."""

    gallery: GalleryName
    gallery_uid: str
    version: int
    shards: tuple[ShardAssignment, ...]


@dataclass(frozen=True, slots=True)
class Gallery:
    """A gallery's settings. `templates_count` is -1 where nobody counted."""

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
    """What share of the key space an answer really searched, and what is missing."""

    share: float
    shards_answered_count: int
    shards_count: int
    missing: tuple[HashRange, ...] = ()


@dataclass(frozen=True, slots=True)
class CandidateList:
    """The answer to one probe: subjects by falling score, each at most once."""

    candidates: Sequence[Candidate]
    coverage: Coverage
