"""Every durable step fails once, is carried out without an answer, or is the last of its process.

A crash before a step is not played by itself: it leaves what a crash after the step before leaves.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import pytest

import facegrid
from bench.chaos.ledger import DIM
from facegrid.api.admin.v1 import admin_service_pb2 as pb
from facegrid.coord import keys
from facegrid.coord.etcd import EtcdCoordinator
from facegrid.coord.port import Guard, Put
from facegrid.errors import FencedError, NotFoundError, UnavailableError
from facegrid.failpoint import POINTS
from facegrid.format.records import Dropped, decode_shard_map, encode_dropped, encode_shard_map
from facegrid.ids import KEY_LAST, GalleryName, NodeId, ShardId
from facegrid.model import HashRange, ShardAssignment, ShardMap
from fgctl import admin
from fgctl.local.plan import Wanted
from tests.fakes.rig import (
    Rig,
    Trial,
    enrol_noted,
    erase_noted,
    holds,
    wait_for,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

LIVED_IN = "lived-in"
ROUTER = "facegrid-router"
ROWS_TO_TRAIN = 1100
WAYS = {
    "refused": "before error 1",
    "answer lost": "after error 1",
    "crash": "after crash 1",
}


@dataclass
class World:
    """A gallery under a ledger, which every case writes to, and names for others."""

    rig: Rig
    client: facegrid.Client
    trial: Trial
    numbers: Iterator[int] = field(default_factory=count)
    kept: list[str] = field(default_factory=list)

    def fresh(self) -> str:
        """Return a name that nobody had before."""
        return f"one-{next(self.numbers)}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two nodes, one router, one etcd; segments with an erased row are rewritten at once."""
    with (
        Rig(
            tmp_path_factory.mktemp("failpoints"),
            Wanted(nodes=2, replicas=2, etcd=1, routers=1),
            environment={
                "FACEGRID_INDEXD_ERASED_REWRITE_S": "1",
                "FACEGRID_INDEXD_TAKEOVER_AFTER_S": "1",
            },
        ) as rig,
        rig.client() as client,
    ):
        rig.new_gallery(client, LIVED_IN, replicas=2)
        world = World(rig, client, rig.opened(LIVED_IN))
        world.kept = [world.fresh() for _ in range(8)]
        enrol_noted(client, LIVED_IN, world.trial, world.kept)
        yield world


def until_done(work: Callable[[], None]) -> None:
    """Do something again, as long as it fails for want of somebody; what is gone is done."""

    def problem() -> str:
        try:
            work()
        except NotFoundError:
            return ""
        except (UnavailableError, FencedError) as error:
            return error.message
        return ""

    wait_for(problem)


def write_and_rewrite(world: World) -> None:
    """Enrol two, and erase one of those and one of whom a segment holds: that is rewritten."""
    keep, gone = world.fresh(), world.fresh()
    enrol_noted(world.client, LIVED_IN, world.trial, [keep])
    enrol_noted(world.client, LIVED_IN, world.trial, [gone])
    for subject_id in (gone, world.kept.pop(0)):
        erase_noted(world.client, LIVED_IN, world.trial, subject_id)
    world.kept.append(keep)


def come_and_go(world: World) -> None:
    """Create a gallery, enrol, and drop it."""
    name = world.fresh()

    def create() -> None:
        world.client.create_gallery(name, dim=DIM, extractor="x@1", shards=2, train_at=0)

    until_done(create)
    world.client.enrol(
        name,
        template_ids=["t-0", "t-1"],
        subject_ids=["s-0", "s-1"],
        vectors=np.eye(2, DIM, dtype=np.float32),
    )
    until_done(lambda: world.client.drop_gallery(name))
    wait_for(lambda: "not deleted yet" if world.rig.objects(f"/shards/{name}.") else "")


