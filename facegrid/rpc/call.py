"""Unary calls from one process to another."""

from typing import TYPE_CHECKING, TypeVar

import grpc.aio

from facegrid.errors import DeadlineError
from facegrid.rpc.status import from_grpc

if TYPE_CHECKING:
    # The stubs make this class generic in two types; at run time it is generic in none.
    from grpc.aio import UnaryUnaryMultiCallable

Request = TypeVar("Request")
Response = TypeVar("Response")


async def call(
    method: "UnaryUnaryMultiCallable[Request, Response]", request: Request, *, timeout_s: float
) -> Response:
    """Return the answer of a unary stub method.

    Raises:
        FacegridError: what the other side raised, or what became of the connection.
        DeadlineError: at once when no time is left.
    """
    if timeout_s <= 0:
        raise DeadlineError(f"no time is left for the call timeout_s={timeout_s:.3f}")
    try:
        return await method(request, timeout=timeout_s)
    except grpc.aio.AioRpcError as error:
        raise from_grpc(error) from error
