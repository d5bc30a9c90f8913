"""Watching a prefix of etcd so that nothing is missed, or it is known that something was.

List at revision R, watch from R+1. A broken stream goes on where it ended, on the next member.
Only when etcd has compacted that revision away, has become another cluster or has gone back in
time is the prefix listed again. Each second the stream is asked for a sign of life, and one that
stays silent is given up: a dead peer would otherwise look like a quiet one.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

import grpc.aio

from facegrid.api.etcd.v3 import etcd_pb2 as pb
from facegrid.clock import Clock
from facegrid.coord.port import Changed, KeyValue, Listing, Progress, Snapshot, WatchEvent
from facegrid.coord.transport import HAS_LEADER, EtcdTransport, Method
from facegrid.errors import UnavailableError

if TYPE_CHECKING:
    # The stubs make this class generic in two types; at run time it is generic in none.
    from grpc.aio import StreamStreamCall

RANGE: Final = Method("/etcdserverpb.KV/Range", pb.RangeRequest, pb.RangeResponse)
WATCH: Final = Method("/etcdserverpb.Watch/Watch", pb.WatchRequest, pb.WatchResponse)

PROGRESS_S: Final = 1.0
SILENCE_S: Final = 4.0
"""A stream that says nothing for this long is dead: four signs of life are missing."""
LIST_TIMEOUT_S: Final = 5.0
PAUSE_FIRST_S: Final = 0.1
PAUSE_LIMIT_S: Final = 1.0


class KeySpace:
    """Puts the root before every key on the way out and takes it off on the way in."""

    def __init__(self, root: str) -> None:
        self._root = root

    def to_wire(self, key: str) -> bytes:
        """Return the key as etcd knows it."""
        return (self._root + key).encode()

    def from_wire(self, key: bytes) -> str:
        """Return the key as callers know it."""
        return key.decode(errors="replace").removeprefix(self._root)

    def item(self, kv: pb.KeyValue) -> KeyValue:
        """Return a key with its value."""
        return KeyValue(self.from_wire(kv.key), kv.value, kv.mod_revision, kv.lease)

    def items(self, response: pb.RangeResponse) -> tuple[KeyValue, ...]:
        """Return the keys of an answer, by name."""
        return tuple(self.item(kv) for kv in response.kvs)

    def range_request(self, prefix: str) -> pb.RangeRequest:
        """Return the request for all keys of a prefix."""
        key = self.to_wire(prefix)
        return pb.RangeRequest(key=key or b"\0", range_end=prefix_end(key))


def prefix_end(prefix: bytes) -> bytes:
    r"""Return the first key after all keys of a prefix; one zero byte means: no end.

    >>> prefix_end(b"map/")
    b'map0'
    >>> prefix_end(b"a\xff")
    b'b'
    """
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else b"\0"


class Watch:
    """One watch: where it stands, and how it goes on.

    Progress is reported at the last revision that was delivered, not at the one that etcd names
    in its sign of life: before 3.5.8 that answer may overtake changes on their way
    (etcd issue 15220).
    """

    def __init__(
        self, transport: EtcdTransport, keys: KeySpace, prefix: str, clock: Clock
    ) -> None:
        self._transport = transport
        self._keys = keys
        self._prefix = prefix
        self._clock = clock
        self._next_revision = 0
        self._cluster_id = 0

    async def events(self) -> AsyncIterator[WatchEvent]:
        """Yield events for ever; reconnect as often as needed."""
        pause_s = PAUSE_FIRST_S
        while True:
            try:
                if self._next_revision == 0:
                    yield Listing(await self._list())
                async with aclosing(self._stream()) as stream:
                    async for event in stream:
                        pause_s = PAUSE_FIRST_S
                        yield event
                await self._clock.sleep(PAUSE_FIRST_S)
            except UnavailableError:
                await self._clock.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSE_LIMIT_S)

    async def _list(self) -> Snapshot:
        """Read the whole prefix; changes are watched from the next revision on."""
        request = self._keys.range_request(self._prefix)
        response = await self._transport.read(RANGE, request, timeout_s=LIST_TIMEOUT_S)
        self._cluster_id = response.header.cluster_id
        self._next_revision = response.header.revision + 1
        return Snapshot(response.header.revision, self._keys.items(response))

    async def _stream(self) -> AsyncGenerator[WatchEvent, None]:
        """Yield the changes of one stream; end when the prefix has to be listed again.

        Raises:
            UnavailableError: the stream broke or fell silent; another can go on where it ended.
        """
        endpoint = self._transport.endpoint
        call = WATCH.stream(self._transport.channel(endpoint))(
            self._requests(), metadata=HAS_LEADER
        )
        try:
            while True:
                response = await _read(call)
                if self._is_lost(response):
                    self._next_revision = 0
                    return
                for event in self._news(response):
                    yield event
        except grpc.aio.AioRpcError as error:
            self._transport.leave(endpoint)
            raise UnavailableError(
                f"watch broke: {error.details()} endpoint={endpoint}"
            ) from error
        except UnavailableError:
            self._transport.leave(endpoint)
            raise
        finally:
            call.cancel()

    async def _requests(self) -> AsyncIterator[pb.WatchRequest]:
        """Yield what is sent on a stream: first the watch, then a request for life per second."""
        prefix = self._keys.range_request(self._prefix)
        yield pb.WatchRequest(
            create_request=pb.WatchCreateRequest(
                key=prefix.key, range_end=prefix.range_end, start_revision=self._next_revision
            )
        )
        while True:
            await self._clock.sleep(PROGRESS_S)
            yield pb.WatchRequest(progress_request=pb.WatchProgressRequest())

    def _is_lost(self, response: pb.WatchResponse) -> bool:
        """Tell whether changes may have been missed: the prefix must be listed again.

        Canceled means compacted, or a reason that we do not know. A new stream whose store has not
        come as far as we have is a member that lags, or a store restored from a backup; listing,
        which is linearizable, is right for both.
        """
        return (
            response.canceled
            or response.header.cluster_id != self._cluster_id
            or (response.created and response.header.revision + 1 < self._next_revision)
        )

    def _news(self, response: pb.WatchResponse) -> list[WatchEvent]:
        """Return what an answer says that is new, and note how far we are."""
        changes: list[WatchEvent] = [
            self._changed(event)
            for event in response.events
            if event.kv.mod_revision >= self._next_revision
        ]
        if response.events:
            last = response.events[-1].kv.mod_revision
            self._next_revision = max(self._next_revision, last + 1)
        return changes or [Progress(self._next_revision - 1)]

    def _changed(self, event: pb.Event) -> Changed:
        key = self._keys.from_wire(event.kv.key)
        revision = event.kv.mod_revision
        if event.type == pb.Event.DELETE:
            return Changed("delete", key, None, revision)
        return Changed("put", key, self._keys.item(event.kv), revision)


async def _read(call: "StreamStreamCall[pb.WatchRequest, pb.WatchResponse]") -> pb.WatchResponse:
    """Return the next answer of a stream.

    Raises:
        UnavailableError: it ended, or said nothing for too long.
    """
    try:
        async with asyncio.timeout(SILENCE_S):
            response = await call.read()
    except TimeoutError as error:
        raise UnavailableError("watch fell silent", reason="COORDINATOR_SILENT") from error
    if not isinstance(response, pb.WatchResponse):
        raise UnavailableError("etcd ended the watch", reason="COORDINATOR_SILENT")
    return response
