"""What facegrid asks of its coordinator: a small, ordered, guarded key-value store.

The real one is etcd (`facegrid.coord.etcd`); the twin for tests is
`facegrid.testing.memory_coord`. One conformance suite holds both to the same behaviour.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A key as it stands. `mod_revision` is the revision of its last write."""

    key: str
    value: bytes
    mod_revision: int
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Guard:
    """Holds when the key's last write has this revision; 0 means: the key does not exist."""

    key: str
    mod_revision: int


@dataclass(frozen=True, slots=True)
class ValueGuard:
    """Holds when the key exists with exactly this value."""

    key: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Put:
    """Writes a key, under a lease if one is given."""

    key: str
    value: bytes
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Deletes a key; deleting what is not there is no error."""

    key: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Keys of a prefix, by name, all as of one revision of the store."""

    revision: int
    items: tuple[KeyValue, ...]


@dataclass(frozen=True, slots=True)
class TxnResult:
    """What became of a transaction: its revision, and whether the guards held."""

    succeeded: bool
    revision: int


@dataclass(frozen=True, slots=True)
class Changed:
    """One key was written (`item`) or deleted (`item` is None) at a revision."""

    kind: Literal["put", "delete"]
    key: str
    item: KeyValue | None
    revision: int


@dataclass(frozen=True, slots=True)
class Listing:
    """The whole prefix as of one revision: the first event of every watch, and again whenever
    changes may have been missed (compaction, a dead stream). Replaces all that was known.
    """

    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Progress:
    """Nothing happened up to this revision: the watch is alive and has missed nothing."""

    revision: int


WatchEvent = Listing | Changed | Progress


class Coordinator(Protocol):
    """Reads are linearizable. Every method raises UnavailableError when the store cannot be
    reached within the time given, which leaves the outcome of a write unknown: read back.
    """

    async def get(self, key: str, *, timeout_s: float = 5.0) -> KeyValue | None:
        """Return one key, or None where there is none."""
        ...

    async def list(self, prefix: str, *, timeout_s: float = 5.0) -> Snapshot:
        """Return all keys of a prefix at one revision."""
        ...

    async def get_many(
        self, names: Sequence[str], *, heads: Sequence[str] = (), timeout_s: float = 5.0
    ) -> Snapshot:
        """Return those of some keys that exist, by name, all as of one revision; of `heads` only
        the revision of the last write, with an empty value. At most
        limits.ETCD_TXN_OPERATIONS_MAX keys and heads together, each once.
        """
        ...

    async def txn(
        self,
        guards: Sequence[Guard | ValueGuard],
        operations: Sequence[Put | Delete],
        *,
        timeout_s: float = 5.0,
    ) -> TxnResult:
        """Carry out all operations if all guards hold, else none."""
        ...

    async def grant_lease(self, ttl_s: int, *, timeout_s: float = 5.0) -> int:
        """Return the id of a new lease that ends `ttl_s` after its last renewal."""
        ...

    async def renew_lease(self, lease_id: int, *, timeout_s: float = 5.0) -> int:
        """Renew a lease; return the seconds granted.

        Raises:
            NotFoundError: the lease has ended; its keys are gone.
        """
        ...

    async def revoke_lease(self, lease_id: int, *, timeout_s: float = 5.0) -> None:
        """End a lease and delete its keys; no error when it has ended already."""
        ...

    def watch(self, prefix: str) -> AsyncIterator[WatchEvent]:
        """Yield a Listing, then every change in order, and Progress at least every few seconds.

        Never ends by itself and never raises on outages: it reconnects, and where changes may have
        been missed it yields a new Listing. Events of one revision come together. Silence longer
        than the progress interval therefore means: the coordinator cannot be reached.
        """
        ...

    async def aclose(self) -> None:
        """Release connections."""
        ...
