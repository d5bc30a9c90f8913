"""facegrid.api.v1.IdentificationService: the one place that answers identify."""

from collections.abc import AsyncIterator
from typing import Any, Final

import grpc.aio
from typing_extensions import override

from facegrid import limits
from facegrid.api.v1 import identification_service_pb2 as pb
from facegrid.api.v1 import types_pb2
from facegrid.api.v1.identification_service_pb2_grpc import IdentificationServiceServicer
from facegrid.clock import Clock
from facegrid.ids import check_gallery_name
from facegrid.rpc.context import CallContext, call_context
from facegrid.rpc.streams import Streams
from facegrid.tuning_messages import to_profile_message
from facegrid.wire import from_wire_token, to_wire_coverage
from router.dispatch.coalesce import Coalescer, Share
from router.dispatch.erasures import Erasures
from router.dispatch.latencies import Latencies
from router.dispatch.question import Question
from router.dispatch.reads import Reader, Wanted
from router.dispatch.require import require_confirmed, require_coverage
from router.plan.confirmed import wish
from router.plan.standing import demanded_of
from router.service.checks import (
    check_candidates,
    check_id,
    check_identify,
    check_probes_count,
    probe_bytes,
)
from router.topology.directory import Directory

Context = grpc.aio.ServicerContext[Any, Any]

IDENTIFY: Final = "/facegrid.api.v1.IdentificationService/Identify"


class IdentificationService(IdentificationServiceServicer):
    """Compares probes with a gallery (1:N) or with one subject (1:1)."""

    def __init__(  # noqa: PLR0913 - each is one part of the router
        self,
        coalescer: Coalescer,
        reader: Reader,
        directory: Directory,
        clock: Clock,
        *,
        erasures: Erasures,
        latencies: Latencies,
        streams: Streams,
    ) -> None:
        self._streams = streams
        self._latencies = latencies
        self._erasures = erasures
        self._coalescer = coalescer
        self._reader = reader
        self._directory = directory
        self._clock = clock

    @override
    async def Identify(self, request: pb.IdentifyRequest, context: Context) -> pb.IdentifyResponse:
        return await self._timed(request, call_context(context, self._clock))

    @override
    async def IdentifyStream(  # type: ignore[override]  # it owns tasks, so it writes
        self, request_iterator: AsyncIterator[pb.IdentifyStreamRequest], context: Context
    ) -> None:
        await self._streams.serve(
            request_iterator,
            context,
            method=IDENTIFY,
            frame=pb.IdentifyStreamResponse,
            handle=self._timed,
        )

    async def _timed(self, request: pb.IdentifyRequest, call: CallContext) -> pb.IdentifyResponse:
        began_s = self._clock.now_s()
        response = await self._identify(request, call)
        self._latencies.note(self._clock.now_s() - began_s)
        return response

    async def _identify(
        self, request: pb.IdentifyRequest, call: CallContext
    ) -> pb.IdentifyResponse:
        wishes = check_identify(request)
        name = check_gallery_name(request.gallery)
        after = from_wire_token(request.after)
        served = await self._directory.find(name, deadline_s=call.deadline_s, after=after)
        dim = served.gallery.dim
        probes = probe_bytes(request.probes, dim=dim, field="probes")
        rows_count = check_probes_count(
            probes, dim=dim, count_max=limits.PROBES_MAX, field="probes"
        )
        check_candidates(rows_count, request.k)
        question = Question(
            gallery=name,
            probes=probes,
            rows_count=rows_count,
            dim=dim,
            k=request.k,
            threshold=wishes.threshold,
            positions=demanded_of(served.shard_map, after),
            unconfirmed=wish(wishes.unconfirmed_max),
            profile=wishes.profile or served.gallery.profile,
        )
        share = await self._erasures.settled(
            name,
            lambda: self._coalescer.search(question, deadline_s=call.deadline_s),
            Share.names,
            lambda share, gone: share.without(gone),
        )
        require_coverage(share.answer, wishes.coverage_min)
        require_confirmed(share.answer, wishes.unconfirmed_max)
        return to_wire_answer(share, question)

    @override
    async def Verify(self, request: pb.VerifyRequest, context: Context) -> pb.VerifyResponse:
        call = call_context(context, self._clock)
        check_id(request.subject_id, field="subject_id")
        name = check_gallery_name(request.gallery)
        after = from_wire_token(request.after)
        served = await self._directory.find(name, deadline_s=call.deadline_s, after=after)
        dim = served.gallery.dim
        probe = probe_bytes(request.probe, dim=dim, field="probe")
        check_probes_count(probe, dim=dim, count_max=1, field="probe")
        verified = await self._reader.verify(
            served,
            request.subject_id,
            probe=types_pb2.Vectors(data=probe, dim=dim, dtype=types_pb2.DTYPE_FLOAT32),
            wanted=Wanted(after, unconfirmed_accepted=not request.confirmed_only),
            deadline_s=call.deadline_s,
        )
        return pb.VerifyResponse(
            score=verified.score,
            template_id=verified.template_id,
            unconfirmed=verified.unconfirmed,
        )


def to_wire_answer(share: Share, question: Question) -> pb.IdentifyResponse:
    """Return a caller's part of a batch, cut to the k and threshold of its own question.

    A message per candidate is what costs here, so columns are read once and fields set in place.
    """
    merged = share.answer.merged
    response = pb.IdentifyResponse(
        coverage=to_wire_coverage(share.answer.coverage),
        map_version=share.answer.map_version,
        profile=to_profile_message(question.profile),
    )
    first_row = merged.starts[share.first]
    last_row = merged.starts[share.first + share.rows_count]
    scores = merged.scores[first_row:last_row].tolist()
    for probe in range(share.first, share.first + share.rows_count):
        add = response.lists.add().candidates.add
        start = merged.starts[probe]
        count = merged.count(probe, k=question.k, threshold=question.threshold)
        rows = zip(
            merged.subject_ids[start : start + count],
            merged.template_ids[start : start + count],
            scores[start - first_row : start - first_row + count],
            strict=True,
        )
        for rank, (subject_id, template_id, score) in enumerate(rows, 1):
            candidate = add()
            candidate.subject_id = subject_id
            candidate.template_id = template_id
            candidate.score = score
            candidate.rank = rank
    return response
