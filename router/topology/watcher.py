"""Follows etcd and holds the topology. An outage of etcd changes nothing here but the age."""

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from facegrid.clock import Clock
from facegrid.coord import keys
from facegrid.coord.port import Changed, Coordinator, KeyValue, Listing, Progress, WatchEvent
from facegrid.errors import CorruptError, DeadlineError
from facegrid.telemetry.log import Logger
from router.topology import state
from router.topology.snapshot import Assembled, Problem, Topology, assemble

PREFIXES: Final = (keys.GALLERIES, keys.MAPS, keys.NODES)
SILENCE_S_MAX: Final = 10.0
"""A watch tells of progress every few seconds; silence beyond this means etcd is out of reach."""


class Watcher:
    """The one holder of the topology: `topology` is replaced as a whole, never changed.

    Args:
        coordinator: what to follow.
        clock: for the age.
        logger: told about records that cannot be used and about files that cannot be written.
        state_dir: where the last topology is kept; None: nowhere.
    """

    def __init__(
        self, coordinator: Coordinator, clock: Clock, logger: Logger, *, state_dir: Path | None
    ) -> None:
        self._coordinator = coordinator
        self._clock = clock
        self._logger = logger
        self._state_dir = state_dir
        self._items: dict[str, dict[str, KeyValue]] = {prefix: {} for prefix in PREFIXES}
        self._heard_s: dict[str, float] = {}
        self._problems: tuple[Problem, ...] = ()
        self._news = asyncio.Event()
        self.topology = Topology()

    @property
    def age_s(self) -> float | None:
        """Seconds since etcd last confirmed all that is known; None: not since the start."""
        if len(self._heard_s) < len(PREFIXES):
            return None
        return self._clock.now_s() - min(self._heard_s.values())

    @property
    def reachable(self) -> bool:
        """Whether etcd was heard from lately."""
        age_s = self.age_s
        return age_s is not None and age_s <= SILENCE_S_MAX

    def load(self) -> bool:
        """Take up the topology on disk; tell whether there was one that could be used.

        Raises:
            UnavailableError: none can be written there (STATE_DIR_UNUSABLE).
        """
        if self._state_dir is None:
            return False
        state.probe(self._state_dir)
        try:
            items = state.load(self._state_dir)
        except (CorruptError, OSError) as error:
            self._logger.warning("saved topology not used", problem=str(error))
            return False
        for prefix in PREFIXES:
            self._items[prefix] = {item.key: item for item in items if item.key.startswith(prefix)}
        self._publish()
        return bool(items)

    async def run(self) -> None:
        """Follow until cancelled."""
        async with asyncio.TaskGroup() as group:
            for prefix in PREFIXES:
                group.create_task(self._follow(prefix))
            if self._state_dir is not None:
                group.create_task(self._keep(self._state_dir))

    async def ready(self, *, timeout_s: float) -> None:
        """Wait until everything was heard once.

        Raises:
            DeadlineError: not in that time (COORDINATOR_SILENT).
        """
        try:
            async with asyncio.timeout(timeout_s):
                while len(self._heard_s) < len(PREFIXES):
                    await self._news.wait()
        except TimeoutError as error:
            raise DeadlineError(
                f"etcd did not tell what is there timeout_s={timeout_s}",
                reason="COORDINATOR_SILENT",
            ) from error

    async def changed(self, since: Topology, *, timeout_s: float) -> bool:
        """Wait until the topology is another one than `since`; tell whether it is."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.topology is since:
                    await self._news.wait()
        except TimeoutError:
            return False
        return True

    async def _follow(self, prefix: str) -> None:
        async for event in self._coordinator.watch(prefix):
            first = prefix not in self._heard_s
            self._heard_s[prefix] = self._clock.now_s()
            if self._take(prefix, event) or first:
                self._publish()

    def _take(self, prefix: str, event: WatchEvent) -> bool:
        """Note an event; tell whether anything is different now."""
        match event:
            case Listing(snapshot):
                items = {item.key: item for item in snapshot.items}
                different = items != self._items[prefix]
                self._items[prefix] = items
                return different
            case Changed(item=item) if item is not None:
                self._items[prefix][item.key] = item
                return True
            case Changed(key=key):
                return self._items[prefix].pop(key, None) is not None
            case Progress():
                return False

    def _all(self) -> Iterable[KeyValue]:
        return (item for items in self._items.values() for item in items.values())

    def _publish(self) -> None:
        assembled: Assembled = assemble(self._all(), addresses=self.topology.addresses)
        for problem in set(assembled.problems) - set(self._problems):
            self._logger.error("record not used", key=problem.key, problem=problem.why)
        self._problems = assembled.problems
        self.topology = assembled.topology
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def _keep(self, folder: Path) -> None:
        """Write every new topology to disk; while one is written, newer ones wait as one."""
        while True:
            news = self._news
            if self._heard_s:
                await self._save(folder, tuple(self._all()))
            await news.wait()

    async def _save(self, folder: Path, items: tuple[KeyValue, ...]) -> None:
        try:
            await asyncio.to_thread(state.save, folder, items)
        except OSError as error:
            self._logger.warning("topology not saved", folder=str(folder), problem=str(error))
