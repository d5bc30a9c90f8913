"""Tunes a gallery: has all shards measured, chooses the efforts, makes them the gallery's."""

import asyncio
import math
from dataclasses import dataclass, replace
from typing import Final

import grpc.aio
import numpy as np

from facegrid.api.shard.v1 import shard_service_pb2 as pb
from facegrid.api.shard.v1.shard_service_pb2_grpc import ShardServiceStub
from facegrid.clock import Clock
from facegrid.coord import keys
from facegrid.coord.port import Coordinator, Guard, Put
from facegrid.errors import (
    DeadlineError,
    FencedError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from facegrid.format.records import decode_gallery, encode_gallery
from facegrid.model import Gallery, ShardAssignment
from facegrid.rpc.pool import ChannelPool
from facegrid.rpc.status import from_grpc
from facegrid.rpc.together import all_of
from facegrid.tuning import Tuning
from indexd.ann.judging import (
    FPIR,
    Probed,
    Shape,
    accepted_of,
    choose_efforts,
    curve_of,
    threshold_of,
)
from indexd.replica.view import View

SEED: Final = 20_260_102
"""Tuning is repeatable: the same rows give the same tuning."""
MISSES_TYPICAL: Final = 10
"""So many mates are measured on, unless said, that the allowed rate would miss this many."""
MATES_LEAST: Final = 2048
MATES_MOST: Final = 32_768
ATTEMPTS_MAX: Final = 3
"""Times the record is written when others change it."""


@dataclass(frozen=True, slots=True)
class TunerPorts:
    """What tuning needs of the node."""

    coord: Coordinator
    clock: Clock
    pool: ChannelPool


@dataclass(frozen=True, slots=True)
class Answer:
    """What a shard measured, and with which index."""

    probed: Probed
    nlist: int
    codebook: str


@dataclass(frozen=True, slots=True)
class _Ended:
    """A tuning that was made: on how many mates at most it was asked for, and when it ended."""

    tuning: Tuning
    mates_count_max: int
    ended_s: float

    def answers(self, asked_s: float, mates_count_max: int, gallery: Gallery) -> bool:
        """Tell whether it is what somebody wants who asked while it was made, or before."""
        as_wanted = mates_count_max in (0, self.mates_count_max)
        return self.ended_s >= asked_s and as_wanted and _holds(self.tuning, gallery)


class Tuner:
    """Runs on the node that holds the first shard of the gallery; one gallery at a time."""

    def __init__(self, ports: TunerPorts, view: View) -> None:
        self._ports = ports
        self._view = view
        self._running = asyncio.Lock()
        self._last: dict[str, _Ended] = {}
        """By the gallery's uid: the last tuning."""

    async def tune(self, name: str, mates_count_max: int, deadline_s: float) -> Tuning:
        """Measure and publish. Who asks while the gallery is being tuned gets what comes of that.

        Args:
            name: of the gallery.
            mates_count_max: mated pairs to measure on, at most; 0: as many as the rate wants.
            deadline_s: until when.

        Raises:
            NotFoundError: no such gallery here.
            InvalidError: it is searched exactly (NOT_TRAINED), or nothing could be stated
                (TOO_FEW_MATES).
            UnavailableError: a shard or etcd cannot be reached, or a shard still changes over to
                the codebook (SHARD_NOT_TRAINED).
            FencedError: the gallery changed meanwhile.
            DeadlineError: it takes longer.
        """
        asked_s = self._ports.clock.now_s()
        try:
            async with asyncio.timeout(deadline_s - asked_s), self._running:
                gallery = self._gallery(name)
                last = self._last.get(gallery.uid)
                if last is not None and last.answers(asked_s, mates_count_max, gallery):
                    return last.tuning
                tuning = await self._measured(gallery, mates_count_max, deadline_s)
                await self._publish(gallery, tuning)
                ended_s = self._ports.clock.now_s()
                self._last[gallery.uid] = _Ended(tuning, mates_count_max, ended_s)
                return tuning
        except TimeoutError:
            raise DeadlineError(f"the gallery was not tuned in time gallery={name}") from None

    def _gallery(self, name: str) -> Gallery:
        gallery = self._view.gallery(name)
        if gallery is None or self._view.shard_map(name) is None:
            raise NotFoundError(f"no such gallery gallery={name}", gallery=name)
        if not gallery.codebook:
            raise InvalidError(
                f"the gallery is searched exactly gallery={name}",
                reason="NOT_TRAINED",
                gallery=name,
            )
        return gallery

    async def _measured(self, gallery: Gallery, mates_count_max: int, deadline_s: float) -> Tuning:
        """Have all shards measured, and judge."""
        shard_map = self._view.shard_map(gallery.name)
        assert shard_map is not None, "looked up before"
        wanted = mates_count_max or mates_wanted(gallery.miss_rate_max)
        share = -(-wanted // len(shard_map.shards))
        answers = await all_of(
            [
                self._measure(shard, share, gallery, deadline_s, number)
                for number, shard in enumerate(shard_map.shards)
            ]
        )
        return await asyncio.to_thread(
            judge, gallery, [answer for answer in answers if answer], self._ports.clock.unix_ms()
        )

    async def _measure(
        self, shard: ShardAssignment, mates: int, gallery: Gallery, deadline_s: float, number: int
    ) -> Answer | None:
        """Ask a shard's primary, which may be this very node; None where it has no probes.

        Raises:
            UnavailableError: it is away, or searches with another codebook yet.
        """
        address = self._view.primary_address(shard)
        stub = ShardServiceStub(self._ports.pool.get(address))
        request = pb.MeasureRequest(
            shard_id=shard.shard_id, mates_count_max=mates, seed=SEED + number
        )
        left_s = max(deadline_s - self._ports.clock.now_s(), 0.001)
        try:
            blocks = [block async for block in stub.Measure(request, timeout=left_s)]
        except grpc.aio.AioRpcError as error:
            raise from_grpc(error) from error
        if any(block.codebook != gallery.codebook for block in blocks):
            raise UnavailableError(
                f"a shard does not search with the codebook yet shard={shard.shard_id}",
                reason="SHARD_NOT_TRAINED",
                shard=shard.shard_id,
            )
        return _answer(blocks) if blocks else None

    async def _publish(self, gallery: Gallery, tuning: Tuning) -> None:
        """Make a tuning the gallery's, unless the gallery got another codebook or is gone."""
        key = keys.gallery(gallery.name)
        for _ in range(ATTEMPTS_MAX):
            item = await self._ports.coord.get(key)
            now = None if item is None else decode_gallery(item.value)
            if item is None or now is None or not _same(now, gallery):
                break
            value = encode_gallery(replace(now, tuning=tuning))
            if (
                await self._ports.coord.txn([Guard(key, item.mod_revision)], [Put(key, value)])
            ).succeeded:
                return
        raise FencedError(
            f"the gallery changed while it was tuned gallery={gallery.name}",
            reason="GALLERY_CHANGED",
            gallery=gallery.name,
        )


def mates_wanted(miss_rate_max: float) -> int:
    """Return on how many mates to measure for such a rate."""
    return min(max(math.ceil(MISSES_TYPICAL / miss_rate_max), MATES_LEAST), MATES_MOST)


def judge(gallery: Gallery, answers: list[Answer], tuned_unix_ms: int) -> Tuning:
    """Return what follows from the answers of all shards that have any.

    Raises:
        InvalidError: nothing can be stated (TOO_FEW_MATES).
    """
    if not answers:
        raise InvalidError(
            f"the gallery has no templates gallery={gallery.name}", reason="TOO_FEW_MATES"
        )
    shards = [answer.probed for answer in answers]
    rows_count = sum(shard.rows_count for shard in shards)
    threshold = threshold_of(shards)
    accepted = accepted_of(shards, threshold)
    shape = Shape(answers[0].nlist, rows_count / len(shards))
    return Tuning(
        codebook=gallery.codebook,
        nlist=shape.nlist,
        efforts=choose_efforts(accepted, shape, gallery.miss_rate_max),
        points=curve_of(accepted, shape),
        templates_count=rows_count,
        mates_count=len(accepted),
        pseudo_mates_count=accepted.pseudo_count,
        nonmates_count=sum(len(shard.rival_scores) for shard in shards),
        threshold=threshold,
        fpir=FPIR,
        miss_rate_max=gallery.miss_rate_max,
        tuned_unix_ms=tuned_unix_ms,
    )


def _answer(blocks: list[pb.MeasureResponse]) -> Answer:
    def joined(name: str, kind: str) -> np.ndarray:
        return np.frombuffer(b"".join(getattr(block, name) for block in blocks), kind)

    pseudo = [np.full(len(block.mate_scores) // 4, block.pseudo) for block in blocks]
    probed = Probed(
        mate_scores=joined("mate_scores", "<f4"),
        rival_scores=joined("rival_scores", "<f4"),
        list_places=joined("list_places", "<i4"),
        code_places=joined("code_places", "<i4"),
        pseudo=np.concatenate(pseudo),
        rows_count=blocks[0].rows_count,
    )
    return Answer(probed, blocks[0].nlist, blocks[0].codebook)


def _same(now: Gallery, before: Gallery) -> bool:
    return now.uid == before.uid and now.codebook == before.codebook


def _holds(tuning: Tuning, gallery: Gallery) -> bool:
    return (tuning.codebook, tuning.miss_rate_max) == (gallery.codebook, gallery.miss_rate_max)
