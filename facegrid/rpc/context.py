"""What a handler knows of the call that it serves."""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

import grpc.aio

from facegrid import limits
from facegrid.clock import Clock
from facegrid.errors import DeadlineError

CURRENT_METHOD: Final = ContextVar("CURRENT_METHOD", default="")
"""Set by the interceptor, since gRPC does not tell a handler its own name."""


@dataclass(frozen=True, slots=True)
class CallContext:
    """Who calls what, and until when they wait.

    Attributes:
        method: full name, "/facegrid.api.v1.GalleryService/GetGallery".
        caller: the peer's address as gRPC tells it.
        deadline_s: on the clock of this process.
    """

    method: str
    caller: str
    deadline_s: float

    def remaining_s(self, clock: Clock) -> float:
        """Return the seconds left.

        Raises:
            DeadlineError: none is left.
        """
        remaining_s = self.deadline_s - clock.now_s()
        if remaining_s <= 0:
            raise DeadlineError("the time given for the call is over")
        return remaining_s


def call_context(
    servicer_context: grpc.aio.ServicerContext[Any, Any], clock: Clock
) -> CallContext:
    """Return the context of the call being served.

    A deadline further away than limits.DEADLINE_S_MAX, or none, counts as that.
    """
    # gRPC returns None for a call without a deadline, though its stubs do not say so.
    remaining_s: float | None = servicer_context.time_remaining()
    if remaining_s is None or remaining_s > limits.DEADLINE_S_MAX:
        remaining_s = limits.DEADLINE_S_MAX
    return CallContext(
        method=CURRENT_METHOD.get(),
        caller=servicer_context.peer(),
        deadline_s=clock.now_s() + remaining_s,
    )
