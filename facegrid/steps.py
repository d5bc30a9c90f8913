"""Long work in steps: whoever carries it out decides what comes between them."""

from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")

Steps = Generator[None, None, T]
"""Work that yields where it may be interrupted, every few milliseconds, and returns its result."""


def finished(steps: Steps[T]) -> T:
    """Carry all steps out at once."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
