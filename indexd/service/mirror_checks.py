"""What a node checks of records that come from another shard, as of any write."""

from facegrid import limits
from facegrid.api.shard.v1 import shard_service_pb2 as pb
from facegrid.errors import CorruptError, InvalidError
from facegrid.format.log import EnrolRecord, EraseRecord, LoadRecord, LogRecord, decode_record
from facegrid.ids import ShardId, check_ids
from indexd.engine.requests import LoadRequest, MirrorRequest, NamedSegment, Step
from indexd.engine.state import ShardState
from indexd.service import checks


def mirror_request(message: pb.MirrorRequest, state: ShardState) -> MirrorRequest | LoadRequest:
    """Return what is to be brought into a shard. For a thread.

    Raises:
        InvalidError: a record is malformed, of another source, or does not belong here
            (RECORD_REFUSED; record).
    """
    step = Step(ShardId(message.source_shard_id), message.after_position, message.last_position)
    if not 0 <= step.after < step.last:
        raise InvalidError(
            f"positions of the source do not follow after={step.after} last={step.last}",
            reason="POSITIONS_MALFORMED",
            field="last_position",
        )
    records: list[LogRecord] = []
    reached = step.after
    for number, data in enumerate(message.records):
        record = _decoded(number, data)
        problem = _place_problem(record, step, reached) or _problem(record, state)
        if problem:
            raise _refused(number, problem)
        assert record.source is not None, "else it had a problem"
        reached = record.source.position
        records.append(record)
    loads = [record for record in records if isinstance(record, LoadRecord)]
    if loads and len(records) > 1:
        raise _refused(0, "a load comes alone")
    if loads:
        return _load_request(loads[0], step)
    size_bytes = sum(map(len, message.records))
    return MirrorRequest(f"mirror-{step.last}", step, tuple(records), size_bytes)


def _decoded(number: int, data: bytes) -> LogRecord:
    try:
        return decode_record(data)
    except CorruptError as error:
        raise _refused(number, error.message) from error


def _place_problem(record: LogRecord, step: Step, reached: int) -> str:
    """Say why a record does not follow what was reached of the source; empty when it does."""
    source = record.source
    if source is None or source.shard_id != step.source:
        return "it has no position of the source"
    if not reached < source.position <= step.last:
        return f"its position does not follow position={source.position} after={reached}"
    return ""


def _problem(record: LogRecord, state: ShardState) -> str:
    """Say what is wrong with a record by itself; empty when nothing is."""
    if isinstance(record, LoadRecord):
        # Its segments are checked when they are loaded.
        return ""
    if isinstance(record, EraseRecord) and record.within is None:
        return "it is not bounded by the range of its source"
    try:
        check_ids(list(record.template_ids), field="template_ids")
        check_ids(list(record.subject_ids), field="subject_ids")
        if isinstance(record, EnrolRecord) and len(record.codes):
            # One without rows tells of a request that enrolled none of this range.
            checks.check_count(len(record.codes), limits.ENROL_ROWS_MAX, "rows")
    except InvalidError as error:
        return error.message
    return state.rows_problem(record)


def _load_request(record: LoadRecord, step: Step) -> LoadRequest:
    """Return a bulk load as its segments are to be loaded here."""
    segments = [NamedSegment(one.sha256, one.rows_count) for one in record.segments]
    checks.check_count(len(segments), limits.LOAD_SEGMENTS_MAX, "segments")
    checks.check_count(sum(one.rows_count for one in segments), limits.LOAD_ROWS_MAX, "rows")
    return LoadRequest(record.request_id, tuple(segments), step, tuple(record.inherited))


def _refused(number: int, problem: str) -> InvalidError:
    return InvalidError(
        f"a record cannot be brought in: {problem} record={number}",
        reason="RECORD_REFUSED",
        record=number,
    )
