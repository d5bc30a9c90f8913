"""A world with some subjects in it, and what tests of operations do there."""

from facegrid.ids import NodeId, ShardId
from facegrid.telemetry.log import get_logger
from router.operate.register import Action, Register
from tests.fakes.shape_nodes import DriverOf
from tests.fakes.shape_world import World

N1, N2, N3, N4 = (NodeId(f"n{number}") for number in range(1, 5))
S0, S1, S2, S3 = (ShardId(f"staff.1f00aa23.{number:04d}") for number in range(4))


async def written(subjects: int = 40) -> tuple[World, DriverOf]:
    """Return a world with some subjects: S0 on n1 and n2, S1 on n2 and n3."""
    world = await World().begin()
    for number in range(subjects):
        assert await world.write(f"s{number}", number + 1)
    world.replicate()
    return world, DriverOf(world)


async def nodes_of(world: World) -> dict[ShardId, tuple[NodeId, ...]]:
    shard_map = await world.map()
    assert shard_map is not None
    assert all(shard.joining == () for shard in shard_map.shards)
    return {shard.shard_id: shard.node_ids for shard in shard_map.held}


async def change(world: World, action: Action, name: str = "op-1") -> None:
    register = Register(world.coord, world.clock, get_logger("test"))
    await register.change(name, action, deadline_s=world.clock.now_s() + 5)


async def step_to(world: World, driver: DriverOf, step: str, name: str = "op-1") -> None:
    """Drive an operation until a step is next, with all nodes following."""
    for _ in range(30):
        if (await world.operation(name)).step == step:
            return
        await driver.look()
        await world.settle()
        await world.fill()
        world.replicate()
        await world.clock.advance(1.0)
    raise AssertionError(await world.operation(name))
