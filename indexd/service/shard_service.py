"""ShardService: what routers ask of this node."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc.aio
import numpy as np
import psutil
from typing_extensions import override

from facegrid import __version__, vectors
from facegrid.api.shard.v1 import shard_service_pb2 as pb
from facegrid.api.shard.v1.shard_service_pb2_grpc import ShardServiceServicer
from facegrid.clock import Clock
from facegrid.errors import (
    CorruptError,
    DeadlineError,
    FencedError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from facegrid.format import digest as digests
from facegrid.rpc.context import call_context
from indexd.engine.requests import EraseRequest, Outcome, WriteRequest
from indexd.engine.search import Found, search
from indexd.engine.state import ShardState
from indexd.replica.fence import Claimant
from indexd.replica.node import Node
from indexd.replica.primary import Primary
from indexd.replica.shard_copy import Phase, ShardCopy
from indexd.replica.spread import Spread
from indexd.replica.trainer import Trainer
from indexd.service import checks

Context = grpc.aio.ServicerContext[Any, Any]

_STATES = {
    Phase.OPENING: pb.SHARD_STATE_OPENING,
    Phase.SERVING: pb.SHARD_STATE_SERVING,
    Phase.FENCED: pb.SHARD_STATE_FENCED,
    Phase.CLOSED: pb.SHARD_STATE_FENCED,
    Phase.FAILED: pb.SHARD_STATE_FAILED,
}


@dataclass(frozen=True, slots=True)
class ServicePorts:
    """What the service needs of the process."""

    claimant: Claimant
    clock: Clock
    search_thread: ThreadPoolExecutor
    spread: Spread


class ShardService(ShardServiceServicer):
    """Checks, calls the copy, translates."""

    def __init__(self, ports: ServicePorts, node: Node, trainer: Trainer) -> None:
        self._ports = ports
        self._node = node
        self._trainer = trainer

    @override
    async def Append(self, request: pb.AppendRequest, context: Context) -> pb.AppendResponse:
        """Enrol rows into one shard."""
        primary = self._primary(request.shard_id)
        write = checks.enrol_request(request, primary.gallery.dim)
        outcome = await self._write(primary, write, context)
        return pb.AppendResponse(
            position=outcome.position,
            enrolled_count=outcome.enrolled_count,
            unchanged_count=outcome.unchanged_count,
        )

    @override
    async def Check(self, request: pb.AppendRequest, context: Context) -> pb.CheckResponse:
        """Tell whether Append would accept the rows."""
        del context
        primary = self._primary(request.shard_id)
        write = checks.enrol_request(request, primary.gallery.dim)
        primary.state.plan(write, primary.state.overlay(), self._ports.clock.unix_ms())
        return pb.CheckResponse()

    @override
    async def Erase(self, request: pb.EraseRequest, context: Context) -> pb.EraseResponse:
        """Erase from one shard."""
        primary = self._primary(request.shard_id)
        outcome = await self._write(primary, checks.erase_request(request), context)
        return pb.EraseResponse(
            position=outcome.position, erased_templates_count=outcome.erased_count
        )

    @override
    async def Search(self, request: pb.SearchRequest, context: Context) -> pb.SearchResponse:
        """Search several shards; those that cannot be searched are named with the reason."""
        checks.check_k(request.k)
        if not np.isfinite(request.threshold):
            raise InvalidError("threshold is not finite", reason="THRESHOLD", field="threshold")
        deadline_s = call_context(context, self._ports.clock).deadline_s
        response = pb.SearchResponse()
        copies: list[ShardCopy] = []
        for wanted in request.shards:
            try:
                copy = self._serving(wanted.shard_id)
                await copy.reach(wanted.position_min, deadline_s)
            except (NotFoundError, FencedError, UnavailableError, CorruptError) as error:
                response.refused.add(shard_id=wanted.shard_id, reason=error.reason)
            else:
                copies.append(copy)
        if not copies:
            return response
        probes = checks.probes(request, copies[0].gallery.dim)
        checks.check_candidates(len(probes), request.k)
        # Stated as of before the search: what came in while it ran may not have been seen.
        positions = [copy.state.position for copy in copies]
        found = await self._search(copies, probes, request, deadline_s)
        for copy, position in zip(copies, positions, strict=True):
            response.searched.add(
                shard_id=copy.assignment.shard_id,
                first=copy.state.range.first,
                last=copy.state.range.last,
                position=position,
                generation=copy.generation,
            )
        response.counts.extend(found.counts.tolist())
        response.scores = found.scores.astype("<f4").tobytes()
        response.subject_ids.extend(found.subject_ids)
        response.template_ids.extend(found.template_ids)
        return response

    async def _search(
        self,
        copies: list[ShardCopy],
        probes: vectors.Probes,
        request: pb.SearchRequest,
        deadline_s: float,
    ) -> Found:
        """Search on the thread that owns the indexes.

        An erasure that was acknowledged while the search ran must not appear in an answer sent
        after it. So what was found is looked at once more, on the event loop, where rows change,
        and searched again if need be.
        """
        loop = asyncio.get_running_loop()
        while True:
            states = [copy.state for copy in copies]

            def work(states: list[ShardState] = states) -> Found:
                if self._ports.clock.now_s() > deadline_s:
                    raise DeadlineError("the time given was over before the search began")
                return search(states, probes, k=request.k, threshold=request.threshold)

            found = await loop.run_in_executor(self._ports.search_thread, work)
            for copy in copies:
                copy.check_serving()
            replaced = any(
                copy.state is not state for copy, state in zip(copies, states, strict=True)
            )
            if not replaced and not found.stale(states):
                return found

    @override
    async def Compare(self, request: pb.CompareRequest, context: Context) -> pb.CompareResponse:
        """Score one probe against one subject."""
        copy = self._serving(request.shard_id)
        deadline_s = call_context(context, self._ports.clock).deadline_s
        await copy.reach(request.position_min, deadline_s)
        probe = checks.probes(request, copy.gallery.dim)
        checks.check_count(len(probe), 1, "probes")
        state = copy.state
        rows = state.live_rows(request.subject_id)
        if not rows:
            raise NotFoundError(
                f"no such subject gallery={copy.gallery.name}",
                reason="SUBJECT_UNKNOWN",
                gallery=copy.gallery.name,
            )
        scores = state.index.compare(probe, np.array(rows, np.int64))
        best = int(np.argmax(scores))
        return pb.CompareResponse(
            score=float(scores[best]), template_id=state.templates[rows[best]]
        )

    @override
    async def Get(self, request: pb.GetRequest, context: Context) -> pb.GetResponse:
        """Return the templates of an id."""
        copy = self._serving(request.shard_id)
        deadline_s = call_context(context, self._ports.clock).deadline_s
        await copy.reach(request.position_min, deadline_s)
        state = copy.state
        if request.subject_id:
            rows = [
                row
                for row in state.live_rows(request.subject_id)
                if state.templates[row] == request.template_id
            ]
        else:
            rows = state.find([request.template_id], []).tolist()
        codes = state.index.codes(np.array(rows, np.int64))
        return pb.GetResponse(
            rows=pb.StoredRows(
                template_ids=[state.templates[row] for row in rows],
                subject_ids=[state.subjects.name_of_row(row) for row in rows],
                codes=codes.tobytes(),
                dim=state.dim,
            )
        )

    @override
    async def Sample(self, request: pb.SampleRequest, context: Context) -> pb.SampleResponse:
        """Return a random sample of live rows."""
        del context
        state = self._serving(request.shard_id).state
        rows = np.arange(state.rows_count, dtype=np.int64)
        rows = rows[~state.erased_mask(rows)]
        if len(rows) > request.rows_count_max:
            rng = np.random.default_rng(request.seed)
            rows = np.sort(rng.choice(rows, request.rows_count_max, replace=False))
        codes = await asyncio.to_thread(state.index.codes, rows)
        return pb.SampleResponse(codes=codes.tobytes(), dim=state.dim)

    @override
    async def Train(self, request: pb.TrainRequest, context: Context) -> pb.TrainResponse:
        """Train a codebook and make it the gallery's."""
        deadline_s = call_context(context, self._ports.clock).deadline_s
        sha256, sample_count = await self._trainer.train(request.gallery, deadline_s)
        return pb.TrainResponse(codebook=sha256, sample_count=sample_count)

    @override
    async def Reach(self, request: pb.ReachRequest, context: Context) -> pb.ReachResponse:
        """Wait until a shard has come to a position."""
        copy = self._serving(request.shard_id)
        await copy.reach(request.position, call_context(context, self._ports.clock).deadline_s)
        return pb.ReachResponse(position=copy.state.position)

    @override
    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusResponse:
        """Describe the node and its shards."""
        del request, context
        return pb.StatusResponse(
            node_id=self._ports.claimant.node_id,
            boot_id=self._ports.claimant.boot_id,
            version=__version__,
            memory_bytes=psutil.Process().memory_info().rss,
            shards=[_status(copy) for copy in self._node.copies.values()],
        )

    def _serving(self, shard_id: str) -> ShardCopy:
        """Return a shard of this node that serves."""
        copy = self._node.copy(shard_id)
        copy.check_serving()
        return copy

    def _primary(self, shard_id: str) -> Primary:
        """Return a shard of which this node is the primary.

        Raises:
            FencedError: this node follows it (NOT_PRIMARY); refresh the map.
        """
        copy = self._serving(shard_id)
        if not isinstance(copy, Primary):
            raise FencedError(
                f"this node follows the shard and takes no writes shard={shard_id}",
                reason="NOT_PRIMARY",
                shard=shard_id,
            )
        return copy

    async def _write(self, primary: Primary, write: WriteRequest, context: Context) -> Outcome:
        """Commit a write within the caller's time. It goes on when the caller gives up."""
        left_s = call_context(context, self._ports.clock).remaining_s(self._ports.clock)
        try:
            async with asyncio.timeout(left_s):
                outcome = await primary.write(write)
                if isinstance(write, EraseRequest):
                    await self._ports.spread.wait(primary.assignment, outcome.position)
                return outcome
        except TimeoutError:
            raise DeadlineError(
                "the write was not confirmed in time; retry with the same request id"
                f" shard={primary.assignment.shard_id}",
                shard=primary.assignment.shard_id,
            ) from None


def _status(copy: ShardCopy) -> pb.ShardStatus:
    """Describe one shard."""
    state = copy.state
    return pb.ShardStatus(
        shard_id=copy.assignment.shard_id,
        gallery=copy.gallery.name,
        state=_STATES[copy.phase],
        role=pb.SHARD_ROLE_PRIMARY if isinstance(copy, Primary) else pb.SHARD_ROLE_FOLLOWER,
        generation=copy.generation,
        position=state.position,
        templates_count=state.templates_count,
        subjects_count=len(state.subjects),
        erased_count=state.erased_count,
        indexed_count=state.index.indexed_count,
        codebook=state.codebook,
        memory_bytes=state.memory_bytes,
        digest=digests.to_bytes(state.digest).hex(),
        segments_count=len(copy.persisted.segments),
        problem=copy.problem,
    )
