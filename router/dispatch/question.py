"""A batch of probes: how it is put to a node, and what the node's answer amounts to."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from facegrid.api.shard.v1 import shard_service_pb2 as shard_pb2
from facegrid.api.v1 import types_pb2
from facegrid.errors import CorruptError, DeadlineError, FacegridError, UnavailableError
from facegrid.ids import GalleryName, NodeId, ShardId
from facegrid.model import Coverage, ShardAssignment
from facegrid.tuning import Profile
from facegrid.tuning_messages import to_profile_message
from router.dispatch.map_news import MAP_VERSION
from router.plan import merge
from router.plan.confirmed import Unconfirmed

POSITION_NOT_REACHED: Final = "POSITION_NOT_REACHED"
"""What a node says of a shard that did not come to the position demanded in time."""


@dataclass(frozen=True, slots=True)
class Question:
    """Probes of one gallery.

    Attributes:
        gallery: whose shards to search.
        probes: float32, little-endian, rows_count rows of `dim`; checked.
        k: length of the lists, 1 to 2,048.
        threshold: lowest score wanted; -2 for all.
        positions: the least position of each shard that the answer must be made at.
        unconfirmed: what the caller makes of answers that cannot be confirmed.
        profile: how hard to search.
    """

    gallery: GalleryName
    probes: bytes
    rows_count: int
    dim: int
    k: int
    threshold: float
    positions: Mapping[ShardId, int] = field(default_factory=dict)
    unconfirmed: Unconfirmed = Unconfirmed.TAKEN
    profile: Profile = Profile.BALANCED


@dataclass(frozen=True, slots=True)
class Failure:
    """A shard that could not be searched, and why."""

    shard_id: ShardId
    node_id: NodeId
    error: FacegridError


@dataclass(frozen=True, slots=True)
class Answer:
    """What the shards said, whole or in part: the coverage tells."""

    merged: merge.Merged
    coverage: Coverage
    map_version: int
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, slots=True)
class Searched:
    """One answer of one node: its columns, the shards they are from, and which of these the node
    could not confirm. The node has merged its shards, so the answer is taken whole or not at all.

    `scanned_rows_count` of its `rows_count` rows were looked at, both summed over the probes; 0
    where the node did not count.
    """

    node_id: NodeId
    part: merge.Part
    shards: tuple[ShardAssignment, ...]
    unconfirmed: frozenset[ShardId] = frozenset()
    rows_count: int = 0
    scanned_rows_count: int = 0

    @property
    def shard_ids(self) -> frozenset[ShardId]:
        """The shards searched."""
        return frozenset(shard.shard_id for shard in self.shards)


@dataclass(frozen=True, slots=True)
class Heard:
    """What came of asking for some shards: answers, no two of the same shard, and failures."""

    answers: tuple[Searched, ...] = ()
    failures: tuple[Failure, ...] = ()

    def __add__(self, other: "Heard") -> "Heard":
        """Return what was heard of other shards besides."""
        return Heard(self.answers + other.answers, self.failures + other.failures)

    @property
    def shards_count(self) -> int:
        """The number of shards searched."""
        return sum(len(answer.shards) for answer in self.answers)

    def without(self, shard_ids: Collection[ShardId]) -> "Heard":
        """Return this without the failures of some shards, which are asked for again."""
        kept = tuple(item for item in self.failures if item.shard_id not in shard_ids)
        return Heard(self.answers, kept)


def scanned_share(answers: Sequence[Searched]) -> float | None:
    """Return the share of the rows that the nodes looked at; None where one did not tell."""
    if not answers or not all(answer.rows_count for answer in answers):
        return None
    scanned = sum(answer.scanned_rows_count for answer in answers)
    return scanned / sum(answer.rows_count for answer in answers)


def joined(one: Heard, other: Heard) -> Heard:
    """Return the most that can be made of two hearings of the same shards, each shard once.

    The one that searched more is taken, and of the other whatever answers do not overlap with it.
    A shard that was only in an answer which does counts as failed.
    """
    more, less = (one, other) if one.shards_count >= other.shards_count else (other, one)
    answers = list(more.answers)
    searched = {shard_id for answer in answers for shard_id in answer.shard_ids}
    lost: list[Failure] = []
    for answer in less.answers:
        if searched.isdisjoint(answer.shard_ids):
            answers.append(answer)
            searched |= answer.shard_ids
        else:
            lost += [_overlapping(shard_id, answer.node_id) for shard_id in answer.shard_ids]
    failures = {
        item.shard_id: item
        for item in (*lost, *less.failures, *more.failures)
        if item.shard_id not in searched
    }
    return Heard(tuple(answers), tuple(failures.values()))


def _overlapping(shard_id: ShardId, node_id: NodeId) -> Failure:
    error = UnavailableError(
        f"answer also holds shards of another answer shard={shard_id} node={node_id}",
        reason="ANSWER_OVERLAPS",
        shard=shard_id,
        node=node_id,
    )
    return Failure(shard_id, node_id, error)


def search_request(
    question: Question,
    map_version: int,
    shards: Sequence[ShardAssignment],
    trusts: Mapping[ShardId, shard_pb2.Trust],
) -> shard_pb2.SearchRequest:
    """Return the message that asks a node for shards."""
    return shard_pb2.SearchRequest(
        gallery=question.gallery,
        map_version=map_version,
        shards=[
            shard_pb2.SearchRequest.Shard(
                shard_id=shard.shard_id,
                position_min=question.positions.get(shard.shard_id, 0),
                trust=trusts[shard.shard_id],
            )
            for shard in shards
        ],
        probes=types_pb2.Vectors(
            data=question.probes, dim=question.dim, dtype=types_pb2.DTYPE_FLOAT32
        ),
        k=question.k,
        threshold=question.threshold,
        profile=to_profile_message(question.profile),
    )


def demanded(request: shard_pb2.SearchRequest) -> dict[ShardId, int]:
    """Return the position demanded of each shard."""
    return {ShardId(item.shard_id): item.position_min for item in request.shards}


def heard_from(
    node_id: NodeId,
    shards: Sequence[ShardAssignment],
    request: shard_pb2.SearchRequest,
    response: shard_pb2.SearchResponse,
) -> Heard:
    """Return what a node's answer amounts to.

    A single shard that is not what was asked for spoils it, since the node merged its shards.

    Raises:
        CorruptError: it searched something else (RANGE_DIFFERS), too early (POSITION_BEHIND) or
            without being able to confirm it, which was not wanted (UNCONFIRMED_UNASKED), or its
            columns do not fit (ANSWER_MALFORMED).
    """
    searched, failures = _account(request, response, shards, node_id)
    if not searched:
        # No columns come from a node that refuses everything; its reasons do.
        return Heard(failures=failures)
    part = part_of(response)
    merge.check_part(part, probes_count=len(request.probes.data) // (4 * request.probes.dim))
    unconfirmed = frozenset(
        ShardId(item.shard_id) for item in response.searched if item.unconfirmed
    )
    answer = Searched(
        node_id, part, searched, unconfirmed, response.rows_count, response.scanned_rows_count
    )
    return Heard((answer,), failures)


def part_of(response: shard_pb2.SearchResponse) -> merge.Part:
    """Return the columns of a node's answer. Ids stay in the message.

    Raises:
        CorruptError: the scores are none (ANSWER_MALFORMED).
    """
    scores = response.scores
    if len(scores) % 4:
        raise CorruptError("scores are no float32", reason="ANSWER_MALFORMED")
    return merge.Part(
        counts=np.array(list(response.counts), np.int64),
        scores=np.frombuffer(scores, "<f4"),
        subject_ids=response.subject_ids,
        template_ids=response.template_ids,
    )


def _account(
    request: shard_pb2.SearchRequest,
    response: shard_pb2.SearchResponse,
    shards: Sequence[ShardAssignment],
    node_id: NodeId,
) -> tuple[tuple[ShardAssignment, ...], tuple[Failure, ...]]:
    """Return which shards a node searched and which it did not. Raises as `heard_from`."""
    left = {shard.shard_id: shard for shard in shards}
    asked = {ShardId(item.shard_id): item for item in request.shards}
    searched: list[ShardAssignment] = []
    for item in response.searched:
        shard = left.pop(ShardId(item.shard_id), None)
        if shard is None or (item.first, item.last) != (shard.range.first, shard.range.last):
            raise CorruptError(
                f"node searched another range than the map says shard={item.shard_id}",
                reason="RANGE_DIFFERS",
            )
        wanted = asked[shard.shard_id]
        if item.position < wanted.position_min:
            raise CorruptError(
                f"node answered before the position demanded shard={item.shard_id}",
                reason="POSITION_BEHIND",
            )
        if item.unconfirmed and not wanted.trust.unconfirmed_accepted:
            raise CorruptError(
                f"node answered unconfirmed, which was not wanted shard={item.shard_id}",
                reason="UNCONFIRMED_UNASKED",
            )
        searched.append(shard)
    refused = {item.shard_id: item for item in response.refused}
    failures = tuple(
        Failure(shard_id, node_id, _refusal(shard_id, node_id, refused.get(shard_id)))
        for shard_id in left
    )
    return tuple(searched), failures


def _refusal(
    shard_id: ShardId, node_id: NodeId, refused: shard_pb2.SearchResponse.Refused | None
) -> UnavailableError:
    reason = "NOT_ANSWERED" if refused is None else refused.reason or "NOT_ANSWERED"
    if reason == POSITION_NOT_REACHED:
        return DeadlineError(
            "shard has not come to the position asked for in the time given",
            reason=reason,
            shard=shard_id,
            node=node_id,
        )
    error = UnavailableError(
        f"shard was not searched reason={reason}", reason=reason, shard=shard_id, node=node_id
    )
    if refused is not None and refused.map_version > 0:
        error.facts[MAP_VERSION] = str(refused.map_version)
    return error
