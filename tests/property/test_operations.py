"""Operations under everything that can come between: whatever happens in whatever order, the map
tiles, nothing acknowledged is missing from it, and in the end every operation is over.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from facegrid.coord import keys
from facegrid.coord.port import Delete
from facegrid.errors import FacegridError
from facegrid.format.operations import OperationState, Replicas
from facegrid.ids import NodeId
from facegrid.model import ShardMap
from router.operate.register import Action, Register
from router.plan import kinds
from tests.fakes.shape_nodes import DriverOf, losing_answers
from tests.fakes.shape_world import World

NODES = [NodeId(f"n{number}") for number in range(1, 5)]
TURNS_MAX = 300


class Story:
    """A world, two drivers, and what was asked of them."""

    def __init__(self) -> None:
        self.world = World()
        self.drivers = [DriverOf(self.world, "r1"), DriverOf(self.world, "r2")]
        self.begun: list[str] = []
        self.aborted: set[str] = set()
        self.dropped = False
        self.crashed = False

    async def look(self, number: int, lost: int = 0) -> None:
        """One turn of a driver, which may lose answers of etcd, and may die in the middle."""
        with losing_answers(self.world, lost):
            await self.drivers[number].look()
        if self.crashed:
            self.crashed = False
            self.drivers[number] = DriverOf(self.world, f"r{number + 1}")

    async def usurp(self) -> None:
        """End the lease of whoever drives, who does not hear of it."""
        await self.world._put([], [Delete(keys.DRIVER)])

    async def crash(self) -> None:
        """End a look in the middle; what was to be written is not."""
        self.crashed = True
        raise FacegridError("the driver died")

    async def start(self, which: int, first: int) -> None:
        """Begin some operation, unless the shards have one."""
        shard_map = await self.world.map()
        if shard_map is None:
            return
        kind = await self._kind(shard_map, which, first)
        name = f"op-{len(self.begun)}"
        if await self.world.start(kind, name) is not None:
            self.begun.append(name)

    async def _kind(self, shard_map: ShardMap, which: int, first: int) -> Any:
        taken = {*(await self.world.taken()), *(shard.shard_id for shard in shard_map.pending)}
        shard = shard_map.shards[first % len(shard_map.shards)]
        if which == 0 or (which == 2 and len(shard_map.shards) < 2):
            return kinds.split(shard_map, shard.shard_id, taken=taken)
        if which == 1:
            order = NODES[first:] + NODES[:first]
            return Replicas(shard.shard_id, tuple(order[: 1 + first % 3]))
        at = first % (len(shard_map.shards) - 1)
        pair = [one.shard_id for one in shard_map.shards[at : at + 2]]
        return kinds.merge(shard_map, pair, taken=taken)

    async def change(self, action: Action, number: int) -> None:
        """Pause, resume or abort some operation, unless that is refused."""
        if not self.begun:
            return
        name = self.begun[number % len(self.begun)]
        register = Register(self.world.coord, self.world.clock, self.drivers[0].driver._logger)
        try:
            await register.change(name, action, deadline_s=self.world.clock.now_s() + 5)
        except FacegridError:
            return
        if action is Action.ABORT:
            self.aborted.add(name)

    async def drop(self) -> None:
        self.dropped = True
        await self.world.drop_gallery()

    async def wait(self) -> None:
        await self.world.clock.advance(4.0)

    async def follow(self) -> None:
        await self.world.settle()
        await self.world.fill()
        self.world.replicate()

    async def check(self) -> None:
        """Assert what holds at all times."""
        if not self.dropped:
            await self.world.check()
        locks = await self.world.taken()
        wanted = {}
        for name in self.begun:
            operation = await self.world.operation(name)
            assert operation.step in kinds.steps_of(operation.kind)
            if not operation.state.over:
                wanted |= dict.fromkeys(operation.locked_ids, name)
        assert locks == wanted

    async def heal(self) -> None:
        """Let everybody be well, and everything end."""
        self.world.interruptions.clear()
        for node in sorted(self.world.dead):
            await self.world.rise(node)
        for name in self.begun:
            await self.change(Action.RESUME, self.begun.index(name))
        for _ in range(TURNS_MAX):
            await self.follow()
            await self.look(0)
            await self.look(1)
            await self.check()
            states = [(await self.world.operation(name)).state for name in self.begun]
            if all(state.over for state in states):
                return
            await self.world.clock.advance(2.0)
        stuck = [await self.world.operation(name) for name in self.begun]
        raise AssertionError([one for one in stuck if not one.state.over])

    async def ended(self) -> None:
        """Assert what is left, and that another operation works."""
        for name in self.aborted:
            assert (await self.world.operation(name)).state is OperationState.ABORTED
        shard_map = await self.world.map()
        if shard_map is None:
            return
        assert shard_map.pending == ()
        assert all(shard.joining == () for shard in shard_map.shards)
        kind = kinds.split(shard_map, shard_map.shards[0].shard_id, taken=())
        await self.world.start(kind, "op-last")
        self.begun.append("op-last")
        await self.heal()
        assert (await self.world.operation("op-last")).state is OperationState.DONE


def moves(story: Story) -> dict[str, Callable[..., Awaitable[None]]]:
    """Return what may happen, by name; each takes up to two numbers."""
    world = story.world

    async def write(one: int, other: int) -> None:
        await world.write(f"s{one}", other)

    return {
        "look": lambda one, _: story.look(one % 2),
        "look again": lambda one, _: story.look(one % 2),
        "look, losing answers": lambda one, other: story.look(one % 2, 1 + other % 2),
        "usurp": lambda *_: story.usurp(),
        "hear": lambda one, _: hear(world, NODES[one % 4]),
        "follow": lambda *_: story.follow(),
        "follow again": lambda *_: story.follow(),
        "fill": lambda *_: world.fill(),
        "write": write,
        "write again": write,
        "die": lambda one, _: die(world, NODES[one % 4]),
        "rise": lambda *_: rise(world),
        "take over": lambda *_: world.take_over(),
        "start": lambda one, other: story.start(one % 3, other),
        "wait": lambda *_: story.wait(),
        "pause": lambda one, _: story.change(Action.PAUSE, one),
        "resume": lambda one, _: story.change(Action.RESUME, one),
        "abort": lambda one, _: story.change(Action.ABORT, one),
    }


async def hear(world: World, node: NodeId) -> None:
    if node not in world.dead:
        await world.hear(node)


async def die(world: World, node: NodeId) -> None:
    if node not in world.dead and len(world.dead) < 2:
        await world.die(node)


async def rise(world: World) -> None:
    for node in sorted(world.dead)[:1]:
        await world.rise(node)


NAMES = sorted(moves(Story()))
MOVE = st.tuples(st.sampled_from(NAMES), st.integers(0, 12), st.integers(0, 12))
WITHIN = st.sampled_from(["write", "die", "take over", "usurp", "crash", "follow", "abort", ""])


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
@given(
    first=st.tuples(st.integers(0, 2), st.integers(0, 12)),
    steps=st.lists(MOVE, min_size=20, max_size=60),
    within=st.lists(st.tuples(WITHIN, st.integers(0, 12)), max_size=12),
    drop=st.integers(0, 200),
)
def test_whatever_comes_between_nothing_is_lost_and_everything_ends(
    first: tuple[int, int],
    steps: list[tuple[str, int, int]],
    within: list[tuple[str, int]],
    drop: int,
) -> None:
    async def run() -> None:
        story = Story()
        await story.world.begin()
        table = moves(story)
        for number in range(12):
            await story.world.write(f"s{number}", number + 1)
        for name, number in within:
            story.world.interruptions.append(
                story.crash
                if name == "crash"
                else (lambda name=name, number=number: between(table, name, number))
            )
        await story.start(*first)
        for place, (name, one, other) in enumerate(steps):
            await table[name](one, other)
            if place == drop:
                await story.drop()
            await story.check()
        await story.heal()
        await story.ended()

    asyncio.run(run())


async def between(table: dict[str, Any], name: str, number: int) -> None:
    """Do something in the middle of a look."""
    if name:
        await table[name](number, number)
