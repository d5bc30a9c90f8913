"""The threads of one device: searches beside one another, changes of its indexes by themselves."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from typing_extensions import override

P = ParamSpec("P")
T = TypeVar("T")


class Gate:
    """Lets many in together, or one alone. Whoever wants to be alone comes before newcomers."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._wanting = 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """Be inside with others."""
        with self._changed:
            self._changed.wait_for(lambda: not self._wanting and self._inside >= 0)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only one inside."""
        with self._changed:
            self._wanting += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._inside == 0)
            self._wanting -= 1
            self._inside = -1
        try:
            yield
        finally:
            with self._changed:
                self._inside = 0
                self._changed.notify_all()


class _Gated(ThreadPoolExecutor):
    """Runs work inside a gate."""

    def __init__(
        self,
        count: int,
        name: str,
        started: Callable[[], None],
        enter: Callable[[], Any],
    ) -> None:
        super().__init__(count, name, started)
        self._enter = enter

    @override
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        def work() -> T:
            with self._enter():
                return fn(*args, **kwargs)

        return super().submit(work)


class Device:
    """Threads that search and change indexes.

    One that searches alone also changes them, so nothing needs a gate. Several search while none
    of them is changed.

    Args:
        searches_max: searches side by side.
        started: what each thread does first, for instance say how many threads a search may use.

    Attributes:
        searching: where searches run.
        owning: one thread, where indexes are changed.
    """

    def __init__(self, searches_max: int, started: Callable[[], None]) -> None:
        self.searching: ThreadPoolExecutor
        self.owning: ThreadPoolExecutor
        if searches_max == 1:
            self.searching = self.owning = ThreadPoolExecutor(1, "search", started)
            return
        gate = Gate()
        self.searching = _Gated(searches_max, "search", started, gate.together)
        self.owning = _Gated(1, "owner", started, gate.alone)

    def shutdown(self) -> None:
        """Let what runs end, and take nothing more."""
        self.searching.shutdown()
        self.owning.shutdown()
