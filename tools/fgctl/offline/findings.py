"""What a check of a store finds, and reading objects so that every failure becomes a finding."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TypeVar

from facegrid.blob.reader import BlobReader
from facegrid.errors import CorruptError, NotFoundError, UnavailableError
from facegrid.format.checks import sha256_hex
from facegrid.format.inventory import named_sha256

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong. `name` is the object's, or where it should be."""

    name: str
    reason: str
    problem: str


@dataclass(frozen=True, slots=True)
class Note:
    """An object that is in order but that nothing needs, and why."""

    name: str
    why: str


@dataclass(slots=True)
class Findings:
    """All that was found, in the order found."""

    problems: list[Problem] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    def problem(self, name: str, reason: str, problem: str) -> None:
        """Add a problem."""
        self.problems.append(Problem(name, reason, problem))

    def corrupt(self, name: str, error: CorruptError) -> None:
        """Add what a decoder refused."""
        reason = "OBJECT_DAMAGED" if error.reason == "CORRUPT" else error.reason
        self.problem(name, reason, error.message)

    def note(self, name: str, why: str) -> None:
        """Add an object that nothing needs."""
        self.notes.append(Note(name, why))


class Objects:
    """Objects of a store, read one at a time.

    Args:
        reader: the store.
        names: of all objects in it, to say whose bytes those in a wrong place are.
        findings: where failures go.
        on_read: called when an object is read for the first time.
    """

    def __init__(
        self,
        reader: BlobReader,
        names: Collection[str],
        findings: Findings,
        on_read: Callable[[], None] = lambda: None,
    ) -> None:
        self.names = frozenset(names)
        self.findings = findings
        self._reader = reader
        self._on_read = on_read
        self._read: set[str] = set()
        self._by_hash = {named_sha256(name): name for name in names}

    async def read(self, name: str) -> bytes | None:
        """Return an object's bytes; None, and a finding, if they cannot be had."""
        try:
            return await self._reader.get(name)
        except NotFoundError:
            self.findings.problem(name, "OBJECT_MISSING", "object is missing")
        except UnavailableError as error:
            self.findings.problem(name, "OBJECT_UNREADABLE", error.message)
        finally:
            if name not in self._read:
                self._read.add(name)
                self._on_read()
        return None

    async def decoded(self, name: str, decode: Callable[[bytes], T]) -> T | None:
        """Return what an object holds; None, and a finding, if it is damaged."""
        data = await self.read(name)
        if data is None:
            return None
        try:
            return decode(data)
        except CorruptError as error:
            self.findings.corrupt(name, error)
        return None

    async def hashed(self, name: str, decode: Callable[[bytes], T]) -> T | None:
        """Return what an object holds that is named by its hash; None, and a finding, if not."""
        data = await self.read(name)
        if data is None:
            return None
        found = sha256_hex(data)
        if found != named_sha256(name):
            other = self._by_hash.get(found)
            if other is None:
                problem = f"bytes do not match the name: {_damage(data, decode)}"
                self.findings.problem(name, "OBJECT_DAMAGED", problem)
            else:
                self.findings.problem(name, "OBJECT_SWAPPED", f"its bytes are those of {other}")
            return None
        try:
            return decode(data)
        except CorruptError as error:
            self.findings.corrupt(name, error)
        return None


def _damage(data: bytes, decode: Callable[[bytes], object]) -> str:
    """Say what the decoder thinks of bytes that are known to be wrong."""
    try:
        decode(data)
    except CorruptError as error:
        return error.message
    return "whole, but other bytes"
