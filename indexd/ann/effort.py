"""How hard an index is searched: as was measured of the gallery, else as training found."""

import math
from typing import Final

from facegrid.tuning import Effort, Profile, Tuning
from indexd.ann.codebook import (
    DEEP_FACTOR,
    RESCORED_MIN,
    WANTED_DEEP,
    WANTED_TYPICAL,
    Codebook,
)

WANTED_SPARE: Final = 16
"""Rows rescored of each shard beyond those wanted, for rows that codes put in the wrong order."""
EXHAUSTIVE_DEPTH_FACTOR: Final = 4
"""Of the rows that training found worth rescoring, while nobody has measured the gallery."""


def effort_of(codebook: Codebook, sha256: str, profile: Profile, tuning: Tuning | None) -> Effort:
    """Return how hard to search an index.

    Args:
        codebook: of the index.
        sha256: its name.
        profile: what is wanted.
        tuning: what was measured of the gallery; it counts only for its own codebook.
    """
    if tuning is not None and tuning.codebook == sha256:
        return tuning.efforts[profile]
    depth = codebook.rescore_factor * WANTED_TYPICAL
    if profile is Profile.EXHAUSTIVE:
        return Effort(nprobe=codebook.nlist, depth=depth * EXHAUSTIVE_DEPTH_FACTOR)
    return Effort(nprobe=codebook.nprobe, depth=depth)


def rows_to_rescore(depth: int, wanted: int, *, share: float = 1.0) -> int:
    """Return how many rows of a shard are rescored.

    Subjects fall into shards at random, so of the rows that are best by their codes each shard has
    its share; never fewer than the depth, which was measured shard by shard.

    Args:
        depth: rows for ten candidates.
        wanted: candidates wanted.
        share: of the rows that are searched together, those of the shard.
    """
    near = min(max(wanted, WANTED_TYPICAL), WANTED_DEEP)
    deep = max(wanted - WANTED_DEEP, 0)
    whole = max(RESCORED_MIN, -(-depth * near // WANTED_TYPICAL) + DEEP_FACTOR * deep)
    return min(whole, max(math.ceil(whole * share), depth, wanted + WANTED_SPARE))
