"""What the driver asks of nodes."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from facegrid import vectors
from facegrid.api.shard.v1 import shard_service_pb2 as shard_pb2
from facegrid.clock import Clock
from facegrid.errors import FacegridError, UnavailableError
from facegrid.ids import NodeId, ShardId
from facegrid.model import ShardAssignment
from facegrid.rpc.together import all_of
from facegrid.tuning import Profile
from facegrid.tuning_messages import to_profile_message
from facegrid.wire import to_wire_vectors
from router.dispatch.lifecycle import Lifecycle
from router.plan.decision import CopySeen
from router.topology.pool import NodePool
from router.topology.watcher import Watcher

CALL_S: Final = 2.0
"""Time for a node to answer anything but a hold."""
PROBES_COUNT: Final = 16
"""Stored rows that are put to both sides as probes."""
ASKED_K: Final = 50
"""Candidates asked for. More are rescored than where the first ones alone are wanted, so that
what an index leaves out beforehand does not count as a difference."""


@dataclass(frozen=True, slots=True)
class CopyTold:
    """What a copy's node says of it: enough to tell whether two copies are the same."""

    position: int
    digest: str
    templates_count: int
    codebook: str
    sources: Mapping[ShardId, int]


@dataclass(frozen=True, slots=True)
class Found:
    """The answer of one copy to sampled probes: at which position, and per probe subject, template
    and score, best first.
    """

    position: int
    lists: tuple[tuple[tuple[str, str, float], ...], ...]


