"""Clients of a run: they enrol, erase and search, retry under the same request id, and report."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from facegrid import vectors
from facegrid.api.shard.v1 import shard_service_pb2 as pb
from facegrid.api.v1 import types_pb2
from facegrid.errors import (
    ConflictError,
    CorruptError,
    FacegridError,
    InvalidError,
    NotFoundError,
)
from facegrid.ids import ShardId, subject_key
from facegrid.model import HashRange, ShardAssignment
from facegrid.wire import to_wire_vectors
from indexd.engine.requests import EnrolRequest, EraseRequest, WriteRequest
from indexd.replica.follower import Follower
from indexd.replica.shard_copy import ShardCopy
from tests.sim.loop import Actor
from tests.sim.parts import message_of, parts_of
from tests.sim.process import Process, Shared, ask
from tests.sim.router import RouterView
from tests.sim.truth import Key, Truth
from tests.sim.world import Link, World

DIM = 8
SUBJECTS = 10
TEMPLATES = 3
VERSIONS = 2
WRITE_TIMEOUT_S = 6.0
READ_TIMEOUT_S = 1.0
PATIENCE_S = 12.0
"""How long a client tries one write before it leaves the outcome open."""


def _codes() -> "dict[tuple[str, str, int], vectors.Int8]":
    rng = np.random.default_rng(20_261_122)
    return {
        (f"s{s}", f"t{t}", version): vectors.quantize(rng.normal(size=(1, DIM)).astype(np.float32))
        for s in range(SUBJECTS)
        for t in range(TEMPLATES)
        for version in range(VERSIONS)
    }


CODES = _codes()
"""The vectors that exist: two for each template of each subject."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a client was told of one write."""

    shard: ShardAssignment
    position: int


REFUSED = Told(ShardAssignment(ShardId(""), HashRange(0, 0), ()), 0)
"""A write that is refused for good."""