def train_and_go(world: World) -> None:
    """Create a gallery, enrol, train it, and drop it."""
    name = world.fresh()
    rng = np.random.default_rng(3)
    world.client.create_gallery(name, dim=8, extractor="x@1", train_at=0)
    ids = [f"s-{number}" for number in range(ROWS_TO_TRAIN)]
    world.client.enrol(
        name,
        template_ids=ids,
        subject_ids=ids,
        vectors=unit(rng.standard_normal((ROWS_TO_TRAIN, 8))),
    )
    until_done(lambda: world.client.train(name) and None)
    assert world.client.get_gallery(name).codebook
    until_done(lambda: world.client.drop_gallery(name))
    wait_for(lambda: "not deleted yet" if world.rig.objects(f"/shards/{name}.") else "")


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def register_again(world: World) -> None:
    """Let all leases end, so that nodes register anew."""
    for lease in world.rig.etcd_call("lease/leases").get("leases", []):
        world.rig.etcd_call("lease/revoke", ID=lease["ID"])


def take_over(world: World) -> None:
    """Kill the primary, wait until the other node has its shard, and start it again."""
    rig = world.rig
    victim = rig.copies(LIVED_IN)[0]
    until_done(lambda: rig.cluster.kill_node(victim))
    wait_for(holds(lambda: rig.copies(LIVED_IN)[0] != victim, "not taken over"))
    until_done(lambda: rig.start(victim))


