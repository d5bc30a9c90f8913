"""Templates from files: NumPy arrays with lists of ids, or Parquet.

Nothing is read whole: arrays are memory-mapped, lists of ids and Parquet are streamed. Counts are
compared and every row is checked before the first one is sent.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol
from zipfile import is_zipfile

import numpy as np
import numpy.typing as npt
from numpy.lib.format import open_memmap

import facegrid
from facegrid import vectors
from facegrid.errors import InvalidError
from facegrid.ids import check_ids, id_problem

DERIVED_DIGEST_BYTES = 12
"""Length of a derived template id's digest. Ids are unique within a subject, so 96 bits are
plenty: even among a million templates of one subject two agree with a chance of 1e-17."""

FLOAT_KINDS = ("float16", "float32", "float64")

_ROW = re.compile(r"\brow=\d+")


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of a source.

    Attributes:
        first: number of the first one in the source.
        template_ids: one per row.
        subject_ids: one per row.
        vectors: float32 [rows, dim].
    """

    first: int
    template_ids: list[str]
    subject_ids: list[str]
    vectors: vectors.Float32


class Source(Protocol):
    """Templates to be enrolled, in an order that is the same each time they are read."""

    @property
    def rows_count(self) -> int:
        """How many there are."""
        ...

    @property
    def dim(self) -> int:
        """Components per vector."""
        ...

    def batches(self, rows: int) -> Iterator[Rows]:
        """Read all of them, `rows` at a time."""
        ...


def derived_template_id(vector: vectors.Float32) -> str:
    """Return an id made from the vector's content, float32 [dim].

    Enrolling the same vector of a subject again then changes nothing.
    """
    content = np.ascontiguousarray(vector, dtype="<f4").tobytes()
    digest = hashlib.blake2b(content, digest_size=DERIVED_DIGEST_BYTES)
    return f"t-{digest.hexdigest()}"


def open_npy(path: Path) -> npt.NDArray[np.floating[Any]]:
    """Return the matrix of a .npy file, memory-mapped.

    Raises:
        InvalidError: it is no matrix of floats (FILE_UNREADABLE, VECTOR_DTYPE, VECTOR_SHAPE).
    """
    try:
        matrix: npt.NDArray[np.floating[Any]] = open_memmap(path, mode="r")
    except (OSError, ValueError, OverflowError) as error:
        raise InvalidError(
            f"cannot be read as .npy path={path} problem={_npy_problem(path, error)}",
            reason="FILE_UNREADABLE",
        ) from None
    if matrix.dtype.name not in FLOAT_KINDS:
        raise InvalidError(
            f"vectors must be {', '.join(FLOAT_KINDS)} path={path} dtype={matrix.dtype.name}",
            reason="VECTOR_DTYPE",
        )
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise InvalidError(
            f"vectors must be a matrix [rows, dim] path={path} shape={matrix.shape}",
            reason="VECTOR_SHAPE",
        )
    return matrix


def _npy_problem(path: Path, error: Exception) -> str:
    """Say what a file is instead, where that is more than NumPy says."""
    if is_zipfile(path):
        return "it is an archive of arrays, .npz"
    if path.is_file() and path.stat().st_size == 0:
        return "it is empty"
    return str(error)


def as_float32(matrix: npt.NDArray[np.floating[Any]]) -> vectors.Float32:
    """Return a matrix as float32, in memory. What is too large becomes infinite, and refused."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(matrix, dtype=np.float32)


def read_ids(path: Path, *, field: str) -> Iterator[str]:
    """Read ids, one per line, in UTF-8.

    Raises:
        InvalidError: a line is no id (ID_MALFORMED, with its row), or the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            for row, line in enumerate(file):
                yield id_of_line(line, path=path, row=row, field=field)
    except OSError as error:
        raise InvalidError(
            f"cannot be read path={path} problem={error.strerror}", reason="FILE_UNREADABLE"
        ) from None


