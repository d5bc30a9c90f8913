"""Negative controls that take a safeguard out of the code that fills shards from others."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from facegrid.model import ShardAssignment
from indexd.engine.requests import InheritedRequests, Step
from indexd.engine.state import ShardState
from indexd.replica.forerunners import Forerunners
from indexd.service import reshape_calls
from tests.sim.world import Controls


@contextmanager
def broken(controls: Controls) -> Iterator[None]:
    """Take out what the controls say, and put it back."""
    before: list[tuple[Any, str, Any]] = []

    def put(owner: Any, name: str, value: Any) -> None:
        before.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    if not controls.follows:
        put(ShardState, "follows", _anything_follows)
        put(reshape_calls, "_fits", _anything_fits)
    if not controls.children_wait:
        put(Forerunners, "moved", _moved_alone)
    if not controls.inherits:
        put(InheritedRequests, "done_for", _never_done)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _anything_follows(_state: ShardState, _step: Step) -> bool:
    return True


def _anything_fits(_state: ShardState, _request: Any) -> bool:
    return int(_request.after_position) >= 0


_moved = Forerunners.moved


def _moved_alone(
    self: Forerunners, before: ShardAssignment, after: ShardAssignment, now_s: float
) -> None:
    alone_from_s = self.alone_from_s
    _moved(self, before, after, now_s)
    self.alone_from_s = alone_from_s


def _never_done(_inherited: InheritedRequests, _request_id: str, _key: int) -> bool:
    return False
