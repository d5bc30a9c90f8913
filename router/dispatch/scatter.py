"""One batch of probes, asked of all shards of a gallery at one version of its map."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from facegrid.api.shard.v1 import shard_service_pb2 as shard_pb2
from facegrid.api.v1 import types_pb2
from facegrid.clock import Clock
from facegrid.errors import (
    CorruptError,
    DeadlineError,
    FacegridError,
    InvalidError,
    UnavailableError,
)
from facegrid.ids import GalleryName, NodeId, ShardId
from facegrid.model import Coverage, ShardAssignment, Token
from router.dispatch.positions import Positions
from router.dispatch.time_left import time_for_node_s
from router.plan import fanout, merge, tiles
from router.topology.directory import foreign_shard, unknown_gallery
from router.topology.pool import NodePool
from router.topology.snapshot import ServedGallery, Topology
from router.topology.watcher import Watcher

REFRESH_S_MAX: Final = 0.25
"""How long to wait for a newer topology before a shard that failed is asked for again."""
REFRESH_SHARE: Final = 0.25
"""The same, as a share of the time left."""
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
    """

    gallery: GalleryName
    probes: bytes
    rows_count: int
    dim: int
    k: int
    threshold: float
    positions: Mapping[ShardId, int] = field(default_factory=dict)


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
class _Heard:
    """What came of asking: columns and the shards they are from, and what failed."""

    parts: tuple[merge.Part, ...] = ()
    searched: tuple[ShardAssignment, ...] = ()
    failures: tuple[Failure, ...] = ()

    def __add__(self, later: "_Heard") -> "_Heard":
        """Return both together; what failed is what failed later."""
        return _Heard(self.parts + later.parts, self.searched + later.searched, later.failures)


