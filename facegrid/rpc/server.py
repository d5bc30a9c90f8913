"""The server of every process: one way to listen, to drain and to stop."""

import asyncio
import errno
import socket
from collections.abc import Iterable
from typing import Final

import grpc.aio
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from facegrid import limits
from facegrid.clock import Clock
from facegrid.errors import UnavailableError
from facegrid.rpc import health
from facegrid.rpc.channel import (
    KEEPALIVE_INTERVAL_MS,
    KEEPALIVE_TIMEOUT_MS,
    PING_INTERVAL_MS_MIN,
    Option,
)
from facegrid.rpc.interceptor import BoundaryInterceptor
from facegrid.rpc.journal import Journal, Observe
from facegrid.rpc.streams import Streams
from facegrid.telemetry.log import Logger

CALLS_MAX: Final = 4096
"""Calls served at once; beyond it gRPC answers RESOURCE_EXHAUSTED."""


def server_options(*, shared: bool = False) -> list[Option]:
    """Return the options of every server.

    It permits the pings that `facegrid.rpc.channel` sends, and without SO_REUSEPORT a port that
    another process has is an error instead of half of its calls, unless it is to be `shared`.
    """
    return [
        ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MS_MIN),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", KEEPALIVE_INTERVAL_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.max_send_message_length", limits.CHANNEL_BYTES_MAX),
        ("grpc.max_receive_message_length", limits.CHANNEL_BYTES_MAX),
        ("grpc.so_reuseport", int(shared)),
    ]


class RpcServer:
    """A gRPC server with the boundary interceptor, health and, under `dev`, reflection.

    Add servicers to `server`, name them to `publish`, then `start`. `observe` is told of calls.
    Methods that carry many requests in a stream serve them by `streams`.
    Where the port is `shared`, somebody else holds it, and other processes listen there too.
    """

    def __init__(
        self,
        clock: Clock,
        logger: Logger,
        *,
        dev: bool,
        observe: Observe | None = None,
        shared: bool = False,
    ) -> None:
        self._dev = dev
        self._shared = shared
        self._names = [health.SERVICE]
        self._health = health.Health()
        journal = Journal(clock, logger, observe)
        self.streams = Streams(journal)
        self.server: grpc.aio.Server = grpc.aio.server(
            interceptors=[BoundaryInterceptor(journal)],
            options=server_options(shared=shared),
            maximum_concurrent_rpcs=CALLS_MAX,
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)

    def publish(self, service_full_names: Iterable[str]) -> None:
        """Let health and reflection know services, for instance `facegrid.api.v1.X`."""
        names = list(service_full_names)
        self._names += names
        self._health.publish(names)

    async def start(self, listen: str) -> int:
        """Listen at host:port and serve; return the port, which matters where 0 was given.

        Raises:
            UnavailableError: the address cannot be had (LISTEN_FAILED).
        """
        if self._dev:
            reflection.enable_server_reflection(
                [*self._names, reflection.SERVICE_NAME], self.server
            )
        try:
            if not self._shared:
                await _check_free(listen)
            port = self.server.add_insecure_port(listen)
        except (OSError, RuntimeError) as error:
            raise UnavailableError(
                f"cannot listen: the address is taken or not of this machine address={listen}",
                reason="LISTEN_FAILED",
                address=listen,
            ) from error
        await self.server.start()
        return port

    def drain(self) -> None:
        """Tell health checks that no new calls are wanted; calls are still served."""
        self._health.drain()

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, give those in flight some seconds to end, then cancel them. Streams
        answer what they have read.
        """
        self._health.drain()
        self._health.close()
        self.streams.end()
        await self.server.stop(grace_s)


async def _check_free(listen: str) -> None:
    """Raise OSError unless every address that the name stands for can be had.

    gRPC is content with one of them: where `localhost` is two addresses and another process has
    one, it would serve half of the callers and leave the rest to that process.
    """
    host, _, port = listen.rpartition(":")
    found = await asyncio.get_running_loop().getaddrinfo(
        host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind(address)
                trial.listen(1)
            except OSError as error:
                # A name may stand for an address of a family that this machine has turned off.
                if error.errno != errno.EADDRNOTAVAIL or len(found) == 1:
                    raise
