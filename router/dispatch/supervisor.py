"""Work that outlives the call that started it, such as a batch that several callers share."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from facegrid.errors import UnavailableError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """The work ended with a result."""

    result: T


@dataclass(frozen=True, slots=True)
class Broken:
    """The work ended with an error, which belongs to whoever waits for the work."""

    error: Exception


Outcome = Done[T] | Broken


class Supervisor:
    """Owns tasks: none is lost, and the error of one never ends another."""

    def __init__(self) -> None:
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Keep tasks until cancelled; then cancel and await them all."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self._group = None

    def start(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[Outcome[T]]":
        """Start work; its task can be awaited and cancelled and raises nothing but cancellation.

        Raises:
            UnavailableError: the process is starting or stopping (STOPPING).
        """
        if self._group is None:
            work.close()
            raise UnavailableError("the router is starting or stopping", reason="STOPPING")
        task = self._group.create_task(_kept(work))
        # Who is cancelled before it has begun never came to its work.
        task.add_done_callback(lambda _: work.close())
        return task


async def _kept(work: Coroutine[Any, Any, T]) -> Outcome[T]:
    try:
        return Done(await work)
    except Exception as error:  # noqa: BLE001 - the task supervisor hands every error to the waiter
        return Broken(error)
