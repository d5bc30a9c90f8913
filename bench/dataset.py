"""What a run enrols and asks: a synthetic gallery, or somebody's own vectors.

Own vectors come as a NumPy file and a text file with one subject id per line. Probes are taken out
of them before anything is enrolled: for mated probes one row of subjects that have several, for
non-mated probes all rows of some subjects, one of which is asked.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from facegrid.errors import InvalidError
from facegrid.testing.synthetic import Block, ProbeSet, SyntheticGallery
from facegrid.vectors import Float32

Int64 = npt.NDArray[np.int64]

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
    source: Float32
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
        InvalidError: the files do not fit each other, or a row is zero or not finite.
    """
    source = np.load(vectors, mmap_mode="r", allow_pickle=False)
    names = subjects.read_text(encoding="utf-8").splitlines()
    if source.ndim != 2 or not np.issubdtype(source.dtype, np.floating):
        raise InvalidError(
            f"vectors must be floats in two dimensions shape={source.shape} dtype={source.dtype}",
            reason="VECTORS_SHAPE",
        )
    if len(source) != len(names):
        raise InvalidError(
            f"vectors and subjects differ in number vectors={len(source)} subjects={len(names)}",
            reason="LENGTHS_DIFFER",
        )
    _check(source)
    enrolled, mated, strangers = held_out(names, probes_count=probes_count, seed=seed)
    asked = np.concatenate([mated, strangers])
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


def _check(source: Float32) -> None:
    for first in range(0, len(source), SCAN_ROWS):
        piece = np.asarray(source[first : first + SCAN_ROWS], np.float64)
        squares = np.einsum("ij,ij->i", piece, piece)
        good = np.isfinite(squares) & (squares > 0)
        if not good.all():
            row = first + int(np.argmin(good))
            raise InvalidError(
                f"vector is zero or not finite row={row}", reason="VECTOR_UNUSABLE", row=row
            )


def _unit(x: Float32) -> Float32:
    wide = np.asarray(x, np.float32)
    unit: Float32 = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return unit