def fill_and_give_up(world: World) -> None:
    """Let a shard be brought into two others, one on each node; then give these up again."""
    rig, name = world.rig, GalleryName(world.fresh())
    world.client.create_gallery(name, dim=DIM, extractor="x@1", shards=1, train_at=0)
    ids = [f"s-{number}" for number in range(DIM)]
    world.client.enrol(
        name, template_ids=ids, subject_ids=ids, vectors=np.eye(DIM, dtype=np.float32)
    )
    shard_map = decode_shard_map(rig.values(keys.shard_map(name))[keys.shard_map(name)])
    source = shard_map.shards[0].shard_id
    halves = HashRange(0, KEY_LAST // 2), HashRange(KEY_LAST // 2 + 1, KEY_LAST)
    children = [
        ShardAssignment(
            ShardId(f"{source[:-4]}{number:04d}"), half, (NodeId(f"n{number}"),), sources=(source,)
        )
        for number, half in enumerate(halves, 1)
    ]
    change_map(rig, name, lambda held: replace(held, pending=tuple(children), made_count=3))

    def level() -> bool:
        copies = [copy for node in rig.status().nodes for copy in node.shards]
        full = [copy for copy in copies if [*copy.sources]]
        return sum(copy.templates_count for copy in full) == DIM and len(full) == len(children)

    wait_for(holds(level, "not brought over"))
    notes = [
        Put(
            keys.dropped(one.shard_id),
            encode_dropped(
                Dropped(one.shard_id, shard_map.gallery_uid, one.node_ids, gallery_lives=True)
            ),
        )
        for one in children
    ]
    change_map(rig, name, lambda held: replace(held, pending=()), *notes)
    parts = [f"/shards/{one.shard_id}/" for one in children]
    wait_for(lambda: "not deleted yet" if any(map(rig.objects, parts)) else "")
    until_done(lambda: world.client.drop_gallery(name))
    wait_for(lambda: "not deleted yet" if rig.objects(f"/shards/{name}.") else "")


def change_map(
    rig: Rig, name: GalleryName, change: Callable[[ShardMap], ShardMap], *notes: Put
) -> None:
    """Put another map in the place of the present one, whatever nodes do to it meanwhile."""

    async def once(coord: EtcdCoordinator) -> bool:
        item = await coord.get(keys.shard_map(name))
        assert item is not None
        held = decode_shard_map(item.value)
        wanted = replace(change(held), version=held.version + 1)
        put = Put(item.key, encode_shard_map(wanted))
        guard = Guard(item.key, item.mod_revision)
        return (await coord.txn([guard], [put, *notes])).succeeded

    wait_for(holds(lambda: rig.etcd(once), "the map was changed meanwhile"))


def drain_and_not(world: World) -> None:
    """Mark a node as draining, and take that back."""
    for draining in (True, False):
        request = pb.MarkNodeRequest(node_id="n1", draining=draining)
        until_done(partial(ask, world, lambda stub: stub.MarkNode, request))


def limit_and_not(world: World) -> None:
    """Have one operation at work at a time, and then as many as before."""
    for at_once in (1, 2):
        request = pb.RebalancerRequest(at_once_max=at_once)
        until_done(partial(ask, world, lambda stub: stub.Rebalancer, request))


def ask(world: World, method: Callable[[Any], Any], request: object) -> None:
    """Ask a router what operators ask."""
    admin.ask(world.rig.targets, method, request, timeout_s=20)


WORKS: dict[str, Callable[[World], None]] = {
    "etcd.txn.mark": drain_and_not,
    "etcd.txn.rebalancer": limit_and_not,
    "store.put.log": write_and_rewrite,
    "etcd.txn.tip": write_and_rewrite,
    "store.put.segment": write_and_rewrite,
    "store.put.manifest": write_and_rewrite,
    "store.put.journal": write_and_rewrite,
    "etcd.txn.manifest": write_and_rewrite,
    "store.delete.log": write_and_rewrite,
    "store.delete.segment": write_and_rewrite,
    "store.delete.manifest": write_and_rewrite,
    "store.put.gallery": come_and_go,
    "store.delete.gallery": come_and_go,
    "etcd.txn.generation": come_and_go,
    "etcd.txn.gallery": come_and_go,
    "etcd.txn.dropped": come_and_go,
    "store.put.pin": fill_and_give_up,
    "store.delete.pin": fill_and_give_up,
    "store.put.codebook": train_and_go,
    "store.delete.codebook": train_and_go,
    "etcd.txn.node": register_again,
    "etcd.txn.map": take_over,
}
"""What makes a process come to each point."""

OF_ROUTERS = {"etcd.txn.gallery", "etcd.txn.mark", "etcd.txn.rebalancer"}
OF_OPERATIONS = {"etcd.txn.operation", "etcd.txn.driver"}
"""Played by test_failpoints_reshard.py, at each step of an operation."""


def test_every_point_is_played() -> None:
    assert set(WORKS) | OF_OPERATIONS == set(POINTS)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("point", WORKS)
def test_nothing_is_lost_or_twice_or_back_when_a_step_fails(
    world: World, point: str, way: str
) -> None:
    """1 arm; 2 work until it strikes; 3 start what died; 4 the work ends well; 5 audit."""
    rig = world.rig
    rule = f"{point} {WAYS[way]}"
    processes = [ROUTER] if point in OF_ROUTERS else ["n1", "n2"]
    for process in processes:
        rig.arm(process, rule)
    pids = {name: rig.cluster.record.named(name).pid for name in map(name_of, processes)}

    def not_mended() -> str:
        """Start whatever the rule has ended."""
        for process in processes if way == "crash" else []:
            name = name_of(process)
            if rig.struck(process) and rig.cluster.record.named(name).pid == pids[name]:
                if rig.is_alive(name):
                    return f"{name} is still to die"
                until_done(partial(rig.start, name))
        return ""

    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(WORKS[point], world)
        wait_for(lambda: "" if any(rig.struck(one) for one in processes) else "never reached")
        wait_for(lambda: not_mended() or ("" if work.done() else "still at work"))
        work.result()
    for process in processes:
        rig.disarm(process)
    wait_for(not_mended)
    enrol_noted(world.client, LIVED_IN, world.trial, [world.fresh()])
    rig.wait_equal(LIVED_IN)
    rig.audit(world.client, world.trial, LIVED_IN)


def name_of(process: str) -> str:
    """Return the name of the process that reads these rules."""
    return "router1" if process == ROUTER else process
