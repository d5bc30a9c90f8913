"""Reads of single shards: one subject compared, one template returned."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, TypeVar

import numpy as np

from facegrid import vectors
from facegrid.api.shard.v1 import shard_service_pb2 as shard_pb2
from facegrid.api.v1 import types_pb2
from facegrid.clock import Clock
from facegrid.errors import (
    CorruptError,
    DeadlineError,
    FacegridError,
    FencedError,
    InvalidError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)
from facegrid.ids import NodeId, ShardId
from facegrid.model import ShardAssignment, Token
from facegrid.rpc.together import all_of
from router.dispatch.blame import blamed
from router.dispatch.erasures import Erasures, Gone, erased_meanwhile
from router.dispatch.positions import Positions
from router.dispatch.scatter import REFRESH_S_MAX, REFRESH_SHARE
from router.dispatch.time_left import time_for_node_s
from router.plan import fanout
from router.topology.pool import NodePool
from router.topology.snapshot import ServedGallery
from router.topology.watcher import Watcher

if TYPE_CHECKING:
    from router.topology.pool import Pick

Request = TypeVar("Request", shard_pb2.CompareRequest, shard_pb2.GetRequest)
Response = TypeVar("Response")

AGAIN = (UnavailableError, FencedError, OverloadedError)
"""What another replica, or the same one a moment later, may do better."""


@dataclass(frozen=True, slots=True)
class Verified:
    """The score of a probe with the template of a subject that resembles it most."""

    score: float
    template_id: str


@dataclass(frozen=True, slots=True)
class StoredTemplate:
    """One template; the vector is float32 [1, dim] of norm 1."""

    template_id: str
    subject_id: str
    vector: vectors.Float32


class Reader:
    """Reads from whichever replica does best.

    Args:
        watcher: holds the topology.
        pool: reaches the nodes.
        clock: for what is left of deadlines.
        positions: knows which replicas have what a token demands.
        erasures: knows what was erased while it was read.
    """

    def __init__(
        self,
        watcher: Watcher,
        pool: NodePool,
        clock: Clock,
        positions: Positions,
        erasures: Erasures,
    ) -> None:
        self._erasures = erasures
        self._watcher = watcher
        self._pool = pool
        self._clock = clock
        self._positions = positions
        self._turn = 0

    async def verify(
        self,
        served: ServedGallery,
        subject_id: str,
        *,
        probe: types_pb2.Vectors,
        after: Token,
        deadline_s: float,
    ) -> Verified:
        """Return how much a checked probe resembles a subject.

        Raises:
            NotFoundError: there is no such subject (SUBJECT_UNKNOWN).
        """
        shard = fanout.shard_of(served.shard_map, subject_id)
        request = shard_pb2.CompareRequest(
            shard_id=shard.shard_id,
            subject_id=subject_id,
            probe=probe,
            position_min=after.positions.get(shard.shard_id, 0),
        )

        async def read() -> Verified:
            response = await self._read(shard, lambda stub: stub.Compare, request, deadline_s)
            return Verified(response.score, response.template_id)

        return await self._erasures.settled(
            served.gallery.name,
            read,
            lambda verified: [(subject_id, verified.template_id)],
            _erased_again,
        )

    async def get(
        self,
        served: ServedGallery,
        template_id: str,
        *,
        subject_id: str,
        after: Token,
        deadline_s: float,
    ) -> StoredTemplate:
        """Return one template; without a subject it is looked for in all shards.

        Raises:
            NotFoundError: there is no such template (TEMPLATE_UNKNOWN).
            InvalidError: several subjects have one of this id (TEMPLATE_AMBIGUOUS).
        """
        shard_map = served.shard_map
        shards = [fanout.shard_of(shard_map, subject_id)] if subject_id else shard_map.shards

        async def one(shard: ShardAssignment) -> shard_pb2.StoredRows:
            request = shard_pb2.GetRequest(
                shard_id=shard.shard_id,
                template_id=template_id,
                subject_id=subject_id,
                position_min=after.positions.get(shard.shard_id, 0),
            )
            response = await self._read(shard, lambda stub: stub.Get, request, deadline_s)
            return response.rows

        async def read() -> StoredTemplate:
            answers = await all_of([one(shard) for shard in shards])
            return _only([rows for rows in answers if rows.subject_ids], served.gallery.dim)

        return await self._erasures.settled(
            served.gallery.name,
            read,
            lambda found: [(found.subject_id, found.template_id)],
            _erased_again,
        )

    async def _read(
        self,
        shard: ShardAssignment,
        pick: "Pick[Request, Response]",
        request: Request,
        deadline_s: float,
    ) -> Response:
        """Ask one replica, and if it cannot, once more another one, or the same a little later."""
        self._turn += 1
        behind = self._positions.behind(shard, request.position_min)
        current = [node_id for node_id in shard.node_ids if node_id not in behind]
        node_id = fanout.choose_node(current, loads=self._pool.loads(), turn=self._turn)
        try:
            return await self._ask(shard, node_id, pick, request, deadline_s)
        except DeadlineError:
            raise
        except AGAIN:
            others = [other for other in shard.node_ids if other != node_id]
            if not others:
                left_s = time_for_node_s(deadline_s, self._clock)
                wait_s = min(REFRESH_S_MAX, left_s * REFRESH_SHARE)
                await self._watcher.changed(self._watcher.topology, timeout_s=wait_s)
        loads = self._pool.loads()
        node_id = fanout.choose_node(others or shard.node_ids, loads=loads, turn=self._turn)
        return await self._ask(shard, node_id, pick, request, deadline_s)

    async def _ask(
        self,
        shard: ShardAssignment,
        node_id: NodeId,
        pick: "Pick[Request, Response]",
        request: Request,
        deadline_s: float,
    ) -> Response:
        least = {ShardId(request.shard_id): request.position_min}
        try:
            return await self._pool.call(
                self._watcher.topology,
                node_id,
                pick,
                request,
                timeout_s=time_for_node_s(deadline_s, self._clock),
                may_wait=self._positions.may_wait(node_id, least),
            )
        except FacegridError as error:
            raise blamed(error, shard.shard_id, node_id) from error


def _erased_again(_found: object, _gone: Gone) -> NoReturn:
    raise erased_meanwhile()


def _only(found: list[shard_pb2.StoredRows], dim: int) -> StoredTemplate:
    count = sum(len(rows.subject_ids) for rows in found)
    if count == 0:
        raise NotFoundError("there is no such template", reason="TEMPLATE_UNKNOWN")
    if count > 1:
        raise InvalidError(
            f"several subjects have a template of this id: name the subject subjects={count}",
            reason="TEMPLATE_AMBIGUOUS",
            field="subject_id",
        )
    rows = found[0]
    if len(rows.codes) != dim:
        raise CorruptError(
            f"stored row has the wrong length bytes={len(rows.codes)} dim={dim}",
            reason="ANSWER_MALFORMED",
        )
    codes = np.frombuffer(rows.codes, np.int8).reshape(1, dim)
    vectors.check_codes(codes)
    return StoredTemplate(rows.template_ids[0], rows.subject_ids[0], vectors.dequantize(codes))
