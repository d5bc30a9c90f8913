"""Blocking questions to a process: is it healthy, and what does a router know of the cluster."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar, cast

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from facegrid.api.admin.v1 import admin_service_pb2, admin_service_pb2_grpc
from facegrid.errors import FacegridError, UnavailableError
from facegrid.rpc.channel import channel_options
from facegrid.rpc.status import from_grpc

Request = TypeVar("Request")
Answer = TypeVar("Answer")

if TYPE_CHECKING:
    # What grpc has at run time takes no arguments.
    Method = Callable[
        [admin_service_pb2_grpc.AdminServiceStub], grpc.UnaryUnaryMultiCallable[Request, Answer]
    ]

_NOBODY = ("TRANSPORT", "DEADLINE_EXCEEDED")
"""Reasons that say nothing but that nobody answered."""


@contextmanager
def _channel(address: str) -> Iterator[grpc.Channel]:
    channel = grpc.insecure_channel(address, options=channel_options())
    try:
        yield channel
    except grpc.RpcError as error:
        # What a blocking call raises has the methods of what an asynchronous one raises.
        raise from_grpc(cast("grpc.aio.AioRpcError", error)) from error
    finally:
        channel.close()


def health_problem(address: str, *, timeout_s: float) -> str:
    """Return why the process at an address does not serve; empty when it does."""
    try:
        with _channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
    except UnavailableError:
        return "does not answer"
    except FacegridError as error:
        return error.message
    if answer.status == health_pb2.HealthCheckResponse.SERVING:
        return ""
    name: str = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return name.lower().replace("_", " ")


def cluster_status(address: str, *, timeout_s: float) -> admin_service_pb2.ClusterStatusResponse:
    """Return what a router knows of nodes, galleries and shards.

    Raises:
        UnavailableError: nobody answers at the address.
    """
    request = admin_service_pb2.ClusterStatusRequest()
    return _call(address, lambda stub: stub.ClusterStatus, request, timeout_s=timeout_s)


def take_over(
    address: str, node_id: str, *, timeout_s: float
) -> admin_service_pb2.TakeOverResponse:
    """Have a router give the shards of a node to others.

    Raises:
        NotFoundError: no map names the node.
        UnavailableError: nobody answers at the address, or there is nobody to take a shard.
    """
    request = admin_service_pb2.TakeOverRequest(node_id=node_id)
    return _call(address, lambda stub: stub.TakeOver, request, timeout_s=timeout_s)


def ask(
    addresses: Sequence[str],
    method: "Method[Request, Answer]",
    request: Request,
    *,
    timeout_s: float,
) -> Answer:
    """Return what the first router that can answers. The request may be repeated: it changes
    nothing, or sets something to a value, or has an id by which a repetition is known.

    Args:
        addresses: of the routers, asked one after the other while they are unavailable.
        method: of a stub of AdminService, the call.
        request: its argument.
        timeout_s: for each router.

    Raises:
        UnavailableError: no router can answer now.
        FacegridError: a router refuses.
    """
    problems = []
    for address in addresses:
        try:
            return _call(address, method, request, timeout_s=timeout_s)
        except UnavailableError as error:
            if len(addresses) == 1 and error.reason not in _NOBODY:
                raise
            problems.append(f"{address}: {error.message}")
    raise UnavailableError(f"no router answers problems={'; '.join(problems)}")


def _call(
    address: str, method: "Method[Request, Answer]", request: Request, *, timeout_s: float
) -> Answer:
    """Return what one router answers."""
    with _channel(address) as channel:
        stub = admin_service_pb2_grpc.AdminServiceStub(channel)
        return method(stub)(request, timeout=timeout_s)
