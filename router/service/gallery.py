"""facegrid.api.v1.GalleryService."""

from typing import Any

import grpc.aio
from typing_extensions import override

from facegrid.api.v1 import gallery_service_pb2 as pb
from facegrid.api.v1.gallery_service_pb2_grpc import GalleryServiceServicer
from facegrid.clock import Clock
from facegrid.ids import check_gallery_name
from facegrid.rpc.context import call_context
from facegrid.tuning_messages import from_profile_message
from facegrid.wire import to_wire_gallery
from router.dispatch.adjusting import Adjusting
from router.dispatch.lifecycle import Lifecycle
from router.service.checks import gallery_spec, mates_count_max, miss_rate_max
from router.topology.directory import Directory
from router.topology.watcher import Watcher

Context = grpc.aio.ServicerContext[Any, Any]


class GalleryService(GalleryServiceServicer):
    """Creates, describes, changes, trains, tunes and drops galleries."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        adjusting: Adjusting,
        directory: Directory,
        *,
        watcher: Watcher,
        clock: Clock,
    ) -> None:
        self._lifecycle = lifecycle
        self._adjusting = adjusting
        self._directory = directory
        self._watcher = watcher
        self._clock = clock

    @override
    async def CreateGallery(
        self, request: pb.CreateGalleryRequest, context: Context
    ) -> pb.CreateGalleryResponse:
        call = call_context(context, self._clock)
        gallery = await self._lifecycle.create(gallery_spec(request), deadline_s=call.deadline_s)
        return pb.CreateGalleryResponse(gallery=to_wire_gallery(gallery))

    @override
    async def GetGallery(
        self, request: pb.GetGalleryRequest, context: Context
    ) -> pb.GetGalleryResponse:
        call = call_context(context, self._clock)
        name = check_gallery_name(request.name)
        served = await self._directory.find(name, deadline_s=call.deadline_s)
        gallery = await self._lifecycle.counted(served, deadline_s=call.deadline_s)
        return pb.GetGalleryResponse(gallery=to_wire_gallery(gallery))

    @override
    async def ListGalleries(
        self, request: pb.ListGalleriesRequest, context: Context
    ) -> pb.ListGalleriesResponse:
        galleries = self._watcher.topology.galleries.values()
        return pb.ListGalleriesResponse(
            galleries=[to_wire_gallery(served.described) for served in galleries]
        )

    @override
    async def DropGallery(
        self, request: pb.DropGalleryRequest, context: Context
    ) -> pb.DropGalleryResponse:
        call = call_context(context, self._clock)
        await self._lifecycle.drop(check_gallery_name(request.name), deadline_s=call.deadline_s)
        return pb.DropGalleryResponse()

    @override
    async def TrainGallery(
        self, request: pb.TrainGalleryRequest, context: Context
    ) -> pb.TrainGalleryResponse:
        call = call_context(context, self._clock)
        name = check_gallery_name(request.name)
        trained = await self._lifecycle.train(name, deadline_s=call.deadline_s)
        gallery = await self._adjusting.tuned(trained.gallery, deadline_s=call.deadline_s)
        return pb.TrainGalleryResponse(
            gallery=to_wire_gallery(gallery), sample_count=trained.sample_count
        )

    @override
    async def UpdateGallery(
        self, request: pb.UpdateGalleryRequest, context: Context
    ) -> pb.UpdateGalleryResponse:
        call = call_context(context, self._clock)
        gallery = await self._adjusting.update(
            check_gallery_name(request.name),
            profile=from_profile_message(request.profile),
            miss_rate_max=miss_rate_max(request),
            deadline_s=call.deadline_s,
        )
        return pb.UpdateGalleryResponse(gallery=to_wire_gallery(gallery))

    @override
    async def TuneGallery(
        self, request: pb.TuneGalleryRequest, context: Context
    ) -> pb.TuneGalleryResponse:
        call = call_context(context, self._clock)
        gallery = await self._adjusting.tune(
            check_gallery_name(request.name),
            mates_count_max=mates_count_max(request),
            deadline_s=call.deadline_s,
        )
        return pb.TuneGalleryResponse(gallery=to_wire_gallery(gallery))
