"""Ends a test process that hangs, and says where each of its threads stood.

The timeout of a test raises an error once, in the main thread's Python: an event loop may swallow
it, a call that never returns never sees it, and what cleans up after it may wait for ever. What
such a test started goes on running; its session is over anyway.
"""

import faulthandler
import os
from collections.abc import Generator

import pytest

HUNG_AFTER_S = 60.0
"""So long after its time was over, a test that is still there hangs."""

_stderr = pytest.StashKey[int]()


def note_stderr(config: pytest.Config) -> None:
    """Keep where errors go before pytest catches what tests write."""
    config.stash[_stderr] = os.dup(2)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """End the process when a test does not end in its time."""
    allowed_s = _allowed_s(item)
    if not allowed_s:
        return (yield)
    faulthandler.dump_traceback_later(
        allowed_s + HUNG_AFTER_S, exit=True, file=item.config.stash[_stderr]
    )
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _allowed_s(item: pytest.Item) -> float:
    """Return how long a test may take; 0: as long as it likes, as somebody may debug it."""
    given = item.config.getoption("timeout", None)
    if item.config.getoption("usepdb") or (given is not None and not float(given)):
        return 0.0
    marker = item.get_closest_marker("timeout")
    if given is None and marker is not None:
        given = marker.args[0] if marker.args else marker.kwargs["timeout"]
    return float(item.config.getini("timeout") if given is None else given)
