"""Writes as a shard receives them, what became of them, and what makes retries harmless."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from facegrid import limits
from facegrid.errors import InvalidError
from facegrid.format.log import LogRecord
from facegrid.format.sources import InheritedRequest
from facegrid.ids import ID_BYTES_MAX, ShardId
from facegrid.model import HashRange
from facegrid.vectors import Int8


@dataclass(frozen=True, eq=False)
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
        templates = [one.encode() for one in self.template_ids]
        return _digest(b"enrol", [templates, self.subjects], self.codes.tobytes())

    @cached_property
    def subjects(self) -> list[bytes]:
        """The subject ids in UTF-8."""
        return [one.encode() for one in self.subject_ids]


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
        ids = [[one.encode() for one in ids] for ids in (self.template_ids, self.subject_ids)]
        return _digest(b"erase", ids, b"")


@dataclass(frozen=True, slots=True)
class NamedSegment:
    """A segment of a bulk load: its sha256 in hex, and how many rows its loader says it has."""

    sha256: str
    rows_count: int


@dataclass(frozen=True, slots=True)
class Step:
    """How far another shard is brought in by one request, and how far it must be before."""

    source: ShardId
    after: int
    last: int


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """Segments of a bulk load, to be added all at once.

    Attributes:
        request_id: of the load.
        segments: what is added.
        step: they come from another shard.
        inherited: and so do the requests that this has carried out.
    """

    request_id: str
    segments: tuple[NamedSegment, ...]
    step: Step | None = None
    inherited: tuple[InheritedRequest, ...] = ()

    @property
    def size_bytes(self) -> int:
        """About the bytes it takes in the log."""
        segments_bytes = sum(64 + segment.rows_count // 8 for segment in self.segments)
        return segments_bytes + 64 * len(self.inherited)

    def digest(self) -> bytes:
        """Return 16 bytes that stand for what is asked."""
        hashes = [segment.sha256.encode() for segment in self.segments]
        counts = [str(segment.rows_count).encode() for segment in self.segments]
        return _digest(b"load", [hashes, counts], b"")


@dataclass(frozen=True, slots=True)
class MirrorRequest:
    """Records of another shard, to be added as they are, each with the source's position.

    They are enrolments and erasures, in order. `size_bytes` is about what they take in the log.
    """

    request_id: str
    step: Step
    records: tuple[LogRecord, ...]
    size_bytes: int

    def digest(self) -> bytes:
        """Return 16 bytes that stand for what is asked."""
        positions = [str(self.step.after).encode(), str(self.step.last).encode()]
        return _digest(b"mirror", [[self.step.source.encode()], positions], b"")


WriteRequest = EnrolRequest | EraseRequest | LoadRequest | MirrorRequest


_LENGTHS = [number.to_bytes(2, "little") for number in range(ID_BYTES_MAX + 1)]
"""As they stand before texts, of which none is longer."""


def _digest(kind: bytes, lists: list[list[bytes]], rest: bytes) -> bytes:
    """Hash ids and bytes; lengths go in too, so that no two requests run into one another."""
    state = hashlib.blake2b(kind, digest_size=16)
    for texts in lists:
        assert max(map(len, texts), default=0) <= ID_BYTES_MAX, "checked where it came in"
        state.update(len(texts).to_bytes(8, "little"))
        state.update(b"".join([_LENGTHS[len(one)] + one for one in texts]))
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

    def __contains__(self, request_id: str) -> bool:
        """Tell whether a request of this id is remembered."""
        return request_id in self._entries

    def __iter__(self) -> Iterator[tuple[str, Remembered]]:
        """Yield id and entry, oldest first."""
        return iter(self._entries.items())

    def __len__(self) -> int:
        """Return how many are remembered."""
        return len(self._entries)


class InheritedRequests:
    """Which requests the shards carried out in whose place this one is, for which keys, in the
    order in which it heard of them; bounded.

    They are not in its own memory, since what a retry asks of this shard is another part of the
    request than was asked before.
    """

    def __init__(self, count_max: int = limits.REQUESTS_INHERITED_MAX) -> None:
        self._entries: OrderedDict[InheritedRequest, None] = OrderedDict()
        self._ranges: dict[str, list[HashRange]] = {}
        self._count_max = count_max

    def note(self, requests: Iterable[InheritedRequest]) -> None:
        """Keep requests; the oldest go when there are too many."""
        for request in requests:
            if request in self._entries:
                continue
            self._entries[request] = None
            self._ranges.setdefault(request.request_id, []).append(request.range)
            if len(self._entries) > self._count_max:
                self._forget_oldest()

    def has(self, request_id: str) -> bool:
        """Tell whether anything is known of a request."""
        return request_id in self._ranges

    def done_for(self, request_id: str, key: int) -> bool:
        """Tell whether a request was carried out for a key before it came here."""
        return any(one.contains(key) for one in self._ranges.get(request_id, ()))

    def done_in(self, request_id: str, key_range: HashRange) -> bool:
        """Tell whether a request was carried out for all keys of a range before it came here."""
        following = key_range.first
        for one in sorted(self._ranges.get(request_id, ())):
            if one.first <= following:
                following = max(following, one.last + 1)
        return following > key_range.last

    def _forget_oldest(self) -> None:
        oldest, _ = self._entries.popitem(last=False)
        ranges = self._ranges[oldest.request_id]
        ranges.remove(oldest.range)
        if not ranges:
            del self._ranges[oldest.request_id]

    def __iter__(self) -> Iterator[InheritedRequest]:
        """Yield them, oldest first."""
        return iter(self._entries)

    def __len__(self) -> int:
        """Return how many are kept."""
        return len(self._entries)
