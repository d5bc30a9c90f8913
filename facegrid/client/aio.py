"""The client for programs that run an event loop."""

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from typing import Final, Self

from facegrid import limits, wire
from facegrid.api.v1 import (
    enrolment_service_pb2,
    gallery_service_pb2,
    identification_service_pb2,
)
from facegrid.api.v1.enrolment_service_pb2_grpc import EnrolmentServiceStub
from facegrid.api.v1.gallery_service_pb2_grpc import GalleryServiceStub
from facegrid.api.v1.identification_service_pb2_grpc import IdentificationServiceStub
from facegrid.client import arguments, checks
from facegrid.client.ambient import Ambient
from facegrid.client.caller import Caller
from facegrid.client.identifying import Identifying
from facegrid.client.stream import EnrolSession
from facegrid.client.values import EnrolBatch, Erasure, Matrix, Template, Verification
from facegrid.errors import InvalidError, PreconditionError
from facegrid.model import CandidateList, Gallery, Token
from facegrid.rpc.channel import TlsFiles
from facegrid.vectors import BITS_DEFAULT

TRAIN_S: Final = 600.0
TUNE_S: Final = 1800.0


class AsyncClient:
    """Speaks to one or several routers of a cluster.

    Every call is made again, with the same request id and at the next router, while the error is
    UnavailableError, FencedError or OverloadedError and `timeout_s` is not over. Every method may
    raise any FacegridError. Use it from one event loop; it connects when first used.

    Args:
        target: host:port of a router, or several.
        timeout_s: how long each call may take, with all its attempts.
        tls: PEM files, where the routers want TLS.
        ambient: time, chance and names, for tests.
    """

    def __init__(
        self,
        target: str | Sequence[str],
        *,
        timeout_s: float = 30.0,
        tls: TlsFiles | None = None,
        ambient: Ambient | None = None,
    ) -> None:
        self._timeout_s = arguments.checked_timeout(timeout_s)
        self._caller = Caller(
            arguments.checked_targets(target),
            tls=arguments.checked_tls(tls),
            ambient=ambient or Ambient(),
        )
        self._identifying = Identifying(self._caller)

    async def create_gallery(  # noqa: PLR0913 - each is one setting
        self,
        name: str,
        *,
        dim: int,
        extractor: str,
        shards: int = 1,
        replicas: int = 1,
        train_at: int | None = None,
        profile: str | None = None,
        miss_rate_max: float | None = None,
        component_bits: int = BITS_DEFAULT,
    ) -> Gallery:
        """Create a gallery and return it once its shards accept writes.

        Args:
            name: ^[a-z0-9][a-z0-9_-]{0,62}$
            dim: components per template, a multiple of 4, 8 to 1,024.
            extractor: what makes the templates, for instance "arcface-r100@1".
            shards: parts that the gallery is cut into.
            replicas: copies of each part, on different nodes.
            train_at: number of templates at which the index trains by itself; 0: never; not given:
                the service's default.
            profile: how hard searches try that do not say: "exhaustive", "balanced" (the default)
                or "fast".
            miss_rate_max: share of mates that "balanced" may miss because of the index, above 0 to
                0.1; not given: 0.001.
            component_bits: what a component of a template is rounded to, 8 or 4. With 4, nodes
                hold a template in about two thirds of the memory at 512 components; scores are a
                hundredth smaller, and off by some 0.005 in place of 0.0003. It cannot be changed.

        Raises:
            ConflictError: the name is taken with other settings.
            PreconditionError: the router is of a version that cannot round to so few bits; there
                is a gallery of 8 now (COMPONENT_BITS_UNKNOWN).
        """
        request = gallery_service_pb2.CreateGalleryRequest(
            name=arguments.checked_name(name),
            dim=arguments.checked_count(dim, field="dim"),
            extractor=arguments.checked_extractor(extractor),
            shards_count=arguments.checked_count(shards, field="shards"),
            replicas_count=arguments.checked_count(replicas, field="replicas"),
            train_at_templates_count=arguments.checked_train_at(train_at),
            profile=arguments.checked_profile(profile),
            miss_rate_max=arguments.checked_miss_rate_max(miss_rate_max),
            component_bits=arguments.checked_count(component_bits, field="component_bits"),
        )
        response = await self._caller.call(
            lambda channel: GalleryServiceStub(channel).CreateGallery,
            request,
            timeout_s=self._timeout_s,
        )
        made = wire.from_wire_gallery(response.gallery)
        if made.component_bits != component_bits:
            raise PreconditionError(
                "the router does not know component_bits and made the gallery without: drop it,"
                f" and ask a newer router gallery={name} component_bits={made.component_bits}",
                reason="COMPONENT_BITS_UNKNOWN",
                gallery=name,
            )
        return made

    async def get_gallery(self, name: str) -> Gallery:
        """Return a gallery with its present number of templates."""
        response = await self._caller.call(
            lambda channel: GalleryServiceStub(channel).GetGallery,
            gallery_service_pb2.GetGalleryRequest(name=arguments.checked_name(name)),
            timeout_s=self._timeout_s,
        )
        return wire.from_wire_gallery(response.gallery)

    async def list_galleries(self) -> list[Gallery]:
        """Return all galleries by name; their templates are not counted."""
        response = await self._caller.call(
            lambda channel: GalleryServiceStub(channel).ListGalleries,
            gallery_service_pb2.ListGalleriesRequest(),
            timeout_s=self._timeout_s,
        )
        return [wire.from_wire_gallery(gallery) for gallery in response.galleries]

    async def drop_gallery(self, name: str) -> None:
        """Drop a gallery with all its templates. Cannot be undone.

        Raises:
            NotFoundError: there is none; also when an attempt before, whose answer was lost,
                dropped it.
        """
        await self._caller.call(
            lambda channel: GalleryServiceStub(channel).DropGallery,
            gallery_service_pb2.DropGalleryRequest(name=arguments.checked_name(name)),
            timeout_s=self._timeout_s,
        )

    async def train(self, name: str, *, timeout_s: float = TRAIN_S) -> Gallery:
        """Train the gallery's index and return once every shard searches with it."""
        response = await self._caller.call(
            lambda channel: GalleryServiceStub(channel).TrainGallery,
            gallery_service_pb2.TrainGalleryRequest(name=arguments.checked_name(name)),
            timeout_s=arguments.checked_timeout(timeout_s),
        )
        return wire.from_wire_gallery(response.gallery)

    async def update_gallery(
        self, name: str, *, profile: str | None = None, miss_rate_max: float | None = None
    ) -> Gallery:
        """Change settings of a gallery and return it; what is not given stays.

        After a change of `miss_rate_max` the gallery is tuned anew by itself.

        Args:
            name: of the gallery.
            profile: how hard searches try that do not say: "exhaustive", "balanced" or "fast".
            miss_rate_max: share of mates that "balanced" may miss because of the index, above 0 to
                0.1.

        Raises:
            NotFoundError: there is no such gallery.
        """
        request = gallery_service_pb2.UpdateGalleryRequest(
            name=arguments.checked_name(name),
            profile=arguments.checked_profile(profile),
            miss_rate_max=arguments.checked_miss_rate_max(miss_rate_max),
        )
        response = await self._caller.call(
            lambda channel: GalleryServiceStub(channel).UpdateGallery,
            request,
            timeout_s=self._timeout_s,
        )
        return wire.from_wire_gallery(response.gallery)

    async def tune(
        self, name: str, *, mates: int | None = None, timeout_s: float = TUNE_S
    ) -> Gallery:
        """Measure what the index misses against exact search, and set the profiles by it.

        Returns the gallery with its tuning. It also happens by itself, after training and as the
        gallery grows.

        Args:
            name: of the gallery.
            mates: mated pairs to measure on, at most 1,000,000; not given: as many as the allowed
                miss rate wants.
            timeout_s: how long it may take.

        Raises:
            InvalidError: the gallery is searched exactly (NOT_TRAINED), or too few mates were seen
                to state anything (TOO_FEW_MATES).
        """
        response = await self._caller.call(
            lambda channel: GalleryServiceStub(channel).TuneGallery,
            gallery_service_pb2.TuneGalleryRequest(
                name=arguments.checked_name(name), mates_count_max=arguments.checked_mates(mates)
            ),
            timeout_s=arguments.checked_timeout(timeout_s),
        )
        return wire.from_wire_gallery(response.gallery)

    async def enrol(
        self,
        gallery: str,
        *,
        template_ids: Sequence[str],
        subject_ids: Sequence[str],
        vectors: Matrix,
        request_id: str | None = None,
    ) -> Token:
        """Enrol rows; returns when they are durable and searchable. All of them or none.

        Args:
            gallery: its name.
            template_ids: one per row, unique within its subject.
            subject_ids: one per row.
            vectors: [rows, dim], norms between 0.5 and 2; at most 4,096 rows.
            request_id: give one to be able to repeat the call, even from another process, with the
                effect of once.

        Raises:
            InvalidError: a row is malformed; `row` says which.
            ConflictError: a subject has the template already, with another vector.
        """
        rows = checks.checked_rows(template_ids, subject_ids, vectors)
        if len(rows) > limits.ENROL_ROWS_MAX:
            raise InvalidError(
                f"too many rows for one enrol, use enrol_stream rows={len(rows)}"
                f" limit={limits.ENROL_ROWS_MAX}",
                reason="OUT_OF_BOUNDS",
                field="vectors",
                limit=limits.ENROL_ROWS_MAX,
            )
        request = enrolment_service_pb2.EnrolRequest(
            gallery=arguments.checked_name(gallery),
            request_id=self._request_id(request_id),
            template_ids=rows.template_ids,
            subject_ids=rows.subject_ids,
            vectors=wire.to_wire_vectors(rows.vectors),
        )
        response = await self._caller.call(
            lambda channel: EnrolmentServiceStub(channel).Enrol, request, timeout_s=self._timeout_s
        )
        return wire.from_wire_token(response.token)

    async def enrol_stream(
        self,
        gallery: str,
        batches: Iterable[EnrolBatch] | AsyncIterable[EnrolBatch],
        *,
        on_ack: Callable[[int], object] | None = None,
    ) -> Token:
        """Enrol many rows with back-pressure; returns when all are durable and searchable.

        Batches of more than 1,024 rows are sent in parts. When the connection breaks it goes on
        from the first batch not acknowledged. `timeout_s` of the client bounds the wait for an
        acknowledgement, not the whole stream.

        Args:
            gallery: its name.
            batches: read as fast as the service writes. A plain iterable runs in the event loop.
            on_ack: called with the number of rows acknowledged so far, for progress bars.

        Raises:
            InvalidError: a row was refused; facts name the batch (0-based) and the row in it.
                Batches before it stay enrolled.
        """
        arguments.check_callable(on_ack, field="on_ack")
        session = self.open_session(gallery)
        told = 0
        try:
            async for batch in _each(batches):
                acked = await session.send(batch)
                if on_ack is not None and acked > told:
                    on_ack(acked)
                told = acked
            while (acked_now := await session.step()) is not None:
                if on_ack is not None:
                    on_ack(acked_now)
        finally:
            session.close()
        return session.token

    def open_session(self, gallery: str) -> EnrolSession:
        """Return what `enrol_stream` drives, for those who push batches instead."""
        name = arguments.checked_name(gallery)
        return EnrolSession(self._caller, name, timeout_s=self._timeout_s)

    async def get_template(
        self,
        gallery: str,
        template_id: str,
        *,
        subject_id: str | None = None,
        after: Token | None = None,
        confirmed_only: bool = False,
    ) -> Template:
        """Return one stored template, rounded as it is stored. `confirmed_only` as in `verify`.

        Raises:
            InvalidError: several subjects have a template of this id (TEMPLATE_AMBIGUOUS).
            UnavailableError: no copy could confirm its answer (UNCONFIRMED).
        """
        response = await self._caller.call(
            lambda channel: EnrolmentServiceStub(channel).GetTemplate,
            enrolment_service_pb2.GetTemplateRequest(
                gallery=arguments.checked_name(gallery),
                template_id=checks.checked_ids([template_id], field="template_id")[0],
                subject_id=_optional_id(subject_id),
                after=arguments.checked_after(after),
                confirmed_only=arguments.checked_confirmed_only(confirmed_only),
            ),
            timeout_s=self._timeout_s,
        )
        vector = wire.from_wire_vectors(response.vector, dim=response.vector.dim, field="vector")
        return Template(response.template_id, response.subject_id, vector[0], response.unconfirmed)

    async def erase(
        self,
        gallery: str,
        *,
        template_ids: Sequence[str] = (),
        subject_ids: Sequence[str] = (),
        request_id: str | None = None,
    ) -> Erasure:
        """Erase templates, or subjects with all their templates.

        Once it returns no answer contains them. Erasing what is not there counts nothing.
        """
        request = enrolment_service_pb2.EraseRequest(
            gallery=arguments.checked_name(gallery),
            request_id=self._request_id(request_id),
            template_ids=checks.checked_ids(template_ids, field="template_ids"),
            subject_ids=checks.checked_ids(subject_ids, field="subject_ids"),
        )
        checks.check_erase(request.template_ids, request.subject_ids)
        response = await self._caller.call(
            lambda channel: EnrolmentServiceStub(channel).Erase, request, timeout_s=self._timeout_s
        )
        return Erasure(wire.from_wire_token(response.token), response.erased_templates_count)

    async def identify(  # noqa: PLR0913 - each is one thing that callers may wish of an answer
        self,
        gallery: str,
        probes: Matrix,
        *,
        k: int = 10,
        threshold: float | None = None,
        coverage_min: float | None = None,
        unconfirmed_max: float | None = None,
        after: Token | None = None,
        profile: str | None = None,
    ) -> list[CandidateList]:
        """Return for every probe the subjects that resemble it most.

        Args:
            gallery: its name.
            probes: [probes, dim], at most 1,024, or one probe as [dim].
            k: longest list wanted, 1 to 2,048.
            threshold: candidates with a lower score are left out.
            coverage_min: least share of the gallery that must have been searched; not given: all.
            unconfirmed_max: largest share of it that may have been searched on copies which could
                not confirm that they have everything, 0 to 1; not given: 1, so that searches go on
                while etcd is away, and `coverage.unconfirmed_share` of the answer tells.
            after: what a write returned, to see at least that.
            profile: how hard to search: "exhaustive", "balanced" or "fast"; not given: as the
                gallery says. `coverage.scanned_share` of the answer tells how much was looked at.

        Raises:
            InvalidError: a probe is malformed; `row` says which.
            UnavailableError: too little of the gallery could be searched (COVERAGE_TOO_LOW), or
                too little of it confirmed (UNCONFIRMED).
        """
        response = await self._identifying.ask(
            identification_service_pb2.IdentifyRequest(
                gallery=arguments.checked_name(gallery),
                probes=wire.to_wire_vectors(checks.checked_probes(probes)),
                k=arguments.checked_k(k),
                threshold=arguments.checked_threshold(threshold),
                coverage_min=arguments.checked_coverage_min(coverage_min),
                unconfirmed_max=arguments.checked_unconfirmed_max(unconfirmed_max),
                after=arguments.checked_after(after),
                profile=arguments.checked_profile(profile),
            ),
            timeout_s=self._timeout_s,
        )
        coverage = wire.from_wire_coverage(response.coverage)
        return [wire.from_wire_candidate_list(answer, coverage) for answer in response.lists]

    async def verify(
        self,
        gallery: str,
        subject_id: str,
        probe: Matrix,
        *,
        after: Token | None = None,
        confirmed_only: bool = False,
    ) -> Verification:
        """Return the score of a probe, [dim] or [1, dim], against a subject's best template.

        Args:
            gallery: its name.
            subject_id: whom to compare the probe with.
            probe: one vector.
            after: what a write returned, to see at least that.
            confirmed_only: rather fail than be answered by a copy that could not confirm that it
                has everything.

        Raises:
            NotFoundError: there is no such subject (SUBJECT_UNKNOWN); with the fact `unconfirmed`
                where the copy that says so could not confirm it.
            UnavailableError: no copy could confirm its answer (UNCONFIRMED).
        """
        response = await self._caller.call(
            lambda channel: IdentificationServiceStub(channel).Verify,
            identification_service_pb2.VerifyRequest(
                gallery=arguments.checked_name(gallery),
                subject_id=checks.checked_ids([subject_id], field="subject_id")[0],
                probe=wire.to_wire_vectors(checks.checked_probe(probe)),
                after=arguments.checked_after(after),
                confirmed_only=arguments.checked_confirmed_only(confirmed_only),
            ),
            timeout_s=self._timeout_s,
        )
        return Verification(subject_id, response.template_id, response.score, response.unconfirmed)

    async def aclose(self) -> None:
        """Close the connections; calls in flight end as UnavailableError. Idempotent."""
        self._caller.refuse()
        await self._identifying.aclose()
        await self._caller.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self.aclose()

    def _request_id(self, given: str | None) -> str:
        if given is None:
            return self._caller.ambient.new_request_id()
        return arguments.checked_request_id(given)


def _optional_id(subject_id: str | None) -> str:
    if subject_id is None:
        return ""
    return checks.checked_ids([subject_id], field="subject_id")[0]


async def _each(
    batches: Iterable[EnrolBatch] | AsyncIterable[EnrolBatch],
) -> AsyncIterator[EnrolBatch]:
    if isinstance(batches, AsyncIterable):
        async for batch in batches:
            yield batch
    else:
        for batch in checks.checked_batches(batches):
            yield batch
