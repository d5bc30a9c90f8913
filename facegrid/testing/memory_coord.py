"""A coordinator in memory: the twin of `facegrid.coord.etcd` for tests.

One instance stands for the whole store: components that should see each other share it. Tests may
stop and start it (an outage: nothing is lost, watches fall silent) and compact it (watches that
are behind list again).
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Final

from facegrid.clock import Clock
from facegrid.coord.checks import check_names, check_transaction
from facegrid.coord.port import (
    Changed,
    Delete,
    Guard,
    KeyValue,
    Listing,
    Progress,
    Put,
    Snapshot,
    TxnResult,
    ValueGuard,
    WatchEvent,
)
from facegrid.errors import DeadlineError, NotFoundError, UnavailableError

PROGRESS_S: Final = 1.0


@dataclass(slots=True)
class _Lease:
    """A lease and when it ends unless renewed."""

    ttl_s: int
    ends_s: float


@dataclass(slots=True, eq=False)
class _Watch:
    """Where one watch stands; `woken` is set whenever something happened."""

    next_revision: int = 0
    woken: asyncio.Event = field(default_factory=asyncio.Event)


class MemoryCoordinator:
    """Keeps keys, leases and the history of changes in dictionaries and lists.

    Args:
        clock: decides when leases end and how often watches report progress.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._items: dict[str, KeyValue] = {}
        self._leases: dict[int, _Lease] = {}
        self._lease_ids = count(1)
        self._revision = 1
        self._compacted = 0
        self._history: list[Changed] = []
        self._watches: set[_Watch] = set()
        self._reachable = True

    def stop(self) -> None:
        """Begin an outage: calls raise UnavailableError, watches fall silent."""
        self._reachable = False

    def start(self) -> None:
        """End the outage. Like etcd after a restart, it gives every lease its full time again."""
        for lease in self._leases.values():
            lease.ends_s = self._clock.now_s() + lease.ttl_s
        self._reachable = True
        self._wake()

    def compact(self) -> None:
        """Forget the history: a watch that is behind has to list again."""
        self._compacted = self._revision
        self._history.clear()

    async def get(self, key: str, *, timeout_s: float = 5.0) -> KeyValue | None:
        """Return one key, or None where there is none."""
        self._begin(timeout_s)
        return self._items.get(key)

    async def list(self, prefix: str, *, timeout_s: float = 5.0) -> Snapshot:
        """Return all keys of a prefix at one revision."""
        self._begin(timeout_s)
        return self._snapshot(prefix)

    async def get_many(
        self, names: Sequence[str], *, heads: Sequence[str] = (), timeout_s: float = 5.0
    ) -> Snapshot:
        """Return those of some keys that exist, by name, at one revision; of `heads` no values."""
        self._begin(timeout_s)
        check_names((*names, *heads))
        found = [self._items[name] for name in names if name in self._items]
        found += [replace(self._items[head], value=b"") for head in heads if head in self._items]
        return Snapshot(self._revision, tuple(sorted(found, key=lambda item: item.key)))

    async def txn(
        self,
        guards: Sequence[Guard | ValueGuard],
        operations: Sequence[Put | Delete],
        *,
        timeout_s: float = 5.0,
    ) -> TxnResult:
        """Carry out all operations if all guards hold, else none."""
        self._begin(timeout_s)
        check_transaction(guards, operations)
        if not all(self._holds(guard) for guard in guards):
            return TxnResult(succeeded=False, revision=self._revision)
        self._check_leases(operations)
        self._apply(operations)
        return TxnResult(succeeded=True, revision=self._revision)

    async def grant_lease(self, ttl_s: int, *, timeout_s: float = 5.0) -> int:
        """Return the id of a new lease."""
        self._begin(timeout_s)
        lease_id = next(self._lease_ids)
        self._leases[lease_id] = _Lease(ttl_s, self._clock.now_s() + ttl_s)
        return lease_id

    async def renew_lease(self, lease_id: int, *, timeout_s: float = 5.0) -> int:
        """Renew a lease; return the seconds granted."""
        self._begin(timeout_s)
        lease = self._leases.get(lease_id)
        if lease is None:
            raise NotFoundError(f"lease has ended lease={lease_id}", reason="LEASE_ENDED")
        lease.ends_s = self._clock.now_s() + lease.ttl_s
        return lease.ttl_s

    async def revoke_lease(self, lease_id: int, *, timeout_s: float = 5.0) -> None:
        """End a lease and delete its keys; no error when it has ended already."""
        self._begin(timeout_s)
        self._end_lease(lease_id)

    async def watch(self, prefix: str) -> AsyncIterator[WatchEvent]:
        """Yield a Listing, then every change in order, and Progress each second."""
        watch = _Watch()
        self._watches.add(watch)
        try:
            while True:
                if self._reachable:
                    self._expire()
                    for event in self._news(watch, prefix):
                        yield event
                    await self._wait(watch)
                else:
                    watch.woken.clear()
                    await watch.woken.wait()
        finally:
            self._watches.discard(watch)

    async def aclose(self) -> None:
        """Do nothing: the store may be shared."""

    def _news(self, watch: _Watch, prefix: str) -> Sequence[WatchEvent]:
        """Return what a watch has not seen, and note that it has."""
        first = watch.next_revision
        watch.next_revision = self._revision + 1
        watch.woken.clear()
        if first <= self._compacted:
            return [Listing(self._snapshot(prefix))]
        changes = [
            change
            for change in self._history
            if change.revision >= first and change.key.startswith(prefix)
        ]
        return changes or [Progress(self._revision)]

    async def _wait(self, watch: _Watch) -> None:
        """Wait for the next change, the end of a lease or the time to report progress."""
        ends = [lease.ends_s - self._clock.now_s() for lease in self._leases.values()]
        wait_s = max(min([PROGRESS_S, *ends]), 0.0)
        async with asyncio.TaskGroup() as group:
            timer = group.create_task(self._clock.sleep(wait_s))
            woken = group.create_task(watch.woken.wait())
            await asyncio.wait({timer, woken}, return_when=asyncio.FIRST_COMPLETED)
            timer.cancel()
            woken.cancel()

    def _begin(self, timeout_s: float) -> None:
        """Refuse a call that cannot succeed; end the leases whose time is over."""
        if timeout_s <= 0:
            raise DeadlineError("no time left for the coordinator")
        if not self._reachable:
            raise UnavailableError("coordinator is stopped", reason="COORDINATOR_UNREACHABLE")
        self._expire()

    def _snapshot(self, prefix: str) -> Snapshot:
        items = tuple(self._items[key] for key in sorted(self._items) if key.startswith(prefix))
        return Snapshot(self._revision, items)

    def _holds(self, guard: Guard | ValueGuard) -> bool:
        item = self._items.get(guard.key)
        match guard:
            case Guard():
                return (item.mod_revision if item else 0) == guard.mod_revision
            case ValueGuard():
                return item is not None and item.value == guard.value

    def _check_leases(self, operations: Sequence[Put | Delete]) -> None:
        for operation in operations:
            lease_id = operation.lease_id if isinstance(operation, Put) else 0
            if lease_id and lease_id not in self._leases:
                raise NotFoundError(f"lease has ended lease={lease_id}", reason="LEASE_ENDED")

    def _apply(self, operations: Sequence[Put | Delete]) -> None:
        """Carry out operations as one new revision, if they change anything."""
        revision = self._revision + 1
        changes: list[Changed] = []
        for operation in operations:
            match operation:
                case Put(key, value, lease_id):
                    item = KeyValue(key, value, revision, lease_id)
                    self._items[key] = item
                    changes.append(Changed("put", key, item, revision))
                case Delete(key):
                    if self._items.pop(key, None) is not None:
                        changes.append(Changed("delete", key, None, revision))
        if changes:
            self._revision = revision
            self._history.extend(changes)
            self._wake()

    def _expire(self) -> None:
        """End the leases whose time is over."""
        now_s = self._clock.now_s()
        for lease_id in [key for key, lease in self._leases.items() if lease.ends_s <= now_s]:
            self._end_lease(lease_id)

    def _end_lease(self, lease_id: int) -> None:
        self._leases.pop(lease_id, None)
        keys = [item.key for item in self._items.values() if item.lease_id == lease_id]
        self._apply([Delete(key) for key in sorted(keys)])

    def _wake(self) -> None:
        for watch in self._watches:
            watch.woken.set()
