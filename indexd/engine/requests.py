"""Writes as a shard receives them, what became of them, and what makes retries harmless."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from facegrid import limits
from facegrid.errors import InvalidError
from facegrid.vectors import Int8


@dataclass(frozen=True, slots=True, eq=False)
class EnrolRequest:
    """Rows to enrol. `codes` is int8 [n, dim]; ids are checked."""

    request_id: str
    template_ids: list[str]
    subject_ids: list[str]
    codes: Int8

    @property
    def size_bytes(self) -> int:
        """About the bytes it takes in the log."""
        return self.codes.nbytes + 48 * len(self.template_ids)

    def digest(self) -> bytes:
        """Return 16 bytes that stand for what is asked."""
        return _digest(b"enrol", [self.template_ids, self.subject_ids], self.codes.tobytes())


@dataclass(frozen=True, slots=True)
class EraseRequest:
    """Templates and subjects to erase."""

    request_id: str
    template_ids: list[str]
    subject_ids: list[str]

    @property
    def size_bytes(self) -> int:
        """About the bytes it takes in the log."""
        return 48 * (len(self.template_ids) + len(self.subject_ids))

    def digest(self) -> bytes:
        """Return 16 bytes that stand for what is asked."""
        return _digest(b"erase", [self.template_ids, self.subject_ids], b"")


WriteRequest = EnrolRequest | EraseRequest


def _digest(kind: bytes, lists: list[list[str]], rest: bytes) -> bytes:
    """Hash ids and bytes; lengths go in too, so that no two requests run into one another."""
    state = hashlib.blake2b(kind, digest_size=16)
    for texts in lists:
        state.update(len(texts).to_bytes(8, "little"))
        for text in texts:
            data = text.encode()
            state.update(len(data).to_bytes(2, "little") + data)
    state.update(rest)
    return state.digest()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one write did, and at which position."""

    position: int
    enrolled_count: int = 0
    unchanged_count: int = 0
    erased_count: int = 0


@dataclass(frozen=True, slots=True)
class Remembered:
    """A write that happened, kept so that its retry hears the same."""

    digest: bytes
    outcome: Outcome


class RequestMemory:
    """The last requests of a shard by id, oldest first; bounded."""

    def __init__(self, count_max: int = limits.REQUESTS_REMEMBERED_MAX) -> None:
        self._entries: OrderedDict[str, Remembered] = OrderedDict()
        self._count_max = count_max

    def remember(self, request_id: str, entry: Remembered) -> None:
        """Keep an entry; the oldest goes when there are too many."""
        self._entries[request_id] = entry
        if len(self._entries) > self._count_max:
            self._entries.popitem(last=False)

    def recall(self, request: WriteRequest) -> Outcome | None:
        """Return what the request did when it came before, or None.

        Raises:
            InvalidError: its id was used for something else (REQUEST_ID_REUSED).
        """
        entry = self._entries.get(request.request_id)
        if entry is None:
            return None
        if entry.digest != request.digest():
            raise InvalidError(
                "request_id was used before for another request",
                reason="REQUEST_ID_REUSED",
                field="request_id",
            )
        return entry.outcome

    def __iter__(self) -> Iterator[tuple[str, Remembered]]:
        """Yield id and entry, oldest first."""
        return iter(self._entries.items())

    def __len__(self) -> int:
        """Return how many are remembered."""
        return len(self._entries)
