"""What a run enrols and asks: a synthetic gallery, or somebody's own vectors.

Own vectors come as a NumPy file and a text file with one subject id per line. Probes are taken out
of them before anything is enrolled: for mated probes one row of subjects that have several, for
non-mated probes all rows of some subjects, one of which is asked.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from facegrid import limits
from facegrid.errors import InvalidError
from facegrid.testing.synthetic import Block, ProbeSet, SyntheticGallery
from facegrid.vectors import Float32
from fgctl.online.sources import NpySource, open_npy, read_ids

Int64 = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]

SCAN_ROWS = 16_384
STRANGERS_SHARE_MAX = 0.1
"""At most this share of the subjects is kept out of the gallery."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Templates to enrol and probes to ask.

    Attributes:
        parameters: what it is made from.
        source: float [n, dim], perhaps on disk, with rows of any norm but zero.
        rows: int64, which rows of the source are enrolled, in this order.
        template_ids, subject_ids: of the enrolled rows.
        probes: what is asked.
        gaps: what cannot be measured on it, and why; a sentence each.
    """

    parameters: dict[str, str]
    source: Floats
    rows: Int64
    template_ids: list[str]
    subject_ids: list[str]
    probes: ProbeSet
    gaps: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of templates to enrol."""
        return len(self.rows)

    @property
    def dim(self) -> int:
        """Components of a vector."""
        return int(self.source.shape[1])

    def blocks(self, rows: int) -> Iterator[Block]:
        """Yield the templates to enrol in pieces of that many."""
        for first in range(0, len(self), rows):
            wanted = slice(first, first + rows)
            yield Block(
                template_ids=self.template_ids[wanted],
                subject_ids=self.subject_ids[wanted],
                vectors=_unit(self.source[self.rows[wanted]]),
            )


def synthetic(
    templates_count: int, *, probes_count: int, dim: int, seed: int, folder: Path
) -> Dataset:
    """Return a synthetic gallery, made once and kept in a file of the folder.

    It is written down so that making vectors takes no time from what is measured.
    """
    gallery = SyntheticGallery(dim, templates_count=templates_count, seed=seed)
    path = folder / "synthetic.npy"
    source = np.lib.format.open_memmap(path, "w+", np.float32, (templates_count, dim))
    template_ids: list[str] = []
    subject_ids: list[str] = []
    for block in gallery.blocks(SCAN_ROWS):
        source[len(template_ids) : len(template_ids) + len(block)] = block.vectors
        template_ids += block.template_ids
        subject_ids += block.subject_ids
    return Dataset(
        parameters=gallery.parameters(),
        source=source,
        rows=np.arange(templates_count),
        template_ids=template_ids,
        subject_ids=subject_ids,
        probes=gallery.probes(probes_count, seed=seed),
    )


def from_files(vectors: Path, subjects: Path, *, probes_count: int, seed: int) -> Dataset:
    """Return a data set made of somebody's own vectors.

    Raises:
        InvalidError: a file cannot be read as what it should be, the files do not fit each other,
            a row is zero or not finite, or there are too few to take probes out (TOO_FEW).
    """
    source = open_npy(vectors)
    NpySource(source, subjects=subjects, templates=None)  # counts and checks the ids
    names = list(read_ids(subjects, field="subject_id"))
    _check(source, vectors)
    enrolled, mated, strangers = held_out(names, probes_count=probes_count, seed=seed)
    asked = np.concatenate([mated, strangers])
    if len(asked) == 0:
        raise InvalidError(
            "no probes can be taken out: there must be ten subjects, or one with two templates"
            f" path={subjects} subjects={len(set(names))}",
            reason="TOO_FEW",
        )
    order = np.random.default_rng([seed, 1]).permutation(len(asked))
    owners = [*(names[row] for row in mated), *([None] * len(strangers))]
    return Dataset(
        parameters={
            "vectors": vectors.name,
            "dim": str(source.shape[1]),
            "templates": str(len(enrolled)),
            "subjects": str(len({names[row] for row in enrolled})),
            "seed": str(seed),
        },
        source=source,
        rows=enrolled,
        template_ids=[f"row-{row:08d}" for row in enrolled],
        subject_ids=[names[row] for row in enrolled],
        probes=ProbeSet(_unit(source[asked[order]]), [owners[place] for place in order]),
        gaps=_gaps(len(mated), len(strangers)),
    )


def held_out(names: list[str], *, probes_count: int, seed: int) -> tuple[Int64, Int64, Int64]:
    """Choose which rows are enrolled, which are mated and which are non-mated probes.

    Args:
        names: the subject of each row.
        probes_count: probes wanted; half of them mated. There may be fewer.
        seed: of the choice.

    Returns:
        Three arrays of row numbers, each rising.
    """
    rng = np.random.default_rng([seed, 0])
    _, owner, counts = np.unique(np.array(names), return_inverse=True, return_counts=True)
    order = rng.permutation(len(counts))
    strangers_count = min(probes_count // 2, int(len(counts) * STRANGERS_SHARE_MAX))
    strangers, rest = order[:strangers_count], order[strangers_count:]
    mates = rest[counts[rest] > 1][: probes_count // 2]
    # The last row of each subject is the one that is asked.
    last_row = np.zeros(len(counts), np.int64)
    last_row[owner] = np.arange(len(owner))
    mated, nonmated = np.sort(last_row[mates]), np.sort(last_row[strangers])
    enrolled = ~np.isin(owner, strangers)
    enrolled[mated] = False
    return np.flatnonzero(enrolled), mated, nonmated


def _gaps(mated_count: int, strangers_count: int) -> tuple[str, ...]:
    gaps = []
    if not mated_count:
        gaps.append("no subject has two templates: rank-1 and extra FNIR cannot be measured")
    if not strangers_count:
        gaps.append("fewer than ten subjects: FPIR and a threshold cannot be measured")
    return tuple(gaps)


def _check(source: Floats, path: Path) -> None:
    dim = source.shape[1]
    if not limits.DIM_MIN <= dim <= limits.DIM_MAX or dim % limits.DIM_STEP:
        raise InvalidError(
            f"vectors must have {limits.DIM_MIN} to {limits.DIM_MAX} components, a multiple of"
            f" {limits.DIM_STEP} path={path} dim={dim}",
            reason="OUT_OF_BOUNDS",
            field="dim",
        )
    for first in range(0, len(source), SCAN_ROWS):
        with np.errstate(all="ignore"):  # what cannot be scaled shows in the norm
            norms = np.linalg.norm(_unit(source[first : first + SCAN_ROWS]), axis=1)
        good = np.abs(norms - 1) < 0.01
        if not good.all():
            row = first + int(np.argmin(good))
            raise InvalidError(
                f"vector is zero or not finite path={path} row={row}",
                reason="VECTOR_UNUSABLE",
                row=row,
            )


def _unit(x: Floats) -> Float32:
    wide = np.asarray(x, np.float32)
    unit: Float32 = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return unit