class Searcher:
    """Asks nodes and brings their answers together.

    Args:
        watcher: holds the topology.
        pool: reaches the nodes.
        clock: for what is left of deadlines.
        positions: told how far the shards have come.
    """

    def __init__(
        self, watcher: Watcher, pool: NodePool, clock: Clock, positions: Positions
    ) -> None:
        self._watcher = watcher
        self._pool = pool
        self._clock = clock
        self._positions = positions
        self._turn = 0

    async def search(self, question: Question, *, deadline_s: float) -> Answer:
        """Return the merged answer with its coverage, which may be less than the whole.

        A shard that fails is asked for once more: on another replica, or, where there is none,
        after a moment in which a newer topology may come. A newer map starts over, so that an
        answer is always of one map.

        Raises:
            InvalidError: a node refused the question itself.
            NotFoundError: there is no such gallery any more.
        """
        topology = self._watcher.topology
        served = _served(topology, question)
        known_failing = {node for node, load in self._pool.loads().items() if load.failing}
        shards = served.shard_map.shards
        heard = await self._ask(topology, served, question, shards, {}, deadline_s)
        if _worth_another_try(heard.failures, known_failing):
            avoid = {item.shard_id: {item.node_id} for item in heard.failures}
            topology = await self._refreshed(topology, served, avoid, deadline_s)
            newer = _served(topology, question)
            if newer.shard_map != served.shard_map:
                served, shards, avoid, heard = newer, newer.shard_map.shards, {}, _Heard()
            else:
                shards = tuple(shard for shard in shards if shard.shard_id in avoid)
            heard += await self._ask(topology, served, question, shards, avoid, deadline_s)
        return Answer(
            merge.merge(
                heard.parts,
                probes_count=question.rows_count,
                k=question.k,
                threshold=question.threshold,
            ),
            tiles.coverage(
                (shard.range for shard in heard.searched),
                shards_count=len(served.shard_map.shards),
            ),
            served.shard_map.version,
            heard.failures,
        )

    async def _refreshed(
        self,
        topology: Topology,
        served: ServedGallery,
        avoid: Mapping[ShardId, Collection[NodeId]],
        deadline_s: float,
    ) -> Topology:
        """Return the topology to try again with: a newer one, if a shard has no other replica."""
        alone = any(
            set(shard.node_ids) <= set(avoid.get(shard.shard_id, ()))
            for shard in served.shard_map.shards
            if shard.shard_id in avoid
        )
        if alone:
            left_s = time_for_node_s(deadline_s, self._clock)
            wait_s = min(REFRESH_S_MAX, left_s * REFRESH_SHARE)
            await self._watcher.changed(topology, timeout_s=wait_s)
        return self._watcher.topology

    async def _ask(
        self,
        topology: Topology,
        served: ServedGallery,
        question: Question,
        shards: Sequence[ShardAssignment],
        avoid: Mapping[ShardId, Collection[NodeId]],
        deadline_s: float,
    ) -> _Heard:
        """Ask for shards, one call per node, all at once."""
        self._turn += 1
        if question.positions:
            avoid = self._avoiding_followers(shards, question.positions, avoid)
        groups = fanout.group_by_node(
            shards, loads=self._pool.loads(), avoid=avoid, turn=self._turn
        )
        timeout_s = time_for_node_s(deadline_s, self._clock)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    self._ask_node(
                        topology,
                        node_id,
                        members,
                        _request(question, served.shard_map.version, members),
                        timeout_s,
                    )
                )
                for node_id, members in groups.items()
            ]
        answers = [task.result() for task in tasks]
        for answer in answers:
            if isinstance(answer, InvalidError):
                raise answer
        heard = [answer for answer in answers if isinstance(answer, _Heard)]
        return _Heard(
            tuple(part for item in heard for part in item.parts),
            tuple(shard for item in heard for shard in item.searched),
            tuple(failure for item in heard for failure in item.failures),
        )

    def _avoiding_followers(
        self,
        shards: Sequence[ShardAssignment],
        positions: Mapping[ShardId, int],
        avoid: Mapping[ShardId, Collection[NodeId]],
    ) -> Mapping[ShardId, Collection[NodeId]]:
        """Return whom to avoid besides: followers that may not have a position yet, as long as
        the primary can be asked.
        """
        behind = {
            shard.shard_id: self._positions.behind(shard, positions.get(shard.shard_id, 0))
            for shard in shards
            if shard.primary not in avoid.get(shard.shard_id, ())
        }
        return {
            shard.shard_id: {
                *avoid.get(shard.shard_id, ()),
                *behind.get(shard.shard_id, ()),
            }
            for shard in shards
        }

    async def _ask_node(
        self,
        topology: Topology,
        node_id: NodeId,
        shards: Sequence[ShardAssignment],
        request: shard_pb2.SearchRequest,
        timeout_s: float,
    ) -> _Heard | InvalidError:
        """Ask one node. Errors are values here, so that one node's never cancels the others."""
        try:
            response = await self._pool.search(
                topology,
                node_id,
                request,
                timeout_s=timeout_s,
                may_wait=self._positions.may_wait(node_id, _least(request)),
            )
            searched, failures = _account(request, response, shards, node_id)
            if not searched:
                # No columns come from a node that refuses everything; its reasons do.
                return _Heard(failures=failures)
            part = _part(response)
            merge.check_part(part, probes_count=_rows_count(request))
        except InvalidError as error:
            return error
        except FacegridError as error:
            return _Heard(
                failures=tuple(Failure(shard.shard_id, node_id, error) for shard in shards)
            )
        self._positions.note(
            node_id, ((ShardId(item.shard_id), item.position) for item in response.searched)
        )
        return _Heard((part,), searched, failures)


def require_coverage(answer: Answer, coverage_min: float) -> None:
    """Raise unless enough of the gallery was searched.

    Raises:
        UnavailableError: less was searched (COVERAGE_TOO_LOW), because of shards that are named.
        DeadlineError: less was searched in the time given.
    """
    coverage = answer.coverage
    if coverage.share >= coverage_min:
        return
    missing = ",".join(f"{item.first:016x}-{item.last:016x}" for item in coverage.missing)
    why = ", ".join(
        f"{item.shard_id} on {item.node_id}: {item.error.message}" for item in answer.failures
    )
    timed_out = answer.failures and all(
        isinstance(item.error, DeadlineError) for item in answer.failures
    )
    kind, reason = UnavailableError, "COVERAGE_TOO_LOW"
    if timed_out:
        reasons = {item.error.reason for item in answer.failures}
        kind, reason = DeadlineError, DeadlineError.default_reason
        if reasons == {POSITION_NOT_REACHED}:
            reason = POSITION_NOT_REACHED
    raise kind(
        f"a part of the gallery was not searched ({why})"
        f" share={coverage.share:.6f} coverage_min={coverage_min} missing={missing}",
        reason=reason,
        share=coverage.share,
        limit=coverage_min,
        missing=missing,
        shard=",".join(item.shard_id for item in answer.failures),
        node=",".join(sorted({item.node_id for item in answer.failures})),
    )