def id_of_line(line: bytes, *, path: Path, row: int, field: str) -> str:
    """Return the id on a line.

    Raises:
        InvalidError: there is none (ID_MALFORMED, with its row).
    """
    try:
        value = line.rstrip(b"\r\n").decode()
        problem = id_problem(value)
    except UnicodeDecodeError:
        value, problem = "", "not UTF-8"
    if problem:
        raise InvalidError(
            f"{field} is malformed: {problem} path={path} line={row + 1} row={row}",
            reason="ID_MALFORMED",
            row=row,
            field=field,
        )
    return value


def _check_ids_count(path: Path, rows_count: int, *, field: str) -> None:
    lines_count = sum(1 for _ in read_ids(path, field=field))
    if lines_count != rows_count:
        raise count_mismatch(path, lines_count, rows_count, field=field)


def count_mismatch(path: Path, ids_count: int, rows_count: int, *, field: str) -> InvalidError:
    """Return the error for a file that has more or fewer ids than there are vectors."""
    return InvalidError(
        f"there must be one {field} per vector path={path} ids={ids_count} vectors={rows_count}",
        reason="COUNT_MISMATCH",
        field=field,
    )


class NpySource:
    """A .npy matrix, a list of subject ids and, where there is one, a list of template ids."""

    def __init__(
        self, matrix: npt.NDArray[np.floating[Any]], *, subjects: Path, templates: Path | None
    ) -> None:
        _check_ids_count(subjects, len(matrix), field="subject_id")
        if templates is not None:
            _check_ids_count(templates, len(matrix), field="template_id")
        self._matrix = matrix
        self._subjects = subjects
        self._templates = templates

    @property
    def rows_count(self) -> int:
        """How many rows the matrix has."""
        return len(self._matrix)

    @property
    def dim(self) -> int:
        """Components per vector."""
        return int(self._matrix.shape[1])

    def batches(self, rows: int) -> Iterator[Rows]:
        """Read all rows."""
        subjects = read_ids(self._subjects, field="subject_id")
        templates = (
            None if self._templates is None else read_ids(self._templates, field="template_id")
        )
        for first in range(0, self.rows_count, rows):
            x = as_float32(self._matrix[first : first + rows])
            yield Rows(
                first=first,
                template_ids=(
                    [derived_template_id(vector) for vector in x]
                    if templates is None
                    else list(islice(templates, len(x)))
                ),
                subject_ids=list(islice(subjects, len(x))),
                vectors=x,
            )


def check_dim(gallery_dim: int, source_dim: int) -> None:
    """Raise InvalidError (DIM_MISMATCH) for vectors that cannot be the gallery's."""
    if gallery_dim != source_dim:
        raise InvalidError(
            f"the gallery's dimension is another dim={source_dim} gallery_dim={gallery_dim}",
            reason="DIM_MISMATCH",
            field="dim",
        )


def check_probes_dim(client: facegrid.Client, gallery: str, probes_dim: int) -> None:
    """Raise InvalidError (DIM_MISMATCH) for probes that a gallery cannot compare.

    Nothing is counted for it, so it holds while nodes are away. That a gallery is unknown, the
    search itself says.
    """
    for one in client.list_galleries():
        if one.name == gallery:
            check_dim(one.dim, probes_dim)


@contextmanager
def in_file(first: int) -> Iterator[None]:
    """Make errors name the row of the source, where they name one of a batch."""
    try:
        yield
    except InvalidError as error:
        if error.row is None:
            raise
        raise shifted(error, first) from None


def shifted(error: InvalidError, first: int) -> InvalidError:
    """Return an error about a row of a batch as one about that row of the source."""
    row = error.row
    if row is None:
        return error
    facts = {**error.facts, "row": first + row}
    # What a client knows of batches means nothing to whoever gave it a file.
    facts.pop("batch", None)
    sentence = error.message.partition(" batch=")[0]
    message = _ROW.sub(f"row={first + row}", sentence, count=1)
    return type(error)(message, reason=error.reason, **facts)


def check(rows: Rows) -> None:
    """Raise InvalidError naming the first row whose id or vector the service would refuse."""
    with in_file(rows.first):
        check_ids(rows.template_ids, field="template_id")
        check_ids(rows.subject_ids, field="subject_id")
        vectors.check_rows(rows.vectors)
