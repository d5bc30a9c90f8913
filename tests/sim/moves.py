"""Copies that change their nodes while a run goes on: operations, and those who carry them out."""

from collections.abc import Callable

from facegrid import limits
from facegrid.ids import NodeId
from facegrid.model import ShardAssignment
from tests.sim.mover import Mover, Operation
from tests.sim.process import Shared

COPIES_MAX = 3
ABORTED_SHARE = 0.2
END_S = 20.0
"""After faults heal an operation comes to its end within this time."""
SLACK_S = 2.0
"""Until a process has heard of the last map and, by its own clock, has lingered."""


class Moves:
    """Begins operations one after the other, and lets movers drive, die and go on.

    Args:
        shared: what all processes reach.
        nodes: returns the nodes that there are.
        shards: returns the shards as the map has them.
    """

    def __init__(
        self,
        shared: Shared,
        nodes: Callable[[], list[str]],
        shards: Callable[[], tuple[ShardAssignment, ...]],
    ) -> None:
        self._shared = shared
        self._world = shared.world
        self._nodes = nodes
        self._shards = shards
        self._movers: list[Mover] = []
        self._started = 0
        self.operation: Operation | None = None

    async def run(self, until_s: float) -> None:
        """Begin operations until a time."""
        rng, loop = self._world.rng, self._world.loop
        pause_s = rng.choice((0.3, 1.0))
        while loop.now_s < until_s:
            await self._wait(rng.random() * pause_s)
            operation = self.operation
            if operation is None or operation.done:
                self._begin()
            elif rng.random() < 0.1 and not operation.aborting:
                operation.aborting = rng.random() < ABORTED_SHARE
            self._movers = [mover for mover in self._movers if not mover.actor.dead]
            if self._movers and rng.random() < 0.15:
                rng.choice(self._movers).actor.fuse = rng.randrange(1, 40)
            if len(self._movers) < rng.choice((1, 1, 2)):
                self._drive()

    async def finish(self) -> None:
        """With nothing going wrong any more an operation comes to its end."""
        for mover in self._movers:
            mover.crash()
        if self.operation is None:
            return
        self._drive()
        ends_s = self._world.loop.now_s + END_S
        while not self.operation.done:
            self._world.require(
                self._world.loop.now_s < ends_s,
                "an operation does not come to its end",
                vars(self.operation),
                self._shards(),
            )
            await self._wait(0.1)

    async def nobody_holds_more(self) -> None:
        """What the map has taken from a node is let go of, by every process."""
        ends_s = self._world.loop.now_s + limits.LINGER_S + SLACK_S
        while extra := self._extra():
            self._world.require(
                self._world.loop.now_s < ends_s, "a copy stays that no map gives", extra
            )
            await self._wait(0.1)

    def _extra(self) -> list[tuple[str, str]]:
        holders = {shard.shard_id: shard.holders for shard in self._shards()}
        return [
            (process.name, shard_id)
            for process in self._shared.processes.values()
            if not process.actor.dead
            for shard_id in process.node.copies
            if process.node_id not in holders.get(shard_id, ())
        ]

    def _begin(self) -> None:
        """Choose where the copies of a shard shall be."""
        rng = self._world.rng
        shard = rng.choice(self._shards())
        count = rng.randrange(1, min(COPIES_MAX, len(self._nodes())) + 1)
        wanted = tuple(map(NodeId, rng.sample(self._nodes(), count)))
        self.operation = Operation(shard.shard_id, wanted, shard.node_ids)
        self._world.note("moves", "begin", shard, wanted)

    def _drive(self) -> None:
        assert self.operation is not None, "something is to be driven"
        self._started += 1
        self._movers.append(Mover(self._shared, f"mover-{self._started}", self.operation))

    async def _wait(self, duration_s: float) -> None:
        future = self._world.loop.create_future()
        self._world.loop.in_world(duration_s, future.set_result, None)
        await future
