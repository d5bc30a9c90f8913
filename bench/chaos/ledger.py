"""What was sent and what was acknowledged: a file, synced before an acknowledgement counts.

Every subject is enrolled once, with one template, whose vector follows from its id; so the audit
needs nothing but the file.
"""

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

import facegrid
from facegrid.clock import Clock
from facegrid.ids import subject_key
from facegrid.vectors import Float32

DIM = 64

Verb = Literal["enrol", "erase"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the ledger: a write that is about to be sent, or that was acknowledged."""

    verb: Verb
    acked: bool
    request_id: str
    subject_ids: Sequence[str]
    at_s: float


@dataclass(slots=True)
class Fate:
    """What is known of a subject; times are of the one clock of this process."""

    request_id: str = ""
    enrolled_s: float | None = None
    erasing: bool = False
    erased_s: float | None = None

    def take(self, entry: Entry) -> None:
        """Note an entry that is about the subject."""
        if entry.verb == "enrol":
            self.request_id = entry.request_id
            if entry.acked and self.enrolled_s is None:
                self.enrolled_s = entry.at_s
        else:
            self.erasing = True
            if entry.acked:
                self.erased_s = entry.at_s

    @property
    def must_be_there(self) -> bool:
        """Enrolled for certain, and nobody tried to erase it."""
        return self.enrolled_s is not None and not self.erasing

    @property
    def must_be_gone(self) -> bool:
        """Erased for certain."""
        return self.erased_s is not None


def template_of(subject_id: str) -> str:
    """Return the id of a subject's template."""
    return f"t-{subject_id}"


def vector_of(subject_id: str) -> Float32:
    """Return the vector of a subject's template, float32 [DIM] of norm 1."""
    rng = np.random.default_rng(subject_key(subject_id))
    vector = rng.standard_normal(DIM)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def vectors_of(subject_ids: Sequence[str]) -> Float32:
    """Return their vectors, [subjects, DIM]."""
    return np.stack([vector_of(subject_id) for subject_id in subject_ids])


class Ledger:
    """Appends to the file, and knows of every subject what the file says. Safe for threads."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._clock = clock
        self._file = path.open("a", encoding="utf-8")
        self._lock = threading.Lock()
        self._token = facegrid.Token()
        self._enrolled: list[str] = []
        self._requests: dict[str, Sequence[str]] = {}
        self.fates: dict[str, Fate] = {}
        self.acks_count = 0

    @property
    def token(self) -> facegrid.Token:
        """Covers everything acknowledged so far."""
        with self._lock:
            return self._token

    def send(self, verb: Verb, request_id: str, subject_ids: Sequence[str]) -> None:
        """Note that a write is about to be sent."""
        entry = self._entry(verb, request_id, subject_ids, acked=False)
        with self._lock:
            self._requests[request_id] = subject_ids
            self._write(entry)

    def request(self, request_id: str) -> Sequence[str]:
        """Return the subjects of a request that was sent."""
        with self._lock:
            return self._requests[request_id]

    def acknowledge(
        self,
        verb: Verb,
        request_id: str,
        subject_ids: Sequence[str],
        *,
        token: facegrid.Token | None = None,
        lasting: bool = False,
    ) -> None:
        """Note that a write was acknowledged; it counts from the moment this returns.

        A stream has no token before its end: leave it out until then. Subjects of a lasting
        enrolment are never chosen by `someone`.
        """
        with self._lock:
            if token is not None:
                self._token |= token
            self._write(self._entry(verb, request_id, subject_ids, acked=True))
            os.fsync(self._file.fileno())
            self.acks_count += 1
            if verb == "enrol" and not lasting:
                self._enrolled += subject_ids

    def extend(self, token: facegrid.Token) -> None:
        """Take in the token of a stream that ended."""
        with self._lock:
            self._token |= token

    def someone(self, rng: np.random.Generator) -> str | None:
        """Return a subject that was enrolled, erased since or not; None while there is none."""
        with self._lock:
            return self._enrolled[rng.integers(len(self._enrolled))] if self._enrolled else None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _entry(
        self, verb: Verb, request_id: str, subject_ids: Sequence[str], *, acked: bool
    ) -> Entry:
        return Entry(verb, acked, request_id, subject_ids, self._clock.now_s())

    def _write(self, entry: Entry) -> None:
        self._file.write(json.dumps(asdict(entry)) + "\n")
        self._file.flush()
        note(self.fates, entry)


def note(fates: dict[str, Fate], entry: Entry) -> None:
    """Note an entry for every subject that it is about."""
    for subject_id in entry.subject_ids:
        fates.setdefault(subject_id, Fate()).take(entry)


def read(path: Path) -> dict[str, Fate]:
    """Return what a ledger says of every subject."""
    fates: dict[str, Fate] = {}
    with path.open(encoding="utf-8") as file:
        for line in file:
            note(fates, Entry(**json.loads(line)))
    return fates
