"""The calls of ShardService by which shards take the place of others. See RFC 0009."""

import asyncio
from abc import abstractmethod
from typing import Any, Final

import grpc.aio
from typing_extensions import override

from facegrid.api.shard.v1 import shard_service_pb2 as pb
from facegrid.api.shard.v1.shard_service_pb2_grpc import ShardServiceServicer
from facegrid.errors import CorruptError, FencedError, InvalidError, NotFoundError
from facegrid.format import digest as digests
from facegrid.format.records import decode_gallery, decode_shard_map
from facegrid.format.stored_gallery import StoredGallery
from facegrid.ids import ShardId
from indexd.engine.requests import LoadRequest
from indexd.engine.state import ShardState
from indexd.replica.mirrors import Mirrors
from indexd.replica.node import Node
from indexd.replica.primary import Primary
from indexd.replica.shard_copy import Phase
from indexd.service.mirror_checks import mirror_request

Context = grpc.aio.ServicerContext[Any, Any]

HOLD_MS_MAX: Final = 1000
"""The longest that writes may be held back."""


class ReshapeCalls(ShardServiceServicer):
    """Checks, calls the copy, translates."""

    def __init__(self, node: Node) -> None:
        self._node = node

    @abstractmethod
    def _primary(self, shard_id: str) -> Primary:
        """Return a shard of which this node is the primary."""

    @property
    def _mirrors(self) -> Mirrors:
        mirrors = self._node.mirrors
        assert mirrors is not None, "a node that serves has them"
        return mirrors

    @override
    async def Mirror(self, request: pb.MirrorRequest, context: Context) -> pb.MirrorResponse:
        """Bring records of another shard into a pending one. They go in when the caller gives up,
        too: whoever asks next hears how far the source is.
        """
        del context
        primary = self._primary(request.shard_id)
        source = ShardId(request.source_shard_id)
        if not self._mirrors.is_source(primary.gallery.name, primary.assignment.shard_id, source):
            raise FencedError(
                "the shard serves by now, or is not filled from that source: refresh the map"
                f" shard={request.shard_id} source={source}",
                reason="NOT_PENDING",
                shard=request.shard_id,
            )
        if _fits(primary.state, request):
            write = await asyncio.to_thread(mirror_request, request, primary.state)
            if isinstance(write, LoadRequest):
                await self._node.load_segments(primary, write)
            else:
                await primary.write(write)
        return pb.MirrorResponse(
            source_position=primary.state.sources.get(source, 0),
            position=primary.state.position,
        )

    @override
    async def Hold(self, request: pb.HoldRequest, context: Context) -> pb.HoldResponse:
        """Hold writes to a shard back, and tell where it stands."""
        del context
        if request.hold_ms > HOLD_MS_MAX:
            raise InvalidError(
                f"writes are held back for {HOLD_MS_MAX} ms at most hold_ms={request.hold_ms}",
                reason="HOLD_TOO_LONG",
                field="hold_ms",
                limit=HOLD_MS_MAX,
            )
        primary = self._primary(request.shard_id)
        held = await self._mirrors.hold(primary, request.hold_ms / 1000)
        return pb.HoldResponse(
            position=held.position,
            tip_revision=held.tip_revision,
            claim=held.claim,
            templates_count=held.templates_count,
            digest=digests.to_bytes(held.digest).hex(),
        )

    @override
    async def KeepRecord(
        self, request: pb.KeepRecordRequest, context: Context
    ) -> pb.KeepRecordResponse:
        """Store what etcd is about to hold of a gallery, beside what it holds now."""
        del context
        try:
            gallery = decode_gallery(request.gallery)
            coming = StoredGallery(gallery, decode_shard_map(request.shard_map))
        except CorruptError as error:
            raise InvalidError(error.message, reason="RECORD_REFUSED") from error
        if coming.shard_map.gallery_uid != gallery.uid:
            raise InvalidError("map and settings are of two galleries", reason="RECORD_REFUSED")
        for copy in self._node.copies.values():
            own = copy.gallery.uid == gallery.uid
            if own and isinstance(copy, Primary) and copy.phase is Phase.SERVING:
                await copy.keep_coming(self._present(gallery.name, gallery.uid), coming)
                return pb.KeepRecordResponse()
        raise NotFoundError(
            f"this node is the primary of no shard of the gallery gallery={gallery.name}",
            reason="SHARD_NOT_HERE",
            gallery=gallery.name,
        )

    def _present(self, name: str, uid: str) -> StoredGallery | None:
        """Return what etcd holds of a gallery now, as far as this node has heard."""
        gallery, shard_map = self._node.view.gallery(name), self._node.view.shard_map(name)
        if gallery is None or shard_map is None or not gallery.uid == shard_map.gallery_uid == uid:
            return None
        return StoredGallery(gallery, shard_map)


def _fits(state: ShardState, request: pb.MirrorRequest) -> bool:
    """Tell whether records follow what there is of their source."""
    return state.sources.get(ShardId(request.source_shard_id), 0) == request.after_position