class Nodes:
    """Asks nodes on behalf of the driver.

    Args:
        watcher: knows where they are.
        pool: reaches them.
        lifecycle: asks for their status.
        clock: for deadlines.
    """

    def __init__(
        self, watcher: Watcher, pool: NodePool, lifecycle: Lifecycle, clock: Clock
    ) -> None:
        self._watcher = watcher
        self._pool = pool
        self._lifecycle = lifecycle
        self._clock = clock

    async def copies(
        self, node_ids: Collection[NodeId]
    ) -> Mapping[tuple[NodeId, ShardId], CopySeen]:
        """Return what nodes say of all their copies; of one that does not answer nothing."""
        told = await self._statuses(node_ids)
        return {key: _seen(status) for key, status in told.items()}

    async def told(
        self, copies: Sequence[tuple[NodeId, ShardId]]
    ) -> Mapping[tuple[NodeId, ShardId], CopyTold]:
        """Return what nodes say of given copies.

        Raises:
            UnavailableError: one of them did not tell (STATUS_UNKNOWN).
        """
        statuses = await self._statuses({node_id for node_id, _ in copies})
        for node_id, shard_id in copies:
            if (node_id, shard_id) not in statuses:
                raise UnavailableError(
                    f"node did not tell how a shard is shard={shard_id} node={node_id}",
                    reason="STATUS_UNKNOWN",
                    shard=shard_id,
                    node=node_id,
                )
        return {copy: _told(statuses[copy]) for copy in copies}

    async def sample(self, shard: ShardAssignment, *, seed: int) -> vectors.Float32:
        """Return some stored rows of a shard as probes, float32 [n, dim]; n may be 0."""
        response = await self._pool.call(
            self._watcher.topology,
            shard.primary,
            lambda stub: stub.Sample,
            shard_pb2.SampleRequest(
                shard_id=shard.shard_id, rows_count_max=PROBES_COUNT, seed=seed
            ),
            timeout_s=CALL_S,
        )
        dim = max(response.dim, 1)
        return vectors.dequantize(np.frombuffer(response.codes, np.int8).reshape(-1, dim))

    async def search(
        self,
        gallery: str,
        node_id: NodeId,
        shard_id: ShardId,
        probes: vectors.Float32,
        *,
        map_version: int,
        timeout_s: float = CALL_S,
    ) -> Found:
        """Return how one copy answers probes, searched by clients or not.

        Raises:
            UnavailableError: the copy refused (its reason).
        """
        item = shard_pb2.SearchRequest.Shard(
            shard_id=shard_id, trust=shard_pb2.Trust(unconfirmed_accepted=True)
        )
        request = shard_pb2.SearchRequest(
            gallery=gallery,
            map_version=map_version,
            shards=[item],
            probes=to_wire_vectors(probes),
            k=ASKED_K,
            threshold=-2.0,
            # Whom an index of little depth leaves out may depend on the order of rows.
            profile=to_profile_message(Profile.EXHAUSTIVE),
        )
        response = await self._pool.call(
            self._watcher.topology,
            node_id,
            lambda stub: stub.Search,
            request,
            timeout_s=timeout_s,
        )
        if not response.searched:
            reason = response.refused[0].reason if response.refused else "SHARD_NOT_SEARCHED"
            raise UnavailableError(
                f"node refused to search a shard reason={reason} shard={shard_id} node={node_id}",
                reason=reason,
                shard=shard_id,
                node=node_id,
            )
        return Found(response.searched[0].position, _lists(response))

    async def hold(
        self, shard: ShardAssignment, *, hold_ms: int, timeout_s: float
    ) -> shard_pb2.HoldResponse:
        """Hold the writes to a shard back, or with 0 let them go on."""
        return await self._pool.call(
            self._watcher.topology,
            shard.primary,
            lambda stub: stub.Hold,
            shard_pb2.HoldRequest(shard_id=shard.shard_id, hold_ms=hold_ms),
            timeout_s=timeout_s,
        )

    async def release(self, shards: Sequence[ShardAssignment]) -> None:
        """Let writes go on. Where that does not reach a node they do so by themselves."""

        async def one(shard: ShardAssignment) -> None:
            try:
                await self.hold(shard, hold_ms=0, timeout_s=CALL_S)
            except FacegridError:
                return

        await all_of([one(shard) for shard in shards])

    async def keep_record(
        self, node_id: NodeId, *, gallery: bytes, shard_map: bytes, timeout_s: float
    ) -> None:
        """Have what etcd is about to hold of a gallery stored."""
        await self._pool.call(
            self._watcher.topology,
            node_id,
            lambda stub: stub.KeepRecord,
            shard_pb2.KeepRecordRequest(gallery=gallery, shard_map=shard_map),
            timeout_s=timeout_s,
        )

    async def _statuses(
        self, node_ids: Collection[NodeId]
    ) -> dict[tuple[NodeId, ShardId], shard_pb2.ShardStatus]:
        answers = await self._lifecycle.statuses(node_ids, deadline_s=self._clock.now_s() + CALL_S)
        return {
            (node_id, ShardId(status.shard_id)): status
            for node_id, answer in answers.items()
            if not isinstance(answer, FacegridError)
            for status in answer.shards
        }


def _seen(status: shard_pb2.ShardStatus) -> CopySeen:
    return CopySeen(
        serving=status.state == shard_pb2.SHARD_STATE_SERVING,
        primary=status.role == shard_pb2.SHARD_ROLE_PRIMARY,
        confirmed=status.confirmed,
        position=status.position,
        map_version=status.map_version,
        generation=status.generation,
        sources=_sources(status),
        problem=status.problem,
    )


def _told(status: shard_pb2.ShardStatus) -> CopyTold:
    return CopyTold(
        position=status.position,
        digest=status.digest,
        templates_count=status.templates_count,
        codebook=status.codebook,
        sources=_sources(status),
    )


def _sources(status: shard_pb2.ShardStatus) -> dict[ShardId, int]:
    return {ShardId(source.shard_id): source.position for source in status.sources}


def _lists(response: shard_pb2.SearchResponse) -> tuple[tuple[tuple[str, str, float], ...], ...]:
    scores = np.frombuffer(response.scores, "<f4").tolist()
    rows = list(zip(response.subject_ids, response.template_ids, scores, strict=True))
    lists, first = [], 0
    for count in response.counts:
        lists.append(tuple(rows[first : first + count]))
        first += count
    return tuple(lists)
