"""Random histories of a shard that is brought into two others, with everything that can go wrong.

Calls and answers are lost, processes of either side die and come back, shards move to the other
node, etcd's and the store's answers do not come. In the end the children together have exactly the
source's rows, each in one of them; and when they have taken its place they keep them.
"""

import asyncio
import random  # noqa: TID251 - seeded
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from typing_extensions import override

from facegrid.clock import SystemClock
from facegrid.coord.port import Delete, Guard, Put, TxnResult, ValueGuard
from facegrid.errors import FacegridError, UnavailableError
from facegrid.model import ShardAssignment
from facegrid.testing.memory_blob import MemoryBlobStore
from facegrid.testing.memory_coord import MemoryCoordinator
from fgctl.offline.verify import Scope, survey, verify
from indexd.engine.requests import EraseRequest
from indexd.replica.primary import Primary
from tests.fakes.mirror_rig import HIGH, LOW, N1, N2, Rig, S, rigged, split_map
from tests.unit.test_mirror import check_children, enrol, load, rows_of

SEEDS = range(12)
STEPS = 60
WRITE_TIMEOUT_S = 0.5


class Chance:
    """What goes wrong, and how often: nothing once `share` is 0."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.share = 0.0

    def lose(self, *_what: object) -> None:
        """Fail now and then."""
        if self.random.random() < self.share:
            raise UnavailableError("lost", reason="TRANSPORT")


class LossyStore(MemoryBlobStore):
    """Loses calls and answers."""

    def __init__(self, chance: Chance) -> None:
        super().__init__()
        self._chance = chance

    @override
    async def put_new(self, name: str, data: bytes) -> None:
        self._chance.lose()
        await super().put_new(name, data)
        self._chance.lose()

    @override
    async def get(self, name: str) -> bytes:
        self._chance.lose()
        return await super().get(name)


class LossyCoordinator(MemoryCoordinator):
    """Loses calls and answers."""

    def __init__(self, chance: Chance) -> None:
        super().__init__(SystemClock())
        self._chance = chance

    @override
    async def txn(
        self,
        guards: Sequence[Guard | ValueGuard],
        operations: Sequence[Put | Delete],
        *,
        timeout_s: float = 5.0,
    ) -> TxnResult:
        self._chance.lose()
        result = await super().txn(guards, operations, timeout_s=timeout_s)
        self._chance.lose()
        return result


class History:
    """One run."""

    def __init__(self, rig: Rig, chance: Chance) -> None:
        self.rig = rig
        self.chance = chance
        self.map = split_map()
        self.numbers = 0
        rig.wire.before = rig.wire.after = chance.lose

    async def play(self) -> None:
        for node_id in (N1, N2):
            await self.rig.start(node_id)
        source = await self.rig.serving(S)
        for _ in range(self.chance.random.randint(0, 8)):
            await self.enrol(source)
        await self.rig.say(self.map)
        for _ in range(STEPS):
            self.chance.share = self.chance.random.choice((0.0, 0.02, 0.1, 0.4))
            await self.step()
        await self.heal()
        await self.rig.brought_over()
        await self.verify(await self.rig.serving(S))
        check_children(self.rig)
        await self.rig.serving(S)
        held = await self.rig.hold(S)
        assert held.position == (await self.rig.serving(S)).state.position
        check_children(self.rig)
        await self.cut_over()

    async def step(self) -> None:
        """Do something; what comes to nothing is forgotten."""
        primary = self.rig.primary(S)
        steps: Sequence[Callable[[Primary], Coroutine[Any, Any, None]]] = [
            self.enrol, self.enrol, self.enrol, self.erase, self.erase, self.load, self.flush,
            self.flush, self.rewrite, self.flush_child, self.verify,
        ]  # fmt: skip
        chosen = self.chance.random.random()
        if chosen < 0.06:
            await self.kill()
        elif chosen < 0.1:
            await self.move()
        elif chosen < 0.3:
            await SystemClock().sleep(0.005)
        elif primary is not None:
            with suppress(FacegridError, TimeoutError):
                async with asyncio.timeout(WRITE_TIMEOUT_S):
                    await self.chance.random.choice(steps)(primary)

    async def enrol(self, primary: Primary) -> None:
        self.numbers += 1
        await primary.write(enrol(self.numbers, rows=self.chance.random.randint(1, 5)))

    async def erase(self, primary: Primary) -> None:
        number = self.chance.random.randint(1, self.numbers + 1)
        rows = range(self.chance.random.randint(0, 5))
        ids = [f"{number}-{row}" for row in rows]
        self.numbers += 1
        subjects, templates = [f"s-{one}" for one in ids], [f"t-{one}" for one in ids]
        if self.chance.random.random() < 0.5:
            subjects = []
        else:
            templates = []
        await primary.write(EraseRequest(f"e-{self.numbers}", templates, subjects))

    async def load(self, primary: Primary) -> None:
        self.numbers += 2
        again = self.chance.random.randint(1, self.numbers)
        # It goes on when the time is over, as with a loader that has gone.
        loading = asyncio.get_running_loop().create_task(
            load(self.rig, primary, *{self.numbers - 1, self.numbers, again})
        )
        self.rig.background.add(loading)
        await asyncio.shield(loading)

    async def flush(self, primary: Primary) -> None:
        await primary.flush()

    async def rewrite(self, primary: Primary) -> None:
        await primary.rewrite()

    async def flush_child(self, _: Primary) -> None:
        child = self.rig.primary(self.chance.random.choice((LOW, HIGH)))
        if child is not None:
            await child.flush()

    async def verify(self, _: Primary) -> None:
        """Whatever is under way, nothing that lies in the store counts as damaged."""
        store = MemoryBlobStore()
        store.objects.update(self.rig.store.objects)
        report = await verify(await survey(store), Scope())
        assert report.findings.problems == []

    async def kill(self) -> None:
        """A process dies, and another starts in its place."""
        process = self.chance.random.choice([*self.rig.processes.values()])
        node_id = process.node._ports.claimant.node_id
        share, self.chance.share = self.chance.share, 0.0
        await self.rig.kill(process)
        await self.rig.start(node_id)
        self.chance.share = share

    async def move(self) -> None:
        """A shard goes to the other node, as in a takeover."""
        moved = self.chance.random.choice((S, LOW, HIGH))

        def other(shard: ShardAssignment) -> ShardAssignment:
            if shard.shard_id != moved:
                return shard
            return replace(shard, node_ids=(N2,) if shard.node_ids == (N1,) else (N1,))

        self.map = replace(
            self.map,
            version=self.map.version + 1,
            shards=tuple(map(other, self.map.shards)),
            pending=tuple(map(other, self.map.pending)),
        )
        share, self.chance.share = self.chance.share, 0.0
        await self.rig.say(self.map)
        self.chance.share = share

    async def heal(self) -> None:
        self.chance.share = 0.0
        if self.rig.background:
            await asyncio.wait(self.rig.background)
        for shard_id in (S, LOW, HIGH):
            await self.rig.serving(shard_id)

    async def cut_over(self) -> None:
        """The children take the place of the source, and go on after a restart of all nodes."""
        source = await self.rig.serving(S)
        expected = rows_of(source.state)
        await self.rig.raise_generation(S)
        children = tuple(replace(one, sources=()) for one in self.map.pending)
        await self.rig.say(
            replace(self.map, version=self.map.version + 1, shards=children, pending=())
        )
        for process in [*self.rig.processes.values()]:
            await self.rig.kill(process)
        for node_id in (N1, N2):
            await self.rig.start(node_id)
        low, high = await self.rig.serving(LOW), await self.rig.serving(HIGH)
        assert {**rows_of(low.state), **rows_of(high.state)} == expected


@pytest.mark.parametrize("seed", SEEDS)
async def test_the_children_have_what_the_source_has_whatever_happens(seed: int) -> None:
    chance = Chance(seed)
    async with rigged(LossyCoordinator(chance), LossyStore(chance)) as rig:
        await History(rig, chance).play()
