"""What is to be moved so that nodes hold about equally much; `router.plan.rebalance` decides."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from facegrid.api.admin.v1 import admin_service_pb2 as pb
from facegrid.clock import Clock
from facegrid.errors import FacegridError
from facegrid.format.operations import Replicas
from facegrid.ids import GalleryName, NodeId, ShardId
from facegrid.model import ShardMap
from router.dispatch.lifecycle import Lifecycle, NodeAnswer
from router.operate.register import Register
from router.plan import estimate, rebalance
from router.plan.estimate import Estimate, ShardSize
from router.plan.hosts import zoned
from router.plan.rebalance import Host, Move, Proposal, Spread
from router.topology.pool import NodePool
from router.topology.snapshot import Topology
from router.topology.watcher import Watcher

LOST_S: Final = 600.0
"""A node that is not registered for so long is not expected back. Longer than a restart, a reboot
or a new disk take; whoever knows better drains the node, which has the same effect at once."""


@dataclass(frozen=True, slots=True)
class AsIf:
    """What is to be taken for given in a proposal, beyond what is recorded.

    Attributes:
        lost: nodes that are not expected back.
        draining: nodes as if they were marked so.
        replicas: how many copies galleries are to have.
    """

    lost: frozenset[NodeId] = frozenset()
    draining: frozenset[NodeId] = frozenset()
    replicas: Mapping[GalleryName, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PlannedMove:
    """A move with the map that it is planned for and what it costs."""

    move: Move
    map_version: int
    estimate: Estimate

    @property
    def spec(self) -> pb.OperationSpec:
        """The operation to be begun."""
        return pb.OperationSpec(
            gallery=self.move.gallery,
            replicas=pb.OperationSpec.Replicas(
                shard_id=self.move.shard_id, node_ids=self.move.node_ids
            ),
            cause=self.move.cause[:200],
        )


@dataclass(frozen=True, slots=True)
class Balance:
    """What is proposed."""

    proposal: Proposal
    moves: tuple[PlannedMove, ...]


class Rebalancing:
    """Proposes moves, and remembers since when nodes are gone.

    Args:
        watcher: knows maps and nodes.
        lifecycle: asks nodes how they are.
        register: knows marks and locks.
        pool: knows how quick nodes are.
        clock: says for how long a node is gone.
    """

    def __init__(
        self,
        watcher: Watcher,
        lifecycle: Lifecycle,
        register: Register,
        *,
        pool: NodePool,
        clock: Clock,
    ) -> None:
        self._watcher = watcher
        self._lifecycle = lifecycle
        self._register = register
        self._pool = pool
        self._clock = clock
        self._gone_since_s: dict[NodeId, float] = {}

    def look(self) -> None:
        """Note which nodes of the maps are not registered. While etcd is silent nobody knows."""
        if not self._watcher.reachable:
            self._gone_since_s.clear()
            return
        topology, now_s = self._watcher.topology, self._clock.now_s()
        gone = mapped(topology) - set(topology.nodes)
        self._gone_since_s = {node: self._gone_since_s.get(node, now_s) for node in gone}

    def lost(self) -> set[NodeId]:
        """Return the nodes that are not expected back."""
        now_s = self._clock.now_s()
        return {node for node, since in self._gone_since_s.items() if now_s - since >= LOST_S}

    async def propose(self, *, deadline_s: float, as_if: AsIf | None = None) -> Balance:
        """Return moves that bring the nodes close together.

        Raises:
            UnavailableError: etcd cannot be reached.
        """
        as_if = as_if or AsIf()
        self.look()
        marks = await self._register.marks(deadline_s=deadline_s)
        locks = await self._register.locks(deadline_s=deadline_s)
        topology = self._watcher.topology
        draining = {node for node, mark in marks.items() if mark.draining} | as_if.draining
        nodes = {*topology.nodes, *mapped(topology), *draining}
        answers = await self._lifecycle.statuses(nodes, deadline_s=deadline_s)
        hosts = [self._host(node, draining, answers[node]) for node in sorted(nodes)]
        hosts = [replace(one, lost=one.lost or one.node_id in as_if.lost) for one in hosts]
        hosts, zones = zoned(hosts)
        sizes = _sizes(topology, answers)
        found = rebalance.propose(
            hosts,
            [
                Spread(served.shard_map, as_if.replicas.get(name, served.gallery.replicas_count))
                for name, served in topology.galleries.items()
            ],
            bytes_of={shard_id: size.memory_bytes for shard_id, size in sizes.items()},
            busy=set(locks),
        )
        alive = [
            f"{node} is registered, and is left only because you call it lost"
            for node in sorted(as_if.lost & topology.nodes.keys())
        ]
        told = (*found.problems, *_held(topology, locks), *alive, *filter(None, [zones]))
        found = replace(found, problems=told)
        available = {host.node_id: host.room_bytes or 0 for host in hosts}
        return Balance(
            found, tuple(_planned(move, topology, sizes, available) for move in found.moves)
        )

    def _host(self, node_id: NodeId, draining: Collection[NodeId], answer: NodeAnswer) -> Host:
        topology = self._watcher.topology
        node = topology.nodes.get(node_id)
        load = self._pool.loads().get(node_id)
        room = 0 if isinstance(answer, FacegridError) else answer.memory_available_bytes
        return Host(
            node_id=node_id,
            zone="" if node is None else node.zone,
            registered=node is not None,
            draining=node_id in draining,
            lost=node_id in self.lost(),
            room_bytes=room or None,
            load=0.0 if load is None else round(load.latency_s, 3),
        )


def _held(topology: Topology, locks: Mapping[ShardId, str]) -> list[str]:
    """Say which shards are left as they are, since an operation has them."""
    return [
        f"{shard.shard_id} stays as it is until operation {locks[shard.shard_id]} is over"
        for served in topology.galleries.values()
        for shard in served.shard_map.shards
        if shard.shard_id in locks
    ]


def mapped(topology: Topology) -> set[NodeId]:
    """Return the nodes that maps name."""
    return {
        node_id
        for served in topology.galleries.values()
        for shard in served.shard_map.held
        for node_id in shard.holders
    }


def _sizes(topology: Topology, answers: Mapping[NodeId, NodeAnswer]) -> dict[ShardId, ShardSize]:
    """Return how large shards are, by the copy that tells most: a primary may just be opening."""
    sizes: dict[ShardId, ShardSize] = {
        shard.shard_id: ShardSize(0, 0, 0)
        for served in topology.galleries.values()
        for shard in served.shard_map.held
    }
    for answer in answers.values():
        if isinstance(answer, FacegridError):
            continue
        for status in answer.shards:
            shard_id = ShardId(status.shard_id)
            if shard_id not in sizes or status.memory_bytes <= sizes[shard_id].memory_bytes:
                continue
            sizes[shard_id] = ShardSize(
                status.templates_count, status.stored_bytes, status.memory_bytes
            )
    return sizes


def _planned(
    move: Move,
    topology: Topology,
    sizes: Mapping[ShardId, ShardSize],
    available: Mapping[NodeId, int],
) -> PlannedMove:
    shard_map: ShardMap = topology.galleries[GalleryName(move.gallery)].shard_map
    found = estimate.estimate(
        Replicas(move.shard_id, move.node_ids), shard_map, sizes=sizes, available=available
    )
    return PlannedMove(move, shard_map.version, found)
