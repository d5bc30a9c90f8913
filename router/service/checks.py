"""What a request must satisfy before anything is done for it."""

import math
from dataclasses import dataclass

from facegrid import limits, vectors
from facegrid.api.v1 import (
    enrolment_service_pb2,
    gallery_service_pb2,
    identification_service_pb2,
    types_pb2,
)
from facegrid.errors import InvalidError
from facegrid.ids import check_gallery_name, check_ids, check_request_id, id_problem
from facegrid.tuning import (
    MATES_COUNT_LIMIT,
    MISS_RATE_MAX_DEFAULT,
    MISS_RATE_MAX_LIMIT,
    Profile,
)
from facegrid.tuning_messages import from_profile_message
from facegrid.wire import from_wire_vectors
from router.dispatch.ingest import EnrolBatch, EraseBatch, check_repeats
from router.dispatch.lifecycle import GallerySpec
from router.plan.merge import NO_THRESHOLD


def gallery_spec(request: gallery_service_pb2.CreateGalleryRequest) -> GallerySpec:
    """Return the settings of a gallery to be, with defaults filled in.

    Raises:
        InvalidError: a setting is out of bounds; names the field.
    """
    spec = GallerySpec(
        name=check_gallery_name(request.name),
        dim=request.dim,
        extractor=request.extractor,
        shards_count=request.shards_count or 1,
        replicas_count=request.replicas_count or 1,
        train_at_templates_count=(
            request.train_at_templates_count
            if request.HasField("train_at_templates_count")
            else limits.TRAIN_AT_DEFAULT
        ),
        profile=from_profile_message(request.profile) or Profile.BALANCED,
        miss_rate_max=miss_rate_max(request) or MISS_RATE_MAX_DEFAULT,
        component_bits=request.component_bits or vectors.BITS_DEFAULT,
    )
    if spec.dim % limits.DIM_STEP:
        raise _out_of_bounds("dim", spec.dim, f"a multiple of {limits.DIM_STEP}")
    _within("dim", spec.dim, limits.DIM_MIN, limits.DIM_MAX)
    if spec.component_bits not in vectors.COMPONENT_BITS_KNOWN:
        raise _out_of_bounds("component_bits", spec.component_bits, "8 or 4")
    _within("shards_count", spec.shards_count, 1, limits.SHARDS_MAX)
    _within("replicas_count", spec.replicas_count, 1, limits.REPLICAS_MAX)
    _within("extractor", len(spec.extractor), 1, limits.EXTRACTOR_CHARS_MAX)
    if not spec.extractor.isprintable():
        raise _out_of_bounds("extractor", "?", "printable")
    if spec.train_at_templates_count != 0:
        least = limits.TRAIN_ROWS_MIN
        _within("train_at_templates_count", spec.train_at_templates_count, least, 2**62)
    return spec


def miss_rate_max(
    request: gallery_service_pb2.CreateGalleryRequest | gallery_service_pb2.UpdateGalleryRequest,
) -> float | None:
    """Return the share of mates that may be missed; None where a request does not say.

    Raises:
        InvalidError: it is not above 0, or above 0.1 (OUT_OF_BOUNDS).
    """
    if not request.HasField("miss_rate_max"):
        return None
    if not 0.0 < request.miss_rate_max <= MISS_RATE_MAX_LIMIT:
        bounds = f"above 0 to {MISS_RATE_MAX_LIMIT}"
        raise _out_of_bounds("miss_rate_max", request.miss_rate_max, bounds)
    return request.miss_rate_max


def mates_count_max(request: gallery_service_pb2.TuneGalleryRequest) -> int:
    """Return on how many mated pairs to measure at most; 0: as many as the miss rate wants.

    Raises:
        InvalidError: more than MATES_COUNT_LIMIT (OUT_OF_BOUNDS).
    """
    _within("mates_count_max", request.mates_count_max, 0, MATES_COUNT_LIMIT)
    return request.mates_count_max


def enrol_batch(
    request: enrolment_service_pb2.EnrolRequest, *, dim: int, component_bits: int
) -> EnrolBatch:
    """Return the rows of a request as they are to be stored.

    Raises:
        InvalidError: a row or the request as a whole is malformed; names row and field.
    """
    check_request_id(request.request_id)
    template_ids, subject_ids = list(request.template_ids), list(request.subject_ids)
    _within("template_ids", len(template_ids), 1, limits.ENROL_ROWS_MAX)
    if len(subject_ids) != len(template_ids):
        raise _rows_differ("subject_ids", len(subject_ids), len(template_ids))
    check_ids(template_ids, field="template_ids")
    check_ids(subject_ids, field="subject_ids")
    x = from_wire_vectors(request.vectors, dim=dim, field="vectors")
    if len(x) != len(template_ids):
        raise _rows_differ("vectors", len(x), len(template_ids))
    codes = vectors.quantize(x, component_bits)
    check_repeats(template_ids, subject_ids, codes)
    return EnrolBatch(request.request_id, template_ids, subject_ids, codes)


