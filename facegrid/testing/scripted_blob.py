"""A store that fails as its script says, for tests of what is built on stores."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from facegrid.blob.port import BlobStore
from facegrid.errors import FacegridError


@dataclass(frozen=True, slots=True)
class Refused:
    """The next call fails and has no effect."""

    error: FacegridError


@dataclass(frozen=True, slots=True)
class Lost:
    """The next call takes effect, and its answer is lost."""

    error: FacegridError


@dataclass(frozen=True, slots=True)
class Passed:
    """The next call goes well."""


Step = Refused | Lost | Passed


class ScriptedBlobStore:
    """A BlobStore that plays one step for each call, and is sound when the script has ended.

    Attributes:
        calls: names of the methods called, in order.
    """

    def __init__(self, store: BlobStore, script: Iterable[Step] = ()) -> None:
        self._store = store
        self.script = deque(script)
        self.calls: list[str] = []

    async def put_new(self, name: str, data: bytes) -> None:
        """Store an object under a name never used before. See BlobStore."""
        lost = self._refuse_or_lose("put_new")
        await self._store.put_new(name, data)
        _raise(lost)

    async def get(self, name: str) -> bytes:
        """Return an object's bytes. See BlobStore."""
        lost = self._refuse_or_lose("get")
        data = await self._store.get(name)
        _raise(lost)
        return data

    async def list(self, prefix: str) -> Sequence[str]:
        """Return the names that begin with a prefix, sorted. See BlobStore."""
        lost = self._refuse_or_lose("list")
        names = await self._store.list(prefix)
        _raise(lost)
        return names

    async def delete(self, name: str) -> None:
        """Delete an object. See BlobStore."""
        lost = self._refuse_or_lose("delete")
        await self._store.delete(name)
        _raise(lost)

    def _refuse_or_lose(self, call: str) -> FacegridError | None:
        """Begin a call; return the error that takes the place of its answer."""
        self.calls.append(call)
        step = self.script.popleft() if self.script else Passed()
        match step:
            case Refused():
                raise step.error
            case Lost():
                return step.error
            case Passed():
                return None


def _raise(error: FacegridError | None) -> None:
    if error is not None:
        raise error
