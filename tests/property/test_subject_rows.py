"""Rows of subjects, added together and one by one: the same either way."""

from hypothesis import given
from hypothesis import strategies as st

from indexd.engine.columns import SubjectRows

BATCHES = st.lists(st.lists(st.sampled_from([f"s-{number}" for number in range(9)]), max_size=6))


def add(column: SubjectRows, names: list[str]) -> list[int]:
    return column.add_rows(names, [name.encode() for name in names]).tolist()


@given(BATCHES)
def test_rows_added_together_are_those_added_one_by_one(batches: list[list[str]]) -> None:
    together, single = SubjectRows(), SubjectRows()

    for names in batches:
        assert add(together, names) == [add(single, [name])[0] for name in names]

    every = [name for names in batches for name in names]
    assert [together.name_of_row(row) for row in range(len(every))] == every
    assert len(together) == len(single) == len(set(every))
    for name in set(every):
        rows = [row for row, one in enumerate(every) if one == name]
        assert together.rows(name) == single.rows(name) == rows
