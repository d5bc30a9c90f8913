"""Writes: rows to the primaries of their shards."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from facegrid import vectors
from facegrid.api.shard.v1 import shard_service_pb2 as shard_pb2
from facegrid.clock import Clock
from facegrid.errors import FacegridError, InvalidError
from facegrid.ids import ShardId
from facegrid.model import ShardAssignment, Token
from facegrid.rpc.together import all_of
from router.dispatch.blame import blamed
from router.dispatch.erasures import Erasures
from router.dispatch.positions import Positions
from router.dispatch.time_left import time_for_node_s
from router.plan import fanout
from router.topology.pool import NodePool
from router.topology.snapshot import ServedGallery, Topology
from router.topology.watcher import Watcher


@dataclass(frozen=True, slots=True)
class EnrolBatch:
    """Checked rows of one request; the codes are int8 [rows, dim]."""

    request_id: str
    template_ids: Sequence[str]
    subject_ids: Sequence[str]
    codes: vectors.Int8


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What became of a batch."""

    token: Token
    enrolled_count: int
    unchanged_count: int


@dataclass(frozen=True, slots=True)
class EraseBatch:
    """Checked ids of one request."""

    request_id: str
    template_ids: Sequence[str]
    subject_ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class Erased:
    """What became of an erasure."""

    token: Token
    templates_count: int


@dataclass(frozen=True, slots=True)
class _Portion:
    """One shard's share of a request; rows says where in the request its rows stand."""

    shard: ShardAssignment
    rows: Sequence[int]
    request: shard_pb2.AppendRequest


class Ingest:
    """Sends writes to primaries.

    Args:
        watcher: holds the topology.
        pool: reaches the nodes.
        clock: for what is left of deadlines.
        positions: told how far the shards have come.
        erasures: told what was erased.
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

    async def enrol(
        self, served: ServedGallery, batch: EnrolBatch, *, deadline_s: float
    ) -> Enrolled:
        """Enrol rows durably.

        Where several shards are concerned all are asked first, so that a row that one of them
        refuses leaves the others untouched. A failure after that may leave some shards written:
        the same request id completes it.

        Raises:
            InvalidError: a shard refused a row; the row is numbered as in the request.
            FencedError: a primary lost its role.
            UnavailableError: a primary cannot be reached; names shard and node.
        """
        topology = self._watcher.topology
        portions = _portions(served, batch)
        if len(portions) > 1:
            await all_of([self._check(topology, portion, deadline_s) for portion in portions])
        answers = await all_of(
            [self._append(topology, portion, deadline_s) for portion in portions]
        )
        return Enrolled(
            self._token(
                [portion.shard for portion in portions], [answer.position for answer in answers]
            ),
            sum(answer.enrolled_count for answer in answers),
            sum(answer.unchanged_count for answer in answers),
        )

    async def erase(
        self, served: ServedGallery, batch: EraseBatch, *, deadline_s: float
    ) -> Erased:
        """Erase templates from all shards and subjects from theirs. Raises as `enrol`."""
        topology = self._watcher.topology
        subjects: dict[ShardId, list[str]] = {
            shard.shard_id: [batch.subject_ids[row] for row in rows]
            for shard, rows in fanout.rows_by_shard(served.shard_map, batch.subject_ids)
        }
        shards = [
            shard
            for shard in served.shard_map.shards
            if batch.template_ids or shard.shard_id in subjects
        ]

        async def one(shard: ShardAssignment) -> shard_pb2.EraseResponse:
            request = shard_pb2.EraseRequest(
                shard_id=shard.shard_id,
                request_id=batch.request_id,
                template_ids=batch.template_ids,
                subject_ids=subjects.get(shard.shard_id, ()),
            )
            try:
                return await self._pool.call(
                    topology,
                    shard.primary,
                    lambda stub: stub.Erase,
                    request,
                    timeout_s=time_for_node_s(deadline_s, self._clock),
                )
            except FacegridError as error:
                raise blamed(error, shard.shard_id, shard.primary) from error

        answers = await all_of([one(shard) for shard in shards])
        self._erasures.acknowledge(
            served.gallery.name, subject_ids=batch.subject_ids, template_ids=batch.template_ids
        )
        return Erased(
            self._token(shards, [answer.position for answer in answers]),
            sum(answer.erased_templates_count for answer in answers),
        )

    def _token(
        self,
        shards: Sequence[ShardAssignment],
        last: Sequence[int],
    ) -> Token:
        """Return how far the shards have come, and remember it of their primaries."""
        positions = {}
        for shard, position in zip(shards, last, strict=True):
            positions[shard.shard_id] = position
            self._positions.note(shard.primary, [(shard.shard_id, position)])
        return Token(positions)

    async def _check(self, topology: Topology, portion: _Portion, deadline_s: float) -> None:
        try:
            await self._pool.call(
                topology,
                portion.shard.primary,
                lambda stub: stub.Check,
                portion.request,
                timeout_s=time_for_node_s(deadline_s, self._clock),
            )
        except FacegridError as error:
            raise _as_of_request(error, portion) from error

    async def _append(
        self, topology: Topology, portion: _Portion, deadline_s: float
    ) -> shard_pb2.AppendResponse:
        try:
            return await self._pool.call(
                topology,
                portion.shard.primary,
                lambda stub: stub.Append,
                portion.request,
                timeout_s=time_for_node_s(deadline_s, self._clock),
            )
        except FacegridError as error:
            raise _as_of_request(error, portion) from error


def check_repeats(
    template_ids: Sequence[str], subject_ids: Sequence[str], codes: vectors.Int8
) -> None:
    """Raise InvalidError (DUPLICATE_ROW) where a template stands twice with different vectors."""
    names = list(zip(subject_ids, template_ids, strict=True))
    if len(set(names)) == len(names):
        return
    first: dict[tuple[str, str], int] = {}
    for row, name in enumerate(names):
        before = first.setdefault(name, row)
        if not np.array_equal(codes[before], codes[row]):
            raise InvalidError(
                f"the same template stands twice with different vectors row={row} first={before}",
                reason="DUPLICATE_ROW",
                row=row,
                field="template_ids",
            )


def _portions(served: ServedGallery, batch: EnrolBatch) -> list[_Portion]:
    portions = []
    for shard, rows in fanout.rows_by_shard(served.shard_map, batch.subject_ids):
        whole = len(rows) == len(batch.subject_ids)
        request = shard_pb2.AppendRequest(
            shard_id=shard.shard_id,
            request_id=batch.request_id,
            rows=shard_pb2.StoredRows(
                template_ids=[batch.template_ids[row] for row in rows],
                subject_ids=[batch.subject_ids[row] for row in rows],
                codes=(batch.codes if whole else batch.codes[rows]).tobytes(),
                dim=served.gallery.dim,
            ),
        )
        portions.append(_Portion(shard, rows, request))
    return portions


def _as_of_request(error: FacegridError, portion: _Portion) -> FacegridError:
    """Return a shard's error with the row numbered as in the whole request."""
    row = error.row
    if row is not None and row < len(portion.rows):
        here = portion.rows[row]
        error.facts["row"] = str(here)
        error.message = re.sub(rf"\brow={row}\b", f"row={here}", error.message)
    return blamed(error, portion.shard.shard_id, portion.shard.primary)
