"""One device: its owner thread, its memory, and the shards that live in it.

Only the owner thread touches the device: indexes of faiss on GPUs are not safe in several threads.
Searches wait in line for it, and between them it does a slice of whatever else is to be done, so
that a shard which is brought to the device never holds a search up for longer than a slice.
"""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from facegrid.clock import Clock
from facegrid.telemetry.log import Logger
from facegrid.tuning import Effort
from indexd.ann import together
from indexd.ann.codebook import Codebook
from indexd.ann.gpu.arrays import Arrays, DeviceError, DeviceFullError, DeviceLostError
from indexd.ann.gpu.placing import Ledger, Pause
from indexd.ann.gpu.resident import SLICE_ROWS, Resident, needed_bytes
from indexd.ann.gpu.scanner import Scanners, Tables
from indexd.ann.index import ShardIndex
from indexd.ann.looking import Wanted
from indexd.ann.rescore import Hits
from indexd.ann.threads import set_threads

T = TypeVar("T")

BEHIND_ROWS_MAX: Final = SLICE_ROWS
"""A search waits while so many rows are brought to the device; with more it goes elsewhere."""
ROOM_FACTOR: Final = 1.25
"""A shard is promised memory for a quarter more rows than it has."""


class _OutgrownError(DeviceError):
    """A shard has more rows than there is room promised for: others may stay, and come."""


@dataclass(slots=True)
class UnitCounts:
    """What a device has done so far.

    Attributes:
        searches: batches searched.
        failures: batches that the processor searched, since the device failed.
        moved_away: shards that left the device since it failed or was full.
    """

    searches: int = 0
    failures: int = 0
    moved_away: int = 0


