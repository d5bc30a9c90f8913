"""Takeover by an operator's order: the primaries of a node's shards are others from now on."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from facegrid.api.shard.v1 import shard_service_pb2 as shard_pb2
from facegrid.clock import Clock
from facegrid.coord import keys
from facegrid.coord.port import Coordinator, Guard, Put
from facegrid.errors import FacegridError, NotFoundError, UnavailableError
from facegrid.format.records import decode_shard_map, encode_shard_map
from facegrid.ids import GalleryName, NodeId
from facegrid.model import ShardAssignment, ShardMap
from facegrid.succession import candidates, succeeded, with_held
from router.dispatch.lifecycle import Lifecycle
from router.topology.watcher import Watcher

ATTEMPTS_MAX: Final = 3
"""Times a gallery's map is tried to be changed while others change it."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A shard that has another primary now."""

    gallery: GalleryName
    shard: ShardAssignment


class TakeOver:
    """Changes maps so that a node is the primary of nothing.

    Args:
        coordinator: where maps lie.
        watcher: knows which nodes are registered.
        clock: for what is left of deadlines.
        lifecycle: asks nodes what they serve.
    """

    def __init__(
        self, coordinator: Coordinator, watcher: Watcher, clock: Clock, lifecycle: Lifecycle
    ) -> None:
        self._coordinator = coordinator
        self._watcher = watcher
        self._clock = clock
        self._lifecycle = lifecycle

    async def take_over(self, node_id: NodeId, *, deadline_s: float) -> list[Taken]:
        """Give the shards of a node to their next candidates, to those first that serve the shard
        and are confirmed, then to those that serve it; return those that changed.

        Raises:
            NotFoundError: no map names the node (NODE_UNKNOWN).
            UnavailableError: etcd cannot be reached, others keep changing a map (MAP_CONTENDED),
                or there is nobody to take a shard (TOO_FEW_NODES).
        """
        galleries = self._watcher.topology.galleries.values()
        maps = [served.shard_map for served in galleries]
        if not any(node_id in shard.holders for one in maps for shard in one.held):
            raise NotFoundError(
                f"no map names the node node={node_id}", reason="NODE_UNKNOWN", node=node_id
            )
        standings = await self._standings(maps, node_id, deadline_s)
        taken: list[Taken] = []
        for shard_map in maps:
            if any(shard.primary == node_id for shard in shard_map.held):
                taken += await self._change(
                    shard_map.gallery, node_id, standings, deadline_s=deadline_s
                )
        return taken

    async def _standings(
        self, maps: Sequence[ShardMap], node_id: NodeId, deadline_s: float
    ) -> Mapping[tuple[NodeId, str], int]:
        """Return how well followers of a node's shards could go on: 2 confirmed, 1 serving."""
        followers = {
            node
            for one in maps
            for shard in one.held
            if shard.primary == node_id
            for node in shard.node_ids[1:]
        }
        present = followers & set(self._watcher.topology.nodes)
        answers = await self._lifecycle.statuses(present, deadline_s=deadline_s)
        return {
            (node, status.shard_id): 1 + status.confirmed
            for node, answer in answers.items()
            if not isinstance(answer, FacegridError)
            for status in answer.shards
            if status.state == shard_pb2.SHARD_STATE_SERVING
        }

    async def _change(
        self,
        gallery: GalleryName,
        node_id: NodeId,
        standings: Mapping[tuple[NodeId, str], int],
        *,
        deadline_s: float,
    ) -> list[Taken]:
        """Change one map, as it stands in etcd now."""
        key = keys.shard_map(gallery)
        for _ in range(ATTEMPTS_MAX):
            timeout_s = deadline_s - self._clock.now_s()
            item = await self._coordinator.get(key, timeout_s=timeout_s)
            if item is None:
                return []
            before = decode_shard_map(item.value)
            after = self._without(before, node_id, standings)
            if after == before:
                return []
            result = await self._coordinator.txn(
                [Guard(key, item.mod_revision)],
                [Put(key, encode_shard_map(after))],
                timeout_s=timeout_s,
            )
            if result.succeeded:
                pairs = zip(before.held, after.held, strict=True)
                return [Taken(gallery, new) for old, new in pairs if new != old]
        raise UnavailableError(
            f"the map keeps changing gallery={gallery}", reason="MAP_CONTENDED", gallery=gallery
        )

    def _without(
        self,
        shard_map: ShardMap,
        node_id: NodeId,
        standings: Mapping[tuple[NodeId, str], int],
    ) -> ShardMap:
        """Return the next map, in which a node is no primary; the same one if it is none now."""
        topology = self._watcher.topology
        registered = set(topology.nodes) - {node_id}
        loads = Counter(
            node
            for served in topology.galleries.values()
            for shard in served.shard_map.held
            for node in shard.holders
        )
        shards: list[ShardAssignment] = []
        for shard in shard_map.held:
            if shard.primary != node_id:
                shards.append(shard)
                continue
            order = candidates(shard, registered, loads)
            if not order:
                raise UnavailableError(
                    "no registered node can take the shard: start one that holds it, or another"
                    f" shard={shard.shard_id}",
                    reason="TOO_FEW_NODES",
                    shard=shard.shard_id,
                )
            # The first of those that stand best; of equals the first of the map.
            best = max(order, key=lambda node: standings.get((node, shard.shard_id), 0))
            loads[best] += 1
            shards.append(succeeded(shard, best))
        if tuple(shards) == shard_map.held:
            return shard_map
        return with_held(shard_map, shards)
