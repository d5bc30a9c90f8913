"""A synthetic gallery as it streams by: stored rows, and meanwhile the truth about some probes.

Templates are made by their block's number, so several processes make them at once and the gallery
is the same as if one had. Each process also compares what it made with all probes in float32:
rows come back as int8, the best of each probe as a score and a row number, and the vectors are
forgotten where they were made. So millions of templates are searched exactly without being kept.
"""

import multiprocessing
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
import threadpoolctl

from facegrid import vectors
from facegrid.testing.synthetic import BLOCK_TEMPLATES, SyntheticGallery
from facegrid.vectors import Float32, Int8, Int64
from indexd.ann.rows import Int32

BLOCKS_AT_ONCE: Final = 8
AHEAD: Final = 3
"""Pieces that each process may be ahead of whoever takes them."""


@dataclass(frozen=True, slots=True)
class Best:
    """The best row of each probe among some rows: scores float32 [m], row numbers int64 [m]."""

    scores: Float32
    rows: Int64

    def or_better(self, other: "Best") -> "Best":
        """Return the better of both, probe by probe; of equals the row that came first."""
        higher = other.scores > self.scores
        return Best(
            np.where(higher, other.scores, self.scores), np.where(higher, other.rows, self.rows)
        )

    @classmethod
    def none(cls, probes_count: int) -> "Best":
        """Return what is known before any row was seen."""
        return cls(np.full(probes_count, -np.inf, np.float32), np.full(probes_count, -1, np.int64))


@dataclass(frozen=True, slots=True)
class Piece:
    """Some consecutive rows of a gallery.

    Attributes:
        codes: int8 [n, dim], as they are stored.
        subjects: int32 [n], the number of the subject of each, counted from 0.
        best: of the probes among these rows, numbered as in the whole gallery.
    """

    codes: Int8
    subjects: Int32
    best: Best

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.codes)


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes pieces of a gallery, by number.

    Attributes:
        gallery: whose templates.
        probes: float32 [m, dim] of norm 1, perhaps none.
    """

    gallery: SyntheticGallery
    probes: Float32

    @property
    def pieces_count(self) -> int:
        """How many pieces the gallery has."""
        return -(-self.gallery.blocks_count // BLOCKS_AT_ONCE)

    def piece(self, number: int) -> Piece:
        """Return one piece."""
        first = number * BLOCKS_AT_ONCE
        codes, subjects = [], []
        best = Best.none(len(self.probes))
        for block_number in range(first, min(first + BLOCKS_AT_ONCE, self.gallery.blocks_count)):
            block = self.gallery.block(block_number)
            codes.append(vectors.quantize(block.vectors))
            subjects += [subject_number(name) for name in block.subject_ids]
            best = best.or_better(
                best_rows(self.probes, block.vectors, first=block_number * BLOCK_TEMPLATES)
            )
        return Piece(np.concatenate(codes), np.array(subjects, np.int32), best)


def best_rows(probes: Float32, x: Float32, *, first: int) -> Best:
    """Return the best of rows, float32 [n, dim], that are numbered from `first` on."""
    if not len(probes):
        return Best.none(0)
    scores = probes @ x.T
    columns = scores.argmax(axis=1)
    return Best(scores[np.arange(len(probes)), columns], columns + first)


def subject_number(name: str) -> int:
    """Return the number, from 0, of a subject of a synthetic gallery."""
    return int(name.removeprefix("s-")) - 1


def pieces(maker: Maker, *, processes: int) -> Iterator[Piece]:
    """Yield a whole gallery in order, made in that many processes beside this one.

    They stay a few pieces ahead and no more, so that memory is bounded where the taker is slower.
    """
    assert processes >= 1, f"at least one process: {processes}"
    # Not forked: this process may have threads of its own that a copy would wait for.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        processes, mp_context=context, initializer=_begin, initargs=(maker,)
    ) as pool:
        waiting: deque[Future[Piece]] = deque()
        try:
            for number in range(maker.pieces_count):
                waiting.append(pool.submit(_make, number))
                if len(waiting) >= processes * AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


_makers: list[Maker] = []
"""The maker of a process that does nothing else, so that it is not sent with every number."""


def _begin(maker: Maker) -> None:
    # Whoever started this may have been kept to one core.
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    threadpoolctl.threadpool_limits(limits=1, user_api="blas")
    _makers.append(maker)


def _make(number: int) -> Piece:
    return _makers[0].piece(number)
