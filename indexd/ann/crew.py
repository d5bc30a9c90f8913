"""Threads that share the work of one search."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from indexd.ann.threads import set_threads

Work = Callable[[], None]


class Crew:
    """The thread that searches, and some that help it, with one faiss thread each.

    Threads of OpenMP spin while they wait for one another: two nodes on the same cores slow each
    other down by far more than their share. These sleep, and each has a whole shard or a part of
    the probes to itself.

    Args:
        count: threads in all, the calling one included.
    """

    def __init__(self, count: int) -> None:
        assert count >= 1, f"at least one thread: {count}"
        self.count = count
        self._helpers = (
            ThreadPoolExecutor(count - 1, "search-helper", set_threads, (1,))
            if count > 1
            else None
        )

    def do(self, works: Sequence[Work]) -> None:
        """Do all of it, in any order; return, or raise the first error, when none is running."""
        if self._helpers is None or len(works) < 2:
            for work in works:
                work()
            return
        left = deque(works)
        helpers = min(self.count, len(works)) - 1
        running = [self._helpers.submit(_work_off, left) for _ in range(helpers)]
        try:
            _work_off(left)
        finally:
            left.clear()
            errors = [future.exception() for future in running]
        for error in errors:
            if error is not None:
                raise error

    def close(self) -> None:
        """Let the helpers go, when they have done what they are at."""
        if self._helpers is not None:
            self._helpers.shutdown()


def _work_off(left: deque[Work]) -> None:
    """Take works from the left until there are none."""
    while True:
        try:
            work = left.popleft()
        except IndexError:
            return
        work()


ALONE: Final = Crew(1)
"""Nobody helps."""
