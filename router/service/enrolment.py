"""facegrid.api.v1.EnrolmentService."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc.aio
from typing_extensions import override

from facegrid.api.v1 import enrolment_service_pb2 as pb
from facegrid.api.v1.enrolment_service_pb2_grpc import EnrolmentServiceServicer
from facegrid.clock import Clock
from facegrid.errors import FacegridError
from facegrid.ids import check_gallery_name
from facegrid.rpc.context import CallContext, call_context
from facegrid.wire import from_wire_token, to_wire_token, to_wire_vectors
from router.dispatch.ingest import Ingest
from router.dispatch.reads import Reader, Wanted
from router.service.checks import check_id, enrol_batch, erase_batch
from router.topology.directory import Directory

Context = grpc.aio.ServicerContext[Any, Any]

STREAM_REQUESTS_MAX: Final = 4
"""Requests of one stream under way. Only when the first is answered is the next one read, and so
gRPC's flow control slows a sender that is faster than the nodes."""


class EnrolmentService(EnrolmentServiceServicer):
    """Writes templates and takes them away."""

    def __init__(self, ingest: Ingest, reader: Reader, directory: Directory, clock: Clock) -> None:
        self._ingest = ingest
        self._reader = reader
        self._directory = directory
        self._clock = clock

    @override
    async def Enrol(self, request: pb.EnrolRequest, context: Context) -> pb.EnrolResponse:
        return await self._enrol(request, call_context(context, self._clock))

    @override
    async def EnrolStream(  # type: ignore[override]  # it owns tasks, so it writes
        self, request_iterator: AsyncIterator[pb.EnrolRequest], context: Context
    ) -> None:
        call = call_context(context, self._clock)
        stream = _Stream()
        async with asyncio.TaskGroup() as group:

            async def read() -> None:
                try:
                    async for request in request_iterator:
                        await stream.room.acquire()
                        await stream.started.put(group.create_task(self._attempt(request, call)))
                except FacegridError as error:
                    await stream.started.put(error)
                else:
                    await stream.started.put(None)

            reading = group.create_task(read())
            refused = await _answer(stream, context)
            if refused is not None:
                reading.cancel()
                stream.cancel()
        if refused is not None:
            raise refused

    async def _attempt(
        self, request: pb.EnrolRequest, call: CallContext
    ) -> pb.EnrolResponse | FacegridError:
        """Enrol one request of a stream. Its error is a value, to be told in its turn."""
        try:
            return await self._enrol(request, call)
        except FacegridError as error:
            return error

    async def _enrol(self, request: pb.EnrolRequest, call: CallContext) -> pb.EnrolResponse:
        name = check_gallery_name(request.gallery)
        served = await self._directory.find(name, deadline_s=call.deadline_s)
        batch = enrol_batch(
            request, dim=served.gallery.dim, component_bits=served.gallery.component_bits
        )
        enrolled = await self._ingest.enrol(served, batch, deadline_s=call.deadline_s)
        return pb.EnrolResponse(
            token=to_wire_token(enrolled.token),
            enrolled_count=enrolled.enrolled_count,
            unchanged_count=enrolled.unchanged_count,
        )

    @override
    async def Erase(self, request: pb.EraseRequest, context: Context) -> pb.EraseResponse:
        call = call_context(context, self._clock)
        batch = erase_batch(request)
        name = check_gallery_name(request.gallery)
        served = await self._directory.find(name, deadline_s=call.deadline_s)
        erased = await self._ingest.erase(served, batch, deadline_s=call.deadline_s)
        return pb.EraseResponse(
            token=to_wire_token(erased.token), erased_templates_count=erased.templates_count
        )

    @override
    async def GetTemplate(
        self, request: pb.GetTemplateRequest, context: Context
    ) -> pb.GetTemplateResponse:
        call = call_context(context, self._clock)
        check_id(request.template_id, field="template_id")
        if request.subject_id:
            check_id(request.subject_id, field="subject_id")
        name = check_gallery_name(request.gallery)
        after = from_wire_token(request.after)
        served = await self._directory.find(name, deadline_s=call.deadline_s, after=after)
        found = await self._reader.get(
            served,
            request.template_id,
            subject_id=request.subject_id,
            wanted=Wanted(after, unconfirmed_accepted=not request.confirmed_only),
            deadline_s=call.deadline_s,
        )
        return pb.GetTemplateResponse(
            template_id=found.template_id,
            subject_id=found.subject_id,
            vector=to_wire_vectors(found.vector),
            unconfirmed=found.unconfirmed,
        )


_Started = asyncio.Task[pb.EnrolResponse | FacegridError] | FacegridError | None
"""A request under way, an error in reading the stream, or its end."""


class _Stream:
    """The requests of one stream that are under way, in order."""

    def __init__(self) -> None:
        self.room = asyncio.Semaphore(STREAM_REQUESTS_MAX)
        self.started: asyncio.Queue[_Started] = asyncio.Queue(STREAM_REQUESTS_MAX + 1)

    def cancel(self) -> None:
        """Cancel what nobody will be told about."""
        while not self.started.empty():
            started = self.started.get_nowait()
            if isinstance(started, asyncio.Task):
                started.cancel()


async def _answer(stream: _Stream, context: Context) -> FacegridError | None:
    """Answer in order until the end, or until a request is refused: then return its error."""
    while (started := await stream.started.get()) is not None:
        outcome = await started if isinstance(started, asyncio.Task) else started
        if isinstance(outcome, FacegridError):
            return outcome
        await context.write(outcome)
        stream.room.release()
    return None
