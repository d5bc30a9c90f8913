"""An etcd of which the member that is watched can be cut off from the others."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Final

from typing_extensions import override

from facegrid.coord.port import KeyValue, Listing, Progress, Snapshot, WatchEvent
from facegrid.errors import UnavailableError
from facegrid.testing.manual_clock import ManualClock
from facegrid.testing.memory_coord import MemoryCoordinator

PROGRESS_S: Final = 1.0


class CutOffMember(MemoryCoordinator):
    """While `cut_off`, watches go on reporting progress and tell of no change, as a member of etcd
    without its majority does; `quorate` says whether other members answer reads meanwhile.
    """

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self._manual = clock
        self._joined = asyncio.Event()
        self._joined.set()
        self.quorate = True

    def cut_off(self) -> None:
        """Cut the watched member off from the rest."""
        self._joined.clear()

    def join(self) -> None:
        """Let it come back."""
        self._joined.set()

    @override
    async def list(self, prefix: str, *, timeout_s: float = 5.0) -> Snapshot:
        """Return all keys of a prefix, if there is a majority to ask."""
        if not self.quorate:
            raise UnavailableError("no majority answers", reason="COORDINATOR_SILENT")
        return await super().list(prefix, timeout_s=timeout_s)

    @override
    async def get(self, key: str, *, timeout_s: float = 5.0) -> KeyValue | None:
        """Return one key, if there is a majority to ask."""
        await self.list(key, timeout_s=timeout_s)
        return await super().get(key, timeout_s=timeout_s)

    @override
    async def get_many(
        self, names: Sequence[str], *, heads: Sequence[str] = (), timeout_s: float = 5.0
    ) -> Snapshot:
        """Return several keys, if there is a majority to ask."""
        await self.list("", timeout_s=timeout_s)
        return await super().get_many(names, heads=heads, timeout_s=timeout_s)

    @override
    async def watch(self, prefix: str) -> AsyncIterator[WatchEvent]:
        """Yield what happens, and while cut off nothing but progress."""
        revision = 0
        async for event in super().watch(prefix):
            while not self._joined.is_set():
                yield Progress(revision)
                await self._manual.sleep(PROGRESS_S)
            revision = event.snapshot.revision if isinstance(event, Listing) else event.revision
            yield event
