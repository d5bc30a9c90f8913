"""How hard a search tries, and what that was measured to miss.

A gallery says how many mates it may miss because of its index. How many lists a search looks into
follows from measuring that on the gallery's own templates, and nothing else (RFC 0011).
"""

import enum
from dataclasses import dataclass, field
from typing import Final

MISS_RATE_MAX_DEFAULT: Final = 1e-3
MISS_RATE_MAX_LIMIT: Final = 0.1
"""A gallery cannot allow more."""
MATES_COUNT_MIN: Final = 30
"""With fewer mates that exact search accepts nothing is stated."""
MATES_COUNT_LIMIT: Final = 1_000_000
"""More are not measured on."""
FAST_FACTOR: Final = 10
"""`fast` may miss so many times what the gallery allows, `exhaustive` that part of it."""


class Profile(enum.StrEnum):
    """How hard a search tries."""

    EXHAUSTIVE = "exhaustive"
    BALANCED = "balanced"
    FAST = "fast"

    def miss_rate_max(self, allowed: float) -> float:
        """Return the share of mates that this profile may miss, where a gallery allows so many."""
        factors = {Profile.EXHAUSTIVE: 1 / FAST_FACTOR, Profile.FAST: float(FAST_FACTOR)}
        return allowed * factors.get(self, 1.0)


@dataclass(frozen=True, slots=True)
class Step:
    """A candidate that scores at least `score` is missed no more often than allowed once `nprobe`
    lists were looked into.
    """

    score: float
    nprobe: int


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard to search, and what was measured of it.

    Attributes:
        nprobe: lists to look into, at least 1.
        depth: rows to rescore for ten candidates wanted, at least 1.
        steps: by falling score, with rising nprobe; none: no list is left out early.
        misses_count: mates that exact search accepts and that this missed.
        extra_fnir_max: upper bound of the extra FNIR at 95 % confidence; 1: not measured.
        scanned_share: share of the rows that is looked at.
        proven: whether the miss rate wanted was shown.
    """

    nprobe: int
    depth: int
    steps: tuple[Step, ...] = ()
    misses_count: int = 0
    extra_fnir_max: float = 1.0
    scanned_share: float = 1.0
    proven: bool = False


@dataclass(frozen=True, slots=True)
class Tuning:
    """What a gallery's index was measured to miss, against exact search.

    Attributes:
        codebook: sha256 of the one it holds for.
        nlist: lists of that codebook.
        efforts: one for each profile.
        points: the curve, by rising cost.
        templates_count: of the gallery, when it was measured.
        mates_count: pairs that exact search accepts at the threshold.
        pseudo_mates_count: how many of them were made from one template and noise.
        nonmates_count: probes that the threshold was found on.
        threshold: score at which exact search has this FPIR.
        fpir: the rate that sets the threshold.
        miss_rate_max: what `balanced` was chosen for.
        tuned_unix_ms: when.
    """

    codebook: str
    nlist: int
    efforts: dict[Profile, Effort]
    points: tuple[Effort, ...] = field(default_factory=tuple)
    templates_count: int = 0
    mates_count: int = 0
    pseudo_mates_count: int = 0
    nonmates_count: int = 0
    threshold: float = 0.0
    fpir: float = 0.0
    miss_rate_max: float = MISS_RATE_MAX_DEFAULT
    tuned_unix_ms: int = 0
