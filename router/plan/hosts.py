"""What rebalancing is given and what it proposes, as values."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from facegrid.ids import GalleryName, NodeId, ShardId
from facegrid.model import ShardMap


@dataclass(frozen=True, slots=True)
class Host:
    """A node as a place for copies.

    Attributes:
        node_id: which.
        zone: its failure zone; empty: not told.
        registered: it is there; copies come only to nodes that are.
        draining: nothing comes to it, and what it holds shall go elsewhere.
        lost: it is not expected back: what it held shall be elsewhere.
        room_bytes: what it can take in beyond what it holds; None: unknown, so never too little.
        load: how busy it is, in any unit that is the same for all; decides between nodes that are
            as good otherwise.
    """

    node_id: NodeId
    zone: str = ""
    registered: bool = True
    draining: bool = False
    lost: bool = False
    room_bytes: int | None = None
    load: float = 0.0

    @property
    def usable(self) -> bool:
        """Whether copies may come to it."""
        return self.registered and not self.left

    @property
    def left(self) -> bool:
        """Whether its copies shall go elsewhere."""
        return self.draining or self.lost


@dataclass(frozen=True, slots=True)
class Spread:
    """A gallery: its map, and how many copies each shard shall have."""

    shard_map: ShardMap
    replicas_count: int


@dataclass(frozen=True, slots=True)
class Move:
    """An operation to begin: where the copies of a shard shall be, the first as the primary.

    Attributes:
        gallery: the shard's.
        shard_id: which.
        node_ids: the wanted nodes, primary first.
        former_node_ids: the present ones.
        moved_bytes: bytes of the copies that are new; 0 where only roles change.
        cause: why, in words that an operator can read.
    """

    gallery: GalleryName
    shard_id: ShardId
    node_ids: tuple[NodeId, ...]
    former_node_ids: tuple[NodeId, ...]
    moved_bytes: int
    cause: str


@dataclass(frozen=True, slots=True)
class Holding:
    """What a node holds."""

    bytes: int = 0
    primaries_count: int = 0
    replicas_count: int = 0


@dataclass(frozen=True, slots=True)
class HostChange:
    """What a node holds now, and would after the moves."""

    host: Host
    before: Holding
    after: Holding


@dataclass(frozen=True, slots=True)
class Proposal:
    """Moves, in an order in which they may be begun, and what they amount to.

    Attributes:
        moves: at most one for each shard; they may run at the same time.
        hosts: by node id.
        problems: what cannot be put right, in words.
    """

    moves: tuple[Move, ...]
    hosts: tuple[HostChange, ...]
    problems: tuple[str, ...]


def zoned(hosts: Sequence[Host]) -> tuple[list[Host], str]:
    """Return nodes with zones that can be relied upon, and what is wrong with them otherwise.

    As long as one node that is there names no zone none counts: the first node that was given one
    would else be taken for the only place apart from all others, and get a copy of everything.
    """
    there = [host for host in hosts if host.registered]
    without = [host.node_id for host in there if not host.zone]
    if not without or len(without) == len(there):
        return list(hosts), ""
    named = ", ".join(sorted(without))
    problem = f"zones are not looked at until every node names one; without: {named}"
    return [replace(host, zone="") for host in hosts], problem
