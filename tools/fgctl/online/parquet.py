"""Templates from a Parquet file: columns subject_id, vector and, if there is one, template_id.

pyarrow is an extra and slow to load, so it is looked for when a file is opened.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from facegrid.errors import InvalidError
from fgctl.online.sources import FLOAT_KINDS, Rows, as_float32, derived_template_id


class ParquetSource:
    """A Parquet file, read by row groups."""

    def __init__(self, path: Path) -> None:
        try:
            parquet = importlib.import_module("pyarrow.parquet")
        except ModuleNotFoundError:
            raise InvalidError(
                "Parquet needs pyarrow: pip install 'facegrid[parquet]'", reason="PYARROW_MISSING"
            ) from None
        try:
            self._file: Any = parquet.ParquetFile(path)
        except (OSError, ValueError) as error:
            problem = str(error).splitlines()[0]
            raise InvalidError(
                f"cannot be read as Parquet path={path} problem={problem}",
                reason="FILE_UNREADABLE",
            ) from None
        self._path = path
        names = self._file.schema_arrow.names
        self._has_templates = "template_id" in names
        for column in ("subject_id", "vector"):
            if column not in names:
                raise self._refused(f"has no such column column={column}", "COLUMN_MISSING")
        if self.rows_count == 0:
            raise self._refused("has no rows", "VECTOR_SHAPE")
        self._dim = self._first_dim()

    @property
    def rows_count(self) -> int:
        """How many rows the file says it has."""
        return int(self._file.metadata.num_rows)

    @property
    def dim(self) -> int:
        """Components of the first vector; all others must have as many."""
        return self._dim

    def batches(self, rows: int) -> Iterator[Rows]:
        """Read all rows."""
        first = 0
        columns = ["subject_id", "vector", *(["template_id"] if self._has_templates else [])]
        for batch in self._file.iter_batches(batch_size=rows, columns=columns):
            x = self._matrix(batch.column("vector"), first)
            yield Rows(
                first=first,
                template_ids=(
                    self._texts(batch.column("template_id"), first, field="template_id")
                    if self._has_templates
                    else [derived_template_id(vector) for vector in x]
                ),
                subject_ids=self._texts(batch.column("subject_id"), first, field="subject_id"),
                vectors=x,
            )
            first += len(x)

    def _first_dim(self) -> int:
        self._float_kind()
        batch = next(self._file.iter_batches(batch_size=1, columns=["vector"]))
        vector = batch.column("vector")[0].as_py()
        if not vector:
            raise self._refused("has an empty vector row=0", "VECTOR_SHAPE", row=0)
        return len(vector)

    def _float_kind(self) -> None:
        kind = self._file.schema_arrow.field("vector").type
        inner = getattr(kind, "value_type", None)
        names = {"halffloat": "float16", "float": "float32", "double": "float64"}
        if names.get(str(inner)) not in FLOAT_KINDS:
            raise self._refused(
                f"column vector must hold lists of floats type={kind}", "VECTOR_DTYPE"
            )

    def _matrix(self, column: Any, first: int) -> Any:
        lengths = column.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False)
        odd = np.flatnonzero(lengths != self._dim)
        if len(odd):
            row, length = first + int(odd[0]), int(lengths[odd[0]])
            what = "no vector" if length < 0 else f"a vector of dim={length}, not {self._dim}"
            raise self._refused(f"has {what} row={row}", "VECTOR_LENGTH", row=row)
        flat = column.flatten().to_numpy(zero_copy_only=False)
        return as_float32(flat.reshape(-1, self._dim))

    def _texts(self, column: Any, first: int, *, field: str) -> list[str]:
        values: list[Any] = column.to_pylist()
        for row, value in enumerate(values, start=first):
            if not isinstance(value, str):
                raise self._refused(
                    f"{field} must be text row={row}", "ID_MALFORMED", row=row, field=field
                )
        return values

    def _refused(self, problem: str, reason: str, **facts: object) -> InvalidError:
        return InvalidError(f"{problem} path={self._path}", reason=reason, **facts)
