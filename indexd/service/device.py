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
    def at_once(self, *, alone: bool) -> Iterator[bool]:
        """Be inside if nobody has to be waited for; gives whether one is."""
        with self._changed:
            entered = not self._wanting and (self._inside == 0 or (self._inside > 0 and not alone))
            if entered:
                self._inside = -1 if alone else self._inside + 1
        try:
            yield entered
        finally:
            if entered:
                with self._changed:
                    self._inside = 0 if alone else self._inside - 1
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

    One that searches alone also changes them. Several search while none of them is changed.

    Args:
        searches_max: searches side by side.
        started: what each thread does first, for instance say how many threads a search may use.

    Attributes:
        searching: where searches run.
        owning: one thread, where indexes are changed.
    """

    def __init__(self, searches_max: int, started: Callable[[], None]) -> None:
        self._gate = gate = Gate()
        self._single = searches_max == 1
        self.searching: ThreadPoolExecutor
        self.owning: ThreadPoolExecutor
        if self._single:
            self.searching = self.owning = _Gated(1, "search", started, gate.alone)
            return
        self.searching = _Gated(searches_max, "search", started, gate.together)
        self.owning = _Gated(1, "owner", started, gate.alone)

    def search_here(self, work: Callable[[], T]) -> tuple[T] | None:
        """Search in the thread that calls, which has done what each thread does first.

        None: the device has other work, and nothing was done.
        """
        with self._gate.at_once(alone=self._single) as entered:
            return (work(),) if entered else None

    def shutdown(self) -> None:
        """Let what runs end, and take nothing more."""
        self.searching.shutdown()
        self.owning.shutdown()
