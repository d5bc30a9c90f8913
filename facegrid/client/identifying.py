"""Questions to routers: small ones share a stream to each, which costs less than calls."""

import grpc.aio

from facegrid.api.v1 import identification_service_pb2 as pb
from facegrid.api.v1.identification_service_pb2_grpc import IdentificationServiceStub
from facegrid.client.caller import Caller
from facegrid.rpc.stream_caller import Methods, StreamCaller

Asker = StreamCaller[pb.IdentifyRequest, pb.IdentifyResponse]


class Identifying:
    """Asks whatever router the caller asks now.

    Args:
        caller: knows the routers, and asks again where that may help.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._askers: dict[str, Asker] = {}

    async def ask(self, request: pb.IdentifyRequest, *, timeout_s: float) -> pb.IdentifyResponse:
        """Return the answer. Raises as `Caller.persist`."""

        async def attempt(
            channel: grpc.aio.Channel, target: str, left_s: float
        ) -> pb.IdentifyResponse:
            return await self._asker(channel, target).call(request, timeout_s=left_s)

        return await self._caller.persist(attempt, timeout_s=timeout_s)

    def _asker(self, channel: grpc.aio.Channel, target: str) -> Asker:
        asker = self._askers.get(target)
        if asker is None:
            stub = IdentificationServiceStub(channel)
            methods = Methods(stub.Identify, stub.IdentifyStream, pb.IdentifyStreamRequest)
            asker = self._askers[target] = StreamCaller(methods, self._caller.ambient.clock)
        return asker

    async def aclose(self) -> None:
        """End the streams, once the caller refuses; questions in flight hear so. Idempotent."""
        for asker in [*self._askers.values()]:
            await asker.aclose()
