"""Synthetic galleries: as many templates as wanted, from a seed, without any disk.

The model. An identity is a direction: x = diag(sqrt(lambda)) z with z standard normal and
lambda_i proportional to (i + 8)**-alpha, to which the direction of the subject's group is added.
A template of it has a cosine with that direction drawn from N(mean, sd); its remainder is noise of
the same spectrum, orthogonal to the direction. Everything is rotated at the end, so that no
component is special. alpha sets how many dimensions really carry identity: at 512 dimensions 0.5
leaves about 385 of them, 0 leaves all.

The stream. Subjects come in blocks of 1,000, which hold 1,300 templates; of ten subjects in a row
eight have one template, one has two and one has three. A block depends on the parameters and its
number alone, so any part of a gallery can be made without the rest, in any order.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from facegrid.vectors import Float32

Int64 = npt.NDArray[np.int64]

BLOCK_SUBJECTS: Final = 1000
BLOCK_TEMPLATES: Final = 1300
_PATTERN: Final = np.repeat(np.arange(10), [1, 1, 1, 1, 1, 1, 1, 1, 2, 3])
"""Which of ten subjects in a row each of their thirteen templates belongs to."""
_COSINE_MIN: Final = 0.0
_COSINE_MAX: Final = 0.999

_STREAM_WORLD: Final = 0
_STREAM_CENTRES: Final = 1
_STREAM_TEMPLATES: Final = 2
_STREAM_PROBES: Final = 3
_STREAM_STRANGERS: Final = 4


@dataclass(frozen=True, slots=True)
class Spread:
    """How the cosine of a template with its subject's direction is distributed."""

    mean: float
    sd: float


@dataclass(frozen=True, slots=True)
class Groups:
    """Into how many groups subjects fall, and the share of a direction's energy that is theirs."""

    count: int
    share: float


GALLERY_SPREAD: Final = Spread(0.85, 0.05)
PROBE_SPREAD: Final = Spread(0.75, 0.10)
MILD_GROUPS: Final = Groups(8, 0.01)
"""A slight likeness within groups: the default."""
CLUSTERED: Final = Groups(1000, 0.25)
"""Strong clusters, the kind end for an index: report it beside the default, never alone."""


@dataclass(frozen=True, slots=True)
class Block:
    """Some templates of a gallery: ids, and float32 [n, dim] of norm 1."""

    template_ids: list[str]
    subject_ids: list[str]
    vectors: Float32

    def __len__(self) -> int:
        """Return the number of templates."""
        return len(self.template_ids)


@dataclass(frozen=True, slots=True)
class ProbeSet:
    """Probes, float32 [m, dim] of norm 1, and whose they are: None where nobody enrolled is."""

    vectors: Float32
    mate_subject_ids: list[str | None]

    def __len__(self) -> int:
        """Return the number of probes."""
        return len(self.mate_subject_ids)


