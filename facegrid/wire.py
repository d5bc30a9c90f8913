"""Public messages to values and back, one pair each.

`from_wire_x` raises InvalidError for whatever a peer may get wrong; what it returns is sound.
"""

import numpy as np
import numpy.typing as npt

from facegrid import vectors
from facegrid.api.v1 import types_pb2
from facegrid.errors import InvalidError
from facegrid.ids import GalleryName, ShardId
from facegrid.model import Candidate, CandidateList, Coverage, Gallery, HashRange, Token
from facegrid.tuning import MISS_RATE_MAX_DEFAULT, Profile
from facegrid.tuning_messages import (
    from_profile_message,
    from_tuning_message,
    to_profile_message,
    to_tuning_message,
)

FloatArray = npt.NDArray[np.float32] | npt.NDArray[np.float16]

_DTYPES: dict[int, vectors.Dtype] = {
    types_pb2.DTYPE_FLOAT32: "float32",
    types_pb2.DTYPE_FLOAT16: "float16",
}


def to_wire_vectors(x: FloatArray) -> types_pb2.Vectors:
    """Return a float32 or float16 matrix [rows, dim] as a message; nothing is checked."""
    half = x.dtype == np.float16
    little = np.ascontiguousarray(x, dtype="<f2" if half else "<f4")
    return types_pb2.Vectors(
        data=little.tobytes(),
        dim=x.shape[1],
        dtype=types_pb2.DTYPE_FLOAT16 if half else types_pb2.DTYPE_FLOAT32,
    )


def from_wire_vectors(
    message: types_pb2.Vectors, *, dim: int, field: str = "vectors"
) -> vectors.Float32:
    """Return checked rows, float32 [rows, dim].

    Args:
        message: what came.
        dim: the gallery's dimension.
        field: name of the message in its request, for errors.

    Raises:
        InvalidError: DTYPE_UNKNOWN, DIM_MISMATCH, VECTOR_LENGTH, and for a row VECTOR_NOT_FINITE
            or VECTOR_NORM.
    """
    dtype = _DTYPES.get(message.dtype)
    if dtype is None:
        raise InvalidError(
            f"dtype must be float32 or float16 dtype={message.dtype}",
            reason="DTYPE_UNKNOWN",
            field=field,
        )
    if message.dim != dim:
        raise InvalidError(
            f"vectors have another dimension than the gallery dim={message.dim} gallery_dim={dim}",
            reason="DIM_MISMATCH",
            field=field,
        )
    x = vectors.decode(message.data, dim=dim, dtype=dtype)
    vectors.check_rows(x)
    return x


def to_wire_gallery(gallery: Gallery) -> types_pb2.Gallery:
    """Return a gallery as a message; the count is left out where nobody counted."""
    return types_pb2.Gallery(
        name=gallery.name,
        uid=gallery.uid,
        dim=gallery.dim,
        extractor=gallery.extractor,
        shards_count=gallery.shards_count,
        replicas_count=gallery.replicas_count,
        train_at_templates_count=gallery.train_at_templates_count,
        codebook=gallery.codebook,
        templates_count=None if gallery.templates_count < 0 else gallery.templates_count,
        created_unix_ms=gallery.created_unix_ms,
        profile=to_profile_message(gallery.profile),
        miss_rate_max=gallery.miss_rate_max,
        tuning=None if gallery.tuning is None else to_tuning_message(gallery.tuning),
        component_bits=gallery.component_bits,
    )


def from_wire_gallery(message: types_pb2.Gallery) -> Gallery:
    """Return a gallery."""
    return Gallery(
        name=GalleryName(message.name),
        uid=message.uid,
        dim=message.dim,
        extractor=message.extractor,
        shards_count=message.shards_count,
        replicas_count=message.replicas_count,
        train_at_templates_count=message.train_at_templates_count,
        codebook=message.codebook,
        templates_count=message.templates_count if message.HasField("templates_count") else -1,
        created_unix_ms=message.created_unix_ms,
        profile=from_profile_message(message.profile) or Profile.BALANCED,
        miss_rate_max=message.miss_rate_max or MISS_RATE_MAX_DEFAULT,
        tuning=from_tuning_message(message.tuning) if message.HasField("tuning") else None,
        component_bits=message.component_bits or vectors.BITS_DEFAULT,
    )


def to_wire_token(token: Token) -> types_pb2.Token:
    """Return a token as a message, by shard."""
    return types_pb2.Token(
        positions=[
            types_pb2.Token.Position(shard_id=shard_id, position=position)
            for shard_id, position in sorted(token.positions.items())
        ]
    )


def from_wire_token(message: types_pb2.Token) -> Token:
    """Return a token; of a shard named twice the later position."""
    positions: dict[ShardId, int] = {}
    for item in message.positions:
        if item.position < 0:
            raise InvalidError(
                f"token has a negative position shard={item.shard_id!r}",
                reason="TOKEN_MALFORMED",
                field="after",
            )
        shard_id = ShardId(item.shard_id)
        positions[shard_id] = max(item.position, positions.get(shard_id, 0))
    return Token(positions)


def to_wire_hash_range(part: HashRange) -> types_pb2.Coverage.Range:
    """Return a part of the key space as a message."""
    return types_pb2.Coverage.Range(first=part.first, last=part.last)


def from_wire_hash_range(message: types_pb2.Coverage.Range) -> HashRange:
    """Return a part of the key space."""
    if message.first > message.last:
        raise InvalidError(
            f"hash range is empty first={message.first} last={message.last}",
            reason="RANGE_MALFORMED",
        )
    return HashRange(message.first, message.last)


def to_wire_coverage(coverage: Coverage) -> types_pb2.Coverage:
    """Return a coverage as a message."""
    return types_pb2.Coverage(
        share=coverage.share,
        shards_answered_count=coverage.shards_answered_count,
        shards_count=coverage.shards_count,
        missing=[to_wire_hash_range(part) for part in coverage.missing],
        unconfirmed_share=coverage.unconfirmed_share,
        scanned_share=coverage.scanned_share,
    )


def from_wire_coverage(message: types_pb2.Coverage) -> Coverage:
    """Return a coverage."""
    return Coverage(
        share=message.share,
        shards_answered_count=message.shards_answered_count,
        shards_count=message.shards_count,
        missing=tuple(from_wire_hash_range(part) for part in message.missing),
        unconfirmed_share=message.unconfirmed_share,
        scanned_share=message.scanned_share if message.HasField("scanned_share") else None,
    )


def to_wire_candidate(candidate: Candidate) -> types_pb2.Candidate:
    """Return a candidate as a message."""
    return types_pb2.Candidate(
        subject_id=candidate.subject_id,
        template_id=candidate.template_id,
        score=candidate.score,
        rank=candidate.rank,
    )


def from_wire_candidate(message: types_pb2.Candidate) -> Candidate:
    """Return a candidate."""
    return Candidate(message.subject_id, message.template_id, message.score, message.rank)


def to_wire_candidate_list(candidates: CandidateList) -> types_pb2.CandidateList:
    """Return a candidate list as a message, without its coverage: that travels once per answer."""
    return types_pb2.CandidateList(
        candidates=[to_wire_candidate(candidate) for candidate in candidates.candidates]
    )


def from_wire_candidate_list(
    message: types_pb2.CandidateList, coverage: Coverage
) -> CandidateList:
    """Return a candidate list with the coverage of its answer."""
    return CandidateList(
        tuple(from_wire_candidate(candidate) for candidate in message.candidates), coverage
    )
