"""Loaders of a run: they store segments under pins, and have the primary commit them."""

from typing import Any

import numpy as np
from typing_extensions import override

from facegrid.api.shard.v1 import shard_service_pb2 as pb
from facegrid.errors import ConflictError, CorruptError, FacegridError
from facegrid.model import ShardAssignment
from fgctl.bulk.publish import LoadStore
from fgctl.bulk.rows import ShardRows
from fgctl.bulk.segments import BuiltSegment, StoredSegment, build_segment
from indexd.engine.requests import LoadRequest, NamedSegment
from tests.sim.client import CODES, PATIENCE_S, TEMPLATES, WRITE_TIMEOUT_S, Client, subjects_of
from tests.sim.services import SimStore
from tests.sim.world import Link

FORGOTTEN_SHARE = 0.1
"""Share of the loads that are given up before their commit."""


class Loader(Client):
    """One loader: one load at a time."""

    @override
    async def run(self, until_s: float, pause_s: float) -> None:
        """Load at random until a time."""
        link = Link(self.world, "store", self.link.actor)
        store = SimStore(
            self.shared.objects,
            link,
            lambda what, name, data: self.shared.on_object(self.name, what, name, data),
        )
        while self.world.loop.now_s < until_s:
            await self.router.look()
            await self.load(self.world.rng.choice(self.router.shards), store)
            await self.wait(self.world.rng.random() * pause_s)

    async def load(self, shard: ShardAssignment, store: SimStore) -> None:
        """Load some templates of subjects of one shard, in one or two segments."""
        rng = self.world.rng
        request_id = self._request_id()
        load_id = f"load{request_id.replace('-', 'x')}"
        subjects = subjects_of(shard)
        keys = sorted(
            {
                (rng.choice(subjects), f"t{rng.randrange(TEMPLATES)}")
                for _ in range(rng.randrange(1, 7))
            }
        )
        rows = [(*key, rng.randrange(50) // 49) for key in keys]
        middle = rng.randrange(len(rows))
        segments = [
            build_segment(_rows(shard, part), load_id)
            for part in (rows[:middle], rows[middle:])
            if part
        ]
        objects = LoadStore(store, load_id)
        if not await self._stored(objects, segments):
            return
        named = [one.named for one in segments]
        if rng.random() < FORGOTTEN_SHARE:
            await self._unpin(objects, named)
            self.world.count("loads given up")
            return
        self.truth.loaded[request_id] = {(s, t) for s, t, _ in rows}
        if await self._committed(shard, request_id, named):
            await self._unpin(objects, named)

    async def _stored(self, objects: LoadStore, segments: list[BuiltSegment]) -> bool:
        """Store all segments; tell whether that could be done in time."""
        ends_s = self.world.loop.now_s + PATIENCE_S
        for one in segments:
            while True:
                try:
                    await objects.put(one)
                    break
                except FacegridError:
                    if self.world.loop.now_s > ends_s:
                        return False
                await self.wait(0.1)
        return True

    async def _unpin(self, objects: LoadStore, segments: list[StoredSegment]) -> None:
        """Take pins away; where that fails they stay, and keep more than is needed."""
        try:
            await objects.unpin(segments)
        except FacegridError:
            self.world.count("pins left")

    async def _committed(
        self, shard: ShardAssignment, request_id: str, segments: list[StoredSegment]
    ) -> bool:
        """Ask for the commit until it is answered; tell whether its outcome is known."""
        message = pb.LoadRequest(
            shard_id=shard.shard_id,
            request_id=request_id,
            segments=[
                pb.LoadSegment(sha256=one.sha256, rows_count=one.rows_count) for one in segments
            ],
        )
        self.truth.sent[shard.shard_id, request_id] = LoadRequest(
            request_id, tuple(NamedSegment(one.sha256, one.rows_count) for one in segments)
        )
        ends_s = self.world.loop.now_s + PATIENCE_S
        while self.world.loop.now_s < ends_s:
            await self.router.look()
            target = self._pick(self.router.shard(shard.shard_id).primary)
            if target is not None:
                try:
                    response = await self._ask(target, "Load", message, WRITE_TIMEOUT_S)
                except ConflictError:
                    self.world.count("loads refused")
                    return True
                except CorruptError as error:
                    intact = not self.truth.damaged and self._superseded(shard, target)
                    self.world.require(intact, "a pinned segment was missing", error)
                except FacegridError as error:
                    self.world.note(self.name, "told", request_id, error.reason)
                else:
                    self.world.note(self.name, "acked", request_id, response.position)
                    self.truth.acknowledged(shard.shard_id, request_id, response)
                    self.world.count("loads acknowledged")
                    return True
            await self.wait(0.02 + self.world.rng.random() * 0.3)
        self.world.count("outcomes left open")
        return False

    def _superseded(self, shard: ShardAssignment, target: Any) -> bool:
        """Tell whether a newer primary may have committed the load, and rewritten its segments."""
        copy = target.node.copies.get(shard.shard_id)
        return copy is None or self.truth.superseded(copy)


def _rows(shard: ShardAssignment, rows: list[tuple[str, str, int]]) -> ShardRows:
    return ShardRows(
        [t for _, t, _ in rows],
        [s for s, _, _ in rows],
        np.concatenate([CODES[row] for row in rows]),
        shard_id=shard.shard_id,
    )
