"""Puts the rows of a bulk load into a shard's memory before their record is committed.

Nothing of it can be seen until `ShardState.apply` publishes the rows, which is quick whatever
their number: so all rows of a load appear at once, and the event loop is not held up. All of this
may run in a thread as long as nothing else changes the rows meanwhile.
"""

from collections.abc import Sequence

import numpy as np

from facegrid.errors import ConflictError, InvalidError, UnavailableError
from facegrid.format import digest as digests
from facegrid.format.log import LoadedSegment
from indexd.engine.loading import Bool, PreparedSegment, Staged
from indexd.engine.state import ShardState


def stage_new(state: ShardState, request_id: str, segments: Sequence[PreparedSegment]) -> None:
    """Stage a load that is about to be committed.

    Raises:
        ConflictError: a template is there with another vector (TEMPLATE_EXISTS; segment, row).
        InvalidError: coded rows do not fit the codebook (CODES_MISFIT; segment).
        UnavailableError: they are of a codebook that this node does not use (yet).
    """
    for number, segment in enumerate(segments):
        _check_codes(state, number, segment)
    recorded = [
        LoadedSegment(one.sha256, len(one), unchanged_rows(state, number, one))
        for number, one in enumerate(segments)
    ]
    stage(
        state,
        request_id,
        recorded,
        [one for one, made in zip(segments, recorded, strict=True) if brings_rows(made)],
    )


def stage(
    state: ShardState,
    request_id: str,
    recorded: Sequence[LoadedSegment],
    segments: Sequence[PreparedSegment],
) -> None:
    """Stage the rows of those segments that bring some."""
    bringing = [one for one in recorded if brings_rows(one)]
    assert [one.sha256 for one in bringing] == [one.sha256 for one in segments], "in order"
    state.unstage()
    numbers = [
        state.subjects.stage(segment.subject_ids)[segment.subject_rows] for segment in segments
    ]
    at, digest = 0, 0
    for segment, one, subjects in zip(segments, bringing, numbers, strict=True):
        state.index.stage(at, segment.codes, subjects, one.erased)
        at += len(segment)
        digest += digests.total(segment.digests[~one.erased])
    empty = np.empty(0, np.int32)
    state.staged = Staged(
        request_id=request_id,
        recorded=tuple(recorded),
        segments=tuple(segments),
        erased=np.concatenate([np.empty(0, np.bool_), *(one.erased for one in bringing)]),
        links=state.subjects.links(np.concatenate([empty, *numbers])),
        digest=digest,
    )


def brings_rows(recorded: LoadedSegment) -> bool:
    """Tell whether any row of a segment is new."""
    return recorded.unchanged_count < recorded.rows_count


def unchanged_rows(state: ShardState, number: int, segment: PreparedSegment) -> Bool | None:
    """Return which rows of a segment are there already, bool [n]; None: none is.

    Raises:
        ConflictError: a template is there with another vector (TEMPLATE_EXISTS; segment, row).
    """
    known = np.fromiter(
        (state.subjects.number(one) is not None for one in segment.subject_ids),
        np.bool_,
        len(segment.subject_ids),
    )
    candidates = np.flatnonzero(known[segment.subject_rows])
    rows: list[int] = []
    stored: list[int] = []
    for row in candidates.tolist():
        subject_id, template_id = segment.pair(row)
        for there in state.live_rows(subject_id):
            if state.templates[there] == template_id:
                rows.append(row)
                stored.append(there)
    if not rows:
        return None
    for first in range(0, len(rows), _COMPARED_ROWS):
        part = slice(first, first + _COMPARED_ROWS)
        same = (segment.codes[rows[part]] == state.index.codes(np.array(stored[part]))).all(axis=1)
        if not same.all():
            row = rows[first + int(np.argmin(same))]
            raise ConflictError(
                f"template exists with another vector segment={number} row={row}",
                reason="TEMPLATE_EXISTS",
                segment=number,
                row=row,
                field="template_ids",
            )
    unchanged = np.zeros(len(segment), np.bool_)
    unchanged[rows] = True
    return unchanged


_COMPARED_ROWS = 8192


def _check_codes(state: ShardState, number: int, segment: PreparedSegment) -> None:
    """Refuse codes that a restart could not use."""
    if segment.encoded is None:
        return
    if segment.codebook != state.codebook:
        raise UnavailableError(
            f"segment is coded with a codebook that is not in use segment={number}"
            f" codebook={segment.codebook} in_use={state.codebook or 'none'}",
            reason="CODEBOOK_NOT_IN_USE",
            segment=number,
        )
    if not state.index.fits(segment.encoded):
        raise InvalidError(
            f"coded rows do not fit the codebook segment={number}",
            reason="CODES_MISFIT",
            segment=number,
        )
