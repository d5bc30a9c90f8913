"""Every durable step of a split fails once, loses its answer, or is the last of its process: on
the node of the source, and on that of the shards that are filled.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from facegrid.blob.port import BlobStore
from facegrid.coord.port import Coordinator
from facegrid.errors import FacegridError, UnavailableError
from facegrid.failpoint.coord import kind_of as kind_of_keys
from facegrid.failpoint.store import kind_of
from facegrid.ids import NodeId
from facegrid.model import ShardMap
from facegrid.testing.memory_blob import MemoryBlobStore
from fgctl.offline.verify import Scope, survey, verify
from tests.fakes.mirror_rig import HIGH, LOW, N1, N2, Rig, S, rigged, split_map
from tests.fakes.waiting import until
from tests.unit.test_mirror import check_children, enrol, erase, load

WAYS = ("refused", "answer lost", "crash")
STEPS = {
    N1: (
        "store.put.pin", "store.put.segment", "store.delete.pin", "store.put.log",
        "store.put.manifest", "store.delete.log", "store.delete.segment", "etcd.txn.tip",
        "etcd.txn.manifest",
    ),
    N2: (
        "store.put.log", "store.put.segment", "store.put.manifest", "store.delete.log",
        "etcd.txn.tip", "etcd.txn.manifest", "etcd.txn.generation",
    ),
}  # fmt: skip
CASES = [
    (node, point, way, arrival)
    for node, points in STEPS.items()
    for point in points
    for way in WAYS
    for arrival in ((1, 2) if point in ("store.put.segment", "etcd.txn.tip") else (1,))
]


class Fault:
    """What fails, and whom."""

    def __init__(self, node_id: NodeId, point: str, way: str, arrival: int) -> None:
        self.armed = False
        self.struck = False
        self.dead: set[str] = set()
        self._case = (node_id, point)
        self._way = way
        self._arrival = arrival
        self._arrivals: Counter[str] = Counter()

    async def reach(self, boot: str, point: str, work: Any) -> Any:
        """Carry a step of a process out, or not."""
        mine = self.armed and (boot.rpartition("-")[0], point) == self._case
        self._arrivals[point] += mine
        strikes = mine and not self.struck and self._arrivals[point] == self._arrival
        self.struck |= strikes
        if boot in self.dead or (strikes and self._way == "refused"):
            work.close()
            raise UnavailableError("lost", reason="TRANSPORT")
        result = await work
        if strikes:
            if self._way == "crash":
                self.dead.add(boot)
            raise UnavailableError("lost", reason="TRANSPORT")
        return result


class Steps:
    """A store or coordinator of one process, each of whose steps may fail."""

    def __init__(self, inner: BlobStore | Coordinator, boot: str, fault: Fault) -> None:
        self._inner: Any = inner
        self._boot = boot
        self._fault = fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def put_new(self, name: str, data: bytes) -> None:
        work = self._inner.put_new(name, data)
        await self._fault.reach(self._boot, f"store.put.{kind_of(name)}", work)

    async def delete(self, name: str) -> None:
        work = self._inner.delete(name)
        await self._fault.reach(self._boot, f"store.delete.{kind_of(name)}", work)

    async def txn(self, guards: Sequence[Any], operations: Sequence[Any], **rest: Any) -> Any:
        work = self._inner.txn(guards, operations, **rest)
        point = f"etcd.txn.{kind_of_keys([one.key for one in operations])}"
        return await self._fault.reach(self._boot, point, work)


class Story:
    """A shard is split while it is written to. Processes that died are started again."""

    def __init__(self, rig: Rig, fault: Fault) -> None:
        self.rig = rig
        self.fault = fault
        rig.wrap = lambda inner, boot: Steps(inner, boot, fault)

    async def play(self) -> None:
        for node_id in (N1, N2):
            await self.rig.start(node_id)
        for number in range(1, 5):
            await self.write(lambda p, n=number: p.write(enrol(n)))
        self.fault.armed = True
        await self.rig.say(both_on(N2))
        await self.level()
        await self.write(lambda p: p.write(enrol(5)))
        await self.write(lambda p: p.write(erase(2, 0, 1)))
        await self.write(lambda p: load(self.rig, p, 20))
        await self.level()
        for shard_id in (S, LOW, HIGH):
            await self.write(lambda p: p.rewrite(), shard_id)
        await self.write(lambda p: p.write(erase(20, 1)))
        await self.write(lambda p: p.write(enrol(6)))
        await self.level()
        for shard_id in (S, LOW, HIGH):
            await self.write(lambda p: p.flush(), shard_id)
        await self.level()
        check_children(self.rig)

    async def write(self, work: Any, shard_id: Any = S) -> None:
        """Do something to a shard, until it is done."""
        while True:
            await self.revive()
            primary = await self.rig.serving(shard_id)
            try:
                await work(primary)
            except FacegridError:
                await self.rig.clock.sleep(0)
            else:
                return

    async def level(self) -> None:
        """Wait until all has been brought over."""
        while True:
            await self.revive()
            try:
                await self.rig.brought_over(unless=self.somebody_died)
            except FacegridError:
                continue
            return

    def somebody_died(self) -> bool:
        return any(process.address in self.fault.dead for process in self.rig.processes.values())

    async def revive(self) -> None:
        for process in [*self.rig.processes.values()]:
            if process.address in self.fault.dead:
                await self.rig.kill(process)
                await self.rig.start(NodeId(process.address.rpartition("-")[0]))
        await until(lambda: len(self.rig.processes) == 2)


def both_on(node_id: NodeId) -> ShardMap:
    pending = tuple(replace(one, node_ids=(node_id,)) for one in split_map().pending)
    return replace(split_map(), pending=pending)


@pytest.mark.parametrize(("node_id", "point", "way", "arrival"), CASES)
async def test_a_split_survives_the_failure_of_every_durable_step(
    node_id: NodeId, point: str, way: str, arrival: int
) -> None:
    fault = Fault(node_id, point, way, arrival)
    async with rigged() as rig:
        await Story(rig, fault).play()
        assert fault.struck or arrival > 1, "the step was taken"
        store = MemoryBlobStore()
        store.objects.update(rig.store.objects)
        report = await verify(await survey(store), Scope())
        assert report.findings.problems == []
