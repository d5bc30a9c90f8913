"""Digests of sets of rows that have none in common add up to that of all of them."""

import numpy as np
import pytest

from facegrid.errors import CorruptError
from facegrid.format import digest as digests


def digest_of(first: int, last: int) -> str:
    together = 0
    for number in range(first, last):
        codes = np.full(8, number, np.int8).tobytes()
        together = digests.add(together, digests.row_digest(f"s-{number}", "t", codes))
    return digests.to_bytes(together).hex()


def test_the_digests_of_disjoint_sets_are_together_that_of_all_rows() -> None:
    parts = [digest_of(0, 3), digest_of(3, 3), digest_of(3, 50), digest_of(50, 100)]
    assert digests.of_disjoint(parts) == digest_of(0, 100)
    assert digests.of_disjoint(parts[::-1]) == digest_of(0, 100)
    assert digests.of_disjoint([]) == digest_of(0, 0)


def test_a_row_that_two_sets_share_is_noticed() -> None:
    assert digests.of_disjoint([digest_of(0, 4), digest_of(3, 10)]) != digest_of(0, 10)


@pytest.mark.parametrize("text", ["", "00", "zz" * 16, "00" * 17])
def test_what_is_no_digest_is_refused(text: str) -> None:
    with pytest.raises(CorruptError):
        digests.of_disjoint([digest_of(0, 1), text])


@pytest.mark.parametrize("count", [0, 1, digests.BLOCK_ROWS, digests.BLOCK_ROWS + 3])
def test_the_digests_of_many_rows_are_those_of_each(count: int) -> None:
    subjects, templates = (
        [f"{kind}-{number % 7}".encode() * (1 + number % 60) for number in range(count)]
        for kind in ("é", "t")
    )
    codes = np.random.default_rng(1).integers(-127, 127, (count, 8), np.int8)

    together = digests.total(digests.row_digests(subjects, templates, codes))

    one_by_one = 0
    for subject, template, row in zip(subjects, templates, codes, strict=True):
        one = digests.row_digest(subject.decode(), template.decode(), row.tobytes())
        one_by_one = digests.add(one_by_one, one)
    assert together == one_by_one
