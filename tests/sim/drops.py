"""The end of a run: its gallery is dropped, whatever becomes of the node that is to delete it."""

import asyncio
from functools import partial
from typing import Any

from facegrid.coord import keys
from facegrid.coord.port import Delete, Put
from facegrid.format.records import Dropped, encode_dropped
from tests.sim.client import Client

DROPPED_S = 10.0
"""Within this time a drop comes to its end, as far as etcd tells."""
CLEARED_S = 4.0
"""Within this time a process that is back has deleted what it stored behind that."""


async def drop(scenario: Any, last: Client) -> None:
    """Nothing of a dropped gallery stays in the store or in etcd but the journal of erasures."""
    world, etcd, truth = scenario.world, scenario.etcd, scenario.truth
    await scenario._converges(last)
    gallery = scenario.gallery
    operations: list[Put | Delete] = [
        Delete(keys.gallery(gallery.name)),
        Delete(keys.shard_map(gallery.name)),
    ]
    for shard in scenario.shards:
        dropped = Dropped(shard.shard_id, gallery.uid, shard.node_ids)
        operations.append(Put(keys.dropped(shard.shard_id), encode_dropped(dropped)))
    writing = asyncio.get_running_loop().create_task(last.enrol())
    back_s = _trouble(scenario, scenario.shards[0].primary)
    await scenario._wait(world.rng.random() * 0.02)
    ordered_s = world.loop.now_s
    scenario._txn([], operations)
    ends_s = world.loop.now_s + DROPPED_S
    while etcd.snapshot(keys.DROPPED).items:
        world.require(world.loop.now_s < ends_s, "a drop does not come to its end")
        await scenario._wait(0.1)
    await scenario._wait(1.0 + max(0.0, back_s + CLEARED_S - world.loop.now_s))
    writing.cancel()
    left = [
        n
        for n in scenario.objects.objects
        # What arrives behind its writer's back is for a sweeper to find.
        if truth.stored_s[n] < ordered_s or n in truth.confirmed
        if not n.startswith("journal/")
    ]
    world.require(not left, "a dropped gallery left objects behind", left)
    prefixes = (keys.GENERATIONS, keys.TIPS, keys.MANIFESTS, keys.DROPPED, keys.MAPS)
    items = [i.key for prefix in prefixes for i in etcd.snapshot(prefix).items]
    world.require(not items, "a dropped gallery left keys behind", items)
    for shard in scenario.shards:
        truth.journal_is_closed(shard.shard_id)
    world.count("drops")


def _trouble(scenario: Any, node_id: str) -> float:
    """Let the node that is to delete first die for good, stand still, or lose its way to etcd
    while it writes; return when it is back.
    """
    world = scenario.world
    rng, now_s = world.rng, world.loop.now_s
    what = rng.choice(("none", "death", "pause", "cut")) if len(scenario.node_ids) > 1 else "none"
    begins_s, back_s = rng.random() * 0.02, rng.random() * DROPPED_S
    for process in scenario.shared.living(node_id):
        match what:
            case "death":
                scenario.lost.add(node_id)
                process.crash()
                world.count("drops without the first node")
            case "pause":
                scenario._later(begins_s, process.pause)
                scenario._later(back_s, process.resume)
            case "cut":
                scenario._later(begins_s, partial(process.cut, "etcd"))
                scenario._later(back_s, process.heal)
            case _:
                pass
    return float(now_s + back_s if what in ("pause", "cut") else now_s)
