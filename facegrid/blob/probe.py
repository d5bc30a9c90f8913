"""Tries whether a store keeps what facegrid builds on, with objects of its own that it deletes.

The log is safe only where a name can be taken once: a store that ignores the condition would let a
primary that was replaced overwrite what its successor wrote. Such a store is refused at the start.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from facegrid.blob.port import BlobStore
from facegrid.errors import (
    ConflictError,
    FacegridError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)

RACERS: Final = 16
FOLDER: Final = "store-probe"


@dataclass(frozen=True, slots=True)
class Finding:
    """One condition that a store must meet.

    Attributes:
        condition: its name, for instance "put-if-absent".
        problem: what the store did instead, as a sentence; empty when the condition holds.
    """

    condition: str
    problem: str

    @property
    def holds(self) -> bool:
        """Whether the store met it."""
        return not self.problem


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What was found out about a store."""

    findings: tuple[Finding, ...]

    def check(self, place: str) -> None:
        """Raise UnavailableError (STORE_UNSAFE) unless every condition holds.

        Args:
            place: the store as the message names it.
        """
        broken = [finding for finding in self.findings if not finding.holds]
        if broken:
            problems = "; ".join(f"{finding.condition}: {finding.problem}" for finding in broken)
            raise UnavailableError(
                f"store is not safe for facegrid: {problems} store={place}",
                reason="STORE_UNSAFE",
                store=place,
            )


async def probe(store: BlobStore, unique: str) -> ProbeReport:
    """Try a store and return what was found.

    Args:
        store: any store; nothing that was in it is touched.
        unique: a segment of a name that nobody else uses.

    Raises:
        UnavailableError: it cannot be tried: it does not answer, is full, or denies access.
        OverloadedError: it asks to slow down.
    """
    trial = _Trial(store, f"{FOLDER}/{unique}")
    conditions: dict[str, Callable[[], Awaitable[str]]] = {
        "put-if-absent": trial.race,
        "read-your-write": trial.read_back,
        "list-after-write": trial.list_back,
        "delete": trial.delete,
    }
    try:
        return ProbeReport(
            tuple([Finding(name, await condition()) for name, condition in conditions.items()])
        )
    finally:
        await trial.clean()


class _Trial:
    """Objects in a folder of their own. Each condition returns its problem, empty for none."""

    def __init__(self, store: BlobStore, folder: str) -> None:
        self._store = store
        self._raced = f"{folder}/raced"
        self._plain = f"{folder}/plain"
        self._folder = folder
        self._answers = False

    async def race(self) -> str:
        """Let many put different bytes under one name at once, and one more afterwards."""
        winners: list[bytes] = []
        unheard: list[FacegridError] = []

        async def put(data: bytes) -> None:
            try:
                await self._store.put_new(self._raced, data)
                winners.append(data)
            except ConflictError:
                self._answers = True
            except (UnavailableError, OverloadedError) as error:
                unheard.append(error)

        async with asyncio.TaskGroup() as tasks:
            for racer in range(RACERS):
                tasks.create_task(put(b"racer %d" % racer))
        self._answers |= bool(winners)
        if unheard:
            raise unheard[0]
        if len(winners) != 1:
            return f"{len(winners)} of {RACERS} racers took one name, and exactly one may"
        await put(b"late")
        if len(winners) != 1:
            return "a name that was taken could be taken again"
        if await self._content(self._raced) != winners[0]:
            return "the object does not hold the bytes of the racer that won"
        return ""

    async def read_back(self) -> str:
        """Read what was just put, and something that never was."""
        data = bytes(range(256))
        try:
            await self._store.put_new(self._plain, data)
        except ConflictError:
            return "a new name counted as taken"
        if await self._content(self._plain) != data:
            return "an object that was just put could not be read as it was put"
        if await self._content(f"{self._folder}/never-put") is not None:
            return "an object could be read that nobody had put"
        return ""

    async def list_back(self) -> str:
        """List what was just put."""
        names = list(await self._store.list(f"{self._folder}/"))
        missing = {self._plain, self._raced} - set(names)
        return f"{len(missing)} of 2 objects that were just put are not listed" if missing else ""

    async def delete(self) -> str:
        """Delete, look whether it is gone, and delete again."""
        for _ in range(2):
            await self._store.delete(self._plain)
        if await self._content(self._plain) is not None:
            return "an object that was deleted can still be read"
        if self._plain in await self._store.list(f"{self._folder}/"):
            return "an object that was deleted is still listed"
        return ""

    async def clean(self) -> None:
        """Leave nothing behind, as far as the store can be reached."""
        if not self._answers:
            return
        with contextlib.suppress(UnavailableError, OverloadedError):
            for name in (self._raced, self._plain):
                await self._store.delete(name)

    async def _content(self, name: str) -> bytes | None:
        try:
            return await self._store.get(name)
        except NotFoundError:
            return None
