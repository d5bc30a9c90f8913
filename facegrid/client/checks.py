"""What the client refuses before anything is sent, with the same reasons as the service.

Values of another type than the signatures say are refused here too, so that callers meet nothing
but FacegridError. That is why `object` is taken where a type is known.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from facegrid import ids, limits, vectors
from facegrid.client.arguments import is_text, kind, listed
from facegrid.client.values import EnrolBatch
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


def checked_ids(values: object, *, field: str) -> list[str]:
    """Return ids as a list of str.

    Raises:
        InvalidError: there is no sequence, or one is no str, or malformed (ID_MALFORMED, row).
    """
    several = listed(values)
    if several is None:
        raise InvalidError(
            f"{field} must be a sequence of ids, not one {kind(values)}",
            reason="ID_MALFORMED",
            field=field,
        )
    texts: list[str] = []
    for row, value in enumerate(several):
        if not is_text(value):
            raise InvalidError(
                f"{field} must be str row={row} type={kind(value)}",
                reason="ID_MALFORMED",
                row=row,
                field=field,
            )
        texts.append(value)
    ids.check_ids(texts, field=field)
    return texts


def checked_matrix(x: npt.ArrayLike, *, field: str) -> FloatArray:
    """Return an array [rows, dim] as float16 if it is that, else as float32; rows are checked.

    Whether dim is the gallery's, the service says.

    Raises:
        InvalidError: DTYPE_UNKNOWN, SHAPE, OUT_OF_BOUNDS (no rows), and for a row
            VECTOR_NOT_FINITE or VECTOR_NORM.
    """
    matrix = _array(x, field)
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
    probes = _array(x, field)
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


def check_erase(template_ids: Sequence[str], subject_ids: Sequence[str]) -> None:
    """Raise InvalidError for no ids at all, or for too many (OUT_OF_BOUNDS)."""
    count = len(template_ids) + len(subject_ids)
    if not 1 <= count <= limits.ERASE_IDS_MAX:
        raise InvalidError(
            f"ids must be 1 to {limits.ERASE_IDS_MAX} ids={count}",
            reason="OUT_OF_BOUNDS",
            field="ids",
        )


def check_batch(batch: object) -> None:
    """Raise InvalidError (BATCH_MALFORMED) for what is no EnrolBatch."""
    if not isinstance(batch, EnrolBatch):
        raise InvalidError(
            f"batches must be EnrolBatch type={kind(batch)}",
            reason="BATCH_MALFORMED",
            field="batches",
        )


def checked_batches(batches: object) -> Iterable[EnrolBatch]:
    """Return what can be read in a plain loop; each batch is checked when it is sent.

    Raises:
        InvalidError: it cannot be read so (BATCH_MALFORMED).
    """
    if not isinstance(batches, Iterable):
        raise InvalidError(
            f"batches must be an iterable of EnrolBatch type={kind(batches)}",
            reason="BATCH_MALFORMED",
            field="batches",
        )
    return batches


def _array(x: npt.ArrayLike, field: str) -> npt.NDArray[np.generic]:
    try:
        return np.asarray(x)
    except (TypeError, ValueError, RuntimeError) as error:  # rows of several lengths, for instance
        raise InvalidError(
            f"{field} cannot be read as an array: {error}", reason="SHAPE", field=field
        ) from None


def _check_rows(x: vectors.Float32, field: str) -> None:
    try:
        vectors.check_rows(x)
    except InvalidError as error:
        error.facts["field"] = field
        raise
