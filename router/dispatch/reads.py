"""Reads of single shards: one subject compared, one template returned."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, NoReturn, TypeVar

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
from router.dispatch.hedge import Call, Hedger, given_up
from router.dispatch.map_news import PASSES_MAX, MapNews
from router.dispatch.positions import Positions
from router.dispatch.time_left import time_for_node_s
from router.plan import fanout
from router.plan.confirmed import UNCONFIRMED
from router.plan.standing import demanded_of
from router.topology.pool import NodePool
from router.topology.snapshot import ServedGallery
from router.topology.watcher import Watcher

if TYPE_CHECKING:
    from router.topology.pool import Pick

Request = TypeVar("Request", shard_pb2.CompareRequest, shard_pb2.GetRequest)
T = TypeVar("T")
Response = TypeVar("Response", shard_pb2.CompareResponse, shard_pb2.GetResponse)

AGAIN = (UnavailableError, FencedError, OverloadedError)
"""What another replica, or the same one a moment later, may do better."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a caller wants of a read: that it sees what a token stands for, and whether an answer
    is taken that the copy could not confirm.
    """

    after: Token
    unconfirmed_accepted: bool


@dataclass(frozen=True, slots=True)
class Verified:
    """The score of a probe with the template of a subject that resembles it most."""

    score: float
    template_id: str
    unconfirmed: bool


@dataclass(frozen=True, slots=True)
class StoredTemplate:
    """One template; the vector is float32 [1, dim] of norm 1."""

    template_id: str
    subject_id: str
    vector: vectors.Float32
    unconfirmed: bool


@dataclass(frozen=True, slots=True)
class _Ask(Generic[Request, Response]):
    """One read of one shard, before it is known of whom it is asked."""

    served: ServedGallery
    shard: ShardAssignment
    pick: "Pick[Request, Response]"
    request: Request
    wanted: Wanted
    deadline_s: float


@dataclass(frozen=True, slots=True, eq=False)
class _Pass:
    """One pass over the copies of a shard; each is asked once.

    Attributes:
        shard: its copies.
        accepting: whether an answer that cannot be confirmed is taken.
        last: whether nothing comes after it, so that even a silent node is waited for.
        asked: whom not to ask, or not before all others.
        failed: what went wrong with each copy.
    """

    shard: ShardAssignment
    accepting: bool
    last: bool = False
    asked: set[NodeId] = field(default_factory=set)
    failed: dict[NodeId, FacegridError] = field(default_factory=dict)

    def open_copies(self) -> list[NodeId]:
        """Return the copies not asked yet."""
        return [node_id for node_id in self.shard.node_ids if node_id not in self.asked]

    def told(self, last: FacegridError) -> FacegridError:
        """Return the most telling error: that a copy could not confirm its answer, or the last."""
        refused = [error for error in self.failed.values() if error.reason == UNCONFIRMED]
        return refused[-1] if refused else last


class Reader:
    """Reads from whichever replica does best.

    Args:
        watcher: holds the topology.
        pool: reaches the nodes.
        clock: for what is left of deadlines.
        positions: knows which replicas have what a token demands.
        erasures: knows what was erased while it was read.
        hedger: asks second copies where first ones are slow or silent.
    """

    def __init__(
        self,
        watcher: Watcher,
        pool: NodePool,
        clock: Clock,
        *,
        positions: Positions,
        erasures: Erasures,
        hedger: Hedger,
    ) -> None:
        self._erasures = erasures
        self._watcher = watcher
        self._pool = pool
        self._clock = clock
        self._positions = positions
        self._hedger = hedger
        self._news = MapNews(watcher, clock)
        self._turn = 0

    async def verify(
        self,
        served: ServedGallery,
        subject_id: str,
        *,
        probe: types_pb2.Vectors,
        wanted: Wanted,
        deadline_s: float,
    ) -> Verified:
        """Return how much a checked probe resembles a subject.

        Raises:
            NotFoundError: there is no such subject (SUBJECT_UNKNOWN).
            UnavailableError: no copy could confirm its answer, which is not wanted (UNCONFIRMED).
        """

        async def by_map(present: ServedGallery) -> Verified:
            shard = fanout.shard_of(present.shard_map, subject_id)
            request = shard_pb2.CompareRequest(
                shard_id=shard.shard_id,
                subject_id=subject_id,
                probe=probe,
                position_min=_least(present, shard, wanted),
            )
            response = await self._read(
                _Ask(present, shard, lambda stub: stub.Compare, request, wanted, deadline_s)
            )
            return Verified(response.score, response.template_id, response.unconfirmed)

        return await self._erasures.settled(
            served.gallery.name,
            lambda: self._by_newest_map(served, by_map, deadline_s),
            lambda verified: [(subject_id, verified.template_id)],
            _erased_again,
        )

    async def get(
        self,
        served: ServedGallery,
        template_id: str,
        *,
        subject_id: str,
        wanted: Wanted,
        deadline_s: float,
    ) -> StoredTemplate:
        """Return one template; without a subject it is looked for in all shards.

        Raises:
            NotFoundError: there is no such template (TEMPLATE_UNKNOWN).
            InvalidError: several subjects have one of this id (TEMPLATE_AMBIGUOUS).
            UnavailableError: no copy could confirm its answer, which is not wanted (UNCONFIRMED).
        """

        async def one(present: ServedGallery, shard: ShardAssignment) -> shard_pb2.GetResponse:
            request = shard_pb2.GetRequest(
                shard_id=shard.shard_id,
                template_id=template_id,
                subject_id=subject_id,
                position_min=_least(present, shard, wanted),
            )
            return await self._read(
                _Ask(present, shard, lambda stub: stub.Get, request, wanted, deadline_s)
            )

        async def by_map(present: ServedGallery) -> StoredTemplate:
            shard_map = present.shard_map
            shards = [fanout.shard_of(shard_map, subject_id)] if subject_id else shard_map.shards
            answers = await all_of([one(present, shard) for shard in shards])
            return _only(answers, present.gallery.dim)

        return await self._erasures.settled(
            served.gallery.name,
            lambda: self._by_newest_map(served, by_map, deadline_s),
            lambda found: [(found.subject_id, found.template_id)],
            _erased_again,
        )

    async def _by_newest_map(
        self,
        served: ServedGallery,
        by_map: Callable[[ServedGallery], Awaitable[T]],
        deadline_s: float,
    ) -> T:
        """Return what a read of some shards gives, all of them of one map: where that fails since
        the map moved on, all is read again by the newer one.
        """
        for _ in range(PASSES_MAX):
            try:
                return await by_map(served)
            except FacegridError as error:
                newer = await self._news.next_map(served, error, deadline_s=deadline_s)
                if newer is None:
                    raise
                served = newer
        return await by_map(served)

    async def _read(self, ask: _Ask[Request, Response]) -> Response:
        """Ask one copy after the other, and once more, unconfirmed or after a moment."""
        accepting = ask.wanted.unconfirmed_accepted and not self._watcher.confirmed
        present = _Pass(ask.shard, accepting)
        outcome = await self._from_copies(present, ask)
        if isinstance(outcome, FacegridError):
            told = present.told(outcome)
            if _is_final(outcome) or (
                told.reason == UNCONFIRMED and not ask.wanted.unconfirmed_accepted
            ):
                raise told if told.reason == UNCONFIRMED else outcome
            following = await self._last_pass(present, ask, told)
            if following is None:
                raise outcome
            outcome = await self._from_copies(following, ask)
        if isinstance(outcome, FacegridError):
            raise outcome
        return outcome

    async def _last_pass(
        self, before: _Pass, ask: _Ask[Request, Response], told: FacegridError
    ) -> _Pass | None:
        """Return the pass that may do better; None where the shard is gone from the map."""
        shard, served = before.shard, ask.served
        if told.reason != UNCONFIRMED:
            topology = self._watcher.topology
            errors = before.failed.values()
            await self._news.wait(served, topology, errors, deadline_s=ask.deadline_s)
            present = self._watcher.topology.galleries.get(served.gallery.name)
            if present is not None and present.shard_map != served.shard_map:
                newest = self._watcher.topology.shard(served.gallery.name, shard.shard_id)
                if newest is None:
                    return None
                shard = newest
        shunned = {
            node_id for node_id, error in before.failed.items() if error.reason != UNCONFIRMED
        }
        return _Pass(shard, ask.wanted.unconfirmed_accepted, last=True, asked=shunned)

    async def _from_copies(
        self, present: _Pass, ask: _Ask[Request, Response]
    ) -> Response | FacegridError:
        """Ask one copy, and others where that may help. Errors are values here."""
        self._turn += 1
        copies = present.open_copies() or list(present.shard.node_ids)
        behind = self._positions.behind(present.shard, ask.request.position_min)
        current = [node_id for node_id in copies if node_id not in behind] or copies
        node_id = fanout.choose_node(current, loads=self._pool.loads(), turn=self._turn)
        present.asked.add(node_id)
        patient = present.last or len(present.shard.node_ids) == 1
        outcome = await self._hedger.first_of(
            Call(
                node_id,
                kind=f"{type(ask.request).__name__} {ask.served.gallery.name}",
                may_wait=self._may_wait(node_id, ask.request),
                ask=lambda: self._from_node(present, node_id, ask),
                elsewhere=(
                    (lambda: self._from_copies(present, ask)) if present.open_copies() else None
                ),
                give_up=None
                if patient
                else (lambda: _failed(present, node_id, given_up(node_id))),
                whole=_is_answer,
                joined=lambda one, other: other if isinstance(one, FacegridError) else one,
            )
        )
        if isinstance(outcome, AGAIN) and not _is_final(outcome) and present.open_copies():
            return await self._from_copies(present, ask)
        return outcome

    async def _from_node(
        self, present: _Pass, node_id: NodeId, ask: _Ask[Request, Response]
    ) -> Response | FacegridError:
        request = type(ask.request)()
        request.CopyFrom(ask.request)
        request.trust.primary_boot_id = self._watcher.vouched_boot_id(
            present.shard.shard_id, node_id
        )
        request.trust.unconfirmed_accepted = present.accepting
        try:
            response = await self._pool.call(
                self._watcher.topology,
                node_id,
                ask.pick,
                request,
                timeout_s=time_for_node_s(ask.deadline_s, self._clock),
                may_wait=self._may_wait(node_id, request),
            )
        except FacegridError as error:
            return _failed(present, node_id, blamed(error, present.shard.shard_id, node_id))
        if response.unconfirmed and not present.accepting:
            unasked = CorruptError(
                f"node answered unconfirmed, which was not wanted node={node_id}",
                reason="UNCONFIRMED_UNASKED",
            )
            return _failed(present, node_id, unasked)
        return response

    def _may_wait(self, node_id: NodeId, request: Request) -> bool:
        return self._positions.may_wait(node_id, {ShardId(request.shard_id): request.position_min})


def _least(served: ServedGallery, shard: ShardAssignment, wanted: Wanted) -> int:
    """Return the least position of a shard that a read must be made at."""
    return demanded_of(served.shard_map, wanted.after).get(shard.shard_id, 0)


def _failed(present: _Pass, node_id: NodeId, error: FacegridError) -> FacegridError:
    """Remember what went wrong with a copy."""
    present.failed[node_id] = error
    return error


def _is_answer(outcome: object) -> bool:
    """Tell whether any sound copy would say the same."""
    return not isinstance(outcome, FacegridError) or isinstance(
        outcome, InvalidError | NotFoundError
    )


def _is_final(error: FacegridError) -> bool:
    """Tell whether no copy will do better, now or a moment later."""
    return isinstance(error, DeadlineError) or not isinstance(error, AGAIN)


def _erased_again(_found: object, _gone: Gone) -> NoReturn:
    raise erased_meanwhile()


def _only(answers: Sequence[shard_pb2.GetResponse], dim: int) -> StoredTemplate:
    found = [answer.rows for answer in answers if answer.rows.subject_ids]
    count = sum(len(rows.subject_ids) for rows in found)
    unconfirmed = any(answer.unconfirmed for answer in answers)
    if count == 0:
        unknown = NotFoundError("there is no such template", reason="TEMPLATE_UNKNOWN")
        if unconfirmed:
            unknown.facts["unconfirmed"] = "true"
        raise unknown
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
    return StoredTemplate(
        rows.template_ids[0],
        rows.subject_ids[0],
        vectors.dequantize(codes),
        unconfirmed=unconfirmed,
    )
