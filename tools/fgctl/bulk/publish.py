"""Brings the segments of a load into the store, and commits them through a router."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from facegrid.api.admin.v1 import admin_service_pb2 as pb
from facegrid.api.admin.v1.admin_service_pb2_grpc import AdminServiceStub
from facegrid.api.shard.v1.shard_service_pb2 import LoadSegment
from facegrid.blob.port import BlobStore
from facegrid.client.ambient import Ambient
from facegrid.client.caller import Caller
from facegrid.errors import ConflictError, CorruptError
from facegrid.format.load_pin import (
    LoadPin,
    check_load_id,
    encode_pin,
    parse_pin_name,
    pin_name,
    pin_prefix,
)
from facegrid.format.segment import segment_name
from facegrid.ids import ShardId
from facegrid.model import Token
from facegrid.wire import from_wire_token
from fgctl.bulk.segments import BuiltSegment, StoredSegment

COMMIT_TIMEOUT_S: Final = 900.0
"""How long the commit of one shard may take: the primary reads and checks all of its rows."""


def request_id(load_id: str, shard_id: ShardId) -> str:
    """Return what names a load's one request to a shard: repeated, it has the effect of once."""
    return f"load-{load_id}-{shard_id.rpartition('.')[2]}"


class LoadStore:
    """The objects of one load.

    Args:
        store: the object store of the cluster.
        load_id: 8 to 64 of 0-9 and a-z, never used by another load.
    """

    def __init__(self, store: BlobStore, load_id: str) -> None:
        check_load_id(load_id)
        self._store = store
        self._load_id = load_id

    async def put(self, segment: BuiltSegment) -> None:
        """Pin a segment, so that nothing sweeps it, and store it. Repeating it is harmless."""
        named = segment.named
        pin = LoadPin(named.shard_id, self._load_id, named.sha256)
        await self._put(pin_name(pin), encode_pin(pin))
        await self._put(segment_name(named.shard_id, named.sha256), segment.data)

    async def unpin(self, segments: Iterable[StoredSegment]) -> None:
        """Take the pins away: after the commit, or to give the load up."""
        for one in segments:
            pin = LoadPin(one.shard_id, self._load_id, one.sha256)
            await self._store.delete(pin_name(pin))

    async def unpin_all(self, shards: Iterable[ShardId]) -> int:
        """Take all pins of the load away, also those that nobody remembers; return how many."""
        count = 0
        for shard_id in shards:
            for name in await self._store.list(pin_prefix(shard_id, self._load_id)):
                if parse_pin_name(name) is not None:
                    await self._store.delete(name)
                    count += 1
        return count

    async def _put(self, name: str, data: bytes) -> None:
        try:
            await self._store.put_new(name, data)
        except ConflictError:
            if await self._store.get(name) != data:
                raise CorruptError(
                    f"object is there with other bytes name={name}",
                    reason="OBJECT_DAMAGED",
                    name=name,
                ) from None


@dataclass(frozen=True, slots=True)
class Committed:
    """What a load did to one shard. `token`: a read given it sees the rows."""

    token: Token
    enrolled_count: int
    unchanged_count: int


class LoadCommitter:
    """Commits loads through routers. Use as an async context manager.

    Args:
        routers: host:port of each.
        timeout_s: how long the commit of one shard may take, with all attempts.
    """

    def __init__(self, routers: Sequence[str], *, timeout_s: float = COMMIT_TIMEOUT_S) -> None:
        self._caller = Caller(tuple(routers), tls=None, ambient=Ambient())
        self._timeout_s = timeout_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self._caller.aclose()

    async def commit(
        self, gallery: str, load_id: str, segments: Sequence[StoredSegment]
    ) -> Committed:
        """Commit the segments of one shard, all at once; returns when its rows are searchable.

        Made again while that may help. Repeated by a later process it has the effect of once.

        Raises:
            InvalidError, ConflictError: a row is not fit; facts segment (its index) and row.
            NotFoundError: gallery or shard are gone.
            CorruptError: a segment is not in the store that the nodes use, or damaged.
            FacegridError: the last error met when the time was over: the outcome is open.
        """
        (shard_id,) = {one.shard_id for one in segments}
        answer = await self._caller.call(
            lambda channel: AdminServiceStub(channel).Load,
            pb.LoadRequest(
                gallery=gallery,
                shard_id=shard_id,
                request_id=request_id(load_id, shard_id),
                segments=[
                    LoadSegment(sha256=one.sha256, rows_count=one.rows_count) for one in segments
                ],
            ),
            timeout_s=self._timeout_s,
        )
        return Committed(
            from_wire_token(answer.token), answer.enrolled_count, answer.unchanged_count
        )
