"""etcd and the object store as simulated processes see them: the twins, behind faulty links."""

from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from typing_extensions import override

from facegrid.clock import Clock
from facegrid.coord import keys
from facegrid.coord.port import (
    Changed,
    Delete,
    Guard,
    KeyValue,
    Listing,
    Put,
    Snapshot,
    TxnResult,
    ValueGuard,
    WatchEvent,
)
from facegrid.testing.memory_blob import MemoryBlobStore
from facegrid.testing.memory_coord import MemoryCoordinator
from tests.sim.world import Link, World, at_once

STORE_TIMEOUT_S = 5.0
FENCED_KEYS = (keys.GENERATIONS, keys.TIPS, keys.MANIFESTS)


class SimEtcd(MemoryCoordinator):
    """The one etcd of a run. `on_change` sees every change as it is committed, and by whom."""

    def __init__(self, clock: Clock, on_change: Callable[[Changed, str], None]) -> None:
        super().__init__(clock)
        self.watches: list[SimWatch] = []
        self.origin = ""
        self._on_change = on_change

    @override
    def _apply(self, operations: Sequence[Put | Delete]) -> None:
        super()._apply(operations)
        changes, self._history = self._history, []
        for change in changes:
            self._on_change(change, self.origin)
        for watch in self.watches:
            for change in changes:
                watch.changed(change)

    def snapshot(self, prefix: str) -> Snapshot:
        """Return what lies under a prefix."""
        return self._snapshot(prefix)

    def value(self, key: str) -> KeyValue | None:
        """Return one key."""
        return self._items.get(key)

    @property
    def reachable(self) -> bool:
        """Whether it answers."""
        return self._reachable


