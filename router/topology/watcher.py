"""Follows etcd and holds the topology. An outage of etcd changes nothing here but the age.

What the watches told may be old: a member of etcd that is cut off from the others goes on
answering its watches, and nothing seems to happen. So twice a second galleries, maps and claims
are read linearizably, which no member can answer without the majority. Where the watches have told
the same, the topology counts as confirmed from when that read was sent.
"""

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from facegrid.clock import Clock
from facegrid.coord import keys, saved
from facegrid.coord.port import Changed, Coordinator, KeyValue, Listing, Progress, WatchEvent
from facegrid.errors import CorruptError, DeadlineError, FacegridError
from facegrid.ids import GalleryName, NodeId, ShardId
from facegrid.limits import STALENESS_S
from facegrid.rpc.together import all_of
from facegrid.telemetry.log import Logger
from router.topology.snapshot import Assembled, Problem, Topology, assemble

CONFIRMED: Final = (keys.GALLERIES, keys.MAPS, keys.GENERATIONS)
"""What is confirmed. Registrations only say where nodes are."""
PREFIXES: Final = (*CONFIRMED, keys.NODES)
SILENCE_S_MAX: Final = 10.0
"""A watch tells of progress every few seconds; silence beyond this means etcd is out of reach."""
CONFIRM_S: Final = 0.5
"""Pause between two reads that confirm the topology."""
CONFIRM_TIMEOUT_S: Final = 1.5
"""Time for such a read: of three members, one may be silent and another be asked in time."""
CATCH_UP_S: Final = 0.5
"""How long the watches may take to tell what such a read has found."""
NEWS_S: Final = STALENESS_S
"""How long after a change of a map nodes may not have heard of it yet, or have acted on it."""

assert CONFIRM_S + CONFIRM_TIMEOUT_S + CATCH_UP_S < STALENESS_S, "one read may fail"

Revisions = dict[str, int]
"""When each key was last written."""


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
        self._halves: tuple[Problem, ...] = ()
        self._news = asyncio.Event()
        self._confirmed_s: float | None = None
        self._remapped_s: dict[GalleryName, float] = {}
        self.topology = Topology()

    @property
    def problems(self) -> tuple[str, ...]:
        """What of the records cannot be used, and why, in words."""
        damaged = (f"{problem.key}: {problem.why}" for problem in self._problems)
        return (*damaged, *(problem.why for problem in self._halves))

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

    @property
    def confirmed_s(self) -> float | None:
        """When, by this process's clock, the read was sent that last confirmed the topology."""
        return self._confirmed_s

    @property
    def confirmed(self) -> bool:
        """Whether the topology was current within the staleness bound: no newer one was in force
        when a read was sent that is no older than that.
        """
        since_s = self._confirmed_s
        return since_s is not None and self._clock.now_s() - since_s <= STALENESS_S

    def vouched_boot_id(self, shard_id: ShardId, node_id: NodeId) -> str:
        """Return the boot of the process that this router vouches for as a shard's primary, where
        that is a process of this node; else "".

        A successor claims the shard before it is primary, and acknowledges no erasure until
        longer after its claim than a confirmation lasts. So as long as this names a process, no
        erasure was acknowledged that the process does not have.
        """
        claim = self.topology.claims.get(shard_id)
        if claim is None or claim.node_id != node_id or not self.confirmed:
            return ""
        return claim.boot_id

    def remapped_lately(self, name: GalleryName) -> bool:
        """Tell whether a gallery's map changed a moment ago: nodes may not have acted on it yet,
        and what fails may not fail any more a moment later.
        """
        since_s = self._remapped_s.get(name)
        return since_s is not None and self._clock.now_s() - since_s <= NEWS_S

    async def map_reaches(self, name: GalleryName, version: int, *, timeout_s: float) -> bool:
        """Wait until a gallery's map has at least some version; tell whether it has."""
        ends_s = self._clock.now_s() + timeout_s
        while True:
            topology = self.topology
            served = topology.galleries.get(name)
            if served is None or served.shard_map.version >= version:
                return served is not None
            if not await self.changed(topology, timeout_s=ends_s - self._clock.now_s()):
                return False

    def load(self) -> bool:
        """Take up the topology on disk; tell whether there was one that could be used.

        Raises:
            UnavailableError: none can be written there (STATE_DIR_UNUSABLE).
        """
        if self._state_dir is None:
            return False
        saved.probe(self._state_dir)
        try:
            items = saved.load(self._state_dir)
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
            group.create_task(self._confirm())
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

    async def _confirm(self) -> None:
        """Find out again and again whether what the watches told is all there is."""
        told = False
        while True:
            sent_s = self._clock.now_s()
            try:
                found = await self._read()
            except FacegridError as error:
                if not told:
                    self._logger.warning("topology not confirmed", problem=error.message)
                told = True
            else:
                told = False
                if await self._caught_up(found):
                    self._confirmed_s = sent_s
            await self._clock.sleep(CONFIRM_S)

    async def _read(self) -> Revisions:
        """Return when each key to be confirmed was last written, as a majority of etcd knows."""
        reads = [
            self._coordinator.list(prefix, timeout_s=CONFIRM_TIMEOUT_S) for prefix in CONFIRMED
        ]
        return _revisions(item for snapshot in await all_of(reads) for item in snapshot.items)

    def _known(self) -> Revisions:
        """Return the same as the watches told it."""
        return _revisions(item for prefix in CONFIRMED for item in self._items[prefix].values())

    async def _caught_up(self, found: Revisions) -> bool:
        """Wait until the watches have told exactly what a read found; tell whether they have.

        They tell changes in order, so from then on they are at the read's revision or later. Where
        they were past it already the next read will do.
        """
        try:
            async with asyncio.timeout(CATCH_UP_S):
                while self._known() != found:
                    await self._news.wait()
        except TimeoutError:
            return False
        return True

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
        self._halves = assembled.halves
        self._note_remapped(self.topology, assembled.topology)
        self.topology = assembled.topology
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _note_remapped(self, before: Topology, after: Topology) -> None:
        """Note which galleries have another map now than a moment ago."""
        for name, served in after.galleries.items():
            known = before.galleries.get(name)
            if known is None or known.gallery.uid != served.gallery.uid:
                self._remapped_s.pop(name, None)
            elif known.shard_map.version != served.shard_map.version:
                self._remapped_s[name] = self._clock.now_s()
        for name in self._remapped_s.keys() - after.galleries.keys():
            del self._remapped_s[name]

    async def _keep(self, folder: Path) -> None:
        """Write every new topology to disk; while one is written, newer ones wait as one."""
        while True:
            news = self._news
            if self._heard_s:
                await self._save(folder, tuple(self._all()))
            await news.wait()

    async def _save(self, folder: Path, items: tuple[KeyValue, ...]) -> None:
        try:
            await asyncio.to_thread(saved.save, folder, items)
        except OSError as error:
            self._logger.warning("topology not saved", folder=str(folder), problem=str(error))


def _revisions(items: Iterable[KeyValue]) -> Revisions:
    return {item.key: item.mod_revision for item in items}
