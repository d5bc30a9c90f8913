"""Tries again what a store did not answer, within a budget of time.

Reads and deletions are tried again freely. put_new is told "exists" by its own earlier attempt
when that took effect and its answer was lost: after a failure, "exists" is therefore resolved by
reading back. The same bytes mean that the object is there as asked for.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from facegrid.blob.port import BlobStore
from facegrid.clock import Clock
from facegrid.errors import ConflictError, NotFoundError, OverloadedError, UnavailableError
from facegrid.retry import Backoff

LASTING: Final = frozenset(
    {"STORE_BUCKET_UNKNOWN", "STORE_DENIED", "STORE_FULL", "STORE_SYNC_FAILED", "STORE_UNSAFE"}
)
"""Reasons that seconds do not cure."""

T = TypeVar("T")


class RetryingStore:
    """A BlobStore that bridges short failures of another.

    When the budget is spent, put_new raises the last error: UnavailableError, or OverloadedError
    while the store asks to slow down, which makes those slower who wait for the write. Reads and
    deletions raise UnavailableError for both.

    Args:
        store: what really stores.
        clock: measures the budget and waits.
        backoff: delays between attempts.
        budget_s: no attempt begins later than this after the first. The last one may take as long
            as the store lets it.
    """

    def __init__(
        self, store: BlobStore, *, clock: Clock, backoff: Backoff, budget_s: float
    ) -> None:
        assert budget_s > 0, "a budget must allow for something"
        self._store = store
        self._clock = clock
        self._backoff = backoff
        self._budget_s = budget_s

    async def put_new(self, name: str, data: bytes) -> None:
        """Store an object durably under a name never used before. See BlobStore."""
        put = _Put(self._store, name, data)
        await self._persist(put.attempt)

    async def get(self, name: str) -> bytes:
        """Return an object's bytes. See BlobStore."""
        return await self._patiently(lambda: self._store.get(name))

    async def list(self, prefix: str) -> Sequence[str]:
        """Return the names that begin with a prefix, sorted. See BlobStore."""
        return await self._patiently(lambda: self._store.list(prefix))

    async def delete(self, name: str) -> None:
        """Delete an object durably. See BlobStore."""
        await self._patiently(lambda: self._store.delete(name))

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Persist; who only reads need not know why the store cannot be had."""
        try:
            return await self._persist(attempt)
        except OverloadedError as error:
            raise UnavailableError(error.message, reason=error.reason, **error.facts) from error

    async def _persist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Return what an attempt returns; between failures wait, until the budget is spent."""
        end_s = self._clock.now_s() + self._budget_s
        delays = iter(self._backoff)
        while True:
            try:
                return await attempt()
            except (UnavailableError, OverloadedError) as error:
                delay_s = next(delays)
                if error.reason in LASTING or self._clock.now_s() + delay_s > end_s:
                    raise
            await self._clock.sleep(delay_s)


class _Put:
    """One object on its way: knows whether an attempt may have taken effect already."""

    def __init__(self, store: BlobStore, name: str, data: bytes) -> None:
        self._store = store
        self._name = name
        self._data = data
        self._doubtful = False

    async def attempt(self) -> None:
        """Put the object, or find that an earlier attempt did."""
        try:
            await self._store.put_new(self._name, self._data)
        except (UnavailableError, OverloadedError):
            self._doubtful = True
            raise
        except ConflictError:
            if not (self._doubtful and await self._is_there()):
                raise

    async def _is_there(self) -> bool:
        try:
            return await self._store.get(self._name) == self._data
        except NotFoundError:
            # Deleted since it was refused; the caller hears that somebody had the name.
            return False
