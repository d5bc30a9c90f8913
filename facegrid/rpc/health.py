"""gRPC health: whether a process, and each of its services, takes calls.

Written anew because the stock servicer can only be changed from coroutines, and because its Watch
streams never end, so that a graceful stop always took its whole grace.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from typing_extensions import override

Response = health_pb2.HealthCheckResponse
SERVICE: Final = "grpc.health.v1.Health"


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # no types
    """The states of the published services; the empty name stands for the whole process."""

    def __init__(self) -> None:
        self._states = {"": Response.SERVING}
        self._changed = asyncio.Event()
        self._closed = False

    def publish(self, services: Iterable[str]) -> None:
        """Let services be asked for, as SERVING."""
        self._states.update(dict.fromkeys(services, Response.SERVING))
        self._wake()

    def drain(self) -> None:
        """Call everything NOT_SERVING from now on."""
        self._states = dict.fromkeys(self._states, Response.NOT_SERVING)
        self._wake()

    def close(self) -> None:
        """End all watches."""
        self._closed = True
        self._wake()

    @override
    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> Any:
        """Answer with the present state."""
        if request.service not in self._states:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return Response(status=self._states[request.service])

    @override
    async def List(self, _request: Any, _context: Any) -> Any:
        """Answer with all states."""
        states = {name: Response(status=state) for name, state in self._states.items()}
        return health_pb2.HealthListResponse(statuses=states)

    @override
    async def Watch(
        self, request: health_pb2.HealthCheckRequest, _context: Any
    ) -> AsyncGenerator[Any, None]:
        """Answer with the present state, then with every other one."""
        told = None
        while not self._closed:
            changed = self._changed
            state = self._states.get(request.service, Response.SERVICE_UNKNOWN)
            if state != told:
                told = state
                yield Response(status=state)
            else:
                await changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
