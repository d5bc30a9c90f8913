"""Erasures acknowledged while reads were under way, so that no answer given after one holds it.

A node's answer may wait here for slower nodes, and in the meantime what it contains may be erased
and the erasure be acknowledged. So every read is looked at once more as it is given out. Only what
this router acknowledged can be known here: through another one, a read that began before the
acknowledgement may still show what was erased.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, TypeVar

from facegrid.errors import UnavailableError
from facegrid.ids import GalleryName

T = TypeVar("T")
Name = tuple[str, str]
"""Subject, template."""

IDS_KEPT_MAX: Final = 262_144
"""Ids kept per gallery. A read that began before one let go of is made once more in any case."""


@dataclass(frozen=True, slots=True)
class _Erasure:
    subject_ids: frozenset[str]
    template_ids: frozenset[str]

    @property
    def ids_count(self) -> int:
        return len(self.subject_ids) + len(self.template_ids)


@dataclass(frozen=True, slots=True)
class Gone:
    """What was erased since a read began.

    Attributes:
        erasures: those known.
        unknown: whether there were more, that are known no longer.
    """

    erasures: tuple[_Erasure, ...]
    unknown: bool

    @property
    def nothing(self) -> bool:
        """Whether nothing was erased, so that what came need not be looked at."""
        return not self.erasures and not self.unknown

    def __contains__(self, name: Name) -> bool:
        """Tell whether a template of a subject was erased."""
        subject_id, template_id = name
        return any(
            subject_id in erasure.subject_ids or template_id in erasure.template_ids
            for erasure in self.erasures
        )

    def spoils(self, names: Collection[Name]) -> bool:
        """Tell whether any of these was erased."""
        subject_ids = {subject_id for subject_id, _ in names}
        template_ids = {template_id for _, template_id in names}
        return bool(names) and (
            self.unknown
            or any(
                not erasure.subject_ids.isdisjoint(subject_ids)
                or not erasure.template_ids.isdisjoint(template_ids)
                for erasure in self.erasures
            )
        )


@dataclass(slots=True, eq=False)
class _Read:
    """A read under way; `first` is the number of the first erasure after it began."""

    first: int


@dataclass(slots=True)
class _Log:
    """One gallery's reads in the order they began, and the erasures since the oldest of them."""

    reads: dict[_Read, None] = field(default_factory=dict)
    erasures: deque[_Erasure] = field(default_factory=deque)
    first: int = 0
    ids_count: int = 0

    @property
    def next(self) -> int:
        return self.first + len(self.erasures)

    def forget(self) -> None:
        self.ids_count -= self.erasures.popleft().ids_count
        self.first += 1


class Erasures:
    """Remembers acknowledged erasures as long as a read is under way that began before them.

    Args:
        ids_max: how many ids to keep per gallery.
    """

    def __init__(self, *, ids_max: int = IDS_KEPT_MAX) -> None:
        self._ids_max = ids_max
        self._logs: dict[GalleryName, _Log] = {}

    @property
    def ids_count(self) -> int:
        """Ids kept, of all galleries."""
        return sum(log.ids_count for log in self._logs.values())

    def acknowledge(
        self, gallery: GalleryName, *, subject_ids: Collection[str], template_ids: Collection[str]
    ) -> None:
        """Take notice of an erasure that is complete; to be called before anybody is told."""
        log = self._logs.get(gallery)
        if log is None:
            return
        erasure = _Erasure(frozenset(subject_ids), frozenset(template_ids))
        log.erasures.append(erasure)
        log.ids_count += erasure.ids_count
        while log.ids_count > self._ids_max:
            log.forget()

    async def settled(
        self,
        gallery: GalleryName,
        read: Callable[[], Awaitable[T]],
        names: Callable[[T], Collection[Name]],
        without: Callable[[T, Gone], T],
    ) -> T:
        """Return what a read gives, without anything whose erasure was acknowledged by now.

        Args:
            gallery: what is read.
            read: reads; called a second time if what came was erased meanwhile.
            names: returns the templates in what came.
            without: takes out what was erased while the second read was under way too.

        Raises:
            UnavailableError: too much was erased meanwhile to tell (ERASED_MEANWHILE).
        """
        with self._reading(gallery) as gone_since:
            answer = await read()
            gone = gone_since()
            if gone.nothing or not gone.spoils(names(answer)):
                return answer
        with self._reading(gallery) as gone_since:
            answer = await read()
            gone = gone_since()
            if gone.nothing or not gone.spoils(names(answer)):
                return answer
            if gone.unknown:
                raise erased_meanwhile()
            return without(answer, gone)

    @contextmanager
    def _reading(self, gallery: GalleryName) -> Iterator[Callable[[], Gone]]:
        """Keep erasures while a read is under way; gives what returns those since it began."""
        log = self._logs.setdefault(gallery, _Log())
        read = _Read(log.next)
        log.reads[read] = None

        def gone_since() -> Gone:
            seen = max(read.first - log.first, 0)
            return Gone(tuple(islice(log.erasures, seen, None)), unknown=read.first < log.first)

        try:
            yield gone_since
        finally:
            del log.reads[read]
            oldest = next(iter(log.reads), None)
            if oldest is None:
                del self._logs[gallery]
            while oldest is not None and log.first < oldest.first:
                log.forget()


def erased_meanwhile() -> UnavailableError:
    """Return the error for a read during which too much was erased."""
    return UnavailableError(
        "what was read was erased while it was read: repeat the call", reason="ERASED_MEANWHILE"
    )
