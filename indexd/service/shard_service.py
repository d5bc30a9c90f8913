"""ShardService: what routers ask of this node."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import grpc.aio
import numpy as np
import psutil
from typing_extensions import override

from facegrid import __version__, vectors
from facegrid.api.shard.v1 import shard_service_pb2 as pb
from facegrid.clock import Clock
from facegrid.errors import (
    CorruptError,
    DeadlineError,
    FencedError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from facegrid.rpc.context import CallContext, call_context
from facegrid.rpc.streams import Streams
from facegrid.tuning import Profile
from facegrid.tuning_messages import from_profile_message, to_profile_message
from facegrid.vectors import Float32
from indexd.ann.gpu.engine import GpuEngine
from indexd.engine import planning
from indexd.engine.batches import BatchLimits
from indexd.engine.requests import EraseRequest, Outcome, WriteRequest
from indexd.engine.search import Found, Wish, search
from indexd.replica.canaries import Canaries
from indexd.replica.fence import Claimant
from indexd.replica.follower import Follower
from indexd.replica.node import Node
from indexd.replica.primary import Primary
from indexd.replica.remedies import from_alarm_message
from indexd.replica.shard_copy import ShardCopy
from indexd.replica.spread import Spread
from indexd.replica.trainer import Trainer
from indexd.replica.tuner import Tuner
from indexd.service import checks
from indexd.service.describing import device_status, shard_status
from indexd.service.map_version import map_version, telling_map
from indexd.service.memory import memory
from indexd.service.reshape_calls import ReshapeCalls
from indexd.service.scheduler import DEFAULT, Here, Scheduler
from indexd.service.tuning_calls import TuningCalls

Context = grpc.aio.ServicerContext[Any, Any]

SEARCH: Final = "/facegrid.api.shard.v1.ShardService/Search"


@dataclass(frozen=True, slots=True)
class ServicePorts:
    """What the service needs of the process."""

    claimant: Claimant
    clock: Clock
    search_threads: Executor
    spread: Spread
    streams: Streams = field(kw_only=True)
    zone: str = ""
    batching: BatchLimits = DEFAULT
    canaries: Canaries | None = None
    tuner: Tuner | None = None
    measure_thread: ThreadPoolExecutor | None = None
    devices: GpuEngine | None = None
    search_here: Here | None = None


class ShardService(ReshapeCalls, TuningCalls):
    """Checks, calls the copy, translates."""

    def __init__(self, ports: ServicePorts, node: Node, trainer: Trainer) -> None:
        ReshapeCalls.__init__(self, node)
        TuningCalls.__init__(self, ports.tuner, ports.measure_thread, ports.clock)
        self._ports = ports
        self._trainer = trainer
        self.scheduler = Scheduler(
            ports.search_threads,
            ports.clock,
            ports.batching,
            search=search if ports.devices is None else partial(search, find=ports.devices.search),
            here=ports.search_here,
        )

    @override
    async def Append(self, request: pb.AppendRequest, context: Context) -> pb.AppendResponse:
        """Enrol rows into one shard."""
        primary = self._open_primary(request.shard_id)
        write = checks.enrol_request(request, primary.shape)
        outcome = await self._write(primary, write, context)
        return pb.AppendResponse(
            position=outcome.position,
            enrolled_count=outcome.enrolled_count,
            unchanged_count=outcome.unchanged_count,
        )

    @override
    async def CheckIds(self, request: pb.CheckIdsRequest, context: Context) -> pb.CheckIdsResponse:
        """Tell by the ids alone whether it depends on their vectors that Append accepts rows."""
        del context
        state = self._open_primary(request.shard_id).state
        template_ids, subject_ids = checks.enrol_ids(request)
        return pb.CheckIdsResponse(
            vectors_decide=planning.vectors_decide(
                state, request.request_id, template_ids, subject_ids
            )
        )

    @override
    async def Check(self, request: pb.AppendRequest, context: Context) -> pb.CheckResponse:
        """Tell whether Append would accept the rows."""
        del context
        primary = self._open_primary(request.shard_id)
        write = checks.enrol_request(request, primary.shape)
        state = primary.state
        planning.plan(state, write, planning.overlay_of(state), self._ports.clock.unix_ms())
        return pb.CheckResponse()

    @override
    async def Erase(self, request: pb.EraseRequest, context: Context) -> pb.EraseResponse:
        """Erase from one shard."""
        primary = self._open_primary(request.shard_id)
        outcome = await self._write(primary, checks.erase_request(request), context)
        return pb.EraseResponse(
            position=outcome.position, erased_templates_count=outcome.erased_count
        )

    @override
    async def Load(self, request: pb.LoadRequest, context: Context) -> pb.LoadResponse:
        """Add the rows of stored segments to one shard."""
        primary = self._open_primary(request.shard_id)
        work = self._node.load_segments(primary, checks.load_request(request))
        outcome = await self._in_time(primary, work, context)
        return pb.LoadResponse(
            position=outcome.position,
            enrolled_count=outcome.enrolled_count,
            unchanged_count=outcome.unchanged_count,
        )

    @override
    async def Search(self, request: pb.SearchRequest, context: Context) -> pb.SearchResponse:
        """Search several shards; those that cannot be searched are named with the reason."""
        return await self._answer(request, call_context(context, self._ports.clock))

    @override
    async def SearchStream(  # type: ignore[override]  # it owns tasks, so it writes
        self, request_iterator: AsyncIterator[pb.SearchStreamRequest], context: Context
    ) -> None:
        """Search for many at once over one stream."""
        await self._ports.streams.serve(
            request_iterator,
            context,
            method=SEARCH,
            frame=pb.SearchStreamResponse,
            handle=self._answer,
        )

    async def _answer(self, request: pb.SearchRequest, call: CallContext) -> pb.SearchResponse:
        checks.check_k(request.k)
        if not np.isfinite(request.threshold):
            raise InvalidError("threshold is not finite", reason="THRESHOLD", field="threshold")
        deadline_s = call.deadline_s
        response = pb.SearchResponse()
        copies: list[ShardCopy] = []
        confirmed: list[bool] = []
        for wanted in request.shards:
            try:
                copy = self._serving(wanted.shard_id)
                await copy.reach(wanted.position_min, deadline_s)
                confirmed.append(copy.check_answering(checks.trust(wanted.trust)))
            except (NotFoundError, FencedError, UnavailableError, CorruptError) as error:
                response.refused.add(
                    shard_id=wanted.shard_id,
                    reason=error.reason,
                    map_version=map_version(self._node.view, request.gallery),
                )
            else:
                copies.append(copy)
        if not copies:
            return response
        probes = checks.probes(request, copies[0].gallery.dim)
        checks.check_candidates(len(probes), request.k)
        # Stated as of before the search: what came in while it ran may not have been seen.
        positions = [copy.state.position for copy in copies]
        wish = self._wish(request)
        found = await self._search(request.gallery, copies, probes, wish, deadline_s=deadline_s)
        for copy, position, sure in zip(copies, positions, confirmed, strict=True):
            response.searched.add(
                shard_id=copy.assignment.shard_id,
                first=copy.state.range.first,
                last=copy.state.range.last,
                position=position,
                generation=copy.generation,
                unconfirmed=not sure,
            )
        response.counts.extend(found.counts.tolist())
        response.scores = found.scores.astype("<f4").tobytes()
        response.subject_ids.extend(found.subject_ids)
        response.template_ids.extend(found.template_ids)
        response.rows_count = found.rows_count
        response.scanned_rows_count = found.scanned_rows_count
        response.profile = to_profile_message(wish.profile)
        return response

    async def _search(
        self,
        name: str,
        copies: list[ShardCopy],
        probes: Float32,
        wish: Wish,
        *,
        deadline_s: float,
    ) -> Found:
        """Search together with whoever wants the same of the same copies.

        An erasure that was acknowledged while the search ran must not appear in an answer sent
        after it. So what was found is looked at once more, on the event loop, where rows change,
        and searched again if need be.
        """
        while True:
            states = [copy.state for copy in copies]
            found = await self.scheduler.search(name, states, probes, wish, deadline_s=deadline_s)
            for copy in copies:
                copy.check_serving()
            replaced = any(
                copy.state is not state for copy, state in zip(copies, states, strict=True)
            )
            if not replaced and not found.stale(states):
                if self._ports.canaries is not None:
                    gallery = self._node.view.gallery(name)
                    self._ports.canaries.observe(gallery, states, probes, wish, found)
                return found

    def _wish(self, request: pb.SearchRequest) -> Wish:
        gallery = self._node.view.gallery(request.gallery)
        profile = from_profile_message(request.profile)
        if gallery is None:
            return Wish(request.k, request.threshold, profile or Profile.BALANCED)
        return Wish(
            request.k, request.threshold, profile or gallery.profile, tuning=gallery.tuning
        )

    @override
    async def Compare(self, request: pb.CompareRequest, context: Context) -> pb.CompareResponse:
        """Score one probe against one subject."""
        copy = self._serving(request.shard_id)
        deadline_s = call_context(context, self._ports.clock).deadline_s
        await copy.reach(request.position_min, deadline_s)
        confirmed = copy.check_answering(checks.trust(request.trust))
        probe = vectors.prepare_probes(checks.probes(request, copy.gallery.dim))
        checks.check_count(len(probe), 1, "probes")
        state = copy.state
        rows = state.live_rows(request.subject_id)
        if not rows:
            unknown = NotFoundError(
                f"no such subject gallery={copy.gallery.name}",
                reason="SUBJECT_UNKNOWN",
                gallery=copy.gallery.name,
            )
            if not confirmed:
                unknown.facts["unconfirmed"] = "true"
            raise unknown
        scores = state.index.compare(probe, np.array(rows, np.int64))
        best = int(np.argmax(scores))
        return pb.CompareResponse(
            score=float(scores[best]),
            template_id=state.templates[rows[best]],
            unconfirmed=not confirmed,
        )

    @override
    async def Get(self, request: pb.GetRequest, context: Context) -> pb.GetResponse:
        """Return the templates of an id."""
        copy = self._serving(request.shard_id)
        deadline_s = call_context(context, self._ports.clock).deadline_s
        await copy.reach(request.position_min, deadline_s)
        confirmed = copy.check_answering(checks.trust(request.trust))
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
            ),
            unconfirmed=not confirmed,
        )

    @override
    async def Sample(self, request: pb.SampleRequest, context: Context) -> pb.SampleResponse:
        """Return a random sample of live rows."""
        del context
        state = self._serving(request.shard_id).state
        rows = np.arange(state.rows_count, dtype=np.int64)
        rows = rows[~state.erased_mask(rows)]
        live_rows_count = len(rows)
        if len(rows) > request.rows_count_max:
            rng = np.random.default_rng(request.seed)
            rows = np.sort(rng.choice(rows, request.rows_count_max, replace=False))
        codes = await asyncio.to_thread(state.index.codes, rows)
        return pb.SampleResponse(
            codes=codes.tobytes(), dim=state.dim, live_rows_count=live_rows_count
        )

    @override
    async def Train(self, request: pb.TrainRequest, context: Context) -> pb.TrainResponse:
        """Train a codebook and make it the gallery's."""
        deadline_s = call_context(context, self._ports.clock).deadline_s
        sha256, sample_count = await self._trainer.train(request.gallery, deadline_s)
        return pb.TrainResponse(codebook=sha256, sample_count=sample_count)

    @override
    async def Tune(self, request: pb.TuneRequest, context: Context) -> pb.TuneResponse:
        """Tune a gallery, or hear that canaries ask for it."""
        if not request.HasField("alarm"):
            return await super().Tune(request, context)
        if self._ports.canaries is not None:
            self._ports.canaries.heed(from_alarm_message(request.gallery, request.alarm))
        return pb.TuneResponse()

    @override
    async def Reach(self, request: pb.ReachRequest, context: Context) -> pb.ReachResponse:
        """Wait until a shard has come to a position."""
        copy = self._serving(request.shard_id)
        await copy.reach(request.position, call_context(context, self._ports.clock).deadline_s)
        if isinstance(copy, Follower) and copy.guessed:
            raise UnavailableError(
                f"what this copy holds was never confirmed by etcd shard={request.shard_id}",
                reason="UNCONFIRMED",
                shard=request.shard_id,
            )
        return pb.ReachResponse(position=copy.state.position)

    @override
    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusResponse:
        """Describe the node and its shards."""
        del request, context
        left, devices = memory(), self._ports.devices
        process = psutil.Process()
        used = process.cpu_times()
        return pb.StatusResponse(
            node_id=self._ports.claimant.node_id,
            boot_id=self._ports.claimant.boot_id,
            version=__version__,
            memory_bytes=process.memory_info().rss,
            cpu_ms=round((used.user + used.system) * 1000),
            shards=[shard_status(copy, self._alarms(copy)) for copy in self._node.copies.values()],
            memory_total_bytes=left.total_bytes,
            memory_available_bytes=left.available_bytes,
            zone=self._ports.zone,
            devices=[] if devices is None else [device_status(one) for one in devices.units],
        )

    def _alarms(self, copy: ShardCopy) -> list[Profile]:
        """Return the profiles that canaries of this node raise an alarm about."""
        canaries = self._ports.canaries
        return [] if canaries is None else canaries.alarms(copy.gallery.name)

    @override
    def _serving(self, shard_id: str) -> ShardCopy:
        """Return a shard of this node that serves."""
        with telling_map(self._node.view, shard_id):
            copy = self._node.copy(shard_id)
            copy.check_serving()
        return copy

    def _open_primary(self, shard_id: str) -> Primary:
        """Return a primary that takes writes of clients.

        Raises:
            UnavailableError: the shard is being filled, as far as this node has heard
                (SHARD_PENDING).
            FencedError, UnavailableError: as `_primary`.
        """
        primary = self._primary(shard_id)
        if primary.assignment.sources:
            raise UnavailableError(
                f"the shard is being filled and takes no writes yet shard={shard_id}",
                reason="SHARD_PENDING",
                shard=shard_id,
            )
        return primary

    @override
    def _primary(self, shard_id: str) -> Primary:
        """Return a shard of which this node is the primary.

        Raises:
            FencedError: this node follows it (NOT_PRIMARY); refresh the map.
            UnavailableError: the map makes it the primary, and it could not claim the shard yet,
                for instance since etcd is away (NOT_PRIMARY_YET).
        """
        copy = self._serving(shard_id)
        if not isinstance(copy, Primary):
            if copy.assignment.primary == self._ports.claimant.node_id:
                raise UnavailableError(
                    f"this node has not claimed the shard in etcd yet shard={shard_id}",
                    reason="NOT_PRIMARY_YET",
                    shard=shard_id,
                )
            raise FencedError(
                f"this node follows the shard and takes no writes shard={shard_id}",
                reason="NOT_PRIMARY",
                shard=shard_id,
            )
        return copy

    async def _write(self, primary: Primary, write: WriteRequest, context: Context) -> Outcome:
        """Commit a write within the caller's time. It goes on when the caller gives up."""

        async def work() -> Outcome:
            asked = primary.assignment
            outcome = await primary.write(write)
            if isinstance(write, EraseRequest):
                await self._ports.spread.wait(primary, outcome.position, asked)
            return outcome

        return await self._in_time(primary, work(), context)

    async def _in_time(
        self, primary: Primary, work: Awaitable[Outcome], context: Context
    ) -> Outcome:
        """Return what a write does, if it is done within the caller's time."""
        left_s = call_context(context, self._ports.clock).remaining_s(self._ports.clock)
        try:
            with telling_map(self._node.view, primary.assignment.shard_id):
                async with asyncio.timeout(left_s):
                    return await work
        except TimeoutError:
            raise DeadlineError(
                "the write was not confirmed in time; retry with the same request id"
                f" shard={primary.assignment.shard_id}",
                shard=primary.assignment.shard_id,
            ) from None
