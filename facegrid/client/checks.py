"""What the client refuses before anything is sent, with the same reasons as the service."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from facegrid import ids, limits, vectors
from facegrid.errors import InvalidError
from facegrid.wire import FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Checked rows, as they are sent."""

    template_ids: list[str]
    subject_ids: list[str]
    vectors: FloatArray

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.template_ids)

    def part(self, first: int, last: int) -> "Rows":
        """Return the rows from first to before last."""
        return Rows(
            self.template_ids[first:last], self.subject_ids[first:last], self.vectors[first:last]
        )


def checked_rows(
    template_ids: Sequence[str], subject_ids: Sequence[str], x: npt.ArrayLike
) -> Rows:
    """Return rows that may be enrolled.

    Raises:
        InvalidError: an array or an id is malformed, or their numbers differ (ROWS_DIFFER).
    """
    matrix = checked_matrix(x, field="vectors")
    rows = Rows(
        checked_ids(template_ids, field="template_ids"),
        checked_ids(subject_ids, field="subject_ids"),
        matrix,
    )
    for field, values in (("template_ids", rows.template_ids), ("subject_ids", rows.subject_ids)):
        if len(values) != len(matrix):
            raise InvalidError(
                f"{field} must have one entry per row of vectors"
                f" ids={len(values)} rows={len(matrix)}",
                reason="ROWS_DIFFER",
                field=field,
            )
    return rows


def checked_ids(values: Sequence[str], *, field: str) -> list[str]:
    """Return ids as a list of str.

    Raises:
        InvalidError: one is no str, or malformed (ID_MALFORMED, row).
    """
    if isinstance(values, str):
        raise InvalidError(
            f"{field} must be a sequence of ids, not one str", reason="ID_MALFORMED", field=field
        )
    listed = list(values)
    for row, value in enumerate(listed):
        if not isinstance(value, str):
            raise InvalidError(
                f"{field} must be str row={row} type={type(value).__name__}",
                reason="ID_MALFORMED",
                row=row,
                field=field,
            )
    ids.check_ids(listed, field=field)
    return listed


def checked_matrix(x: npt.ArrayLike, *, field: str) -> FloatArray:
    """Return an array [rows, dim] as float16 if it is that, else as float32; rows are checked.

    Whether dim is the gallery's, the service says.

    Raises:
        InvalidError: DTYPE_UNKNOWN, SHAPE, OUT_OF_BOUNDS (no rows), and for a row
            VECTOR_NOT_FINITE or VECTOR_NORM.
    """
    matrix = np.asarray(x)
    if matrix.dtype.kind != "f" or matrix.dtype.itemsize > 8:
        raise InvalidError(
            f"{field} must be float16, float32 or float64 dtype={matrix.dtype}",
            reason="DTYPE_UNKNOWN",
            field=field,
        )
    if matrix.ndim != 2:
        raise InvalidError(
            f"{field} must have the shape [rows, dim] shape={list(matrix.shape)}",
            reason="SHAPE",
            field=field,
        )
    if len(matrix) == 0:
        raise InvalidError(f"{field} has no rows", reason="OUT_OF_BOUNDS", field=field)
    with np.errstate(over="ignore"):  # what overflows is infinite, and refused as such
        single = matrix.astype(np.float32, copy=False)
    _check_rows(single, field)
    return matrix.astype(np.float16, copy=False) if matrix.dtype.itemsize == 2 else single


def checked_probes(x: npt.ArrayLike, *, field: str = "probes") -> FloatArray:
    """Return probes as `checked_matrix` does; one of shape [dim] becomes [1, dim].

    Raises:
        InvalidError: also for more than limits.PROBES_MAX rows (OUT_OF_BOUNDS).
    """
    probes = np.asarray(x)
    matrix = checked_matrix(probes[None, :] if probes.ndim == 1 else probes, field=field)
    if len(matrix) > limits.PROBES_MAX:
        raise InvalidError(
            f"too many probes in one call rows={len(matrix)} limit={limits.PROBES_MAX}",
            reason="OUT_OF_BOUNDS",
            field=field,
            limit=limits.PROBES_MAX,
        )
    return matrix


def checked_probe(x: npt.ArrayLike) -> FloatArray:
    """Return one probe as [1, dim].

    Raises:
        InvalidError: also for more than one row (OUT_OF_BOUNDS).
    """
    matrix = checked_probes(x, field="probe")
    if len(matrix) != 1:
        raise InvalidError(
            f"verify takes one probe rows={len(matrix)}", reason="OUT_OF_BOUNDS", field="probe"
        )
    return matrix


def check_identify(k: int, threshold: float | None, coverage_min: float | None) -> None:
    """Raise InvalidError (OUT_OF_BOUNDS) for a k, threshold or coverage that cannot be."""
    if not 1 <= k <= limits.K_MAX:
        raise _out_of_bounds("k", f"1 to {limits.K_MAX}", k)
    if threshold is not None and not -1 <= threshold <= 1:
        raise _out_of_bounds("threshold", "-1 to 1", threshold)
    if coverage_min is not None and not 0 < coverage_min <= 1:
        raise _out_of_bounds("coverage_min", "above 0 to 1", coverage_min)


def check_erase(template_ids: Sequence[str], subject_ids: Sequence[str]) -> None:
    """Raise InvalidError for no ids at all, or for too many (OUT_OF_BOUNDS)."""
    count = len(template_ids) + len(subject_ids)
    if not 1 <= count <= limits.ERASE_IDS_MAX:
        raise _out_of_bounds("ids", f"1 to {limits.ERASE_IDS_MAX}", count)


def check_count(value: int, *, field: str) -> int:
    """Return a count that fits the wire; the service knows the tighter bound.

    Raises:
        InvalidError: it is negative or absurd (OUT_OF_BOUNDS).
    """
    if not 0 <= value < 2**31:
        raise _out_of_bounds(field, "0 to 2147483647", value)
    return value


def _check_rows(x: vectors.Float32, field: str) -> None:
    try:
        vectors.check_rows(x)
    except InvalidError as error:
        error.facts["field"] = field
        raise


def _out_of_bounds(field: str, bounds: str, value: float) -> InvalidError:
    return InvalidError(
        f"{field} must be {bounds} {field}={value}", reason="OUT_OF_BOUNDS", field=field
    )
