"""Files of templates: what is read from them, and what is refused before anything is sent."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from facegrid.errors import InvalidError
from facegrid.vectors import Float32
from fgctl.online.parquet import ParquetSource
from fgctl.online.sources import (
    NpySource,
    Source,
    check,
    derived_template_id,
    open_npy,
    shifted,
)

DIM = 8


def unit_rows(count: int) -> Float32:
    x = np.random.default_rng(7).normal(size=(count, DIM)).astype(np.float32)
    normalised: Float32 = x / np.linalg.norm(x, axis=1, keepdims=True)
    return normalised


def written(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def all_rows(source: Source, rows: int) -> list[tuple[int, list[str], list[str], int]]:
    return [
        (batch.first, batch.template_ids, batch.subject_ids, len(batch.vectors))
        for batch in source.batches(rows)
    ]


def refusal(call: object, *arguments: object, **named: object) -> tuple[str, int | None]:
    assert callable(call)
    with pytest.raises(InvalidError) as caught:
        call(*arguments, **named)
    return caught.value.reason, caught.value.row


def test_a_matrix_and_its_ids_are_read_in_batches_in_order(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", unit_rows(5))
    source = NpySource(
        open_npy(tmp_path / "x.npy"),
        subjects=written(tmp_path / "s.txt", ["a", "b", "ä", "d", "e"]),
        templates=written(tmp_path / "t.txt", ["1", "2", "3", "4", "5"]),
    )
    assert (source.rows_count, source.dim) == (5, DIM)
    assert all_rows(source, 2) == [
        (0, ["1", "2"], ["a", "b"], 2),
        (2, ["3", "4"], ["ä", "d"], 2),
        (4, ["5"], ["e"], 1),
    ]


def test_reading_a_source_again_gives_the_same_rows(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", unit_rows(3))
    subjects = written(tmp_path / "s.txt", ["a", "b", "c"])
    source = NpySource(open_npy(tmp_path / "x.npy"), subjects=subjects, templates=None)
    assert all_rows(source, 2) == all_rows(source, 2)


def test_a_template_id_made_from_content_depends_on_the_content_alone() -> None:
    x = unit_rows(2)
    half = x.astype(np.float16)
    assert derived_template_id(x[0]) == derived_template_id(x[0].copy())
    assert derived_template_id(half[0].astype(np.float32)) == derived_template_id(
        half.astype(np.float64)[0].astype(np.float32)
    )
    assert derived_template_id(x[0]) != derived_template_id(x[1])
    assert len(derived_template_id(x[0])) == len("t-") + 24


@pytest.mark.parametrize("lines", [["a", "b"], ["a", "b", "c", "d"]])
def test_another_number_of_ids_than_vectors_is_refused(tmp_path: Path, lines: list[str]) -> None:
    subjects = written(tmp_path / "s.txt", lines)
    outcome = refusal(NpySource, unit_rows(3), subjects=subjects, templates=None)
    assert outcome == ("COUNT_MISMATCH", None)


@pytest.mark.parametrize("line", [b"", b"a\tb", b"\xff\xfe", b"x" * 129])
def test_a_malformed_id_is_refused_with_its_row(tmp_path: Path, line: bytes) -> None:
    subjects = tmp_path / "s.txt"
    subjects.write_bytes(b"a\n" + line + b"\nc\n")
    outcome = refusal(NpySource, unit_rows(3), subjects=subjects, templates=None)
    assert outcome == ("ID_MALFORMED", 1)


def test_ids_may_end_their_lines_as_windows_does(tmp_path: Path) -> None:
    subjects = tmp_path / "s.txt"
    subjects.write_bytes(b"a\r\nb\r\nc")
    source = NpySource(unit_rows(3), subjects=subjects, templates=None)
    assert next(source.batches(3)).subject_ids == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("matrix", "reason"),
    [
        (np.zeros((2, DIM), np.int8), "VECTOR_DTYPE"),
        (np.zeros((2, DIM), np.complex64), "VECTOR_DTYPE"),
        (np.zeros(DIM, np.float32), "VECTOR_SHAPE"),
        (np.zeros((0, DIM), np.float32), "VECTOR_SHAPE"),
    ],
)
def test_what_is_no_matrix_of_floats_is_refused(
    tmp_path: Path, matrix: np.ndarray, reason: str
) -> None:
    np.save(tmp_path / "x.npy", matrix)
    assert refusal(open_npy, tmp_path / "x.npy") == (reason, None)


@pytest.mark.parametrize(
    "content", [b"", b"not an array", b"\x93NUMPY\x01\x00", b"PK\x03\x04not an archive"]
)
def test_what_is_no_array_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    assert refusal(open_npy, tmp_path / "x.npy") == ("FILE_UNREADABLE", None)


def test_an_archive_of_arrays_is_refused_as_such(tmp_path: Path) -> None:
    with (tmp_path / "x.npy").open("wb") as file:
        np.savez(file, x=unit_rows(3))
    with pytest.raises(InvalidError, match=r"it is an archive of arrays, \.npz$"):
        open_npy(tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("value", "reason"), [(np.nan, "VECTOR_NOT_FINITE"), (1e308, "VECTOR_NOT_FINITE")]
)
def test_a_bad_vector_is_refused_with_its_row_in_the_file(
    tmp_path: Path, value: float, reason: str
) -> None:
    x = unit_rows(5).astype(np.float64)
    x[4, 0] = value
    subjects = written(tmp_path / "s.txt", ["a", "b", "c", "d", "e"])
    last = list(NpySource(x, subjects=subjects, templates=None).batches(3))[1]
    assert refusal(check, last) == (reason, 4)


def test_an_error_about_a_batch_becomes_one_about_the_file() -> None:
    refused = InvalidError("id is taken row=3 batch=4 batch_row=7", reason="R", row=7, batch=4)
    error = shifted(refused, 100)
    assert (error.message, error.reason, error.facts) == (
        "id is taken row=107",
        "R",
        {"row": "107"},
    )


def parquet(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float64(), DIM)])
def test_parquet_is_read_in_batches_in_order(tmp_path: Path, kind: pa.DataType) -> None:
    x = unit_rows(3)
    path = parquet(
        tmp_path / "x.parquet",
        subject_id=["a", "b", "c"],
        template_id=["1", "2", "3"],
        vector=pa.array(x.tolist(), kind),
    )
    source = ParquetSource(path)
    assert (source.rows_count, source.dim) == (3, DIM)
    assert [row[1:3] for row in all_rows(source, 3)] == [(["1", "2", "3"], ["a", "b", "c"])]
    assert np.concatenate([batch.vectors for batch in source.batches(2)]).tolist() == x.tolist()


def test_parquet_without_template_ids_gets_the_ids_that_an_array_gets(tmp_path: Path) -> None:
    x = unit_rows(3)
    path = parquet(
        tmp_path / "x.parquet",
        subject_id=["a", "b", "c"],
        vector=pa.array(x.tolist(), pa.list_(pa.float32())),
    )
    batch = next(ParquetSource(path).batches(3))
    assert batch.template_ids == [derived_template_id(vector) for vector in x]


@pytest.mark.parametrize(
    ("odd", "reason"), [([1.0], "VECTOR_LENGTH"), (None, "VECTOR_LENGTH"), ([], "VECTOR_LENGTH")]
)
def test_parquet_with_a_vector_of_another_length_is_refused(
    tmp_path: Path, odd: list[float] | None, reason: str
) -> None:
    rows = [*unit_rows(3).tolist(), odd]
    path = parquet(
        tmp_path / "x.parquet",
        subject_id=["a", "b", "c", "d"],
        vector=pa.array(rows, pa.list_(pa.float32())),
    )
    assert refusal(lambda: list(ParquetSource(path).batches(3))) == (reason, 3)


def test_parquet_with_a_missing_number_is_refused_by_the_check(tmp_path: Path) -> None:
    rows = unit_rows(2).tolist()
    rows[1][3] = None
    path = parquet(
        tmp_path / "x.parquet",
        subject_id=["a", "b"],
        vector=pa.array(rows, pa.list_(pa.float32())),
    )
    batch = next(ParquetSource(path).batches(2))
    assert refusal(check, batch) == ("VECTOR_NOT_FINITE", 1)


def test_parquet_without_its_columns_is_refused(tmp_path: Path) -> None:
    vectors = pa.array(unit_rows(1).tolist(), pa.list_(pa.float32()))
    texts = pa.array(["x"])
    no_subjects = parquet(tmp_path / "a.parquet", vector=vectors)
    no_vectors = parquet(tmp_path / "b.parquet", subject_id=texts)
    no_floats = parquet(tmp_path / "c.parquet", subject_id=texts, vector=texts)
    numbers = parquet(tmp_path / "d.parquet", subject_id=pa.array([1]), vector=vectors)
    (tmp_path / "e.parquet").write_bytes(b"no parquet")
    assert refusal(ParquetSource, no_subjects) == ("COLUMN_MISSING", None)
    assert refusal(ParquetSource, no_vectors) == ("COLUMN_MISSING", None)
    assert refusal(ParquetSource, no_floats) == ("VECTOR_DTYPE", None)
    assert refusal(lambda: list(ParquetSource(numbers).batches(1))) == ("ID_MALFORMED", 0)
    assert refusal(ParquetSource, tmp_path / "e.parquet") == ("FILE_UNREADABLE", None)
