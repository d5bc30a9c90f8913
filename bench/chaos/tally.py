"""What the load saw: gaps between writes, reads that failed, answers that must not be."""

import bisect
import threading
from collections import Counter
from collections.abc import Iterable, Sequence

from facegrid.clock import Clock
from facegrid.ids import subject_key

PROBLEMS_MAX = 200


class WriteGaps:
    """For each shard the longest time without an acknowledged write. Safe for threads."""

    def __init__(self, firsts: Sequence[int], clock: Clock) -> None:
        self._firsts = list(firsts)
        self._clock = clock
        self._lock = threading.Lock()
        self._last_s = [clock.now_s()] * len(self._firsts)
        self._longest_s = [0.0] * len(self._firsts)

    @property
    def shards_count(self) -> int:
        """The number of shards."""
        return len(self._firsts)

    @property
    def longest_s(self) -> float:
        """The longest gap of any shard."""
        with self._lock:
            return max(self._longest_s)

    @property
    def open_s(self) -> float:
        """The longest time that has gone by since a write to any shard."""
        with self._lock:
            return self._clock.now_s() - min(self._last_s)

    def fresh(self) -> "WriteGaps":
        """Return the same shards, of which no gap is known yet."""
        return WriteGaps(self._firsts, self._clock)

    def shard_of(self, subject_id: str) -> int:
        """Return the number of a subject's shard, by the start of its range."""
        return bisect.bisect_right(self._firsts, subject_key(subject_id)) - 1

    def acked(self, subject_ids: Iterable[str]) -> None:
        """Note an acknowledged write."""
        with self._lock:
            now_s = self._clock.now_s()
            for number in {self.shard_of(subject_id) for subject_id in subject_ids}:
                gap_s = now_s - self._last_s[number]
                self._longest_s[number] = max(self._longest_s[number], gap_s)
                self._last_s[number] = now_s


class Tally:
    """Counts, and says what went wrong. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.done: Counter[str] = Counter()
        self.lost: set[str] = set()
        self.resurrected: set[str] = set()
        self.failed_reads: list[str] = []
        self.problems: list[str] = []
        self.read_s_max = 0.0

    def did(self, what: str, count: int = 1) -> None:
        """Count something that was done."""
        with self._lock:
            self.done[what] += count

    def read_took(self, duration_s: float) -> None:
        """Note how long a read took."""
        with self._lock:
            self.read_s_max = max(self.read_s_max, duration_s)

    def lose(self, subject_id: str) -> None:
        """Note that a subject was not found that must be."""
        with self._lock:
            self.lost.add(subject_id)

    def resurrect(self, subject_id: str) -> None:
        """Note that a subject was found after its erasure was acknowledged."""
        with self._lock:
            self.resurrected.add(subject_id)

    def read_failed(self, why: str) -> None:
        """Note a read that got no answer in its time."""
        with self._lock:
            self.failed_reads.append(why)

    def problem(self, what: str) -> None:
        """Note anything else that must not be."""
        with self._lock:
            if len(self.problems) < PROBLEMS_MAX:
                self.problems.append(what)

    @property
    def clean(self) -> bool:
        """Whether nothing was seen that must not be."""
        return not (self.lost or self.resurrected or self.failed_reads or self.problems)
