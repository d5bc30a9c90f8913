"""Measuring what an index misses: where the mates of probes stand, against exact search.

The rows of a shard are their own truth. Two templates of one subject are a mated pair: one is the
probe, and its row does not count. One pass over all rows tells for each probe the best row of any
other subject, and how many rows look better by their codes than its mate. It codes the rows again
by itself instead of asking the index, so that searches and writes go on in other threads.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import faiss
import numpy as np

from facegrid import vectors
from facegrid.vectors import Float32, Int8, Int64, Probes
from indexd.ann.codebook import PQ_BITS, Codebook
from indexd.ann.pseudo import NOISE_ROWS, mated_cosines, pseudo_probes
from indexd.ann.rows import Block, Int32, Rows

BLOCK_ROWS: Final = 4096
"""Rows that all probes of a block meet at a time: between two of them a measurement can end."""
BLOCK_PROBES: Final = 512
"""Probes measured in one pass: enough that widening and coding the rows costs little beside."""
ROUNDING_SDS: Final = 2.0
"""A scan rounds its tables to 8 bits. Rows that so much of that could lift above a mate count as
better, in standard deviations, so that none is forgotten."""
TABLE_STEPS: Final = 255


class StoppedError(Exception):
    """Nobody wants the measurement any more."""


@dataclass(frozen=True, slots=True)
class Trials:
    """What is measured.

    Attributes:
        mates: int64 [m], for each probe a row of its subject, or the one that it was made of.
        own: int64 [m], the row that is the probe; -1 for probes made from one template and noise.
        pseudo_first: probes from here on are of that kind.
    """

    mates: Int64
    own: Int64
    pseudo_first: int

    def parts(self, size: int) -> Iterator["Trials"]:
        """Yield parts of at most so many probes, all of one kind."""
        bounds = [*range(0, self.pseudo_first, size)]
        bounds += [*range(self.pseudo_first, len(self.own), size), len(self.own)]
        for first, last in pairwise(bounds):
            part = slice(first, last)
            real = last - first if first < self.pseudo_first else 0
            yield Trials(self.mates[part], self.own[part], real)


@dataclass(frozen=True, slots=True)
class Measured:
    """Where mates stand, one entry for each probe.

    Attributes:
        mate_scores: float32 [m], exact score of the best other row of the probe's subject.
        rival_scores: float32 [m], that of the best row of any other subject; -1: none.
        list_places: int32 [m], lists nearer than the mate's.
        code_places: int32 [m], rows that look better than the mate's by their codes, in all lists.
    """

    mate_scores: Float32
    rival_scores: Float32
    list_places: Int32
    code_places: Int32


def choose_trials(rows: Rows, count: int, mates_count_max: int, *, seed: int) -> Trials:
    """Return pairs of rows 0 to count - 1, and single rows where those are fewer than wanted.

    A subject makes one pair at most: a probe drawn from its live templates, and another of them.
    """
    rng = np.random.default_rng(seed)
    numbers = np.arange(count, dtype=np.int64)
    numbers = numbers[~rows.erased(numbers)]
    # Shuffled first, and kept so within a subject: the first two of each are drawn at random.
    numbers = rng.permutation(numbers)
    subjects = rows.subjects(numbers)
    order = np.argsort(subjects, kind="stable")
    numbers, subjects = numbers[order], subjects[order]
    first = np.ones(len(numbers), np.bool_)
    first[1:] = subjects[1:] != subjects[:-1]
    paired = np.flatnonzero(first[:-1] & ~first[1:])
    if len(paired) > mates_count_max:
        paired = rng.choice(paired, mates_count_max, replace=False)
    single = np.flatnonzero(first)
    single = single[~np.isin(single, paired)]
    wanted = min(mates_count_max - len(paired), len(single))
    made_of = numbers[rng.choice(single, wanted, replace=False)] if wanted else numbers[:0]
    return Trials(
        mates=np.concatenate([numbers[paired + 1], made_of]),
        own=np.concatenate([numbers[paired], np.full(wanted, -1, np.int64)]),
        pseudo_first=len(paired),
    )


class Measurement:
    """Measures probes against rows 0 to count - 1, as if all of them were coded."""

    def __init__(self, rows: Rows, count: int, codebook: Codebook) -> None:
        self._rows = rows
        self._count = count
        self._codebook = codebook
        pq: Any = faiss.ProductQuantizer(codebook.dim, codebook.pq_m, PQ_BITS)
        faiss.copy_array_to_vector(np.ascontiguousarray(codebook.pq).reshape(-1), pq.centroids)
        self._pq = pq

    def probes(self, trials: Trials, rng: np.random.Generator) -> Probes:
        """Return the probes of trials, all real or all pseudo."""
        if len(trials.own) and trials.own[0] >= 0:
            return vectors.prepare_probes(vectors.dequantize(self._rows.codes(trials.own)))
        others = rng.choice(self._count, min(NOISE_ROWS, self._count), replace=False)
        return pseudo_probes(
            self._rows.codes(trials.mates),
            self._rows.codes(others),
            mated_cosines(len(trials.mates), rng),
            rng,
        )

    def run(self, trials: Trials, probes: Probes, stopped: Callable[[], bool]) -> Measured:
        """Measure some probes in one pass.

        Raises:
            StoppedError: `stopped` said so between two blocks of rows.
        """
        subjects = self._rows.subjects(trials.mates)
        mates, mate_scores = self._best_mates(trials, probes, subjects)
        mate_codes = self._coded(self._unit(self._rows.codes(mates)))
        floor = np.einsum("ij,ij->i", probes.unit, mate_codes) - self._rounding(probes)
        rivals = np.full(len(probes), -1, np.int64)
        best = np.full(len(probes), -np.inf, np.float32)
        places = np.zeros(len(probes), np.int32)
        for block in self._rows.blocks(0, self._count, rows_max=BLOCK_ROWS):
            if stopped():
                raise StoppedError
            x = self._unit(block.codes, block.squares)
            likely = probes.unit @ self._coded(x).T
            ignored = _ignored(block, trials.own, mates)
            likely[:, block.erased] = -np.inf
            likely[ignored] = -np.inf
            places += np.count_nonzero(likely > floor[:, None], axis=1).astype(np.int32)
            exact = probes.unit @ x.T
            others = self._rows.subjects(np.arange(block.first, block.first + len(block)))
            exact[:, block.erased] = -np.inf
            exact[subjects[:, None] == others[None, :]] = -np.inf
            column = exact.argmax(axis=1)
            value = exact[np.arange(len(probes)), column]
            better = value > best
            best[better] = value[better]
            rivals[better] = column[better] + block.first
        return Measured(
            mate_scores=mate_scores,
            rival_scores=np.where(rivals < 0, np.float32(-1), self._scores(probes, rivals)),
            list_places=self._list_places(probes, mates),
            code_places=places,
        )

    def _best_mates(
        self, trials: Trials, probes: Probes, subjects: Int32
    ) -> tuple[Int64, Float32]:
        """Return the best other live row of each probe's subject, and its score."""
        mates, scores = trials.mates.copy(), self._scores(probes, trials.mates)
        for rows, probe in self._siblings(trials, subjects):
            found = self._scores(probes.part(probe), rows)
            # Ascending by score, so that the best of several rows of one probe is written last.
            order = np.argsort(found, kind="stable")
            order = order[found[order] > scores[probe[order]]]
            mates[probe[order]], scores[probe[order]] = rows[order], found[order]
        return mates, scores

    def _siblings(self, trials: Trials, subjects: Int32) -> list[tuple[Int64, Int64]]:
        """Return live rows of the probes' subjects, and whose probe each is a mate of."""
        order = np.argsort(subjects)
        found: list[tuple[Int64, Int64]] = []
        for block in self._rows.blocks(0, self._count, rows_max=1 << 16):
            numbers = np.arange(block.first, block.first + len(block), dtype=np.int64)
            whose = self._rows.subjects(numbers)
            at = np.minimum(np.searchsorted(subjects[order], whose), len(order) - 1)
            probe = order[at]
            kept = (subjects[probe] == whose) & ~block.erased & (numbers != trials.own[probe])
            # A probe made of one row stands for that row alone: others are real mates of nobody.
            kept &= trials.own[probe] >= 0
            found.append((numbers[kept], probe[kept]))
        return found

    def _scores(self, probes: Probes, rows: Int64) -> Float32:
        """Return the exact score of each probe with one row, float32 [m]."""
        wanted = np.maximum(rows, 0)[:, None]
        scores: Float32 = vectors.scores(
            probes, self._rows.codes(wanted), self._rows.norms(wanted)
        ).reshape(-1)
        return scores

    def _unit(self, codes: Int8, squares: Int32 | None = None) -> Float32:
        """Return stored rows with norm 1, float32 [n, dim]."""
        if squares is None:
            return vectors.dequantize(codes)
        x: Float32 = codes.astype(np.float32)
        x *= np.float32(1) / np.sqrt(squares.astype(np.float32))[:, None]
        return x

    def _coded(self, x: Float32) -> Float32:
        """Return what the codes of unit vectors say that they are, float32 [n, dim]."""
        decoded: Float32 = self._pq.decode(self._pq.compute_codes(np.ascontiguousarray(x)))
        return decoded

    def _rounding(self, probes: Probes) -> Float32:
        """Return by how much rounded tables may lift a row above a mate, float32 [m]."""
        parts = probes.unit.reshape(len(probes), self._codebook.pq_m, -1)
        tables = np.einsum("mjd,jcd->mjc", parts, self._codebook.pq)
        steps = (tables.max(axis=2) - tables.min(axis=2)).max(axis=1) / TABLE_STEPS
        deviation = np.sqrt(2 * self._codebook.pq_m / 12)
        margin: Float32 = (ROUNDING_SDS * deviation * steps).astype(np.float32)
        return margin

    def _list_places(self, probes: Probes, mates: Int64) -> Int32:
        """Return how many lists come before the one that holds the mate, int32 [m]."""
        centroids = self._codebook.centroids
        own = np.argmax(self._unit(self._rows.codes(mates)) @ centroids.T, axis=1)
        likeness = probes.unit @ centroids.T
        mine = likeness[np.arange(len(own)), own, None]
        places: Int32 = np.count_nonzero(likeness > mine, axis=1).astype(np.int32)
        return places


def _ignored(block: Block, own: Int64, mates: Int64) -> tuple[Int64, Int64]:
    """Return probes and columns of a block that do not count: the probe's row and the mate's."""
    rows = np.concatenate([own, mates])
    probe = np.tile(np.arange(len(own)), 2)
    within = (rows >= block.first) & (rows < block.first + len(block))
    return probe[within], rows[within] - block.first
