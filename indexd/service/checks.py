"""What a node checks of a request before it touches a shard, although the router did so too."""

import numpy as np

from facegrid import limits, vectors
from facegrid.api.shard.v1 import shard_service_pb2 as pb
from facegrid.errors import InvalidError
from facegrid.format.checks import sha256_problem
from facegrid.ids import check_ids, check_request_id
from facegrid.vectors import Float32, Int8
from facegrid.wire import from_wire_vectors
from indexd.engine.loading import ShardShape
from indexd.engine.requests import EnrolRequest, EraseRequest, LoadRequest, NamedSegment
from indexd.replica.shard_copy import Trust


def enrol_request(request: pb.AppendRequest, shape: ShardShape) -> EnrolRequest:
    """Return the rows to enrol into a shard.

    Raises:
        InvalidError: ids or rows are malformed, or their numbers do not match.
    """
    check_request_id(request.request_id)
    rows = request.rows
    template_ids, subject_ids = list(rows.template_ids), list(rows.subject_ids)
    codes = stored_rows(rows.codes, rows.dim, shape.dim)
    if not len(template_ids) == len(subject_ids) == len(codes):
        raise InvalidError(
            f"numbers of rows differ templates={len(template_ids)} subjects={len(subject_ids)}"
            f" codes={len(codes)}",
            reason="ROWS_MISMATCH",
            field="rows",
        )
    _check_row_ids(template_ids, subject_ids)
    vectors.check_codes(codes, shape.component_bits)
    return EnrolRequest(request.request_id, template_ids, subject_ids, codes)


def enrol_ids(request: pb.CheckIdsRequest) -> tuple[list[str], list[str]]:
    """Return the templates and the subjects to be enrolled, one of each for a row.

    Raises:
        InvalidError: as `enrol_request`, as far as ids and their number go.
    """
    check_request_id(request.request_id)
    template_ids, subject_ids = list(request.template_ids), list(request.subject_ids)
    if len(template_ids) != len(subject_ids):
        raise InvalidError(
            f"numbers of ids differ templates={len(template_ids)} subjects={len(subject_ids)}",
            reason="ROWS_MISMATCH",
            field="subject_ids",
        )
    _check_row_ids(template_ids, subject_ids)
    return template_ids, subject_ids


def _check_row_ids(template_ids: list[str], subject_ids: list[str]) -> None:
    check_count(len(template_ids), limits.ENROL_ROWS_MAX, "rows")
    check_ids(template_ids, field="template_ids")
    check_ids(subject_ids, field="subject_ids")


def erase_request(request: pb.EraseRequest) -> EraseRequest:
    """Return what to erase.

    Raises:
        InvalidError: ids are malformed, or there are none or too many.
    """
    check_request_id(request.request_id)
    template_ids, subject_ids = list(request.template_ids), list(request.subject_ids)
    check_count(len(template_ids) + len(subject_ids), limits.ERASE_IDS_MAX, "ids")
    check_ids(template_ids, field="template_ids")
    check_ids(subject_ids, field="subject_ids")
    return EraseRequest(request.request_id, template_ids, subject_ids)


def load_request(request: pb.LoadRequest) -> LoadRequest:
    """Return the segments to load.

    Raises:
        InvalidError: there are none or too many, or one is named wrongly (SEGMENT_NAME).
    """
    check_request_id(request.request_id)
    check_count(len(request.segments), limits.LOAD_SEGMENTS_MAX, "segments")
    for number, segment in enumerate(request.segments):
        problem = sha256_problem(segment.sha256)
        if not problem and segment.rows_count < 1:
            problem = f"rows_count={segment.rows_count}"
        if problem:
            raise InvalidError(
                f"segment is named wrongly: {problem} segment={number}",
                reason="SEGMENT_NAME",
                segment=number,
                field="segments",
            )
    rows_count = sum(segment.rows_count for segment in request.segments)
    check_count(rows_count, limits.LOAD_ROWS_MAX, "rows")
    return LoadRequest(
        request.request_id,
        tuple(NamedSegment(one.sha256, one.rows_count) for one in request.segments),
    )


def probes(message: "pb.SearchRequest | pb.CompareRequest", dim: int) -> Float32:
    """Return the probes of a request, float32 [m, dim].

    Raises:
        InvalidError: wrong dimension or dtype, or a row that is no vector.
    """
    data = message.probes if isinstance(message, pb.SearchRequest) else message.probe
    x = from_wire_vectors(data, dim=dim, field="probes")
    check_count(len(x), limits.PROBES_MAX, "probes")
    return x


def stored_rows(data: bytes, dim: int, gallery_dim: int) -> Int8:
    """Return stored rows, int8 [n, dim].

    Raises:
        InvalidError: wrong dimension, or no whole number of rows.
    """
    if dim != gallery_dim or len(data) % dim:
        raise InvalidError(
            f"stored rows do not fit the gallery dim={dim} gallery_dim={gallery_dim}"
            f" bytes={len(data)}",
            reason="DIM_MISMATCH",
            field="rows",
        )
    return np.frombuffer(data, np.int8).reshape(-1, dim)


def trust(message: pb.Trust) -> Trust:
    """Return what the asker knows of a shard, and accepts."""
    return Trust(message.primary_boot_id, message.unconfirmed_accepted)


def check_k(k: int) -> None:
    """Raise InvalidError unless k is 1 to K_MAX."""
    if not 1 <= k <= limits.K_MAX:
        raise InvalidError(
            f"k must be 1 to {limits.K_MAX} k={k}", reason="K_OUT_OF_RANGE", field="k"
        )


def check_candidates(probes_count: int, k: int) -> None:
    """Raise InvalidError where the longest possible answer would be too long."""
    check_count(probes_count * k, limits.CANDIDATES_MAX, "candidates")


def check_count(count: int, limit: int, name: str) -> None:
    """Raise InvalidError unless there is at least one row and not more than the limit."""
    if not 1 <= count <= limit:
        raise InvalidError(
            f"number of {name} must be 1 to {limit} {name}={count}",
            reason="ROWS_OUT_OF_RANGE",
            limit=limit,
            field=name,
        )
