"""Searches each shard where it lives: on a device, or on the processor."""

import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Final

from facegrid.telemetry.log import Logger
from indexd.ann import together
from indexd.ann.gpu.arrays import DeviceError
from indexd.ann.gpu.placing import choose
from indexd.ann.gpu.resident import needed_bytes
from indexd.ann.gpu.unit import ROOM_FACTOR, Unit
from indexd.ann.index import ShardIndex
from indexd.ann.looking import Wanted
from indexd.ann.rescore import Hits

GROWN_FACTOR: Final = 1.5
"""A shard that found no room is looked at again when it has changed by so much, or room came."""


class GpuEngine:
    """Searches shards like `indexd.ann.together.search`, on devices as far as they have room.

    Several threads may search at once; each device takes one search after the other.

    Args:
        units: the devices; at least one.
        logger: told what finds no room.
    """

    def __init__(self, units: Sequence[Unit], logger: Logger) -> None:
        assert units, "without a device there is no need for this"
        self.units = tuple(units)
        self._logger = logger
        self._refused: weakref.WeakKeyDictionary[ShardIndex, int] = weakref.WeakKeyDictionary()

    def search(self, asked: Sequence[together.Asked], wanted: Wanted) -> list[Hits]:
        """Return for each shard the best row of each of the best subjects of each probe.

        What a device cannot answer the processor does: it has every row.
        """
        homes = [self._home(one.index) for one in asked]
        running: list[tuple[list[int], Future[list[Hits]]]] = []
        for unit in self.units:
            places = [place for place, home in enumerate(homes) if home is unit]
            if places:
                running.append((places, unit.search([asked[place] for place in places], wanted)))
        left = [place for place, home in enumerate(homes) if home is None]
        found: dict[int, Hits] = {}
        if left:
            found |= self._on_processor(asked, left, wanted)
        for places, future in running:
            try:
                found |= dict(zip(places, future.result(), strict=True))
            except DeviceError:
                found |= self._on_processor(asked, places, wanted)
        for unit in self.units:
            unit.wake()
        return [found[place] for place in range(len(asked))]

    def close(self) -> None:
        """Let go of all devices."""
        for unit in self.units:
            unit.close()

    def _on_processor(
        self, asked: Sequence[together.Asked], places: Sequence[int], wanted: Wanted
    ) -> dict[int, Hits]:
        hits = together.search([asked[place] for place in places], wanted)
        return dict(zip(places, hits, strict=True))

    def _home(self, index: together.Searchable) -> Unit | None:
        """Return the device that a shard can be searched on now, and find one for it otherwise."""
        assert isinstance(index, ShardIndex), "shards are what is asked for"
        for unit in self.units:
            if unit.holds(index):
                return unit if unit.ready(index) else None
        self._find_room(index)
        return None

    def _find_room(self, index: ShardIndex) -> None:
        size = needed_bytes(index.rows.dim, int(index.rows_count * ROOM_FACTOR))
        able = {unit.name: unit for unit in self.units if unit.open}
        if not able:
            return  # what is wrong with each was told when it began
        name = choose({name: unit.ledger.free_bytes for name, unit in able.items()}, size)
        if name is not None and able[name].admit(index):
            self._refused.pop(index, None)
            return
        before = self._refused.get(index, 0)
        if size > GROWN_FACTOR * before:
            self._refused[index] = size
            free = max(unit.ledger.free_bytes for unit in able.values())
            self._logger.warning(
                "no device has room for a shard: the processor searches it",
                rows=index.rows_count,
                bytes=size,
                free_bytes=free,
            )
