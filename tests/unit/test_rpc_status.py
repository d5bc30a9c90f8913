"""Errors to status and back."""

import grpc
import grpc.aio
import pytest

from facegrid import errors
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
from facegrid.rpc.status import DETAILS_KEY, from_grpc, to_grpc

CODES = {
    InvalidError: grpc.StatusCode.INVALID_ARGUMENT,
    ConflictError: grpc.StatusCode.ALREADY_EXISTS,
    PreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    FencedError: grpc.StatusCode.ABORTED,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
    DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    CorruptError: grpc.StatusCode.DATA_LOSS,
    FacegridError: grpc.StatusCode.INTERNAL,
}


def received(
    code: grpc.StatusCode, message: str, *metadata: tuple[str, bytes]
) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        code, grpc.aio.Metadata(), grpc.aio.Metadata(*metadata), details=message
    )


def test_every_error_class_has_a_code() -> None:
    classes = {kind for kind in vars(errors).values() if isinstance(kind, type)}
    assert classes == set(CODES)


@pytest.mark.parametrize("kind", list(CODES))
def test_an_error_survives_the_way_there_and_back(kind: type[FacegridError]) -> None:
    sent = kind("row is odd row=3", reason="ODD", row=3, field="vectors")
    status = to_grpc(sent)
    assert status.code is CODES[kind]
    arrived = from_grpc(received(status.code, status.message, *status.trailing_metadata))
    assert (type(arrived), arrived.message, arrived.reason, arrived.facts, arrived.row) == (
        kind,
        "row is odd row=3",
        "ODD",
        {"row": "3", "field": "vectors"},
        3,
    )


def test_a_subclass_travels_as_its_nearest_known_class() -> None:
    class OddError(ConflictError):
        """Known to nobody."""

    assert to_grpc(OddError("odd")).code is grpc.StatusCode.ALREADY_EXISTS


def test_a_status_stays_below_what_metadata_may_hold() -> None:
    status = to_grpc(InvalidError("m" * 100_000, field="f" * 100_000))
    assert len(status.message) + len(status.trailing_metadata[0][1]) < 8192


@pytest.mark.parametrize(
    ("code", "message", "kind", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, "connection refused", UnavailableError, "TRANSPORT"),
        (grpc.StatusCode.CANCELLED, "", UnavailableError, "TRANSPORT"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "", DeadlineError, "DEADLINE_EXCEEDED"),
        (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "CLIENT: Sent message larger than max (9 vs. 8)",
            InvalidError,
            "MESSAGE_TOO_LARGE",
        ),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", OverloadedError, "OVERLOADED"),
        (grpc.StatusCode.UNIMPLEMENTED, "", InvalidError, "UNIMPLEMENTED"),
        (grpc.StatusCode.UNKNOWN, "", FacegridError, "TRANSPORT"),
        (grpc.StatusCode.INTERNAL, "", FacegridError, "INTERNAL"),
        (grpc.StatusCode.NOT_FOUND, "", NotFoundError, "NOT_FOUND"),
    ],
)
@pytest.mark.parametrize("metadata", [(), ((DETAILS_KEY, b"\xff\xff not a status"),)])
def test_a_status_that_facegrid_did_not_make_is_read_by_its_code(
    code: grpc.StatusCode,
    message: str,
    kind: type[FacegridError],
    reason: str,
    metadata: tuple[tuple[str, bytes], ...],
) -> None:
    arrived = from_grpc(received(code, message, *metadata))
    assert (type(arrived), arrived.reason, arrived.facts) == (kind, reason, {})
    assert arrived.message == (message or f"call failed code={code.name}")
