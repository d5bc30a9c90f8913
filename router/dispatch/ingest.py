"""Writes: rows to the primaries of their shards."""

import re
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from facegrid import vectors
from facegrid.api.shard.v1 import shard_service_pb2 as shard_pb2
from facegrid.errors import FacegridError, InvalidError, NotFoundError
from facegrid.ids import NodeId, ShardId
from facegrid.model import ShardAssignment, Token
from facegrid.rpc.together import most_telling, outcomes_of
from router.dispatch.erasures import Erasures
from router.dispatch.map_news import PASSES_MAX
from router.dispatch.positions import Positions
from router.dispatch.primaries import SHARD_REPLACED, Primaries, Written
from router.plan import fanout
from router.plan.standing import Standing, standing
from router.plan.tiles import is_covered
from router.topology.snapshot import ServedGallery


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


Request = TypeVar("Request", shard_pb2.AppendRequest, shard_pb2.EraseRequest)
Response = TypeVar("Response")


@dataclass(frozen=True, slots=True)
class _Portion(Generic[Request]):
    """One shard's share of a request; rows says where in the request its rows stand."""

    shard: ShardAssignment
    request: Request
    rows: Sequence[int] = ()


@dataclass(slots=True)
class WriteCounts:
    """Templates written so far, and how often a request was divided anew by a newer map."""

    enrolled: int = 0
    unchanged: int = 0
    erased: int = 0
    divided_anew: int = 0


_Outcomes = list[Written[Response] | FacegridError]