class SyntheticGallery:
    """A gallery that exists as a seed.

    Args:
        dim: components of a vector.
        templates_count: templates in the gallery.
        seed: the same parameters and seed give the same gallery.
        alpha: how fast the spectrum falls: 0.5 by default, 0 the hard and 0.7 the soft end.
        groups: the likeness of subjects within a group.
    """

    def __init__(
        self,
        dim: int,
        *,
        templates_count: int,
        seed: int = 1,
        alpha: float = 0.5,
        groups: Groups = MILD_GROUPS,
    ) -> None:
        self.dim = dim
        self.templates_count = templates_count
        self.seed = seed
        self.alpha = alpha
        self.groups = groups
        spectrum = (np.arange(dim) + 8.0) ** (-alpha / 2)
        self._deviations = spectrum.astype(np.float32)
        rng = self._rng(_STREAM_WORLD, 0)
        # The sign correction makes the orthogonal matrix uniformly distributed (Mezzadri 2007).
        orthogonal, upper = np.linalg.qr(rng.standard_normal((dim, dim)))
        self._rotation = (orthogonal * np.sign(np.diag(upper))).astype(np.float32)
        self._group_directions = self._spectral(rng, groups.count)

    @property
    def subjects_count(self) -> int:
        """The number of subjects that have at least one template."""
        if self.templates_count == 0:
            return 0
        return int(_subject_numbers(np.array([self.templates_count - 1]))[0]) + 1

    @property
    def blocks_count(self) -> int:
        """The number of blocks; the last may be cut short."""
        return -(-self.templates_count // BLOCK_TEMPLATES)

    def parameters(self) -> dict[str, str]:
        """Return what the gallery is made from, to print beside every result."""
        return {
            "generator": "facegrid.testing.synthetic",
            "dim": str(self.dim),
            "templates": str(self.templates_count),
            "subjects": str(self.subjects_count),
            "seed": str(self.seed),
            "alpha": f"{self.alpha:g}",
            "groups": f"{self.groups.count} of share {self.groups.share:g}",
            "gallery_spread": f"{GALLERY_SPREAD.mean:g} sd {GALLERY_SPREAD.sd:g}",
            "probe_spread": f"{PROBE_SPREAD.mean:g} sd {PROBE_SPREAD.sd:g}",
        }

    def block(self, number: int) -> Block:
        """Return one block: templates number * 1300 and following."""
        first = number * BLOCK_TEMPLATES
        count = min(BLOCK_TEMPLATES, self.templates_count - first)
        assert count > 0, f"no such block number={number}"
        templates = np.arange(first, first + BLOCK_TEMPLATES)
        subjects = _subject_numbers(templates)
        centres = self._centres(_STREAM_CENTRES, number)
        rng = self._rng(_STREAM_TEMPLATES, number)
        # The whole block is made even where it is cut, so that its rows do not depend on the cut.
        vectors = self._around(rng, centres[subjects - number * BLOCK_SUBJECTS], GALLERY_SPREAD)
        return Block(
            template_ids=[f"t-{template + 1:07d}" for template in templates[:count]],
            subject_ids=[f"s-{subject + 1:07d}" for subject in subjects[:count]],
            vectors=vectors[:count],
        )

    def blocks(self, rows: int) -> Iterator[Block]:
        """Yield the whole gallery in order, in pieces of that many rows, the last one shorter."""
        held: list[Block] = []
        held_rows = 0
        for number in range(self.blocks_count):
            block = self.block(number)
            held.append(block)
            held_rows += len(block)
            if held_rows >= rows:
                joined = _join(held)
                whole = held_rows - held_rows % rows
                yield from (_cut(joined, first, first + rows) for first in range(0, whole, rows))
                held, held_rows = [_cut(joined, whole, held_rows)], held_rows - whole
        if held_rows:
            yield _join(held)

    def probes(self, count: int, *, seed: int = 1) -> ProbeSet:
        """Return probes in random order, half of them (rounded down) mated.

        Mates are distinct subjects of the gallery. What a set of `count` holds depends on the
        gallery, the count and this seed.
        """
        rng = self._rng(_STREAM_PROBES, seed)
        mated_count = min(count // 2, self.subjects_count)
        mates = np.sort(rng.choice(self.subjects_count, mated_count, replace=False))
        centres = np.concatenate([self._centres_of(mates), self._strangers(count, seed)])[:count]
        vectors = self._around(rng, centres, PROBE_SPREAD)
        order = rng.permutation(count)
        owners = [f"s-{mate + 1:07d}" for mate in mates] + [None] * (count - mated_count)
        return ProbeSet(vectors[order], [owners[place] for place in order])

    def _centres_of(self, subjects: Int64) -> Float32:
        blocks = subjects // BLOCK_SUBJECTS
        parts = [np.empty((0, self.dim), np.float32)]
        for number in np.unique(blocks):
            centres = self._centres(_STREAM_CENTRES, int(number))
            parts.append(centres[subjects[blocks == number] % BLOCK_SUBJECTS])
        return np.concatenate(parts)

    def _strangers(self, count: int, seed: int) -> Float32:
        blocks_count = -(-count // BLOCK_SUBJECTS)
        parts = [
            self._centres(_STREAM_STRANGERS, seed * 1_000_003 + number)
            for number in range(blocks_count)
        ]
        return np.concatenate([np.empty((0, self.dim), np.float32), *parts])

    def _centres(self, stream: int, number: int) -> Float32:
        """Return the directions, not yet rotated, of one block's subjects."""
        rng = self._rng(stream, number)
        own = self._spectral(rng, BLOCK_SUBJECTS)
        group = self._group_directions[rng.integers(self.groups.count, size=BLOCK_SUBJECTS)]
        share = self.groups.share
        return _unit(math.sqrt(1 - share) * own + math.sqrt(share) * group)

    def _around(self, rng: np.random.Generator, centres: Float32, spread: Spread) -> Float32:
        """Return one rotated template for each direction."""
        drawn = np.clip(rng.normal(spread.mean, spread.sd, len(centres)), _COSINE_MIN, _COSINE_MAX)
        cosine: Float32 = drawn.astype(np.float32)[:, None]
        sine: Float32 = np.sqrt(1 - cosine * cosine)
        noise = self._spectral(rng, len(centres))
        noise -= np.einsum("ij,ij->i", noise, centres)[:, None] * centres
        plain: Float32 = cosine * centres + sine * _unit(noise)
        return _unit(plain @ self._rotation)

    def _spectral(self, rng: np.random.Generator, count: int) -> Float32:
        drawn: Float32 = rng.standard_normal((count, self.dim), dtype=np.float32)
        return _unit(drawn * self._deviations)

    def _rng(self, stream: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, stream, number])


def _subject_numbers(templates: Int64) -> Int64:
    """Return whose the templates are, all counted from 0."""
    numbers: Int64 = templates // len(_PATTERN) * 10 + _PATTERN[templates % len(_PATTERN)]
    return numbers


def _unit(x: Float32) -> Float32:
    unit: Float32 = x / np.linalg.norm(x, axis=1, keepdims=True)
    return unit


def _join(blocks: list[Block]) -> Block:
    return Block(
        template_ids=[name for block in blocks for name in block.template_ids],
        subject_ids=[name for block in blocks for name in block.subject_ids],
        vectors=np.concatenate([block.vectors for block in blocks]),
    )


def _cut(block: Block, first: int, last: int) -> Block:
    return Block(
        template_ids=block.template_ids[first:last],
        subject_ids=block.subject_ids[first:last],
        vectors=block.vectors[first:last],
    )