class Unit:
    """A device and what lives on it.

    Args:
        arrays: of the device.
        scanners: makes what makes scanners, in the owner thread.
        logger: told what comes and goes.
        clock: for pauses after the device was full.
        memory_bytes: what shards may take; None: all that is free now.
    """

    def __init__(
        self,
        arrays: Arrays,
        scanners: Callable[[], Scanners],
        logger: Logger,
        *,
        clock: Clock,
        memory_bytes: int | None = None,
    ) -> None:
        self.name = arrays.name
        self.counts = UnitCounts()
        self.lost = False
        """Whether the device failed for good."""
        self.arrays = arrays
        self._logger = logger.bind(device=arrays.name)
        self._clock = clock
        self._pause = Pause()
        free_bytes = arrays.memory().free_bytes if memory_bytes is None else memory_bytes
        self.ledger = Ledger(free_bytes)
        self._lock = threading.Lock()
        self._homes: dict[int, Resident] = {}
        # Keys of shards that are gone. Whoever collects garbage tells, and may hold the lock.
        self._gone: deque[int] = deque()
        # What the owner thread lets go of: nobody else may touch a device, not even to free it.
        self._left: list[Resident] = []
        self._at_work = self._woken = False
        # By identity of a codebook, which is kept so that its identity stays its own.
        self._tables: dict[int, tuple[Codebook, Tables]] = {}
        self._thread = ThreadPoolExecutor(1, arrays.name.replace(":", ""), self._begin)
        self.scanners = self.do(scanners).result()

    @property
    def shards_count(self) -> int:
        """Shards that live here."""
        with self._here() as homes:
            return len(homes)

    @property
    def open(self) -> bool:
        """Tell whether shards may come: it works, and was not full just now."""
        return not self.lost and not self._pause.lasts(self._clock.now_s())

    @property
    def at_work(self) -> bool:
        """Tell whether it has something to do besides searching."""
        return self._at_work

    @contextmanager
    def _here(self) -> Iterator[dict[int, Resident]]:
        """Hold the lock, and have the shards that live here, without those that are gone."""
        with self._lock:
            while self._gone:
                self._drop(self._gone.popleft())
            yield self._homes

    def _drop(self, key: int) -> None:
        """Let go of a shard; with the lock."""
        home = self._homes.pop(key, None)
        if home is not None:
            self._left.append(home)
        self.ledger.give_back(key)

    def _begin(self) -> None:
        """What the owner thread does first."""
        set_threads(1)
        self.arrays.use()

    def do(self, work: Callable[[], T]) -> Future[T]:
        """Do something with the device, in the owner thread, when it is its turn."""
        return self._thread.submit(work)

    def close(self) -> None:
        """Let what runs end, and let go of everything."""
        self._thread.submit(self._clear)
        self._thread.shutdown()

    def admit(self, index: ShardIndex) -> bool:
        """Let a shard live here; tell whether there is room. It is brought over by and by."""
        key = id(index)
        size = needed_bytes(index.rows.dim, int(index.rows_count * ROOM_FACTOR))
        with self._here() as homes:
            if not self.open or not self.ledger.take(key, size):
                return False
            homes[key] = Resident(index, self.arrays, self.scanners)
        weakref.finalize(index, self._gone.append, key).atexit = False
        self._logger.info("shard comes to the device", rows=index.rows_count, bytes=size)
        self.wake()
        return True

    def holds(self, index: ShardIndex) -> bool:
        """Tell whether a shard lives here, ready or not."""
        with self._here() as homes:
            return id(index) in homes

    def coded_count(self, index: ShardIndex) -> int:
        """Return how many rows of a shard have codes here."""
        with self._here() as homes:
            home = homes.get(id(index))
        part = None if home is None else home.coded
        return 0 if part is None else part.count

    def lists_count(self, index: ShardIndex) -> int:
        """Return how many lists the coded rows of a shard are in here."""
        with self._here() as homes:
            home = homes.get(id(index))
        part = None if home is None else home.coded
        return 0 if part is None else part.nlist

    def ready(self, index: ShardIndex) -> bool:
        """Tell whether a shard can be searched here now."""
        with self._here() as homes:
            home = homes.get(id(index))
        return home is not None and home.behind_count <= BEHIND_ROWS_MAX

    def search(self, asked: Sequence[together.Asked], wanted: Wanted) -> Future[list[Hits]]:
        """Search shards that live here, when it is their turn.

        The future raises DeviceError where the device failed, or one of them lives here no more.
        """
        indexes = [one.index for one in asked]
        return self.do(partial(self._search, indexes, [one.effort for one in asked], wanted))

    def wake(self) -> None:
        """Do what there is to do besides searching."""
        with self._lock:
            self._woken = True
            if self._at_work or self.lost:
                return
            self._at_work = True
        self.do(self._slice)

    def _clear(self) -> None:
        with self._here() as homes:
            homes.clear()
            self._left.clear()

    def _search(
        self,
        indexes: Sequence[together.Searchable],
        efforts: Sequence[Effort | None],
        wanted: Wanted,
    ) -> list[Hits]:
        with self._here() as homes:
            found = [homes[id(one)] for one in indexes if id(one) in homes]
        if len(found) < len(indexes):
            raise DeviceFullError("a shard lives here no more")
        try:
            with self.arrays.guarded():
                for home in found:
                    home.follow(home.behind_count)
                asked = [together.Asked(*one) for one in zip(found, efforts, strict=True)]
                hits = together.search(asked, wanted)
        except DeviceError as error:
            self.counts.failures += 1
            self._failed(error, [id(one) for one in indexes])
            raise
        self.counts.searches += 1
        self._pause.forget(self._clock.now_s())
        return hits

    def _slice(self) -> None:
        """Do one slice of the work, and stand in line again where there may be more."""
        with self._here() as homes:
            self._woken = False
            present = list(homes.items())
            left, self._left = self._left, []
        left.clear()
        busy = any(self._advanced(key, home) for key, home in present)
        with self._lock:
            self._at_work = (busy or self._woken) and not self.lost
            more = self._at_work
        if more:
            self.do(self._slice)

    def _advanced(self, key: int, home: Resident) -> bool:
        """Bring one shard forward by a slice; tell whether there was anything to do."""
        try:
            with self.arrays.guarded():
                return self._advance(key, home)
        except DeviceError as error:
            self._failed(error, [key])
            return True

    def _advance(self, key: int, home: Resident) -> bool:
        """Do the next that a shard needs, if anything."""
        index = home.index
        if index is None:
            return False
        size = needed_bytes(index.rows.dim, index.rows_count)
        with self._lock:
            room = self.ledger.take(key, max(size, self.ledger.promised_bytes(key)))
        if not room:
            raise _OutgrownError(f"the shard has outgrown the device rows={index.rows_count}")
        if home.behind_count:
            home.follow(SLICE_ROWS)
            return True
        if index.codebook is not None and home.wants_tables:
            home.code_with(self._tables_for(index.codebook, home))
            return True
        return home.code()

    def _tables_for(self, codebook: Codebook, home: Resident) -> Tables:
        """Return what a shard is coded with: the same for all shards of a codebook here, until one
        needs many more lists.
        """
        known = self._tables.get(id(codebook))
        if known is not None and 4 * known[1].nlist > home.lists_wanted:
            return known[1]
        tables = home.train()
        with self._here() as homes:
            indexes = [one.index for one in homes.values()]
        used = {id(index.codebook) for index in indexes if index is not None}
        self._tables = {key: kept for key, kept in self._tables.items() if key in used}
        self._tables[id(codebook)] = (codebook, tables)
        self._logger.info("trained on the device", nlist=tables.nlist)
        return tables

    def _failed(self, error: DeviceError, keys: Sequence[int]) -> None:
        """Let go of what cannot be served: some shards, or all where the device is lost."""
        with self._here() as homes:
            self.lost = self.lost or isinstance(error, DeviceLostError)
            gone = list(homes) if self.lost else [key for key in keys if key in homes]
            for key in gone:
                self._drop(key)
        self.counts.moved_away += len(gone)
        event = "device lost" if self.lost else "shards leave the device"
        pause_s = 0.0
        if isinstance(error, DeviceFullError):
            pause_s = self._pause.begin(self._clock.now_s())
        self._logger.warning(
            event, shards=len(gone), pause_s=round(pause_s, 1), problem=str(error)[:500]
        )