class Ingest:
    """Sends writes to primaries.

    Args:
        primaries: reaches them.
        positions: told how far the shards have come.
        erasures: told what was erased.
    """

    def __init__(self, primaries: Primaries, positions: Positions, erasures: Erasures) -> None:
        self._erasures = erasures
        self._primaries = primaries
        self._positions = positions
        self.counts = WriteCounts()

    async def enrol(
        self, served: ServedGallery, batch: EnrolBatch, *, deadline_s: float
    ) -> Enrolled:
        """Enrol rows durably.

        Where several shards are concerned all are asked first, so that a row that one of them
        refuses leaves the others untouched. A failure after that may leave some shards written:
        the same request id completes it.

        Raises:
            InvalidError: a shard refused a row; the row is numbered as in the request.
            FencedError: a primary lost its role, and no other one is named in a second or so.
            UnavailableError: a primary cannot be reached, likewise; names shard and node.
        """

        async def send(
            present: ServedGallery, portions: list[_Portion[shard_pb2.AppendRequest]]
        ) -> _Outcomes[shard_pb2.AppendResponse]:
            if len(portions) > 1:
                checked = await outcomes_of(
                    [self._check(present, portion, deadline_s) for portion in portions]
                )
                problems = [one for one in checked if isinstance(one, FacegridError)]
                if problems:
                    return [_verdict(problems)] * len(portions)
            return await outcomes_of(
                [self._append(present, portion, deadline_s) for portion in portions]
            )

        written = await self._across_maps(served, lambda now: _portions(now, batch), send)
        rows_count = len(batch.template_ids)
        enrolled_count = sum(one.response.enrolled_count for _, one in written)
        unchanged_count = sum(one.response.unchanged_count for _, one in written)
        enrolled_count = min(enrolled_count, rows_count)
        # Rows that were sent once more, to a shard that has them from another, count once.
        unchanged_count = min(unchanged_count, rows_count - enrolled_count)
        self.counts.enrolled += enrolled_count
        self.counts.unchanged += unchanged_count
        return Enrolled(
            self._token(
                (shard.shard_id, one.node_id, one.response.position) for shard, one in written
            ),
            enrolled_count,
            unchanged_count,
        )

    async def erase(
        self, served: ServedGallery, batch: EraseBatch, *, deadline_s: float
    ) -> Erased:
        """Erase templates from all shards and subjects from theirs. Raises as `enrol`."""

        async def send(
            present: ServedGallery, portions: list[_Portion[shard_pb2.EraseRequest]]
        ) -> _Outcomes[shard_pb2.EraseResponse]:
            return await outcomes_of(
                [
                    self._primaries.send(
                        present,
                        portion.shard,
                        lambda stub: stub.Erase,
                        portion.request,
                        deadline_s=deadline_s,
                    )
                    for portion in portions
                ]
            )

        written = await self._across_maps(served, lambda now: _erasures(now, batch), send)
        self._erasures.acknowledge(
            served.gallery.name, subject_ids=batch.subject_ids, template_ids=batch.template_ids
        )
        templates_count = sum(one.response.erased_templates_count for _, one in written)
        self.counts.erased += templates_count
        return Erased(
            self._token(
                (shard.shard_id, one.node_id, one.response.position) for shard, one in written
            ),
            templates_count,
        )

    async def _across_maps(
        self,
        served: ServedGallery,
        cut: Callable[[ServedGallery], list[_Portion[Request]]],
        send: Callable[[ServedGallery, list[_Portion[Request]]], Awaitable[_Outcomes[Response]]],
    ) -> list[tuple[ShardAssignment, Written[Response]]]:
        """Return what all shards answered. What was meant for a shard that was split or merged
        meanwhile goes to those in its place.

        A shard in such a place is always sent all that the request has for it, though shards
        before it may have acknowledged a part of that: so under one request id it never hears two
        things, whoever repeats the request. What it has from them it finds unchanged.
        """
        done: list[tuple[ShardAssignment, Written[Response]]] = []
        errors: list[FacegridError] = []
        for _ in range(PASSES_MAX):
            acknowledged = [shard.range for shard, _ in done]
            left = [
                portion
                for portion in cut(served)
                if not is_covered(portion.shard.range, acknowledged)
            ]
            outcomes = await send(served, left)
            done += [
                (portion.shard, one)
                for portion, one in zip(left, outcomes, strict=True)
                if isinstance(one, Written)
            ]
            errors = [one for one in outcomes if isinstance(one, FacegridError)]
            newer = self._primaries.newest(served)
            if not errors:
                return done
            if newer is None or any(error.reason != SHARD_REPLACED for error in errors):
                break
            served = newer
            self.counts.divided_anew += 1
        raise _verdict(errors)

    async def load(
        self, served: ServedGallery, request: shard_pb2.LoadRequest, *, deadline_s: float
    ) -> Enrolled:
        """Commit what a bulk load has stored of one shard.

        Raises:
            NotFoundError: the gallery never had such a shard (SHARD_UNKNOWN), or others have
                taken its place (SHARD_REPLACED).
            FacegridError: as `enrol`, and what the primary says of the segments.
        """
        shard_id = ShardId(request.shard_id)
        shards = [one for one in served.shard_map.shards if one.shard_id == shard_id]
        if standing(served.shard_map, shard_id) is Standing.REPLACED:
            raise _load_replaced(served, shard_id)
        if not shards:
            raise NotFoundError(
                f"the gallery has no such shard gallery={served.gallery.name} shard={shard_id}",
                reason="SHARD_UNKNOWN",
                shard=shard_id,
            )
        (shard,) = shards
        try:
            written = await self._primaries.send(
                served,
                shard,
                lambda stub: stub.Load,
                request,
                deadline_s=deadline_s,
            )
        except FacegridError as error:
            if error.reason == SHARD_REPLACED:
                raise _load_replaced(served, shard_id) from error
            raise
        answer = written.response
        return Enrolled(
            self._token([(shard.shard_id, written.node_id, answer.position)]),
            answer.enrolled_count,
            answer.unchanged_count,
        )

    def _token(self, reached: Iterable[tuple[ShardId, NodeId, int]]) -> Token:
        """Return how far the shards have come, and remember it of their primaries."""
        positions = {}
        for shard_id, node_id, position in reached:
            positions[shard_id] = position
            self._positions.note(node_id, [(shard_id, position)])
        return Token(positions)

    async def _check(
        self,
        served: ServedGallery,
        portion: _Portion[shard_pb2.AppendRequest],
        deadline_s: float,
    ) -> None:
        """Ask by the ids first; with the vectors only where these decide."""
        if await self._vectors_decide(served, portion, deadline_s):
            await _of_request(
                self._primaries.send(
                    served,
                    portion.shard,
                    lambda stub: stub.Check,
                    portion.request,
                    deadline_s=deadline_s,
                ),
                portion,
            )

    async def _vectors_decide(
        self,
        served: ServedGallery,
        portion: _Portion[shard_pb2.AppendRequest],
        deadline_s: float,
    ) -> bool:
        request = portion.request
        ids = shard_pb2.CheckIdsRequest(
            shard_id=request.shard_id,
            request_id=request.request_id,
            template_ids=request.rows.template_ids,
            subject_ids=request.rows.subject_ids,
        )
        try:
            answer = await _of_request(
                self._primaries.send(
                    served, portion.shard, lambda stub: stub.CheckIds, ids, deadline_s=deadline_s
                ),
                portion,
            )
        except InvalidError as error:
            if error.reason == "UNIMPLEMENTED":
                # A node of before there was such a call.
                return True
            raise
        return answer.response.vectors_decide

    async def _append(
        self,
        served: ServedGallery,
        portion: _Portion[shard_pb2.AppendRequest],
        deadline_s: float,
    ) -> Written[shard_pb2.AppendResponse]:
        return await _of_request(
            self._primaries.send(
                served,
                portion.shard,
                lambda stub: stub.Append,
                portion.request,
                deadline_s=deadline_s,
            ),
            portion,
        )


