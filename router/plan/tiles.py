"""The tile check: an answer counts only if its ranges cover the key space exactly once.

A range covered twice is as wrong as one left out: its subjects would appear twice in a list.
Ranges that overlap can only come from a broken map, so they are an error, never less coverage.
"""

import math
from collections.abc import Iterable
from typing import Final

from facegrid.errors import CorruptError
from facegrid.ids import KEY_LAST
from facegrid.model import Coverage, HashRange

KEYS_COUNT: Final = KEY_LAST + 1


def missing_ranges(answered: Iterable[HashRange]) -> tuple[HashRange, ...]:
    """Return the parts of the key space that no range covers, in order, neighbours joined.

    Raises:
        CorruptError: two ranges overlap (RANGES_OVERLAP).
    """
    missing: list[HashRange] = []
    following = 0
    for item in sorted(answered):
        if item.first < following:
            raise CorruptError(
                "two shards answer for the same keys"
                f" first={item.first:016x} covered_to={following - 1:016x}",
                reason="RANGES_OVERLAP",
            )
        if item.first > following:
            missing.append(HashRange(following, item.first - 1))
        following = item.last + 1
    if following <= KEY_LAST:
        missing.append(HashRange(following, KEY_LAST))
    return tuple(missing)


def is_covered(item: HashRange, by: Iterable[HashRange]) -> bool:
    """Tell whether every key of a range is in one of others, which may overlap."""
    following = item.first
    for other in sorted(by):
        if other.first <= following:
            following = max(following, other.last + 1)
    return following > item.last


def share_without(missing: Iterable[HashRange]) -> float:
    """Return the share of the key space outside of disjoint ranges: exactly 1 for no ranges, and
    below 1 for any, however small.
    """
    lost = sum(item.size for item in missing)
    if lost == 0:
        return 1.0
    return min((KEYS_COUNT - lost) / KEYS_COUNT, math.nextafter(1.0, 0.0))


def share_of(ranges: Iterable[HashRange]) -> float:
    """Return the share of the key space in disjoint ranges: above 0 for any, however small, and
    exactly 1 only for all of it.
    """
    keys_count = sum(item.size for item in ranges)
    if keys_count == KEYS_COUNT:
        return 1.0
    return min(keys_count / KEYS_COUNT, math.nextafter(1.0, 0.0))


def coverage(
    answered: Iterable[HashRange],
    *,
    shards_count: int,
    unconfirmed: Iterable[HashRange] = (),
) -> Coverage:
    """Return what the ranges that were searched amount to.

    Args:
        answered: the ranges searched.
        shards_count: how many there are in all.
        unconfirmed: those among them that were searched on copies which may be behind.

    Raises:
        CorruptError: two ranges overlap (RANGES_OVERLAP).
    """
    ranges = tuple(answered)
    missing = missing_ranges(ranges)
    return Coverage(
        share=share_without(missing),
        shards_answered_count=len(ranges),
        shards_count=shards_count,
        missing=missing,
        unconfirmed_share=share_of(unconfirmed),
    )
