"""Inputs of a bulk load: NumPy arrays with lists of ids, or Parquet, a chunk at a time.

Nothing is read whole. What differs from `sources` is the order of things: rows are checked where
they are cut, in threads, and only the lines of ids are read in advance.
"""

import hashlib
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from facegrid import limits, vectors
from facegrid.errors import InvalidError
from facegrid.ids import check_ids, first_bad_id
from facegrid.vectors import Int8, Int64
from fgctl.bulk.cut import Chunk, Ids
from fgctl.bulk.journal import Input
from fgctl.online.parquet import ParquetSource
from fgctl.online.sources import (
    Rows,
    as_float32,
    count_mismatch,
    derived_template_id,
    id_of_line,
    in_file,
    open_npy,
)

BLOCK_ROWS: Final = 512
"""Vectors checked and rounded at a time, so that they stay in the cache."""
MARGIN: Final = 1e-3
"""Far more than summing 1,024 squares in float32 may be off."""
READ_BYTES: Final = 1 << 20
SAMPLES: Final = 64
SAMPLE_BYTES: Final = 1 << 16


def fingerprint(path: Path) -> Input:
    """Return what a file is known by: size, time of change, and a hash of samples of its bytes."""
    with path.open("rb") as file:
        stat = os.fstat(file.fileno())
        hashed = hashlib.sha256()
        last = max(stat.st_size - SAMPLE_BYTES, 0)
        for number in range(SAMPLES):
            file.seek(last * number // (SAMPLES - 1))
            hashed.update(file.read(SAMPLE_BYTES))
    return Input(str(path.resolve()), stat.st_size, stat.st_mtime_ns, hashed.hexdigest())


def stored_rows(
    matrix: npt.NDArray[np.floating[Any]], first: int, places: Int64, component_bits: int
) -> Int8:
    """Return vectors as stored rows, as a router makes them, each at its place.

    Args:
        matrix: floats [rows, dim].
        first: number of the first one in the input.
        places: int64 [rows], a permutation.
        component_bits: what the gallery rounds to.

    Raises:
        InvalidError: one is no vector (row of the input).
    """
    codes: Int8 = np.empty(matrix.shape, np.int8)
    for at in range(0, len(matrix), BLOCK_ROWS):
        x = as_float32(matrix[at : at + BLOCK_ROWS])
        if not _clearly_sound(x):
            with in_file(first + at):
                vectors.check_rows(x)
        codes[places[at : at + BLOCK_ROWS]] = vectors.quantize(x, component_bits)
    return codes


def _clearly_sound(x: vectors.Float32) -> bool:
    """Tell whether all norms are finite and well within their bounds.

    `check_rows` is exact, and takes three times as long.
    """
    squares = np.einsum("ij,ij->i", x, x)
    least, most = limits.NORM_MIN**2 * (1 + MARGIN), limits.NORM_MAX**2 * (1 - MARGIN)
    return bool(((squares > least) & (squares < most)).all())


class NpyChunk:
    """Rows of a .npy matrix, with the lines of its id files."""

    def __init__(
        self,
        matrix: npt.NDArray[np.floating[Any]],
        first: int,
        *,
        subjects: "Lines",
        templates: "Lines | None",
    ) -> None:
        self.first = first
        self._matrix = matrix
        self._subjects = subjects
        self._templates = templates

    def ids(self) -> Ids:
        """Return the ids. See Chunk."""
        subject_ids, subjects = self._subjects.ids(self.first)
        if self._templates is not None:
            return Ids(self._templates.ids(self.first)[0], subject_ids, subjects)
        derived: list[str] = []
        for at in range(0, len(self._matrix), BLOCK_ROWS):
            x = as_float32(self._matrix[at : at + BLOCK_ROWS])
            derived += [derived_template_id(vector) for vector in x]
        return Ids(derived, subject_ids, subjects)

    def codes(self, places: Int64, component_bits: int) -> Int8:
        """Return the rows as they are stored. See Chunk."""
        return stored_rows(self._matrix, self.first, places, component_bits)


class Lines:
    """Some lines of a file of ids."""

    def __init__(self, path: Path, field: str, lines: list[bytes]) -> None:
        self._path = path
        self._field = field
        self._lines = lines

    def ids(self, first: int) -> tuple[list[str], list[bytes]]:
        """Return the ids, also in UTF-8; `first` is the row of the first line."""
        encoded = b"".join(self._lines).replace(b"\r\n", b"\n").split(b"\n")
        del encoded[len(self._lines) :]
        try:
            texts = b"\n".join(encoded).decode().split("\n")
        except UnicodeDecodeError:
            texts = []
        if len(texts) != len(encoded) or first_bad_id(texts, encoded) is not None:
            # Line by line, to find the one that is wrong.
            texts = [
                id_of_line(line, path=self._path, row=first + place, field=self._field)
                for place, line in enumerate(self._lines)
            ]
            encoded = [text.encode() for text in texts]
        return texts, encoded


class NpyChunks:
    """A .npy matrix, a list of subject ids and, where there is one, a list of template ids."""

    def __init__(self, path: Path, *, subjects: Path, templates: Path | None) -> None:
        self._matrix = open_npy(path)
        self._files = {"subject_id": subjects}
        if templates is not None:
            self._files["template_id"] = templates
        for field, file in self._files.items():
            lines_count = _lines_count(file)
            if lines_count != len(self._matrix):
                raise count_mismatch(file, lines_count, len(self._matrix), field=field)

    @property
    def rows_count(self) -> int:
        """How many rows the matrix has."""
        return len(self._matrix)

    @property
    def dim(self) -> int:
        """Components per vector."""
        return int(self._matrix.shape[1])

    def chunks(self, rows: int) -> Iterator[Chunk]:
        """Read all rows. See ChunkSource."""
        readers = {field: _lines(path) for field, path in self._files.items()}
        for first in range(0, self.rows_count, rows):
            lines = {
                field: Lines(self._files[field], field, list(islice(reader, rows)))
                for field, reader in readers.items()
            }
            yield NpyChunk(
                self._matrix[first : first + rows],
                first,
                subjects=lines["subject_id"],
                templates=lines.get("template_id"),
            )


class ParquetChunk:
    """Some rows of a Parquet file, in memory."""

    def __init__(self, rows: Rows) -> None:
        self.first = rows.first
        self._rows = rows

    def ids(self) -> Ids:
        """Return the ids. See Chunk."""
        given = self._rows
        encoded: dict[str, list[bytes]] = {}
        for field, texts in (
            ("template_id", given.template_ids),
            ("subject_id", given.subject_ids),
        ):
            encoded[field] = [text.encode() for text in texts]
            if first_bad_id(texts, encoded[field]) is not None:
                with in_file(self.first):
                    check_ids(texts, field=field)
        return Ids(given.template_ids, given.subject_ids, encoded["subject_id"])

    def codes(self, places: Int64, component_bits: int) -> Int8:
        """Return the rows as they are stored. See Chunk."""
        return stored_rows(self._rows.vectors, self.first, places, component_bits)


class ParquetChunks:
    """A Parquet file, read by row groups."""

    def __init__(self, path: Path) -> None:
        self._source = ParquetSource(path)
        self.rows_count = self._source.rows_count
        self.dim = self._source.dim

    def chunks(self, rows: int) -> Iterator[Chunk]:
        """Read all rows. See ChunkSource."""
        for batch in self._source.batches(rows):
            yield ParquetChunk(batch)


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise _unreadable(path, error) from None


def _lines_count(path: Path) -> int:
    """Count lines; the last one may lack its end."""
    count, last = 0, b"\n"
    try:
        with path.open("rb") as file:
            while data := file.read(READ_BYTES):
                count += data.count(b"\n")
                last = data[-1:]
    except OSError as error:
        raise _unreadable(path, error) from None
    return count + (last != b"\n")


def _unreadable(path: Path, error: OSError) -> InvalidError:
    return InvalidError(
        f"cannot be read path={path} problem={error.strerror}", reason="FILE_UNREADABLE"
    )
