"""Trains a gallery's codebook: samples all shards, trains, makes it the gallery's."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from facegrid import limits
from facegrid.api.shard.v1 import shard_service_pb2 as pb
from facegrid.api.shard.v1.shard_service_pb2_grpc import ShardServiceStub
from facegrid.clock import Clock
from facegrid.coord import keys
from facegrid.coord.port import Coordinator, Guard, Put
from facegrid.errors import FencedError, InvalidError, NotFoundError, UnavailableError
from facegrid.format.records import decode_gallery, encode_gallery
from facegrid.ids import KEY_LAST
from facegrid.model import Gallery, ShardAssignment, ShardMap
from facegrid.rpc.call import call
from facegrid.rpc.pool import ChannelPool
from facegrid.rpc.together import all_of
from facegrid.vectors import Int8
from indexd.ann.train import train
from indexd.engine.state import ShardState
from indexd.replica.codebooks import Codebooks
from indexd.replica.view import View

SAMPLE_ROWS_MAX = 131_072
SAMPLE_BYTES_MAX = 16 * limits.MIB
"""Of one shard's answer, so that it fits into a message."""
ATTEMPTS_MAX = 4
"""Looks at the gallery's record when a codebook is to become its own; the last finds it there."""
SEED = 20_260_101
"""Training is repeatable: the same rows give the same codebook."""


@dataclass(frozen=True, slots=True)
class TrainerPorts:
    """What training needs of the node."""

    coord: Coordinator
    clock: Clock
    pool: ChannelPool
    codebooks: Codebooks
    build_thread: ThreadPoolExecutor
    threads: int


def train_due(gallery: Gallery | None, state: ShardState) -> bool:
    """Tell whether a gallery has come to the size at which it trains by itself, by one shard.

    Subjects fall evenly into the key space, so the shard of the first keys stands for all of
    them, by its share of the keys: no node need ask the others.
    """
    if gallery is None or gallery.codebook or state.range.first != 0:
        return False
    estimate = state.templates_count * (KEY_LAST + 1) // state.range.size
    return 0 < gallery.train_at_templates_count <= estimate


class Trainer:
    """Runs on the node that holds the first shard of the gallery."""

    def __init__(self, ports: TrainerPorts, view: View) -> None:
        self._ports = ports
        self._view = view
        self._running = asyncio.Lock()

    async def train(self, name: str, deadline_s: float) -> tuple[str, int]:
        """Train and publish; return the codebook's sha256 and the rows of the sample.

        Raises:
            NotFoundError: no such gallery here.
            InvalidError: too few templates (TOO_FEW_TEMPLATES).
            UnavailableError: a shard or etcd cannot be reached.
            FencedError: the gallery changed meanwhile.
        """
        async with self._running:
            gallery, shard_map = self._view.gallery(name), self._view.shard_map(name)
            if gallery is None or shard_map is None:
                raise NotFoundError(f"no such gallery gallery={name}", gallery=name)
            sample, shard_rows = await self._sample(gallery, shard_map, deadline_s)
            if len(sample) < limits.TRAIN_ROWS_MIN:
                raise InvalidError(
                    f"too few templates to train on templates={len(sample)}"
                    f" need={limits.TRAIN_ROWS_MIN}",
                    reason="TOO_FEW_TEMPLATES",
                    gallery=name,
                    limit=limits.TRAIN_ROWS_MIN,
                )
            loop = asyncio.get_running_loop()
            codebook = await loop.run_in_executor(
                self._ports.build_thread,
                lambda: train(
                    sample, seed=SEED, threads=self._ports.threads, shard_rows=shard_rows
                ),
            )
            sha256 = await self._ports.codebooks.put(gallery.uid, codebook)
            try:
                await self._publish(gallery, sha256)
            except FencedError:
                # Made of the gallery's rows: it must not outlive a gallery that was dropped.
                await self._ports.codebooks.delete(gallery.uid, sha256)
                raise
            return sha256, len(sample)

    async def _publish(self, gallery: Gallery, sha256: str) -> None:
        """Make a codebook the gallery's, unless it got another one since, or is gone. What else
        changed meanwhile, settings or a tuning, stays.
        """
        key = keys.gallery(gallery.name)
        for _ in range(ATTEMPTS_MAX):
            item = await self._ports.coord.get(key)
            now = None if item is None else decode_gallery(item.value)
            if item is None or now is None or now.uid != gallery.uid:
                break
            if now.codebook == sha256:
                return
            if now.codebook != gallery.codebook:
                break
            value = encode_gallery(replace(now, codebook=sha256))
            try:
                await self._ports.coord.txn([Guard(key, item.mod_revision)], [Put(key, value)])
            except UnavailableError:
                continue  # it may have gone through: the next look tells
        raise FencedError(
            f"the gallery changed while it was trained gallery={gallery.name}",
            reason="GALLERY_CHANGED",
            gallery=gallery.name,
        )

    async def _sample(
        self, gallery: Gallery, shard_map: ShardMap, deadline_s: float
    ) -> tuple[Int8, int]:
        """Return rows of all shards, int8 [n, dim], in the order of the shards, and how many the
        largest shard has.
        """
        share = min(SAMPLE_ROWS_MAX // len(shard_map.shards) + 1, SAMPLE_BYTES_MAX // gallery.dim)
        parts = await all_of(
            [self._sample_shard(shard, share, deadline_s) for shard in shard_map.shards]
        )
        data = b"".join(part.codes for part in parts)
        largest = max(part.live_rows_count for part in parts)
        return np.frombuffer(data, np.int8).reshape(-1, gallery.dim), largest

    async def _sample_shard(
        self, shard: ShardAssignment, rows: int, deadline_s: float
    ) -> pb.SampleResponse:
        """Ask a shard's primary, which may be this very node, for rows."""
        address = self._view.primary_address(shard)
        stub = ShardServiceStub(self._ports.pool.get(address))
        request = pb.SampleRequest(shard_id=shard.shard_id, rows_count_max=rows, seed=SEED)
        left_s = deadline_s - self._ports.clock.now_s()
        return await call(stub.Sample, request, timeout_s=left_s)
