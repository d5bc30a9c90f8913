"""How much an index loses against exact search, in the terms of ISO/IEC 19795-1.

The threshold is the one at which exact search itself gives the wanted FPIR on the non-mated
probes. A mated probe counts as lost by the index when exact search returns its mate at rank 1 with
at least that score and the index does not: that share of all mated probes is the extra FNIR.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.truth import Ranking

FPIR_WANTED = 0.003


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Rates of one run; None where there were no probes to measure them on.

    Attributes:
        threshold: score from which a candidate at rank 1 counts as an identification.
        rank1: mated probes whose mate came first, whatever the score; `exact_` is exact search's.
        fnir: mated probes whose mate did not come first with a score of at least the threshold.
        extra_fnir: mated probes that exact search identified and the index did not.
        fpir: non-mated probes with a candidate of at least the threshold.
        recall: share of exact search's candidates that the index returned; an index rate, never a
            biometric one.
    """

    mated_count: int
    nonmated_count: int
    threshold: float | None
    rank1: float | None
    exact_rank1: float | None
    fnir: float | None
    exact_fnir: float | None
    extra_fnir: float | None
    fpir: float | None
    recall: float | None


def threshold_at(nonmated: Sequence[Ranking], *, fpir: float) -> float | None:
    """Return the lowest threshold at which at most that share has a false positive.

    None without non-mated probes. With fewer than 1 / fpir of them not one false positive is
    allowed, and the threshold lies just above the highest score.
    """
    if not nonmated:
        return None
    highest = np.sort([ranking.best_score for ranking in nonmated])[::-1].astype(np.float32)
    # The small addition undoes the rounding of products such as 0.003 * 1000.
    allowed = math.floor(fpir * len(highest) + 1e-9)
    if allowed >= len(highest):
        return float("-inf")
    return float(np.nextafter(highest[allowed], np.float32(np.inf)))


def measure(
    mates: Sequence[str | None],
    *,
    exact: Sequence[Ranking],
    found: Sequence[Ranking],
    fpir: float = FPIR_WANTED,
) -> Accuracy:
    """Compare what the index found with what exact search did, probe by probe.

    Args:
        mates: the subject of each probe, None for non-mated probes.
        exact: exact search's answers.
        found: the index's answers, asked without a threshold.
        fpir: the rate that sets the threshold.
    """
    rows = list(zip(mates, exact, found, strict=True))
    mated = [(mate, true, got) for mate, true, got in rows if mate is not None]
    nonmated = [(true, got) for mate, true, got in rows if mate is None]
    threshold = threshold_at([true for true, _ in nonmated], fpir=fpir)
    accepted = [
        (_accepts(true, mate, threshold), _accepts(got, mate, threshold))
        for mate, true, got in mated
    ]
    return Accuracy(
        mated_count=len(mated),
        nonmated_count=len(nonmated),
        threshold=threshold,
        rank1=_share([got.best == mate for mate, _, got in mated]),
        exact_rank1=_share([true.best == mate for mate, true, _ in mated]),
        fnir=_share([not got for _, got in accepted]),
        exact_fnir=_share([not true for true, _ in accepted]),
        extra_fnir=_share([true and not got for true, got in accepted]),
        fpir=_share([_exceeds(got, threshold) for _, got in nonmated]),
        recall=_recall(exact, found),
    )


def _accepts(ranking: Ranking, mate: str, threshold: float | None) -> bool:
    return ranking.best == mate and _exceeds(ranking, threshold)


def _exceeds(ranking: Ranking, threshold: float | None) -> bool:
    return threshold is None or ranking.best_score >= threshold


def _recall(exact: Sequence[Ranking], found: Sequence[Ranking]) -> float | None:
    wanted = sum(len(true.subject_ids) for true in exact)
    if not wanted:
        return None
    both = zip(exact, found, strict=True)
    return sum(len({*true.subject_ids} & {*got.subject_ids}) for true, got in both) / wanted


def _share(events: list[bool]) -> float | None:
    return sum(events) / len(events) if events else None