class SimWatch:
    """One watch: changes come in order, each a little later; a cut makes it list again."""

    def __init__(self, etcd: SimEtcd, link: Link, prefix: str) -> None:
        self._etcd = etcd
        self._link = link
        self._prefix = prefix
        self._events: deque[WatchEvent] = deque()
        self._waiter: Any = None
        self._last_s = 0.0
        self._behind = True
        self._relist()

    def __aiter__(self) -> AsyncIterator[WatchEvent]:
        return self

    async def __anext__(self) -> WatchEvent:
        while not self._events:
            self._waiter = self._link.world.loop.create_future()
            await self._waiter
        return self._events.popleft()

    def changed(self, change: Changed) -> None:
        """Send a change on its way."""
        if self._behind or not change.key.startswith(self._prefix) or self._link.actor.dead:
            return
        world = self._link.world
        if self._link.cut or self._link.deaf or world.chance(0.02):
            # The stream breaks here. What was on its way may or may not come.
            self._behind = True
            world.loop.in_world(0.2 + world.rng.random(), self._relist)
            return
        delay_s = world.rng.random() * (0.5 if world.chance(0.1) else 0.01)
        self._last_s = max(self._last_s, world.loop.now_s + delay_s)
        world.loop.in_world(self._last_s - world.loop.now_s, self._deliver, change)

    def _relist(self) -> None:
        world = self._link.world
        if self._link.actor.dead:
            return
        if self._link.cut or self._link.deaf or not self._etcd.reachable:
            world.loop.in_world(0.5, self._relist)
            return
        self._behind = False
        listing = Listing(self._etcd.snapshot(self._prefix))
        self._last_s = max(self._last_s, world.loop.now_s + world.rng.random() * 0.01)
        world.loop.in_world(self._last_s - world.loop.now_s, self._deliver, listing)

    def _deliver(self, event: WatchEvent) -> None:
        self._events.append(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class SimCoordinator:
    """One process's connection to etcd."""

    def __init__(self, etcd: SimEtcd, link: Link) -> None:
        self._etcd = etcd
        self._link = link

    async def get(self, key: str, *, timeout_s: float = 5.0) -> KeyValue | None:
        """Return one key. See Coordinator."""
        return await self._call("get", timeout_s, lambda: at_once(self._etcd.get(key)))

    async def list(self, prefix: str, *, timeout_s: float = 5.0) -> Snapshot:
        """Return all keys of a prefix. See Coordinator."""
        return await self._call("list", timeout_s, lambda: at_once(self._etcd.list(prefix)))

    async def get_many(
        self, names: Sequence[str], *, heads: Sequence[str] = (), timeout_s: float = 5.0
    ) -> Snapshot:
        """Return several keys. See Coordinator."""
        return await self._call(
            "get many", timeout_s, lambda: at_once(self._etcd.get_many(names, heads=heads))
        )

    async def txn(
        self,
        guards: Sequence[Guard | ValueGuard],
        operations: Sequence[Put | Delete],
        *,
        timeout_s: float = 5.0,
    ) -> TxnResult:
        """Carry out a transaction. See Coordinator."""
        if not self._link.world.controls.fencing:
            guards = [guard for guard in guards if not guard.key.startswith(FENCED_KEYS)]
        return await self._call(
            "txn", timeout_s, lambda: at_once(self._etcd.txn(guards, operations))
        )

    async def grant_lease(self, ttl_s: int, *, timeout_s: float = 5.0) -> int:
        """Return a new lease. See Coordinator."""
        return await self._call("grant", timeout_s, lambda: at_once(self._etcd.grant_lease(ttl_s)))

    async def renew_lease(self, lease_id: int, *, timeout_s: float = 5.0) -> int:
        """Renew a lease. See Coordinator."""
        return await self._call(
            "renew", timeout_s, lambda: at_once(self._etcd.renew_lease(lease_id))
        )

    async def revoke_lease(self, lease_id: int, *, timeout_s: float = 5.0) -> None:
        """End a lease. See Coordinator."""
        await self._call("revoke", timeout_s, lambda: at_once(self._etcd.revoke_lease(lease_id)))

    def watch(self, prefix: str) -> SimWatch:
        """Watch a prefix. See Coordinator."""
        watch = SimWatch(self._etcd, self._link, prefix)
        self._etcd.watches.append(watch)
        return watch

    async def aclose(self) -> None:
        """Do nothing."""

    async def _call(self, name: str, timeout_s: float, perform: Callable[[], Any]) -> Any:
        def in_name_of_caller() -> Any:
            self._etcd.origin = self._link.actor.name
            return perform()

        return await self._link.call(name, in_name_of_caller, timeout_s)


class SimStore:
    """One process's connection to the object store."""

    def __init__(
        self, shared: MemoryBlobStore, link: Link, on_change: Callable[[str, str, bytes], None]
    ) -> None:
        self._shared = shared
        self._link = link
        self._on_change = on_change

    async def put_new(self, name: str, data: bytes) -> None:
        """Store an object. See BlobStore."""

        def perform() -> None:
            at_once(self._shared.put_new(name, data))
            self._on_change("put", name, data)

        await self._link.call("put", perform, STORE_TIMEOUT_S)
        self._on_change("stored", name, data)

    async def get(self, name: str) -> bytes:
        """Return an object. See BlobStore."""
        return await self._link.call(
            "read", lambda: at_once(self._shared.get(name)), STORE_TIMEOUT_S
        )

    async def list(self, prefix: str) -> Sequence[str]:
        """Return names. See BlobStore."""
        if prefix.endswith("/loads/") and not self._link.world.controls.pins:
            return []
        return await self._link.call(
            "names", lambda: at_once(self._shared.list(prefix)), STORE_TIMEOUT_S
        )

    async def delete(self, name: str) -> None:
        """Delete an object. See BlobStore."""

        def perform() -> None:
            at_once(self._shared.delete(name))
            self._on_change("delete", name, b"")

        await self._link.call("delete", perform, STORE_TIMEOUT_S)


def damage(world: World, store: MemoryBlobStore, name: str) -> None:
    """Flip one bit of a stored object."""
    data = bytearray(store.objects[name])
    data[world.rng.randrange(len(data))] ^= 1 << world.rng.randrange(8)
    store.objects[name] = bytes(data)
    world.note("world", "damage", name)
