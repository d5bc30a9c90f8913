"""Reads the committed log of a shard, object by object, while it grows."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from facegrid.errors import CorruptError
from facegrid.format.log import LogGroup, LogRef, log_name
from facegrid.ids import ShardId
from indexd.engine.recovery import verified_log

AHEAD_OBJECTS_MAX: Final = 16
"""Objects kept from finding the way back to where one was, to be read next."""


class LogReader:
    """The log behind a position.

    The chain leads backwards, so the way back is walked first and only the names are kept, but for
    some objects: however long the log is, memory is bounded, and the chain still vouches for all.

    Args:
        fetch: returns the object of a name.
        shard_id: whose log.
        position: the last record that was read before.
    """

    def __init__(
        self, fetch: Callable[[str], Awaitable[bytes]], shard_id: ShardId, position: int
    ) -> None:
        self.position = position
        self._fetch = fetch
        self._shard_id = shard_id
        self._refs: list[LogRef] = []
        """Found and not read yet, the newest first."""
        self._ahead: dict[str, LogGroup] = {}

    async def next(self, tip: LogRef | None) -> LogGroup | None:
        """Return the next object up to a committed tip; None: there is none.

        Raises:
            CorruptError: an object is missing or damaged, or the log does not lead back.
        """
        if tip is None or tip.last_position <= self.position:
            return None
        if not self._refs:
            await self._walk_back(tip)
        ref = self._refs.pop()
        group = self._ahead.pop(ref.uuid, None) or await self._read(ref)
        self.position = ref.last_position
        return group

    async def _walk_back(self, tip: LogRef) -> None:
        """Find the objects from a tip back to the position."""
        found: list[LogRef] = []
        ref: LogRef | None = tip
        while ref is not None and ref.last_position > self.position:
            group = await self._read(ref)
            found.append(ref)
            self._ahead[ref.uuid] = group
            if len(self._ahead) > AHEAD_OBJECTS_MAX:
                # The newest is needed last.
                del self._ahead[next(iter(self._ahead))]
            ref = group.predecessor
        if found[-1].first_position > self.position + 1:
            raise CorruptError(
                f"log does not lead back shard={self._shard_id} position={self.position}"
                f" first={found[-1].first_position}",
                reason="LOG_BROKEN",
                shard=self._shard_id,
            )
        self._refs = found

    async def _read(self, ref: LogRef) -> LogGroup:
        name = log_name(self._shard_id, ref)
        group = await asyncio.to_thread(verified_log, name, await self._fetch(name), ref.sha256)
        if group.shard_id != self._shard_id:
            raise CorruptError(
                f"log object belongs to another shard shard={self._shard_id}"
                f" found={group.shard_id}",
                reason="OBJECT_SWAPPED",
                shard=self._shard_id,
            )
        return group
