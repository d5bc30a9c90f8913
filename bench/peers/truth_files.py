"""What a comparison searches, as files that workers map, and what exact search answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.accuracy import Accuracy, measure, threshold_at
from bench.peers.peer import Float32, Int64
from bench.truth import ExactSearch, Ranking
from facegrid.testing.synthetic import CLUSTERED, MILD_GROUPS, SyntheticGallery

K = 10
BLOCK_ROWS = 16_384
EXACT_PROBES = 2048
GALLERIES = ("default", "clustered", "soft")
"""The product's default, the kind end for an index, and a spectrum that falls faster."""


@dataclass(frozen=True, slots=True)
class Probes:
    """Mated probes with their truth; the threshold comes from as many non-mated ones.

    Attributes:
        path: float32 [m, dim] as .npy, mated probes only.
        vectors: the same.
        mates: the subject of each.
        exact: exact search's rows as subjects, each once.
        threshold: score at which exact search has the wanted FPIR.
        nonmated: exact search's answers to the non-mated probes.
    """

    path: Path
    vectors: Float32
    mates: list[str | None]
    exact: list[Ranking]
    nonmated: list[Ranking]
    threshold: float

    def accepted(self) -> list[int]:
        """Return the probes that exact search identifies: only these can be missed."""
        pairs = zip(self.mates, self.exact, strict=True)
        return [
            place
            for place, (mate, true) in enumerate(pairs)
            if true.best == mate and true.best_score >= self.threshold
        ]


@dataclass(frozen=True, slots=True)
class Truth:
    """A gallery on disk, probes to choose settings by and others to judge them by."""

    parameters: dict[str, str]
    templates_path: Path
    subjects_path: Path
    templates: Float32
    subject_ids: list[str]
    tuning: Probes
    judging: Probes

    def misses(self, places: Sequence[int], rows: Int64, probes: Probes) -> int:
        """Count accepted probes, given by place, whose mate is not first among the rows."""
        found = self.rankings(probes.vectors[list(places)], rows)
        return sum(one.best != probes.mates[at] for at, one in zip(places, found, strict=True))

    def accuracy(self, rows: Int64) -> Accuracy:
        """Compare rows found for all mated probes to judge by with exact search."""
        probes = self.judging
        # The non-mated probes set the threshold, and are not asked again: what an index finds for
        # them does not count as a miss.
        return measure(
            [*probes.mates, *([None] * len(probes.nonmated))],
            exact=[*probes.exact, *probes.nonmated],
            found=[*self.rankings(probes.vectors, rows), *probes.nonmated],
        )

    def recall(self, rows: Int64) -> float:
        """Return recall@10 over the mated probes to judge by."""
        found = self.rankings(self.judging.vectors, rows)
        wanted = sum(len(one.subject_ids) for one in self.judging.exact)
        pairs = zip(self.judging.exact, found, strict=True)
        return sum(len({*a.subject_ids} & {*b.subject_ids}) for a, b in pairs) / wanted

    def rankings(self, vectors: Float32, rows: Int64) -> list[Ranking]:
        """Return rows as subjects in the order found, with their exact scores: nobody is held to
        the scores of its own codes.
        """
        answers = []
        for vector, found in zip(vectors, rows, strict=True):
            kept = found[found >= 0]
            best: dict[str, float] = {}
            scores = self.templates[kept] @ vector
            for row, score in zip(kept.tolist(), scores.tolist(), strict=True):
                best.setdefault(self.subject_ids[row], score)
            answers.append(Ranking(tuple(best), tuple(best.values())))
        return answers


def gallery_of(name: str, templates_count: int, dim: int, seed: int) -> SyntheticGallery:
    """Return one of the galleries."""
    alpha = 0.7 if name == "soft" else 0.5
    groups = CLUSTERED if name == "clustered" else MILD_GROUPS
    return SyntheticGallery(
        dim, templates_count=templates_count, seed=seed, alpha=alpha, groups=groups
    )


def prepare(gallery: SyntheticGallery, probes_count: int, folder: Path) -> Truth:
    """Write a gallery and two sets of probes into a folder, and search them exactly."""
    shape = (gallery.templates_count, gallery.dim)
    path = folder / "templates.npy"
    x = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    names: list[str] = []
    for block in gallery.blocks(BLOCK_ROWS):
        x[len(names) : len(names) + len(block)] = block.vectors
        names += block.subject_ids
    x.flush()
    _, numbers = np.unique(names, return_inverse=True)
    np.save(folder / "subjects.npy", numbers.astype(np.int32))
    templates: Float32 = np.load(path, mmap_mode="r")
    sets = [
        _probes(gallery, probes_count, seed, templates, names, folder / f"probes-{seed}.npy")
        for seed in (1, 2)
    ]
    return Truth(
        gallery.parameters(), path, folder / "subjects.npy", templates, names, sets[0], sets[1]
    )


def _probes(
    gallery: SyntheticGallery,
    count: int,
    seed: int,
    templates: Float32,
    names: list[str],
    path: Path,
) -> Probes:
    asked = gallery.probes(count, seed=seed)
    exact: list[Ranking] = []
    rows = [str(row) for row in range(len(templates))]
    for first in range(0, count, EXACT_PROBES):
        search = ExactSearch(asked.vectors[first : first + EXACT_PROBES], k=K)
        for at in range(0, len(templates), BLOCK_ROWS):
            search.add(np.asarray(templates[at : at + BLOCK_ROWS]), rows[at : at + BLOCK_ROWS])
        exact += [_of_subjects(one, names) for one in search.rankings()]
    mated = [place for place, mate in enumerate(asked.mate_subject_ids) if mate is not None]
    nonmated = [exact[at] for at, mate in enumerate(asked.mate_subject_ids) if mate is None]
    threshold = threshold_at(nonmated, fpir=0.003)
    assert threshold is not None, "half of the probes are non-mated"
    vectors = np.ascontiguousarray(asked.vectors[mated])
    np.save(path, vectors)
    return Probes(
        path=path,
        vectors=vectors,
        mates=[asked.mate_subject_ids[at] for at in mated],
        exact=[exact[at] for at in mated],
        nonmated=nonmated,
        threshold=threshold,
    )


def _of_subjects(rows: Ranking, names: list[str]) -> Ranking:
    """Return the best rows as subjects, each once: as many as anybody who answers ten rows can
    name.
    """
    best: dict[str, float] = {}
    for row, score in zip(rows.subject_ids, rows.scores, strict=True):
        best.setdefault(names[int(row)], score)
    return Ranking(tuple(best), tuple(best.values()))