def _served(topology: Topology, question: Question) -> ServedGallery:
    served = topology.galleries.get(question.gallery)
    if served is None:
        raise unknown_gallery(question.gallery)
    foreign = foreign_shard(Token(question.positions), served.shard_map)
    if foreign is not None:
        # The token was of this gallery when the call began, and others may be in the batch.
        raise UnavailableError(
            f"the gallery was replaced during the call gallery={question.gallery} shard={foreign}",
            reason="GALLERY_REPLACED",
            gallery=question.gallery,
        )
    return served


def _worth_another_try(failures: Sequence[Failure], known_failing: Collection[NodeId]) -> bool:
    """Tell whether asking again may help: not once the time is over, and not if all that failed
    were failing before they were asked.
    """
    if any(isinstance(item.error, DeadlineError) for item in failures):
        return False
    return any(item.node_id not in known_failing for item in failures)


def _least(request: shard_pb2.SearchRequest) -> dict[ShardId, int]:
    """Return the position demanded of each shard."""
    return {ShardId(item.shard_id): item.position_min for item in request.shards}


def _rows_count(request: shard_pb2.SearchRequest) -> int:
    return len(request.probes.data) // (4 * request.probes.dim)


def _request(
    question: Question, map_version: int, shards: Sequence[ShardAssignment]
) -> shard_pb2.SearchRequest:
    return shard_pb2.SearchRequest(
        gallery=question.gallery,
        map_version=map_version,
        shards=[
            shard_pb2.SearchRequest.Shard(
                shard_id=shard.shard_id, position_min=question.positions.get(shard.shard_id, 0)
            )
            for shard in shards
        ],
        probes=types_pb2.Vectors(
            data=question.probes, dim=question.dim, dtype=types_pb2.DTYPE_FLOAT32
        ),
        k=question.k,
        threshold=question.threshold,
    )


def _part(response: shard_pb2.SearchResponse) -> merge.Part:
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
    """Return which shards a node searched and which it did not.

    The node merged its shards, so a single one that is not what was asked for spoils its answer.

    Raises:
        CorruptError: it searched something else (RANGE_DIFFERS), or too early (POSITION_BEHIND).
    """
    asked = {shard.shard_id: shard for shard in shards}
    least = _least(request)
    searched: list[ShardAssignment] = []
    for item in response.searched:
        shard = asked.pop(ShardId(item.shard_id), None)
        if shard is None or (item.first, item.last) != (shard.range.first, shard.range.last):
            raise CorruptError(
                f"node searched another range than the map says shard={item.shard_id}",
                reason="RANGE_DIFFERS",
            )
        if item.position < least[shard.shard_id]:
            raise CorruptError(
                f"node answered before the position demanded shard={item.shard_id}",
                reason="POSITION_BEHIND",
            )
        searched.append(shard)
    reasons = {item.shard_id: item.reason for item in response.refused}
    failures = tuple(
        Failure(shard_id, node_id, _refusal(shard_id, node_id, reasons.get(shard_id, "")))
        for shard_id in asked
    )
    return tuple(searched), failures


def _refusal(shard_id: ShardId, node_id: NodeId, reason: str) -> UnavailableError:
    reason = reason or "NOT_ANSWERED"
    if reason == POSITION_NOT_REACHED:
        return DeadlineError(
            "shard has not come to the position asked for in the time given",
            reason=reason,
            shard=shard_id,
            node=node_id,
        )
    return UnavailableError(
        f"shard was not searched reason={reason}", reason=reason, shard=shard_id, node=node_id
    )
