"""Errors as gRPC status and back: one table, used both ways.

Every error of facegrid travels as a status code, its message, and a `google.rpc.ErrorInfo` with
domain "facegrid", the error's reason and its facts. A status without one was raised by gRPC
itself (nobody listens, the deadline passed, the message was too large) and is translated by its
code.
"""

from dataclasses import dataclass
from typing import Final

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from facegrid.api.v1.types_pb2 import CallError
from facegrid.errors import (
    ConflictError,
    CorruptError,
    DeadlineError,
    FacegridError,
    FencedError,
    InvalidError,
    NotFoundError,
    OverloadedError,
    PreconditionError,
    UnavailableError,
)

DOMAIN: Final = "facegrid"
DETAILS_KEY: Final = "grpc-status-details-bin"
MESSAGE_CHARS_MAX: Final = 1024
FACT_CHARS_MAX: Final = 256
"""Metadata is limited to 8 KiB by default; a status beyond it would be lost whole."""

Code = grpc.StatusCode

_TABLE: Final[tuple[tuple[type[FacegridError], grpc.StatusCode], ...]] = (
    (InvalidError, Code.INVALID_ARGUMENT),
    (ConflictError, Code.ALREADY_EXISTS),
    (PreconditionError, Code.FAILED_PRECONDITION),
    (NotFoundError, Code.NOT_FOUND),
    (FencedError, Code.ABORTED),
    (UnavailableError, Code.UNAVAILABLE),
    (DeadlineError, Code.DEADLINE_EXCEEDED),
    (OverloadedError, Code.RESOURCE_EXHAUSTED),
    (CorruptError, Code.DATA_LOSS),
    (FacegridError, Code.INTERNAL),
)
_CODES: Final = dict(_TABLE)
_CLASSES: Final = {code: kind for kind, code in _TABLE}
_BY_NUMBER: Final = {code.value[0]: code for code in Code}

# What a status without ErrorInfo means: codes that gRPC or a proxy raises by itself.
_FOREIGN: Final[dict[grpc.StatusCode, tuple[type[FacegridError], str]]] = {
    Code.UNAVAILABLE: (UnavailableError, "TRANSPORT"),
    Code.CANCELLED: (UnavailableError, "TRANSPORT"),
    Code.UNKNOWN: (FacegridError, "TRANSPORT"),
    Code.UNIMPLEMENTED: (InvalidError, "UNIMPLEMENTED"),
    Code.FAILED_PRECONDITION: (InvalidError, "FAILED_PRECONDITION"),
    Code.OUT_OF_RANGE: (InvalidError, "OUT_OF_RANGE"),
    Code.UNAUTHENTICATED: (InvalidError, "UNAUTHENTICATED"),
    Code.PERMISSION_DENIED: (InvalidError, "PERMISSION_DENIED"),
}


@dataclass(frozen=True, slots=True)
class GrpcStatus:
    """What ends a call: to be given to `context.abort`."""

    code: grpc.StatusCode
    message: str
    trailing_metadata: tuple[tuple[str, bytes], ...]


def code_of(error: FacegridError) -> grpc.StatusCode:
    """Return the code that stands for an error."""
    return next(_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)


def to_call_error(error: FacegridError) -> CallError:
    """Return the message that carries an error in a stream."""
    return CallError(
        code=code_of(error).value[0],
        message=error.message[:MESSAGE_CHARS_MAX],
        reason=error.reason,
        metadata={key: value[:FACT_CHARS_MAX] for key, value in error.facts.items()},
    )


def to_grpc(error: FacegridError) -> GrpcStatus:
    """Return the status that carries an error."""
    told = to_call_error(error)
    info = error_details_pb2.ErrorInfo(reason=told.reason, domain=DOMAIN, metadata=told.metadata)
    status = status_pb2.Status(code=told.code, message=told.message)
    status.details.add().Pack(info)
    return GrpcStatus(
        _BY_NUMBER[told.code], told.message, ((DETAILS_KEY, status.SerializeToString()),)
    )


def from_call_error(message: CallError) -> FacegridError:
    """Return the error that a message in a stream carries."""
    code = _BY_NUMBER.get(message.code, Code.UNKNOWN)
    error = _CLASSES.get(code, FacegridError)(message.message, reason=message.reason)
    error.facts.update(message.metadata)
    return error


def from_grpc(error: grpc.aio.AioRpcError) -> FacegridError:
    """Return the error that a status carries."""
    message = error.details() or f"call failed code={error.code().name}"
    info = _error_info(error)
    if info is None:
        return _foreign(error.code(), message)
    kind = _CLASSES.get(error.code(), FacegridError)
    translated = kind(message, reason=info.reason)
    translated.facts.update(info.metadata)
    return translated


def _foreign(code: grpc.StatusCode, message: str) -> FacegridError:
    # gRPC tells a message too large from an exhausted quota by its sentence alone.
    if code is Code.RESOURCE_EXHAUSTED and "larger than max" in message:
        return InvalidError(message, reason="MESSAGE_TOO_LARGE")
    if code in _FOREIGN:
        kind, reason = _FOREIGN[code]
        return kind(message, reason=reason)
    return _CLASSES.get(code, FacegridError)(message)


def _error_info(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo | None:
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            return _parsed(value)
    return None


def _parsed(value: bytes) -> error_details_pb2.ErrorInfo | None:
    info = error_details_pb2.ErrorInfo()
    try:
        details = status_pb2.Status.FromString(value).details
        found = any(detail.Unpack(info) for detail in details)
    except DecodeError:
        return None
    return info if found and info.domain == DOMAIN else None
