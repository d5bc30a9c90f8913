"""What is noted of every request that a process serves: a log line, and metrics."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from facegrid.clock import Clock
from facegrid.errors import FacegridError
from facegrid.rpc.status import code_of
from facegrid.telemetry.log import Logger

Observe = Callable[[str, str, str, float], None]
"""Told method, code, reason and duration in seconds of each call that was served."""

_LEVELS: Final = {"OK": logging.DEBUG, "INTERNAL": logging.ERROR, "DATA_LOSS": logging.ERROR}


@dataclass(slots=True)
class Entry:
    """One request. Cancelled as long as nothing else is said.

    Attributes:
        logger: bound to the request.
        code: a status code by name.
        reason: of the error, if there was one.
    """

    logger: Logger
    code: str = "CANCELLED"
    reason: str = ""

    def failed(self, error: Exception) -> FacegridError:
        """Note what a handler raised; return what the caller may know of it.

        A group of errors counts as its first one. What is no FacegridError is a bug: logged with
        its traceback, told to the caller as INTERNAL.
        """
        known = _known(error)
        if known is None:
            self.logger.error("handler broke", exc_info=error)
            known = FacegridError(f"internal error kind={type(error).__name__}")
        self.code, self.reason = code_of(known).name, known.reason
        return known


class Journal:
    """Notes requests.

    Args:
        clock: for durations.
        logger: gets a line for each.
        observe: told of each.
    """

    def __init__(self, clock: Clock, logger: Logger, observe: Observe | None = None) -> None:
        self.clock = clock
        self._logger = logger
        self._observe = observe

    @contextmanager
    def entry(self, method: str, caller: str) -> Iterator[Entry]:
        """Note the request that is served inside."""
        entry = Entry(self._logger.bind(method=method, caller=caller))
        started_s = self.clock.now_s()
        try:
            yield entry
        finally:
            duration_s = self.clock.now_s() - started_s
            entry.logger.log(
                _LEVELS.get(entry.code, logging.INFO),
                "call served",
                code=entry.code,
                reason=entry.reason,
                duration_ms=round(duration_s * 1e3, 3),
            )
            if self._observe is not None:
                self._observe(method, entry.code, entry.reason, duration_s)


def _known(error: BaseException) -> FacegridError | None:
    """Return what of the error the caller may know: None where a bug broke the handler."""
    if isinstance(error, FacegridError):
        return error
    if isinstance(error, BaseExceptionGroup):
        leaves = [_known(leaf) for leaf in error.exceptions]
        return leaves[0] if all(leaves) else None
    return None