def erase_batch(request: enrolment_service_pb2.EraseRequest) -> EraseBatch:
    """Return the ids of a request.

    Raises:
        InvalidError: an id is malformed, there are none, or there are too many.
    """
    check_request_id(request.request_id)
    template_ids, subject_ids = list(request.template_ids), list(request.subject_ids)
    _within("ids", len(template_ids) + len(subject_ids), 1, limits.ERASE_IDS_MAX)
    check_ids(template_ids, field="template_ids")
    check_ids(subject_ids, field="subject_ids")
    return EraseBatch(request.request_id, template_ids, subject_ids)


def probe_bytes(message: types_pb2.Vectors, *, dim: int, field: str) -> bytes:
    """Return checked probes as little-endian float32; what came as such is passed through.

    Raises:
        InvalidError: a probe is malformed; names row and field.
    """
    x = from_wire_vectors(message, dim=dim, field=field)
    if message.dtype == types_pb2.DTYPE_FLOAT32:
        return message.data
    return x.astype("<f4", copy=False).tobytes()


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a caller wants of the answer to a search.

    Attributes:
        threshold: lowest score; -2 for all.
        coverage_min: least share of the key space that must be searched, above 0 to 1.
        unconfirmed_max: largest share that may be unconfirmed, 0 to 1.
        profile: how hard to search; None: as the gallery says.
    """

    threshold: float
    coverage_min: float
    unconfirmed_max: float
    profile: Profile | None = None


def check_identify(request: identification_service_pb2.IdentifyRequest) -> Wishes:
    """Return what is wanted of the answer, defaults filled in.

    Raises:
        InvalidError: k, threshold, coverage_min or unconfirmed_max is out of bounds, or there is
            no such profile (PROFILE_UNKNOWN).
    """
    _within("k", request.k, 1, limits.K_MAX)
    threshold = request.threshold if request.HasField("threshold") else NO_THRESHOLD
    if request.HasField("threshold") and not -1.0 <= threshold <= 1.0:
        raise _out_of_bounds("threshold", threshold, "-1 to 1")
    coverage_min = request.coverage_min if request.HasField("coverage_min") else 1.0
    if not 0.0 < coverage_min <= 1.0 or math.isnan(coverage_min):
        raise _out_of_bounds("coverage_min", coverage_min, "above 0 to 1")
    unconfirmed_max = request.unconfirmed_max if request.HasField("unconfirmed_max") else 1.0
    if not 0.0 <= unconfirmed_max <= 1.0:
        raise _out_of_bounds("unconfirmed_max", unconfirmed_max, "0 to 1")
    profile = from_profile_message(request.profile)
    return Wishes(threshold, coverage_min, unconfirmed_max, profile)


def check_probes_count(probes: bytes, *, dim: int, count_max: int, field: str) -> int:
    """Return how many probes there are.

    Raises:
        InvalidError: none, or too many.
    """
    count = len(probes) // (limits.FLOAT32_BYTES * dim)
    _within(field, count, 1, count_max)
    return count


def check_candidates(probes_count: int, k: int) -> None:
    """Raise InvalidError where the longest possible answer would be too long."""
    _within("candidates", probes_count * k, 1, limits.CANDIDATES_MAX)


def check_id(value: str, *, field: str) -> None:
    """Raise InvalidError unless the id is well-formed."""
    if problem := id_problem(value):
        raise InvalidError(f"{field} is malformed: {problem}", reason="ID_MALFORMED", field=field)


def _within(field: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise _out_of_bounds(field, value, f"{least} to {most}", limit=most)


def _out_of_bounds(
    field: str, value: object, bounds: str, limit: int | None = None
) -> InvalidError:
    error = InvalidError(
        f"{field} must be {bounds} {field}={value}", reason="OUT_OF_BOUNDS", field=field
    )
    if limit is not None:
        error.facts["limit"] = str(limit)
    return error


def _rows_differ(field: str, found: int, rows: int) -> InvalidError:
    return InvalidError(
        f"{field} must be as many as template_ids {field}={found} template_ids={rows}",
        reason="ROWS_DIFFER",
        field=field,
    )
