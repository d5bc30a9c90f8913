"""The merge equals sorting all candidates, whatever the parts look like."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facegrid.errors import CorruptError
from router.plan import merge as merging

Row = tuple[float, str, str]
"""Score, subject, template."""

scores = st.one_of(
    st.sampled_from([-1.0, -0.0, 0.0, 0.5, 1.0]),
    st.floats(-1.0, 1.0, width=32),
)
rows = st.tuples(scores, st.text("abcé", min_size=1, max_size=3), st.sampled_from(["t1", "t2"]))


@st.composite
def answers(draw: st.DrawFn) -> tuple[int, list[list[list[Row]]]]:
    """Return a number of probes and for each part and probe the rows, best first."""
    probes = draw(st.integers(1, 4))
    parts = draw(st.integers(0, 4))
    lists = st.lists(rows, max_size=6, unique_by=lambda row: row[1:]).map(
        lambda found: sorted(found, key=order)
    )
    one_part = st.lists(lists, min_size=probes, max_size=probes)
    return probes, draw(st.lists(one_part, min_size=parts, max_size=parts))


def order(row: Row) -> Row:
    """Sort key: best first, then by ids."""
    return (-row[0], row[1], row[2])


def part_of(lists: list[list[Row]]) -> merging.Part:
    flat = [row for found in lists for row in found]
    return merging.Part(
        counts=np.array([len(found) for found in lists], np.int64),
        scores=np.array([row[0] for row in flat], np.float32),
        subject_ids=[row[1] for row in flat],
        template_ids=[row[2] for row in flat],
    )


def lists_of(merged: merging.Merged) -> list[list[Row]]:
    table = list(zip(merged.scores.tolist(), merged.subject_ids, merged.template_ids, strict=True))
    return [
        table[first:last]
        for first, last in zip(merged.starts[:-1], merged.starts[1:], strict=True)
    ]


@given(answers(), st.integers(1, 8), st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0]))
def test_the_merge_is_the_sorted_union_cut_at_k_and_threshold(
    given_answers: tuple[int, list[list[list[Row]]]], k: int, threshold: float
) -> None:
    probes, parts = given_answers

    merged = merging.merge(
        [part_of(lists) for lists in parts], probes_count=probes, k=k, threshold=threshold
    )

    expected = [
        sorted((row for lists in parts for row in lists[probe]), key=order)
        for probe in range(probes)
    ]
    assert lists_of(merged) == [
        [row for row in found if row[0] >= threshold][:k] for found in expected
    ]


@given(answers(), st.integers(1, 8), st.integers(1, 8), st.sampled_from([-2.0, 0.0, 0.5]))
def test_cutting_a_longer_list_equals_asking_for_a_shorter_one(
    given_answers: tuple[int, list[list[list[Row]]]], k: int, k_less: int, threshold: float
) -> None:
    probes, lists = given_answers
    parts = [part_of(one) for one in lists]
    k_less = min(k, k_less)

    whole = merging.merge(parts, probes_count=probes, k=k, threshold=-2.0)
    short = merging.merge(parts, probes_count=probes, k=k_less, threshold=threshold)

    assert [
        found[: whole.count(probe, k=k_less, threshold=threshold)]
        for probe, found in enumerate(lists_of(whole))
    ] == lists_of(short)


@given(st.lists(st.floats(-1.0, 1.0, width=32), min_size=100, max_size=400), st.integers(1, 50))
def test_many_parts_and_a_small_k_keep_the_best(values: list[float], k: int) -> None:
    parts = [part_of([[(value, f"s{row:04d}", "t")]]) for row, value in enumerate(values)]

    merged = merging.merge(parts, probes_count=1, k=k, threshold=-2.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merging, "FEW_ROWS_MAX", 0)
        by_numpy = merging.merge(parts, probes_count=1, k=k, threshold=-2.0)

    assert lists_of(merged) == lists_of(by_numpy)
    everything = [(float(value), f"s{row:04d}", "t") for row, value in enumerate(values)]
    assert lists_of(merged) == [sorted(everything, key=order)[:k]]


@st.composite
def long_answers(draw: st.DrawFn) -> tuple[int, list[list[list[Row]]]]:
    """Return lists of which the best are in the front rows, as a rule, and some that are not even
    in order. Few different scores: so many are equal, at the cut too.
    """
    probes, parts = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([2, 40, 10_000]))
    in_order = draw(st.booleans())
    made: list[list[list[Row]]] = []
    for part in range(parts):
        lists = []
        for _ in range(probes):
            values = rng.integers(-levels, levels, rng.integers(0, 60)).astype(np.float32) / 16384
            found = [
                (float(value), f"s{rng.integers(9)}-{part}-{row}", "t")
                for row, value in enumerate(values)
            ]
            lists.append(sorted(found, key=order) if in_order else found)
        made.append(lists)
    return probes, made


@given(long_answers(), st.integers(1, 20), st.sampled_from([-2.0, 0.0, 0.1]))
def test_long_lists_and_a_small_k_keep_the_best_of_each_probe(
    given_answers: tuple[int, list[list[list[Row]]]], k: int, threshold: float
) -> None:
    probes, parts = given_answers

    merged = merging.merge(
        [part_of(lists) for lists in parts], probes_count=probes, k=k, threshold=threshold
    )

    reached = np.float32(threshold)
    assert lists_of(merged) == [
        [
            row
            for row in sorted((row for lists in parts for row in lists[probe]), key=order)
            if np.float32(row[0]) >= reached
        ][:k]
        for probe in range(probes)
    ]


@given(answers(), st.data())
def test_lists_without_what_is_gone_are_the_others_in_order(
    given_answers: tuple[int, list[list[list[Row]]]], data: st.DataObject
) -> None:
    probes, parts = given_answers
    merged = merging.merge(
        [part_of(lists) for lists in parts], probes_count=probes, k=8, threshold=-2.0
    )
    first = data.draw(st.integers(0, probes - 1))
    count = data.draw(st.integers(1, probes - first))
    names = merged.names(first, count)
    gone = set(data.draw(st.lists(st.sampled_from(names)))) if names else set()

    left = lists_of(merged.without(gone, first, count))

    assert left == [
        [row for row in found if row[1:] not in gone]
        for found in lists_of(merged)[first : first + count]
    ]


@pytest.mark.parametrize(
    ("part", "what"),
    [
        (merging.Part(np.array([1]), np.zeros(1, np.float32), ["a"], ["t"]), "too few lists"),
        (
            merging.Part(np.array([1, 1]), np.zeros(1, np.float32), ["a", "b"], ["t", "t"]),
            "scores",
        ),
        (merging.Part(np.array([1, 0]), np.zeros(1, np.float32), ["a"], []), "ids"),
        (merging.Part(np.array([1, 0]), np.array([np.nan], np.float32), ["a"], ["t"]), "nan"),
    ],
)
def test_an_answer_whose_columns_do_not_fit_is_refused(part: merging.Part, what: str) -> None:
    with pytest.raises(CorruptError) as caught:
        merging.check_part(part, probes_count=2)

    assert caught.value.reason == "ANSWER_MALFORMED", what
