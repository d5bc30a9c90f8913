"""Writes whose outcome is open: what to do about them at a command line."""

from collections.abc import Iterator
from contextlib import contextmanager

from facegrid.errors import FencedError, OverloadedError, UnavailableError

FOR_PROGRAMS = "; retry with the same request id"
"""What the service advises; it is no use to whoever cannot choose request ids."""


@contextmanager
def repeatable(effect: str) -> Iterator[None]:
    """Make errors of a write that may have happened say that the command may be run again.

    Args:
        effect: what that does to the part that happened.
    """
    try:
        yield
    except (UnavailableError, FencedError, OverloadedError) as error:
        cause = error.message.replace(FOR_PROGRAMS, "")
        raise type(error)(
            "the write, or a part of it, is not confirmed; run the same command again,"
            f" {effect}: {cause}",
            reason=error.reason,
            **error.facts,
        ) from None