async def _of_request(
    sent: Coroutine[Any, Any, Written[Response]], portion: _Portion[shard_pb2.AppendRequest]
) -> Written[Response]:
    """Return what comes of sending; an error with the row numbered as in the whole request."""
    try:
        return await sent
    except FacegridError as error:
        raise _as_of_request(error, portion) from error


def _verdict(errors: Sequence[FacegridError]) -> FacegridError:
    """Return the error to tell; that a shard was replaced only where nothing else is wrong."""
    others = [error for error in errors if error.reason != SHARD_REPLACED]
    return most_telling(others or errors)


def _load_replaced(served: ServedGallery, shard_id: ShardId) -> NotFoundError:
    return NotFoundError(
        "the shard was split or merged since the load was begun: give the load up with"
        " fgctl load --abort and begin anew, which leaves rows that are there unchanged"
        f" gallery={served.gallery.name} shard={shard_id}",
        reason=SHARD_REPLACED,
        gallery=served.gallery.name,
        shard=shard_id,
    )


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


def _portions(served: ServedGallery, batch: EnrolBatch) -> list[_Portion[shard_pb2.AppendRequest]]:
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
        portions.append(_Portion(shard, request, rows))
    return portions


def _erasures(served: ServedGallery, batch: EraseBatch) -> list[_Portion[shard_pb2.EraseRequest]]:
    subjects: dict[ShardId, list[str]] = {
        shard.shard_id: [batch.subject_ids[row] for row in rows]
        for shard, rows in fanout.rows_by_shard(served.shard_map, batch.subject_ids)
    }
    return [
        _Portion(
            shard,
            shard_pb2.EraseRequest(
                shard_id=shard.shard_id,
                request_id=batch.request_id,
                template_ids=batch.template_ids,
                subject_ids=subjects.get(shard.shard_id, ()),
            ),
        )
        for shard in served.shard_map.shards
        if batch.template_ids or shard.shard_id in subjects
    ]


def _as_of_request(
    error: FacegridError, portion: _Portion[shard_pb2.AppendRequest]
) -> FacegridError:
    """Return a shard's error with the row numbered as in the whole request."""
    row = error.row
    if row is not None and row < len(portion.rows):
        here = portion.rows[row]
        error.facts["row"] = str(here)
        error.message = re.sub(rf"\brow={row}\b", f"row={here}", error.message)
    return error
