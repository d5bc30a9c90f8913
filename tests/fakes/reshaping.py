"""A router on fake nodes whose gallery changes its shape, and which may hear of that too late."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from facegrid.clock import SystemClock
from facegrid.coord import keys
from facegrid.coord.port import Put, WatchEvent
from facegrid.format import records
from facegrid.ids import GalleryName, NodeId, ShardId, subject_key
from facegrid.model import HashRange, ShardAssignment, ShardMap
from facegrid.testing.fake_rows import FakeShard
from facegrid.testing.fake_shard import FakeNode
from facegrid.testing.memory_coord import MemoryCoordinator
from tests.fakes.router_cluster import Cluster, faces, router

SUBJECTS = [f"s{row}" for row in range(40)]


class HeldMaps:
    """A coordinator as the router sees it. While maps are held it hears of no new one."""

    def __init__(self, coordinator: MemoryCoordinator) -> None:
        self._coordinator = coordinator
        self._let_through = asyncio.Event()
        self._let_through.set()

    def hold(self) -> None:
        """Tell of no map from now on."""
        self._let_through.clear()

    def release(self) -> None:
        """Tell of everything that was held back, and of all that follows."""
        self._let_through.set()

    async def watch(self, prefix: str) -> AsyncIterator[WatchEvent]:
        """Yield what happens, maps only when they are let through."""
        async for event in self._coordinator.watch(prefix):
            if prefix == keys.MAPS:
                await self._let_through.wait()
            yield event

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coordinator, name)


@dataclass
class Reshaping(Cluster):
    """A cluster with a gallery that operations change, as the driver would."""

    maps: HeldMaps

    async def map(self) -> ShardMap:
        """Return the newest map."""
        found = await self.coordinator.get(keys.shard_map(GalleryName("staff")))
        assert found is not None
        return records.decode_shard_map(found.value)

    async def put(self, **changes: Any) -> ShardMap:
        """Put a newer map in force, and wait until all nodes act by it."""
        present = await self.map()
        newer = replace(present, version=present.version + 1, **changes)
        key = keys.shard_map(GalleryName("staff"))
        await self.coordinator.txn([], [Put(key, records.encode_shard_map(newer))])
        hearing = [node for node in self.nodes if not node.mischief.cut_off]
        await self.until(
            lambda: all(node.map_versions.get("staff") == newer.version for node in hearing)
        )
        return newer

    async def fill(self, **changes: Any) -> None:
        """Create the gallery and enrol 40 subjects."""
        await self.client.create(**changes)
        await self.client.enrol(faces(40), SUBJECTS)
        self.copy_rows()

    def holder(self, shard_id: str) -> FakeNode:
        """Return the node that is a shard's primary."""
        return next(
            node
            for node in self.nodes
            if shard_id in node.shards and node.shards[shard_id].generation
        )

    async def split(self, number: int) -> list[ShardId]:
        """Split a shard at the middle of its range; return its children."""
        present = await self.map()
        source = present.shards[number]
        middle = source.range.first + source.range.size // 2
        ranges = [
            HashRange(source.range.first, middle - 1),
            HashRange(middle, source.range.last),
        ]
        return await self._exchange([source], ranges)

    async def merge(self, first: int) -> list[ShardId]:
        """Merge a shard with the next one; return the child."""
        present = await self.map()
        sources = present.shards[first : first + 2]
        return await self._exchange(
            sources, [HashRange(sources[0].range.first, sources[1].range.last)]
        )

    async def _exchange(
        self, sources: Sequence[ShardAssignment], ranges: Sequence[HashRange]
    ) -> list[ShardId]:
        """Put shards of some ranges in the place of others, with their rows: first as pending
        ones, then by cutover.
        """
        present = await self.map()
        number = present.next_number
        names = tuple(shard.shard_id for shard in sources)
        children = [
            ShardAssignment(
                ShardId(f"staff.{present.gallery_uid}.{number + index:04d}"),
                hash_range,
                sources[0].node_ids,
                sources=names,
            )
            for index, hash_range in enumerate(ranges)
        ]
        made_count = number + len(children)
        await self.put(pending=tuple(children), made_count=made_count)
        for child in children:
            self._bring(child, sources)
        shards = list(present.shards)
        at = shards.index(sources[0])
        shards[at : at + len(sources)] = [replace(child, sources=()) for child in children]
        await self.put(shards=tuple(shards), pending=())
        return [child.shard_id for child in children]

    def _bring(self, child: ShardAssignment, sources: Sequence[ShardAssignment]) -> None:
        held = [
            node.shards[source.shard_id]
            for source in sources
            for node in self.nodes
            if source.primary == node.node_id
        ]
        for node in self.nodes:
            if node.node_id in child.node_ids:
                made = FakeShard("staff", child.range, held[0].dim, position=1)
                for shard in held:
                    made.rows |= {
                        name: codes
                        for name, codes in shard.rows.items()
                        if child.range.contains(subject_key(name[0]))
                    }
                node.shards[child.shard_id] = made

    async def move(self, number: int, target: str, *, leave: bool = True) -> None:
        """Move the only copy of a shard to another node, map by map; or add one there."""
        node_id = NodeId(target)
        shard = (await self.map()).shards[number]
        source = self.holder(shard.shard_id)
        rows = source.shards[shard.shard_id]
        await self._reassign(number, replace(shard, joining=(node_id,)))
        node = next(one for one in self.nodes if one.node_id == node_id)
        node.shards[shard.shard_id] = replace(rows, generation=0, rows=dict(rows.rows))
        await self._reassign(number, replace(shard, node_ids=(*shard.node_ids, node_id)))
        await self._reassign(number, replace(shard, node_ids=(node_id, *shard.node_ids)))
        if leave:
            await self._reassign(number, replace(shard, node_ids=(node_id,)))

    async def _reassign(self, number: int, shard: ShardAssignment) -> None:
        shards = list((await self.map()).shards)
        shards[number] = shard
        await self.put(shards=tuple(shards))


@asynccontextmanager
async def reshaping(nodes: int = 2, **changes: Any) -> AsyncIterator[Reshaping]:
    """Run some nodes n1, n2, ... and a router whose maps can be held back."""
    clock = SystemClock()
    coordinator = MemoryCoordinator(clock)
    maps = HeldMaps(coordinator)
    async with AsyncExitStack() as stack:
        members = [
            await stack.enter_async_context(FakeNode(f"n{number + 1}", coordinator, clock))
            for number in range(nodes)
        ]
        client = await stack.enter_async_context(router(maps, **changes))  # type: ignore[arg-type]  # it stands for one
        yield Reshaping(coordinator, members, client, maps)
