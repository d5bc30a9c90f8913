"""The calls of ShardService by which searches are measured and tuned. See RFC 0011."""

from abc import abstractmethod
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc.aio
from typing_extensions import override

from facegrid.api.shard.v1 import shard_service_pb2 as pb
from facegrid.api.shard.v1.shard_service_pb2_grpc import ShardServiceServicer
from facegrid.clock import Clock
from facegrid.errors import UnavailableError
from facegrid.rpc.context import call_context
from facegrid.tuning_messages import to_tuning_message
from indexd.replica.measuring import MeasuredBlock, measure
from indexd.replica.shard_copy import ShardCopy
from indexd.replica.tuner import Tuner

Context = grpc.aio.ServicerContext[Any, Any]


class TuningCalls(ShardServiceServicer):
    """Checks, measures, translates."""

    def __init__(
        self, tuner: Tuner | None, measuring: ThreadPoolExecutor | None, clock: Clock
    ) -> None:
        self._tuner = tuner
        self._measuring = measuring
        self._tuning_clock = clock

    @abstractmethod
    def _serving(self, shard_id: str) -> ShardCopy:
        """Return a shard of this node that serves."""

    @override
    async def Measure(
        self, request: pb.MeasureRequest, context: Context
    ) -> AsyncIterator[pb.MeasureResponse]:
        """Measure what the index of a shard misses, in blocks of probes."""
        del context
        copy = self._serving(request.shard_id)
        if self._measuring is None:
            raise UnavailableError("this node does not measure", reason="NOT_MEASURING")
        blocks = measure(copy.state, request.mates_count_max, request.seed, self._measuring)
        async for block in blocks:
            yield _response(block)

    @override
    async def Tune(self, request: pb.TuneRequest, context: Context) -> pb.TuneResponse:
        """Measure all shards of a gallery, and make the outcome the gallery's tuning."""
        if self._tuner is None:
            raise UnavailableError("this node does not tune", reason="NOT_MEASURING")
        deadline_s = call_context(context, self._tuning_clock).deadline_s
        tuning = await self._tuner.tune(request.gallery, request.mates_count_max, deadline_s)
        return pb.TuneResponse(tuning=to_tuning_message(tuning))


def _response(block: MeasuredBlock) -> pb.MeasureResponse:
    measured = block.measured
    return pb.MeasureResponse(
        mate_scores=measured.mate_scores.astype("<f4").tobytes(),
        rival_scores=measured.rival_scores.astype("<f4").tobytes(),
        list_places=measured.list_places.astype("<i4").tobytes(),
        code_places=measured.code_places.astype("<i4").tobytes(),
        rows_count=block.rows_count,
        nlist=block.nlist,
        codebook=block.codebook,
        pseudo=block.pseudo,
    )
