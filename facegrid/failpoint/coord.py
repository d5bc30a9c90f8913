"""A coordinator with failpoints: a transaction is named by the record that it is about."""

from collections.abc import AsyncIterator, Sequence
from typing import Final

from facegrid.coord import keys
from facegrid.coord.port import (
    Coordinator,
    Delete,
    Guard,
    KeyValue,
    Put,
    Snapshot,
    TxnResult,
    ValueGuard,
    WatchEvent,
)
from facegrid.failpoint.points import Failpoints

KINDS: Final = (
    (keys.OPERATIONS, "operation"),
    (keys.OPERATION_LOCKS, "operation"),
    (keys.MARKS, "mark"),
    (keys.REBALANCER, "rebalancer"),
    (keys.DRIVER, "driver"),
    (keys.GALLERIES, "gallery"),
    (keys.DROPPED, "dropped"),
    (keys.MAPS, "map"),
    (keys.GENERATIONS, "generation"),
    (keys.MANIFESTS, "manifest"),
    (keys.TIPS, "tip"),
    (keys.NODES, "node"),
)
"""In this order: a transaction that writes several is named by the first."""


def kind_of(written: Sequence[str]) -> str:
    """Return what a transaction that writes these keys is about.

    >>> kind_of(["map/staff", "galleries/staff"])
    'gallery'
    """
    for prefix, kind in KINDS:
        if any(key.startswith(prefix) for key in written):
            return kind
    return "other"


class FailingCoordinator:
    """A Coordinator that fails where failpoints say so. Watches pass: those never fail."""

    def __init__(self, coord: Coordinator, failpoints: Failpoints) -> None:
        self._coord = coord
        self._failpoints = failpoints

    async def get(self, key: str, *, timeout_s: float = 5.0) -> KeyValue | None:
        """Return one key, or None where there is none. See Coordinator."""
        point = f"etcd.get.{kind_of([key])}"
        self._failpoints.reach(point, "before")
        found = await self._coord.get(key, timeout_s=timeout_s)
        self._failpoints.reach(point, "after")
        return found

    async def list(self, prefix: str, *, timeout_s: float = 5.0) -> Snapshot:
        """Return all keys of a prefix at one revision. See Coordinator."""
        point = f"etcd.list.{kind_of([prefix])}"
        self._failpoints.reach(point, "before")
        found = await self._coord.list(prefix, timeout_s=timeout_s)
        self._failpoints.reach(point, "after")
        return found

    async def get_many(
        self, names: Sequence[str], *, heads: Sequence[str] = (), timeout_s: float = 5.0
    ) -> Snapshot:
        """Return those of some keys that exist, at one revision. See Coordinator."""
        point = f"etcd.get.{kind_of([*names, *heads])}"
        self._failpoints.reach(point, "before")
        found = await self._coord.get_many(names, heads=heads, timeout_s=timeout_s)
        self._failpoints.reach(point, "after")
        return found

    async def txn(
        self,
        guards: Sequence[Guard | ValueGuard],
        operations: Sequence[Put | Delete],
        *,
        timeout_s: float = 5.0,
    ) -> TxnResult:
        """Carry out all operations if all guards hold, else none. See Coordinator."""
        point = f"etcd.txn.{kind_of([operation.key for operation in operations])}"
        self._failpoints.reach(point, "before")
        result = await self._coord.txn(guards, operations, timeout_s=timeout_s)
        self._failpoints.reach(point, "after")
        return result

    async def grant_lease(self, ttl_s: int, *, timeout_s: float = 5.0) -> int:
        """Return the id of a new lease. See Coordinator."""
        self._failpoints.reach("etcd.lease", "before")
        return await self._coord.grant_lease(ttl_s, timeout_s=timeout_s)

    async def renew_lease(self, lease_id: int, *, timeout_s: float = 5.0) -> int:
        """Renew a lease. See Coordinator."""
        self._failpoints.reach("etcd.lease", "before")
        return await self._coord.renew_lease(lease_id, timeout_s=timeout_s)

    async def revoke_lease(self, lease_id: int, *, timeout_s: float = 5.0) -> None:
        """End a lease and delete its keys. See Coordinator."""
        self._failpoints.reach("etcd.lease", "before")
        await self._coord.revoke_lease(lease_id, timeout_s=timeout_s)

    def watch(self, prefix: str) -> AsyncIterator[WatchEvent]:
        """Yield a listing, then every change. See Coordinator."""
        return self._coord.watch(prefix)

    async def aclose(self) -> None:
        """Release connections."""
        await self._coord.aclose()
