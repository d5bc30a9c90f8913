"""Processes that hear of no new map for a while, though what they read of etcd is true.

So does who watches a member of etcd without its majority, while other members answer reads.
"""

from facegrid.model import ShardAssignment
from indexd.replica.shard_copy import Phase
from tests.sim.process import Process, Shared
from tests.sim.truth import Truth

LOOK_S = 0.02
DURATION_S = (3.0, 8.0)


def deafen(process: Process) -> None:
    """Let a process hear of no change for some seconds."""
    world = process.world
    link = process.links["etcd"]
    link.deaf = True
    world.count("processes deafened")
    least_s, most_s = DURATION_S
    world.loop.in_world(
        least_s + (most_s - least_s) * world.rng.random(), lambda: setattr(link, "deaf", False)
    )


async def deafen_at_the_worst(shared: Shared, truth: Truth, until_s: float) -> None:
    """Deafen, one at a time, whose not hearing matters: the primary that has heard who joins, and
    will not hear that it serves; and a copy that will not hear that it is let go.
    """
    world = shared.world
    version = 0
    while world.loop.now_s < until_s:
        await _wait(shared, LOOK_S)
        shard_map = truth.shard_map
        if shard_map is None or shard_map.version == version:
            continue
        victims = [
            process
            for shard in shard_map.shards
            for process in _victims(shared, shard, shard_map.version)
        ]
        if not victims:
            continue
        version = shard_map.version
        deaf = any(one.links["etcd"].deaf for one in shared.processes.values())
        if not deaf and world.chance(0.7):
            deafen(world.rng.choice(victims))


def _victims(shared: Shared, shard: ShardAssignment, version: int) -> list[Process]:
    """Return the processes of a shard, of those that have just heard of a map, of which one may be
    deafened now: with copies that join the primary, else any other.
    """
    node_ids = (shard.primary,) if shard.joining else shard.node_ids[1:]
    newest = [shared.living(node_id)[-1] for node_id in node_ids if shared.living(node_id)]
    copies = [(process, process.node.copies.get(shard.shard_id)) for process in newest]
    return [
        process
        for process, copy in copies
        if copy is not None and copy.map_version == version and copy.phase is Phase.SERVING
    ]


async def _wait(shared: Shared, duration_s: float) -> None:
    future = shared.world.loop.create_future()
    shared.world.loop.in_world(duration_s, future.set_result, None)
    await future
