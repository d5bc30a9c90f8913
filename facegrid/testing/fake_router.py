"""The public services in memory, behind a real gRPC server: what client tests talk to.

Exact where it matters (ids, conflicts, request ids, tokens, scores), with one shard per gallery,
and with faults on demand.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import structlog
from typing_extensions import override

from facegrid import vectors, wire
from facegrid.api.admin.v1 import admin_service_pb2_grpc
from facegrid.api.v1 import (
    enrolment_service_pb2 as enrolment,
)
from facegrid.api.v1 import (
    enrolment_service_pb2_grpc,
    gallery_service_pb2_grpc,
    identification_service_pb2_grpc,
    types_pb2,
)
from facegrid.api.v1 import (
    gallery_service_pb2 as galleries,
)
from facegrid.api.v1 import (
    identification_service_pb2 as identification,
)
from facegrid.clock import SystemClock
from facegrid.errors import (
    ConflictError,
    FacegridError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from facegrid.ids import GalleryName, ShardId
from facegrid.model import Candidate, CandidateList, Coverage, Gallery, Token
from facegrid.rpc.server import RpcServer
from facegrid.rpc.streams import Streams
from facegrid.testing.fake_admin import FakeAdmin, FakeCluster
from facegrid.testing.fake_tuning import exact_tuning
from facegrid.tuning import MISS_RATE_MAX_DEFAULT, MISS_RATE_MAX_LIMIT, Profile
from facegrid.tuning_messages import from_profile_message

Key = tuple[str, str]
"""Subject and template."""


@dataclass(slots=True)
class Faults:
    """What is to go wrong.

    Attributes:
        errors: raised by the next calls and streams, one each, before they do anything.
        dying: streams lose their connection after so many acknowledgements, one entry per stream.
        lost_acks: unary enrolments whose effect happens and whose answer is lost, counted down.
        hanging: calls do not answer while this is set.
        struck: set once a call hangs.
        unconfirmed_share: how much of each gallery cannot be confirmed; of single reads all, if
            any.
    """

    errors: list[FacegridError] = field(default_factory=list)
    dying: list[int] = field(default_factory=list)
    lost_acks: int = 0
    hanging: bool = False
    struck: asyncio.Event = field(default_factory=asyncio.Event)
    unconfirmed_share: float = 0.0

    async def strike(self) -> None:
        """Do what is due at the beginning of a call."""
        if self.hanging:
            self.struck.set()
            await asyncio.Event().wait()
        if self.errors:
            raise self.errors.pop(0)

    def check_unconfirmed(self, unconfirmed_max: float) -> bool:
        """Return whether an answer is unconfirmed, or refuse it."""
        if self.unconfirmed_share > unconfirmed_max:
            raise UnavailableError("not confirmed", reason="UNCONFIRMED")
        return self.unconfirmed_share > 0


@dataclass(slots=True)
class Kept:
    """One gallery with its rows; `requests` remembers positions by request id."""

    gallery: Gallery
    rows: dict[Key, vectors.Int8] = field(default_factory=dict)
    requests: dict[str, int] = field(default_factory=dict)
    position: int = 0

    @property
    def token(self) -> Token:
        """How far the log has come."""
        return Token({ShardId(f"{self.gallery.name}.0"): self.position})


@dataclass(slots=True)
class Store:
    """What a cluster keeps; several fake routers may share one."""

    kept: dict[str, Kept] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def find(self, name: str) -> Kept:
        """Return a gallery."""
        if name not in self.kept:
            raise NotFoundError(
                f"no such gallery gallery={name}", reason="GALLERY_UNKNOWN", gallery=name
            )
        return self.kept[name]

    def enrol(self, request: enrolment.EnrolRequest) -> enrolment.EnrolResponse:
        """Enrol rows, once per request id."""
        kept = self.find(request.gallery)
        self.requests.append(request.request_id)
        x = wire.from_wire_vectors(request.vectors, dim=kept.gallery.dim)
        keys = list(zip(request.subject_ids, request.template_ids, strict=True))
        new = dict(zip(keys, vectors.quantize(x, kept.gallery.component_bits), strict=True))
        for row, (key, codes) in enumerate(new.items()):
            if key in kept.rows and not np.array_equal(kept.rows[key], codes):
                raise ConflictError(f"taken row={row}", reason="TEMPLATE_EXISTS", row=row)
        unchanged_count = len(new.keys() & kept.rows.keys())
        if request.request_id not in kept.requests:
            kept.rows |= new
            kept.position += 1
            kept.requests[request.request_id] = kept.position
        return enrolment.EnrolResponse(
            token=wire.to_wire_token(kept.token),
            enrolled_count=len(new) - unchanged_count,
            unchanged_count=unchanged_count,
        )


class FakeRouter:
    """A router at `address` while entered."""

    def __init__(self, store: Store | None = None, *, cluster: FakeCluster | None = None) -> None:
        self.store = store or Store()
        self.cluster = cluster or FakeCluster()
        self.faults = Faults()
        self.address = ""
        self.knows_component_bits = True
        """Else it passes over the field, as earlier versions do."""
        self._server: RpcServer | None = None

    async def __aenter__(self) -> "FakeRouter":
        server = RpcServer(SystemClock(), structlog.get_logger().bind(), dev=False)
        gallery_service_pb2_grpc.add_GalleryServiceServicer_to_server(
            _Galleries(self), server.server
        )
        enrolment_service_pb2_grpc.add_EnrolmentServiceServicer_to_server(
            _Enrolment(self), server.server
        )
        identification_service_pb2_grpc.add_IdentificationServiceServicer_to_server(
            _Identification(self), server.server
        )
        admin_service_pb2_grpc.add_AdminServiceServicer_to_server(
            FakeAdmin(self.cluster), server.server
        )
        self._server = server
        self.address = f"127.0.0.1:{await server.start('127.0.0.1:0')}"
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self.stop()

    @property
    def streams(self) -> Streams:
        """Those of the server."""
        assert self._server is not None, "entered"
        return self._server.streams

    async def stop(self) -> None:
        """Close the port and break all connections."""
        if self._server is not None:
            await self._server.stop(0)
            self._server = None


class _Galleries(gallery_service_pb2_grpc.GalleryServiceServicer):
    def __init__(self, router: FakeRouter) -> None:
        self._router = router

    @override
    async def CreateGallery(self, request: galleries.CreateGalleryRequest, context: Any) -> Any:
        await self._router.faults.strike()
        gallery = Gallery(
            name=GalleryName(request.name),
            uid="1f00aa23",
            dim=request.dim,
            extractor=request.extractor,
            shards_count=request.shards_count,
            replicas_count=request.replicas_count,
            train_at_templates_count=request.train_at_templates_count,
            profile=from_profile_message(request.profile) or Profile.BALANCED,
            miss_rate_max=_miss_rate_max(request) or MISS_RATE_MAX_DEFAULT,
            component_bits=(
                _component_bits(request)
                if self._router.knows_component_bits
                else vectors.BITS_DEFAULT
            ),
        )
        kept = self._router.store.kept.setdefault(request.name, Kept(gallery))
        if replace(kept.gallery, codebook="", tuning=None) != gallery:
            raise ConflictError(f"taken gallery={request.name}", reason="GALLERY_EXISTS")
        return galleries.CreateGalleryResponse(gallery=wire.to_wire_gallery(kept.gallery))

    @override
    async def GetGallery(self, request: galleries.GetGalleryRequest, context: Any) -> Any:
        await self._router.faults.strike()
        kept = self._router.store.find(request.name)
        message = wire.to_wire_gallery(kept.gallery)
        message.templates_count = len(kept.rows)
        return galleries.GetGalleryResponse(gallery=message)

    @override
    async def ListGalleries(self, request: galleries.ListGalleriesRequest, context: Any) -> Any:
        kept = sorted(self._router.store.kept.items())
        return galleries.ListGalleriesResponse(
            galleries=[wire.to_wire_gallery(one.gallery) for _, one in kept]
        )

    @override
    async def DropGallery(self, request: galleries.DropGalleryRequest, context: Any) -> Any:
        self._router.store.find(request.name)
        del self._router.store.kept[request.name]
        return galleries.DropGalleryResponse()

    @override
    async def UpdateGallery(self, request: galleries.UpdateGalleryRequest, context: Any) -> Any:
        kept = self._router.store.find(request.name)
        miss_rate_max = _miss_rate_max(request)
        kept.gallery = replace(
            kept.gallery,
            profile=from_profile_message(request.profile) or kept.gallery.profile,
            miss_rate_max=kept.gallery.miss_rate_max if miss_rate_max is None else miss_rate_max,
        )
        return galleries.UpdateGalleryResponse(gallery=wire.to_wire_gallery(kept.gallery))

    @override
    async def TuneGallery(self, request: galleries.TuneGalleryRequest, context: Any) -> Any:
        kept = self._router.store.find(request.name)
        tuning = exact_tuning(kept.gallery, mates_count_max=request.mates_count_max)
        kept.gallery = replace(kept.gallery, tuning=tuning)
        return galleries.TuneGalleryResponse(gallery=wire.to_wire_gallery(kept.gallery))

    @override
    async def TrainGallery(self, request: galleries.TrainGalleryRequest, context: Any) -> Any:
        kept = self._router.store.find(request.name)
        kept.gallery = replace(kept.gallery, codebook="c0debeef")
        return galleries.TrainGalleryResponse(gallery=wire.to_wire_gallery(kept.gallery))


class _Enrolment(enrolment_service_pb2_grpc.EnrolmentServiceServicer):
    def __init__(self, router: FakeRouter) -> None:
        self._router = router

    @override
    async def Enrol(self, request: enrolment.EnrolRequest, context: Any) -> Any:
        faults = self._router.faults
        await faults.strike()
        response = self._router.store.enrol(request)
        if faults.lost_acks:
            faults.lost_acks -= 1
            raise UnavailableError("the answer is lost")
        return response

    @override
    async def EnrolStream(
        self, request_iterator: AsyncIterator[enrolment.EnrolRequest], context: Any
    ) -> AsyncIterator[enrolment.EnrolResponse]:
        faults = self._router.faults
        await faults.strike()
        left = faults.dying.pop(0) if faults.dying else None
        async for request in request_iterator:
            if left == 0:
                self._router.store.enrol(request)
                raise UnavailableError("the node died after it wrote")
            yield self._router.store.enrol(request)
            left = None if left is None else left - 1

    @override
    async def Erase(self, request: enrolment.EraseRequest, context: Any) -> Any:
        await self._router.faults.strike()
        kept = self._router.store.find(request.gallery)
        gone = [
            (subject, template)
            for subject, template in kept.rows
            if subject in request.subject_ids or template in request.template_ids
        ]
        for key in gone:
            del kept.rows[key]
        kept.position += 1
        return enrolment.EraseResponse(
            token=wire.to_wire_token(kept.token), erased_templates_count=len(gone)
        )

    @override
    async def GetTemplate(self, request: enrolment.GetTemplateRequest, context: Any) -> Any:
        kept = self._router.store.find(request.gallery)
        unconfirmed = self._router.faults.check_unconfirmed(1 - request.confirmed_only)
        for (subject, template), codes in kept.rows.items():
            if template == request.template_id and request.subject_id in {"", subject}:
                return enrolment.GetTemplateResponse(
                    template_id=template,
                    subject_id=subject,
                    vector=wire.to_wire_vectors(vectors.dequantize(codes[None])),
                    unconfirmed=unconfirmed,
                )
        raise NotFoundError("no such template", reason="TEMPLATE_UNKNOWN")


class _Identification(identification_service_pb2_grpc.IdentificationServiceServicer):
    def __init__(self, router: FakeRouter) -> None:
        self._router = router

    @override
    async def Identify(self, request: identification.IdentifyRequest, context: Any) -> Any:
        return await self._identify(request)

    @override
    async def IdentifyStream(  # type: ignore[override]  # it owns tasks, so it writes
        self,
        request_iterator: AsyncIterator[identification.IdentifyStreamRequest],
        context: Any,
    ) -> None:
        await self._router.streams.serve(
            request_iterator,
            context,
            method="Identify",
            frame=identification.IdentifyStreamResponse,
            handle=lambda request, _: self._identify(request),
        )

    async def _identify(
        self, request: identification.IdentifyRequest
    ) -> identification.IdentifyResponse:
        await self._router.faults.strike()
        kept = self._router.store.find(request.gallery)
        from_profile_message(request.profile)  # as any other, it finds what exact search finds
        _check_after(kept, request.after)
        faults = self._router.faults
        faults.check_unconfirmed(
            request.unconfirmed_max if request.HasField("unconfirmed_max") else 1.0
        )
        coverage = Coverage(
            share=1.0,
            shards_answered_count=1,
            shards_count=1,
            unconfirmed_share=faults.unconfirmed_share,
            scanned_share=1.0,
        )
        threshold = request.threshold if request.HasField("threshold") else -1.0
        lists = [
            [row for row in found if row.score >= threshold][: request.k]
            for found in _compared(kept, request.probes)
        ]
        return identification.IdentifyResponse(
            lists=[wire.to_wire_candidate_list(CandidateList(one, coverage)) for one in lists],
            coverage=wire.to_wire_coverage(coverage),
        )

    @override
    async def Verify(self, request: identification.VerifyRequest, context: Any) -> Any:
        kept = self._router.store.find(request.gallery)
        unconfirmed = self._router.faults.check_unconfirmed(1 - request.confirmed_only)
        for row in _compared(kept, request.probe)[0]:
            if row.subject_id == request.subject_id:
                return identification.VerifyResponse(
                    score=row.score, template_id=row.template_id, unconfirmed=unconfirmed
                )
        raise NotFoundError("no such subject", reason="SUBJECT_UNKNOWN")


def _component_bits(request: galleries.CreateGalleryRequest) -> int:
    bits = request.component_bits or vectors.BITS_DEFAULT
    if bits not in vectors.COMPONENT_BITS_KNOWN:
        raise InvalidError(
            f"out of bounds value={bits}", reason="OUT_OF_BOUNDS", field="component_bits"
        )
    return bits


def _miss_rate_max(
    request: galleries.CreateGalleryRequest | galleries.UpdateGalleryRequest,
) -> float | None:
    value = request.miss_rate_max
    if request.HasField("miss_rate_max") and not 0 < value <= MISS_RATE_MAX_LIMIT:
        raise InvalidError(
            f"out of bounds value={value}", reason="OUT_OF_BOUNDS", field="miss_rate_max"
        )
    return value if request.HasField("miss_rate_max") else None


def _check_after(kept: Kept, after: types_pb2.Token) -> None:
    for shard_id, position in wire.from_wire_token(after).positions.items():
        if position > kept.token.positions.get(shard_id, 0):
            raise UnavailableError(f"not that far yet shard={shard_id}", reason="POSITION_BEHIND")


def _compared(kept: Kept, probes: types_pb2.Vectors) -> list[list[Candidate]]:
    """Return all subjects for every probe, best first."""
    x = wire.from_wire_vectors(probes, dim=kept.gallery.dim, field="probes")
    if not kept.rows:
        return [[] for _ in x]
    codes = np.stack(list(kept.rows.values()))
    prepared = vectors.prepare_probes(x)
    shape = (len(x), len(codes), codes.shape[1])
    norms = np.broadcast_to(vectors.code_norms(codes), shape[:2])
    return [
        _ranked(kept, row)
        for row in vectors.scores(prepared, np.broadcast_to(codes, shape), norms)
    ]


def _ranked(kept: Kept, scores: vectors.Float32) -> list[Candidate]:
    rows = sorted(
        (-float(score), subject, template)
        for (subject, template), score in zip(kept.rows, scores, strict=True)
    )
    best: dict[str, Candidate] = {}
    for score, subject, template in rows:
        if subject not in best:
            best[subject] = Candidate(subject, template, -score, rank=len(best) + 1)
    return list(best.values())
