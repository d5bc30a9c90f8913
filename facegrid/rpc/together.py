"""Several calls at once, of which all are heard before any error is raised."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from facegrid.errors import FacegridError, InvalidError

T = TypeVar("T")


async def outcomes_of(work: Sequence[Coroutine[Any, Any, T]]) -> list[T | FacegridError]:
    """Return all results and errors in order, once all have ended."""

    async def kept(one: Coroutine[Any, Any, T]) -> T | FacegridError:
        try:
            return await one
        except FacegridError as error:
            return error

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(kept(one)) for one in work]
    return [task.result() for task in tasks]


async def all_of(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Return all results in order, once all have ended.

    Raises:
        FacegridError: the most telling of the errors.
    """
    outcomes = await outcomes_of(work)
    errors = [outcome for outcome in outcomes if isinstance(outcome, FacegridError)]
    if errors:
        raise most_telling(errors)
    return [outcome for outcome in outcomes if not isinstance(outcome, FacegridError)]


def most_telling(errors: Sequence[FacegridError]) -> FacegridError:
    """Return the error to tell: a wrong request before everything else, the lowest row first,
    since that is what the caller can change.
    """
    return min(errors, key=_telling)


def _telling(error: FacegridError) -> tuple[bool, int]:
    row = error.row
    return not isinstance(error, InvalidError), -1 if row is None else row
