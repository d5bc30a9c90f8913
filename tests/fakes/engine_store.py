"""A store that the real engine wrote: a primary on a folder and a coordinator in memory."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np

from facegrid import vectors
from facegrid.blob.directory import DirectoryStore
from facegrid.clock import SystemClock
from facegrid.coord import keys
from facegrid.coord.port import Put
from facegrid.format.records import encode_gallery, encode_shard_map
from facegrid.ids import KEY_LAST, GalleryName, NodeId, ShardId
from facegrid.model import Gallery, HashRange, ShardAssignment, ShardMap
from facegrid.telemetry.log import get_logger
from facegrid.testing.memory_coord import MemoryCoordinator
from indexd.engine.requests import EnrolRequest
from indexd.replica.committer import Committer, CommitterPorts
from indexd.replica.fence import Claimant
from indexd.replica.follower import Follower
from indexd.replica.primary import Primary
from indexd.replica.shard_copy import NodePorts

DIM = 16
GALLERY = Gallery(GalleryName("staff"), "1f00aa23", DIM, "x@1", 1, 1, 0)
SHARD = ShardAssignment(ShardId("staff.1f00aa23.0000"), HashRange(0, KEY_LAST), (NodeId("n1"),))


class EngineWorld:
    """One gallery of one shard; each primary is one process of its node."""

    def __init__(self, root: Path, threads: ThreadPoolExecutor) -> None:
        self.store = DirectoryStore(root)
        self.coord = MemoryCoordinator(SystemClock())
        self._threads = threads
        self._uuids = count()

    async def create(self) -> None:
        """Record the gallery and its map."""
        shard_map = ShardMap(GALLERY.name, GALLERY.uid, 1, (SHARD,))
        await self.coord.txn(
            [],
            [
                Put(keys.gallery(GALLERY.name), encode_gallery(GALLERY)),
                Put(keys.shard_map(GALLERY.name), encode_shard_map(shard_map)),
            ],
        )

    def follower(self, boot: str) -> Follower:
        """Return a follower on another node, not opened yet."""
        both = replace(SHARD, node_ids=(*SHARD.node_ids, NodeId("n2")))
        return Follower(self._ports("n2", boot), GALLERY, both)

    def _ports(self, node: str, boot: str) -> NodePorts:
        return NodePorts(
            claimant=Claimant(NodeId(node), boot),
            coord=self.coord,
            store=self.store,
            clock=SystemClock(),
            logger=get_logger("test"),
            search_thread=self._threads,
            build_thread=self._threads,
            coding_thread=self._threads,
        )

    @asynccontextmanager
    async def primary(self, boot: str) -> AsyncIterator[Primary]:
        """Lend a serving primary; leaving is the death of its process."""
        ports = self._ports("n1", boot)
        committer = Committer(
            CommitterPorts(
                self.coord, self.store, ports.clock, lambda: f"u{next(self._uuids)}", ports.logger
            ),
            lambda _: None,
        )
        running = asyncio.get_running_loop().create_task(committer.run())
        primary = Primary(ports, committer, GALLERY, SHARD)
        mapped = await self.coord.get(keys.shard_map(GALLERY.name))
        assert mapped is not None, "the map was recorded"
        await primary.open(mapped.mod_revision, None)
        try:
            yield primary
        finally:
            running.cancel()


def enrol_request(number: int, rows: int = 2) -> EnrolRequest:
    """Return rows of subjects of their own."""
    x = np.random.default_rng(number).normal(size=(rows, DIM)).astype(np.float32)
    ids = [f"{number}-{row}" for row in range(rows)]
    return EnrolRequest(
        f"r-{number}", [f"t-{i}" for i in ids], [f"s-{i}" for i in ids], vectors.quantize(x)
    )
