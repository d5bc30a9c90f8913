"""What operations are made of, for whoever serves them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from facegrid.errors import FacegridError
from facegrid.format.operations import Operation
from facegrid.ids import ShardId
from facegrid.model import ShardMap
from router.dispatch.latencies import Latencies
from router.dispatch.lifecycle import Lifecycle
from router.operate.election import Election
from router.operate.planner import Planner
from router.operate.rebalancing import Rebalancing
from router.operate.register import Register
from router.plan.progress import arrived_share, involved
from router.topology.watcher import Watcher


@dataclass(frozen=True, slots=True)
class Operate:
    """Everything about operations but their driver.

    Attributes:
        register: operations as they are recorded.
        planner: plans and begins them.
        rebalancing: proposes some.
        latencies: of this router's searches.
        lifecycle: asks nodes how they are.
        watcher: knows the maps.
        election: says whether this router drives.
    """

    register: Register
    planner: Planner
    rebalancing: Rebalancing
    latencies: Latencies
    lifecycle: Lifecycle
    watcher: Watcher
    election: Election

    @property
    def p99_ms(self) -> float:
        """The 99th percentile of search times that the driver sees; 0 where this is not it."""
        return 0.0 if self.election.guard is None else self.latencies.p99_ms()

    async def progress(
        self, operations: Sequence[Operation], *, deadline_s: float
    ) -> Mapping[str, float]:
        """Return the share of the rows that have arrived, by the operation's id. 0 of one that is
        over, and of a gallery that this router does not know.
        """
        maps = {
            operation.operation_id: shard_map
            for operation in operations
            if not operation.state.over and (shard_map := self._map_of(operation)) is not None
        }
        nodes = {
            node
            for operation in operations
            if operation.operation_id in maps
            for node in involved(operation, maps[operation.operation_id])
        }
        answers = await self.lifecycle.statuses(nodes, deadline_s=deadline_s)
        counts = {
            (node, ShardId(shard.shard_id)): shard.templates_count
            for node, answer in answers.items()
            if not isinstance(answer, FacegridError)
            for shard in answer.shards
        }
        return {
            operation.operation_id: arrived_share(operation, maps[operation.operation_id], counts)
            if operation.operation_id in maps
            else 0.0
            for operation in operations
        }

    def _map_of(self, operation: Operation) -> ShardMap | None:
        served = self.watcher.topology.galleries.get(operation.gallery)
        if served is None or served.gallery.uid != operation.gallery_uid:
            return None
        return served.shard_map
