"""What exact search answers: float32 cosines of every probe with every template.

The gallery streams through in blocks of any size, so its size is bounded by patience, not memory.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from facegrid.vectors import Float32

Int64 = npt.NDArray[np.int64]

FIRST_ROWS = 64
ROWS_MAX = 8192


@dataclass(frozen=True, slots=True)
class Ranking:
    """What one probe was answered: distinct subjects by falling score."""

    subject_ids: tuple[str, ...]
    scores: tuple[float, ...]

    @property
    def best(self) -> str | None:
        """The subject at rank 1."""
        return self.subject_ids[0] if self.subject_ids else None

    @property
    def best_score(self) -> float:
        """The score at rank 1, minus infinity where there is no candidate."""
        return self.scores[0] if self.scores else float("-inf")


class ExactSearch:
    """Keeps the best `k` subjects of each probe while templates pass by.

    Args:
        probes: float32 [m, dim] of norm 1.
        k: subjects kept per probe.
    """

    def __init__(self, probes: Float32, *, k: int) -> None:
        self._probes = probes
        self._k = k
        self._names: list[str] = []
        self._numbers: dict[str, int] = {}
        self._rows_seen = 0
        # Best first; -1 and minus infinity where there is no subject yet.
        self._subjects = np.full((len(probes), k), -1, np.int64)
        self._scores = np.full((len(probes), k), -np.inf, np.float32)

    def add(self, x: Float32, subject_ids: list[str]) -> None:
        """Search templates, float32 [n, dim] of norm 1."""
        first = 0
        while first < len(x):
            # Growing pieces: after each, few rows can still beat what is held.
            last = first + min(max(self._rows_seen, FIRST_ROWS), ROWS_MAX)
            self._add_piece(x[first:last], subject_ids[first:last])
            self._rows_seen += len(subject_ids[first:last])
            first = last

    def rankings(self) -> list[Ranking]:
        """Return the answers so far, probe by probe; equal scores in the order of subject ids."""
        return [
            _ranking(self._subjects[probe], self._scores[probe], self._names)
            for probe in range(len(self._probes))
        ]

    def _add_piece(self, x: Float32, subject_ids: list[str]) -> None:
        numbers = np.array([self._number(name) for name in subject_ids])
        scores: Float32 = self._probes @ x.T
        probes, columns = np.nonzero(scores > self._scores[:, -1:])
        held = np.nonzero(self._subjects >= 0)
        self._keep_best(
            np.concatenate([held[0], probes]),
            np.concatenate([self._subjects[held], numbers[columns]]),
            np.concatenate([self._scores[held], scores[probes, columns]]),
        )

    def _keep_best(self, probes: Int64, subjects: Int64, scores: Float32) -> None:
        """Set what is held to the best of these entries, each subject at most once per probe."""
        order = np.lexsort((-scores, subjects, probes))
        probes, subjects, scores = probes[order], subjects[order], scores[order]
        again = (np.diff(probes, prepend=-1) == 0) & (np.diff(subjects, prepend=-1) == 0)
        probes, subjects, scores = probes[~again], subjects[~again], scores[~again]
        order = np.lexsort((subjects, -scores, probes))
        probes, subjects, scores = probes[order], subjects[order], scores[order]
        place = np.arange(len(probes)) - np.searchsorted(probes, probes)
        kept = place < self._k
        self._subjects[probes[kept], place[kept]] = subjects[kept]
        self._scores[probes[kept], place[kept]] = scores[kept]

    def _number(self, name: str) -> int:
        number = self._numbers.setdefault(name, len(self._names))
        if number == len(self._names):
            self._names.append(name)
        return number


def _ranking(subjects: Int64, scores: Float32, names: list[str]) -> Ranking:
    pairs = zip(subjects.tolist(), scores.tolist(), strict=True)
    rows = sorted((-score, names[subject]) for subject, score in pairs if subject >= 0)
    return Ranking(tuple(name for _, name in rows), tuple(-score for score, _ in rows))
