"""Blocking questions to a process: is it healthy, and what does a router know of the cluster."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from facegrid.api.admin.v1 import admin_service_pb2, admin_service_pb2_grpc
from facegrid.errors import FacegridError, UnavailableError
from facegrid.rpc.channel import channel_options
from facegrid.rpc.status import from_grpc


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
    with _channel(address) as channel:
        stub = admin_service_pb2_grpc.AdminServiceStub(channel)
        return stub.ClusterStatus(admin_service_pb2.ClusterStatusRequest(), timeout=timeout_s)
