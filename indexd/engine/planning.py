"""What a write would be in the log: says so, and changes nothing of the state.

`ShardState.apply` carries out what was planned, once it is committed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from facegrid.errors import ConflictError, InvalidError
from facegrid.format.log import EnrolRecord, EraseRecord, LoadRecord, LogRecord
from facegrid.format.sources import SourcePosition
from facegrid.vectors import Int8
from indexd.engine.requests import (
    EnrolRequest,
    EraseRequest,
    LoadRequest,
    MirrorRequest,
    Outcome,
    Step,
    WriteRequest,
)
from indexd.engine.state import ShardState

Pair = tuple[str, str]
"""A subject and a template of it."""


@dataclass(slots=True)
class Overlay:
    """What earlier records of an uncommitted group will have changed, for planning the next."""

    position: int
    requests: set[str] = field(default_factory=set)
    _rows: dict[Pair, bytes] = field(default_factory=dict)
    _added: list[tuple[Sequence[Pair], Int8]] = field(default_factory=list)

    @property
    def rows(self) -> dict[Pair, bytes]:
        """Rows that will be there, by their ids; taken together when first asked for, since most
        groups have one record.
        """
        for pairs, codes in self._added:
            self._rows.update(zip(pairs, _bytes_of(codes), strict=True))
        self._added.clear()
        return self._rows

    def add(self, pairs: Sequence[Pair], codes: Int8) -> None:
        """Note rows, int8 [n, dim], that will be there."""
        self._added.append((pairs, codes))


def overlay_of(state: ShardState) -> Overlay:
    """Return the start of a group: nothing changed yet."""
    return Overlay(state.position)


def plan(
    state: ShardState, request: WriteRequest, overlay: Overlay, written_unix_ms: int
) -> LogRecord | Outcome:
    """Return the record that carries the request out, or what it did when it came before.

    Raises:
        InvalidError: a row does not belong here or contradicts another (row).
        ConflictError: a template is there with another vector (TEMPLATE_EXISTS, row).
    """
    done = None if _is_mirrored(request) else state.requests.recall(request)
    if done is not None:
        return done
    position = overlay.position + 1
    record: LogRecord
    match request:
        case EnrolRequest():
            new, codes = _new_rows(state, request, overlay)
            record = EnrolRecord(
                position=position,
                request_id=request.request_id,
                request_digest=request.digest(),
                written_unix_ms=written_unix_ms,
                template_ids=[request.template_ids[row] for row in new],
                subject_ids=[request.subject_ids[row] for row in new],
                codes=codes,
                unchanged_count=len(request.codes) - len(new),
            )
        case EraseRequest():
            if state.inherited.done_in(request.request_id, state.range):
                # A late copy: who was enrolled again since stays.
                return Outcome(state.position)
            record = EraseRecord(
                position=position,
                request_id=request.request_id,
                request_digest=request.digest(),
                written_unix_ms=written_unix_ms,
                template_ids=request.template_ids,
                subject_ids=request.subject_ids,
            )
        case MirrorRequest():
            raise AssertionError("several records: see plan_mirrored")
        case LoadRequest():
            if request.step is not None and not state.follows(request.step):
                return Outcome(state.position)
            assert state.staged is not None, "a load is staged before it is planned"
            assert state.staged.request_id == request.request_id, "and no other"
            record = LoadRecord(
                position=position,
                request_id=request.request_id,
                request_digest=request.digest(),
                written_unix_ms=written_unix_ms,
                segments=state.staged.recorded,
                source=_position_of(request.step),
                inherited=request.inherited,
            )
    overlay.position = position
    overlay.requests.add(request.request_id)
    return record


def vectors_decide(
    state: ShardState, request_id: str, template_ids: Sequence[str], subject_ids: Sequence[str]
) -> bool:
    """Tell whether it depends on the vectors of rows that are to be enrolled whether they are
    refused: the request came before, or a template of it is there, or stands in it twice. Most
    bring only new ones. Not looked at is whether the subjects belong to the shard, which hashing
    them would tell: `plan` does it, and routers send what they hashed themselves.

    Args:
        state: of the shard.
        request_id: under which they come.
        template_ids: one for each row.
        subject_ids: likewise.
    """
    pairs = set(zip(subject_ids, template_ids, strict=True))
    if request_id in state.requests or len(pairs) < len(subject_ids):
        return True
    known = state.subjects.known(subject_ids)
    return bool(known) and any(
        subject_id in known and _row_of(state, subject_id, template_id) is not None
        for subject_id, template_id in pairs
    )


def plan_mirrored(
    state: ShardState, request: MirrorRequest, written_unix_ms: int
) -> list[LogRecord] | Outcome:
    """Return the records of another shard as this one's, or an outcome where they do not
    follow what there is of it: others have been here since.

    A request without records still moves the source's position, by an empty record.
    """
    if not state.follows(request.step):
        return Outcome(state.position)
    records = list(request.records) or [
        EnrolRecord(
            position=0,
            request_id=request.request_id,
            request_digest=request.digest(),
            written_unix_ms=written_unix_ms,
            template_ids=[],
            subject_ids=[],
            codes=np.empty((0, state.dim), np.int8),
        )
    ]
    records[-1] = replace(records[-1], source=_position_of(request.step))
    return [
        replace(record, position=position)
        for position, record in enumerate(records, state.position + 1)
    ]


def _new_rows(
    state: ShardState, request: EnrolRequest, overlay: Overlay
) -> tuple[Sequence[int], Int8]:
    """Return the rows that are not there yet, rising, by number and as codes; add them to the
    overlay.
    """
    assert len(request.codes) == len(request.subject_ids), "checked where it came in"
    pairs = list(zip(request.subject_ids, request.template_ids, strict=True))
    keys, elsewhere = state.keys_of(request.subjects)
    inherited = state.inherited.has(request.request_id)
    there: set[int] = set()
    added: dict[Pair, bytes] = {}
    for row in _suspects(state, pairs, overlay, all_of_them=inherited or elsewhere is not None):
        if row == elsewhere:
            raise InvalidError(
                f"subject does not belong to this shard row={row} shard={state.shard_id}",
                reason="SUBJECT_ELSEWHERE",
                row=row,
                shard=state.shard_id,
            )
        pair, codes = pairs[row], request.codes[row].tobytes()
        if pair in added:
            if added[pair] != codes:
                raise InvalidError(
                    f"template stands twice in the request with different vectors row={row}",
                    reason="DUPLICATE_ROW",
                    row=row,
                    field="template_ids",
                )
            there.add(row)
            continue
        stored = overlay.rows.get(pair) or _stored(state, *pair)
        if stored is None:
            if inherited and state.inherited.done_for(request.request_id, int(keys[row])):
                # A late copy: the row was enrolled, and has been erased since.
                there.add(row)
            else:
                added[pair] = codes
        elif stored == codes:
            there.add(row)
        else:
            raise ConflictError(
                f"template exists with another vector row={row}",
                reason="TEMPLATE_EXISTS",
                row=row,
                field="template_ids",
            )
    if not there:
        overlay.add(pairs, request.codes)
        return range(len(pairs)), request.codes
    new = [row for row in range(len(pairs)) if row not in there]
    chosen = request.codes[new]
    overlay.add([pairs[row] for row in new], chosen)
    return new, chosen


def _suspects(
    state: ShardState, pairs: Sequence[Pair], overlay: Overlay, *, all_of_them: bool
) -> Sequence[int]:
    """Return the rows that have to be looked at one by one, rising. Most are of new subjects, and
    telling that of many together costs little.
    """
    if all_of_them or len(set(pairs)) < len(pairs) or not overlay.rows.keys().isdisjoint(pairs):
        return range(len(pairs))
    known = state.subjects.known([subject_id for subject_id, _ in pairs])
    return (
        [row for row, (subject_id, _) in enumerate(pairs) if subject_id in known] if known else ()
    )


def _bytes_of(codes: Int8) -> list[bytes]:
    """Return rows, int8 [n, dim], one by one."""
    data, dim = codes.tobytes(), codes.shape[1]
    return [data[at : at + dim] for at in range(0, len(data), dim)]


def _stored(state: ShardState, subject_id: str, template_id: str) -> bytes | None:
    """Return the stored row of a live template, or None."""
    row = _row_of(state, subject_id, template_id)
    return None if row is None else state.index.codes(np.array([row], np.int64)).tobytes()


def _row_of(state: ShardState, subject_id: str, template_id: str) -> int | None:
    """Return the row of a live template, or None."""
    return next(
        (row for row in state.live_rows(subject_id) if state.templates[row] == template_id), None
    )


def _position_of(step: Step | None) -> SourcePosition | None:
    """Return how far a source is after a step."""
    return None if step is None else SourcePosition(step.source, step.last)


def _is_mirrored(request: WriteRequest) -> bool:
    """Tell whether a request brings rows of another shard: such are told by their positions."""
    return isinstance(request, LoadRequest) and request.step is not None
