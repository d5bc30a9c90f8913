"""The coordinator on a real etcd: a small client on grpc.aio.

Reads are linearizable and move on to another member when one does not answer. Writes move on only
while they were surely not sent. Deadlines hold on every call.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Final

import grpc.aio

from facegrid.api.etcd.v3 import etcd_pb2 as pb
from facegrid.clock import Clock
from facegrid.coord.checks import check_names, check_transaction
from facegrid.coord.port import (
    Delete,
    Guard,
    KeyValue,
    Put,
    Snapshot,
    TxnResult,
    ValueGuard,
    WatchEvent,
)
from facegrid.coord.transport import HAS_LEADER, EtcdTransport, Method
from facegrid.coord.watch import RANGE, KeySpace, Watch
from facegrid.errors import NotFoundError, UnavailableError
from facegrid.rpc.channel import TlsFiles

TXN: Final = Method("/etcdserverpb.KV/Txn", pb.TxnRequest, pb.TxnResponse)
GRANT: Final = Method(
    "/etcdserverpb.Lease/LeaseGrant", pb.LeaseGrantRequest, pb.LeaseGrantResponse
)
REVOKE: Final = Method(
    "/etcdserverpb.Lease/LeaseRevoke", pb.LeaseRevokeRequest, pb.LeaseRevokeResponse
)
KEEP_ALIVE: Final = Method(
    "/etcdserverpb.Lease/LeaseKeepAlive", pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse
)


class EtcdCoordinator:
    """Speaks etcd's v3 protocol; see `facegrid.coord.port.Coordinator` for what it promises.

    Args:
        endpoints: host:port of the members; one is enough, more survive its loss.
        root: prefix of every key, so that clusters can share one etcd. Callers never see it.
        clock: deadlines, progress requests and pauses between attempts.
        tls: our certificate and whom to trust; None: no TLS.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        root: str = "facegrid/",
        clock: Clock,
        tls: TlsFiles | None = None,
    ) -> None:
        self._transport = EtcdTransport(endpoints, clock=clock, tls=tls)
        self._keys = KeySpace(root)
        self._clock = clock

    async def check(self, *, timeout_s: float = 5.0) -> None:
        """Return when a majority answers.

        Raises:
            UnavailableError: none of the endpoints does; the message names them.
        """
        await self.get("check", timeout_s=timeout_s)

    async def get(self, key: str, *, timeout_s: float = 5.0) -> KeyValue | None:
        """Return one key, or None where there is none."""
        request = pb.RangeRequest(key=self._keys.to_wire(key))
        response = await self._transport.read(RANGE, request, timeout_s=timeout_s)
        return self._keys.items(response)[0] if response.kvs else None

    async def list(self, prefix: str, *, timeout_s: float = 5.0) -> Snapshot:
        """Return all keys of a prefix at one revision."""
        request = self._keys.range_request(prefix)
        response = await self._transport.read(RANGE, request, timeout_s=timeout_s)
        return Snapshot(response.header.revision, self._keys.items(response))

    async def get_many(
        self, names: Sequence[str], *, heads: Sequence[str] = (), timeout_s: float = 5.0
    ) -> Snapshot:
        """Return those of some keys that exist, by name, at one revision; of `heads` no values.

        Raises:
            InvalidError: more than 128 keys.
        """
        check_names((*names, *heads))
        ranges = [pb.RangeRequest(key=self._keys.to_wire(name)) for name in names]
        ranges += [pb.RangeRequest(key=self._keys.to_wire(head), keys_only=True) for head in heads]
        # Linearizable, and may be sent again: nothing has to hold, so the second branch is never
        # taken. It is there since early etcd 3.5 ends itself when a transaction without any
        # write is cancelled at the wrong moment (etcd issue 14110); those with one are carried out
        # to their end.
        never = pb.DeleteRangeRequest(key=self._keys.to_wire("never"))
        request = pb.TxnRequest(
            success=[pb.RequestOp(request_range=one) for one in ranges],
            failure=[pb.RequestOp(request_delete_range=never)],
        )
        response = await self._transport.read(TXN, request, timeout_s=timeout_s)
        found = [
            item for one in response.responses for item in self._keys.items(one.response_range)
        ]
        found.sort(key=lambda item: item.key)
        return Snapshot(response.header.revision, tuple(found))

    async def txn(
        self,
        guards: Sequence[Guard | ValueGuard],
        operations: Sequence[Put | Delete],
        *,
        timeout_s: float = 5.0,
    ) -> TxnResult:
        """Carry out all operations if all guards hold, else none.

        Raises:
            UnavailableError: with reason COORDINATOR_UNREACHABLE nothing was sent; with any other
                the outcome is unknown and has to be read back.
            NotFoundError: a lease named in a put has ended; nothing was changed.
            InvalidError: more than 128 guards or operations, a key written twice, or more bytes
                than etcd takes (1.5 MiB by default); nothing was changed.
        """
        check_transaction(guards, operations)
        request = pb.TxnRequest(
            compare=[self._compare(guard) for guard in guards],
            success=[self._operation(operation) for operation in operations],
        )
        response = await self._transport.write(TXN, request, timeout_s=timeout_s)
        return TxnResult(response.succeeded, response.header.revision)

    async def grant_lease(self, ttl_s: int, *, timeout_s: float = 5.0) -> int:
        """Return the id of a new lease. One that is lost on the way ends by itself."""
        request = pb.LeaseGrantRequest(ttl=ttl_s)
        response = await self._transport.read(GRANT, request, timeout_s=timeout_s)
        return response.id

    async def renew_lease(self, lease_id: int, *, timeout_s: float = 5.0) -> int:
        """Renew a lease; return the seconds granted.

        Raises:
            NotFoundError: the lease has ended; its keys are gone.
        """

        async def attempt(channel: grpc.aio.Channel, share_s: float) -> int:
            return await _renewed(channel, lease_id, share_s)

        ttl_s = await self._transport.anywhere(attempt, timeout_s=timeout_s)
        if ttl_s <= 0:
            raise NotFoundError(f"lease has ended lease={lease_id}", reason="LEASE_ENDED")
        return ttl_s

    async def revoke_lease(self, lease_id: int, *, timeout_s: float = 5.0) -> None:
        """End a lease and delete its keys; no error when it has ended already."""
        request = pb.LeaseRevokeRequest(id=lease_id)
        try:
            await self._transport.read(REVOKE, request, timeout_s=timeout_s)
        except NotFoundError:
            return

    def watch(self, prefix: str) -> AsyncIterator[WatchEvent]:
        """Yield a Listing, then every change in order, and Progress each second."""
        return Watch(self._transport, self._keys, prefix, self._clock).events()

    async def aclose(self) -> None:
        """Release connections. End watches first."""
        await self._transport.aclose()

    def _compare(self, guard: Guard | ValueGuard) -> pb.Compare:
        key = self._keys.to_wire(guard.key)
        match guard:
            case Guard():
                return pb.Compare(key=key, target=pb.Compare.MOD, mod_revision=guard.mod_revision)
            case ValueGuard():
                return pb.Compare(key=key, target=pb.Compare.VALUE, value=guard.value)

    def _operation(self, operation: Put | Delete) -> pb.RequestOp:
        key = self._keys.to_wire(operation.key)
        match operation:
            case Put():
                put = pb.PutRequest(key=key, value=operation.value, lease=operation.lease_id)
                return pb.RequestOp(request_put=put)
            case Delete():
                return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))


async def _renewed(channel: grpc.aio.Channel, lease_id: int, timeout_s: float) -> int:
    """Send one renewal over a stream of its own; return the seconds granted, 0 for none."""
    stream = KEEP_ALIVE.stream(channel)(timeout=timeout_s, metadata=HAS_LEADER)
    try:
        await stream.write(pb.LeaseKeepAliveRequest(id=lease_id))
        response = await stream.read()
    finally:
        stream.cancel()
    if not isinstance(response, pb.LeaseKeepAliveResponse):
        raise UnavailableError("etcd ended the stream", reason="COORDINATOR_SILENT")
    return response.ttl