class Client:
    """One client: one call at a time."""

    def __init__(
        self, shared: Shared, truth: Truth, shards: tuple[ShardAssignment, ...], name: str
    ) -> None:
        self.shared = shared
        self.world: World = shared.world
        self.truth = truth
        self.name = name
        actor = Actor(name)
        self.link = Link(self.world, "net", actor)
        self.etcd_link = Link(self.world, "etcd", actor)
        self.router = RouterView(self.world, shared.etcd, self.etcd_link, shards)
        self.positions: dict[str, int] = {}
        self._writes = 0
        self._began_s: dict[str, float] = {}
        """When each write was sent first."""

    async def run(self, until_s: float, pause_s: float) -> None:
        """Make random calls until a time."""
        rng, loop = self.world.rng, self.world.loop
        while loop.now_s < until_s:
            await self.router.look()
            draw = rng.random()
            if draw < 0.40:
                await self.enrol()
            elif draw < 0.55:
                await self.erase()
            elif draw < 0.60:
                await self.get(rng.choice(self.router.shards))
            else:
                await self.search(rng.choice(self.router.shards))
            await self.wait(rng.random() * pause_s)

    async def wait(self, duration_s: float) -> None:
        """Let time go by."""
        future = self.world.loop.create_future()
        self.world.loop.in_world(duration_s, future.set_result, None)
        await future

    # Writes

    async def enrol(self, shard: ShardAssignment | None = None) -> Told | None:
        """Enrol one to three templates of subjects of one shard."""
        rng = self.world.rng
        shard = shard or rng.choice(self.router.shards)
        subjects = subjects_of(shard)
        chosen = [
            (rng.choice(subjects), f"t{rng.randrange(TEMPLATES)}", rng.randrange(50) // 49)
            for _ in range(rng.randrange(1, 4))
        ]
        rows = list({(s, t): (s, t, v) for s, t, v in chosen}.values())
        request = EnrolRequest(
            self._request_id(),
            [t for _, t, _ in rows],
            [s for s, _, _ in rows],
            np.concatenate([CODES[row] for row in rows]),
        )
        return await self.write(shard, request)

    async def erase(self) -> Told | None:
        """Erase a subject, or a template id of whoever has it."""
        rng = self.world.rng
        shard = rng.choice(self.router.shards)
        if rng.random() < 0.85:
            ids: tuple[list[str], list[str]] = ([], [rng.choice(subjects_of(shard))])
        else:
            ids = ([f"t{rng.randrange(TEMPLATES)}"], [])
        return await self.write(shard, EraseRequest(self._request_id(), *ids))

    async def write(self, shard: ShardAssignment, request: WriteRequest) -> Told | None:
        """Send a write until all of it is answered, by whatever map is in force by then; None
        where its outcome stays open, or it is refused.

        Raises:
            Violation: the answer breaks a promise.
        """
        loop, rng = self.world.loop, self.world.rng
        began_s = self._began_s.setdefault(request.request_id, loop.now_s)
        ends_s = loop.now_s + PATIENCE_S
        while loop.now_s < ends_s:
            await self.router.look()
            self._note_erasure(request)
            told: Told | None = None
            refused = False
            parts = parts_of(request, self.router.shards, shard.range)
            for one, part in parts:
                told = await self._send(one, part)
                if told is None:
                    break
                refused = refused or told is REFUSED
            if told is not None:
                if refused:
                    return None
                for key in _rows_of(request):
                    self.truth.wanted[key] = max(began_s, self.truth.wanted.get(key, 0.0))
                return told
            await self.wait(0.02 + rng.random() * 0.3)
        self.world.count("outcomes left open")
        return None

    async def _send(self, shard: ShardAssignment, part: Any) -> Told | None:
        """Send what one shard is asked; None where it is not answered."""
        self.truth.sent[shard.shard_id, part.request_id] = part
        method, message = message_of(shard, part, DIM)
        target = self._pick(shard.primary, 0.8)
        if target is None:
            return None
        try:
            response = await self._ask(target, method, message, WRITE_TIMEOUT_S)
        except ConflictError as error:
            self._require_two_versions(error, part)
            return REFUSED
        except InvalidError as error:
            self.world.require(False, "a valid write was refused", error)  # noqa: FBT003 - a condition
        except FacegridError as error:
            self.world.note(self.name, "told", part.request_id, error.reason)
            return None
        self.world.note(self.name, "acked", part.request_id, response.position)
        self.truth.acknowledged(shard.shard_id, part.request_id, response)
        before = self.positions.get(shard.shard_id, 0)
        self.positions[shard.shard_id] = max(before, response.position)
        return Told(shard, response.position)

    def _note_erasure(self, request: WriteRequest) -> None:
        if isinstance(request, EraseRequest):
            ids = (*request.subject_ids, *request.template_ids)
            self.truth.unwanted |= dict.fromkeys(ids, self.world.loop.now_s + WRITE_TIMEOUT_S)

    def _require_two_versions(self, error: ConflictError, request: WriteRequest) -> None:
        """Checker 1: a conflict is with something that was once sent."""
        versions = {
            (s, t): codes.tobytes()
            for sent in self.truth.sent.values()
            if isinstance(sent, EnrolRequest)
            for s, t, codes in zip(sent.subject_ids, sent.template_ids, sent.codes, strict=True)
            if sent.request_id != request.request_id
        }
        loaded = set().union(*self.truth.loaded.values())
        assert isinstance(request, EnrolRequest), "erasures contradict nothing"
        pairs = zip(request.subject_ids, request.template_ids, strict=True)
        known = versions.keys() | loaded
        self.world.require(any(key in known for key in pairs), "a conflict with nothing", error)
        self.world.count("conflicts")

    # Reads

    async def search(
        self, shard: ShardAssignment, target: Process | None = None
    ) -> list[Key] | None:
        """Search one shard for one template that should be there; None where nobody answered."""
        rng, shard_id = self.world.rng, shard.shard_id
        live = sorted(self.truth.shard(shard_id).live)
        probe = rng.choice(live) if live else (subjects_of(shard)[0], "t0")
        data = self.truth.shard(shard_id).live.get(probe)
        codes = np.frombuffer(data, np.int8)[None, :] if data else CODES[(*probe, 0)]
        position_min = self.positions.get(shard_id, 0) if rng.random() < 0.7 else 0
        target = target or self._pick(rng.choice(shard.node_ids))
        if target is None:
            return None
        request = pb.SearchRequest(
            shards=[
                pb.SearchRequest.Shard(
                    shard_id=shard_id,
                    position_min=position_min,
                    trust=self.router.trust(shard_id, target.node_id),
                )
            ],
            probes=_wire(codes),
            k=SUBJECTS,
            threshold=-1.0,
        )
        asked_s = self.world.loop.now_s
        try:
            response = await self._ask(target, "Search", request, READ_TIMEOUT_S)
        except FacegridError as error:
            self._check_damage(error)
            return None
        if response.refused:
            self.world.count("searches refused")
            return None
        found = list(zip(response.subject_ids, response.template_ids, strict=True))
        self._check(target, shard_id, found, None if _unconfirmed(response) else asked_s)
        copy = target.node.copies.get(shard.shard_id)
        if copy is not None and not _guessed(copy):
            self.truth.acknowledged_is_found(copy, found, position_min, probe if live else None)
        self.world.note(self.name, "found", target.name, sorted(found))
        self.world.count("searches answered")
        return found

    async def get(self, shard: ShardAssignment) -> None:
        """Get the templates of one id."""
        target = self._pick(self.world.rng.choice(shard.node_ids))
        if target is None:
            return
        asked_s = self.world.loop.now_s
        request = pb.GetRequest(
            shard_id=shard.shard_id,
            template_id="t1",
            position_min=self.positions.get(shard.shard_id, 0),
            trust=self.router.trust(shard.shard_id, target.node_id),
        )
        try:
            response = await self._ask(target, "Get", request, READ_TIMEOUT_S)
        except NotFoundError:
            return
        except FacegridError as error:
            self._check_damage(error)
            return
        rows = response.rows
        found = list(zip(rows.subject_ids, rows.template_ids, strict=True))
        self._check(target, shard.shard_id, found, None if response.unconfirmed else asked_s)

    def _check(
        self, target: Process, shard_id: Any, found: list[Key], confirmed_s: float | None
    ) -> None:
        """Check an answer to what was asked at a time, None if it is not confirmed."""
        copy = target.node.copies.get(shard_id)
        if copy is not None and not _guessed(copy):
            self.truth.equal_at_its_position(target.name, copy)
        if confirmed_s is None:
            self.world.count("unconfirmed answers")
        else:
            self.truth.erased_stays_away(shard_id, found, confirmed_s, target.name)
            self.truth.only_who_is_named_is_confirmed(shard_id, target.node_id)

    def _check_damage(self, error: FacegridError) -> None:
        """Checker 10: nobody complains of damage where nothing was damaged."""
        damaged = not isinstance(error, CorruptError) or self.truth.damaged
        self.world.require(damaged, "intact bytes were called damaged", error)

    def _pick(self, node_id: str, newest: float = 0.4) -> Process | None:
        """Return one of a node's processes: with this probability the newest, else any."""
        living = self.shared.living(node_id)
        if not living:
            return None
        return living[-1] if self.world.rng.random() < newest else self.world.rng.choice(living)

    async def _ask(self, target: Process, method: str, request: Any, timeout_s: float) -> Any:
        return await ask(
            self.link,
            self.shared,
            target.name,
            method=method,
            request=request,
            timeout_s=timeout_s,
        )

    def _request_id(self) -> str:
        self._writes += 1
        return f"{self.name}-{self._writes}"


def _guessed(copy: ShardCopy) -> bool:
    """Tell whether a copy was opened without etcd: it may have what was never committed."""
    return isinstance(copy, Follower) and copy.guessed


def _unconfirmed(response: pb.SearchResponse) -> bool:
    return any(item.unconfirmed for item in response.searched)


def subjects_of(shard: ShardAssignment) -> list[str]:
    """Return the subjects that fall into a shard."""
    return [f"s{s}" for s in range(SUBJECTS) if shard.range.contains(subject_key(f"s{s}"))]


def _wire(codes: vectors.Int8) -> types_pb2.Vectors:
    """Return stored rows as a probe."""
    return to_wire_vectors(vectors.dequantize(codes))


def _rows_of(request: WriteRequest) -> list[Key]:
    if not isinstance(request, EnrolRequest):
        return []
    return list(zip(request.subject_ids, request.template_ids, strict=True))
