"""Galleries come, are trained and go: guarded transactions in etcd, then waiting for the nodes."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from facegrid import limits
from facegrid.api.shard.v1 import shard_service_pb2 as shard_pb2
from facegrid.clock import Clock
from facegrid.coord import keys
from facegrid.coord.port import Coordinator, Delete, Guard, Put
from facegrid.errors import (
    ConflictError,
    DeadlineError,
    FacegridError,
    InvalidError,
    UnavailableError,
)
from facegrid.format import records
from facegrid.format.operations import decode_mark
from facegrid.ids import GalleryName, NodeId
from facegrid.model import Gallery, ShardAssignment, ShardMap
from facegrid.rpc.together import all_of
from facegrid.tuning import MISS_RATE_MAX_DEFAULT, Profile
from facegrid.vectors import BITS_DEFAULT
from router.dispatch.blame import blamed
from router.dispatch.map_news import PASSES_MAX, MapNews
from router.dispatch.time_left import time_for_node_s
from router.plan import placement
from router.topology.directory import Directory, unknown_gallery
from router.topology.pool import NodePool
from router.topology.snapshot import ServedGallery
from router.topology.watcher import Watcher

POLL_S: Final = 0.05
STATUS_S: Final = 2.0
"""Time for a node to tell its status."""
ATTEMPTS_MAX: Final = 3
"""Times a transaction is tried when others change the same gallery."""
DROPPED_AT_ONCE_MAX: Final = limits.ETCD_TXN_OPERATIONS_MAX - 2

NodeAnswer = shard_pb2.StatusResponse | FacegridError


@dataclass(frozen=True, slots=True)
class GallerySpec:
    """Checked settings of a gallery to be."""

    name: GalleryName
    dim: int
    extractor: str
    shards_count: int
    replicas_count: int
    train_at_templates_count: int
    profile: Profile = Profile.BALANCED
    miss_rate_max: float = MISS_RATE_MAX_DEFAULT
    component_bits: int = BITS_DEFAULT

    def fits(self, gallery: Gallery) -> bool:
        """Tell whether a gallery has exactly these settings."""
        return self == GallerySpec(
            gallery.name,
            gallery.dim,
            gallery.extractor,
            gallery.shards_count,
            gallery.replicas_count,
            gallery.train_at_templates_count,
            gallery.profile,
            gallery.miss_rate_max,
            gallery.component_bits,
        )


@dataclass(frozen=True, slots=True)
class Trained:
    """A gallery with its new codebook, and on how many templates that was trained."""

    gallery: Gallery
    sample_count: int


class Lifecycle:
    """Creates, counts, trains and drops galleries.

    Args:
        coordinator: where galleries and maps lie.
        watcher: holds the topology.
        pool: reaches the nodes.
        clock: for deadlines and creation dates.
        new_uid: returns 8 hex digits, never the same again.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        watcher: Watcher,
        pool: NodePool,
        *,
        clock: Clock,
        new_uid: Callable[[], str],
    ) -> None:
        self._coordinator = coordinator
        self._watcher = watcher
        self._pool = pool
        self._clock = clock
        self._new_uid = new_uid
        self._directory = Directory(watcher, coordinator, clock)
        self._news = MapNews(watcher, clock)

    async def create(self, spec: GallerySpec, *, deadline_s: float) -> Gallery:
        """Create a gallery, or find it as wished for, and wait until all its shards serve.

        Raises:
            ConflictError: the name is taken with other settings (GALLERY_EXISTS).
            UnavailableError: too few live nodes (TOO_FEW_NODES), or etcd cannot be reached.
            DeadlineError: a shard does not serve yet (SHARD_NOT_SERVING); calling again waits on.
        """
        gallery = await self._recorded(spec, deadline_s)
        if not spec.fits(gallery):
            raise ConflictError(
                f"the gallery exists with other settings gallery={spec.name}",
                reason="GALLERY_EXISTS",
                gallery=spec.name,
            )
        served = await self._directory.find(spec.name, deadline_s=deadline_s)
        await self._until(served, _serving_problem, deadline_s)
        shards_count = len(self._newest(served).shard_map.shards)
        return dataclasses.replace(gallery, shards_count=shards_count)

    async def drop(self, name: GalleryName, *, deadline_s: float) -> None:
        """Drop a gallery; its nodes delete what it had.

        Raises:
            NotFoundError: there is no such gallery.
            UnavailableError: etcd cannot be reached, or others keep changing the gallery.
        """
        for _ in range(ATTEMPTS_MAX):
            found = await self._coordinator.get(
                keys.gallery(name), timeout_s=self._left(deadline_s)
            )
            mapped = await self._coordinator.get(
                keys.shard_map(name), timeout_s=self._left(deadline_s)
            )
            if found is None:
                raise unknown_gallery(name)
            shard_map = records.decode_shard_map(mapped.value) if mapped else None
            notes = _dropped_notes(shard_map)
            result = await self._coordinator.txn(
                [
                    Guard(keys.gallery(name), found.mod_revision),
                    Guard(keys.shard_map(name), mapped.mod_revision if mapped else 0),
                ],
                [
                    Delete(keys.gallery(name)),
                    Delete(keys.shard_map(name)),
                    *notes[:DROPPED_AT_ONCE_MAX],
                ],
                timeout_s=self._left(deadline_s),
            )
            if result.succeeded:
                await self._note_dropped(notes[DROPPED_AT_ONCE_MAX:], deadline_s)
                await self._forgotten(records.decode_gallery(found.value), deadline_s)
                return
        raise _contended(name)

    async def set_replicas(
        self, name: GalleryName, replicas_count: int, *, deadline_s: float
    ) -> Gallery:
        """Say how many copies each shard of a gallery shall have; return it. Nothing is moved.

        Raises:
            NotFoundError: there is no such gallery.
            InvalidError: so many copies nobody has (REPLICAS_OUT_OF_RANGE).
            UnavailableError: etcd cannot be reached, or others keep changing the gallery.
        """
        if not 1 <= replicas_count <= limits.REPLICAS_MAX:
            raise InvalidError(
                f"replicas_count must be 1 to {limits.REPLICAS_MAX}"
                f" replicas_count={replicas_count}",
                reason="REPLICAS_OUT_OF_RANGE",
                field="replicas_count",
                limit=limits.REPLICAS_MAX,
            )
        key = keys.gallery(name)
        for _ in range(ATTEMPTS_MAX):
            found = await self._coordinator.get(key, timeout_s=self._left(deadline_s))
            if found is None:
                raise unknown_gallery(name)
            before = records.decode_gallery(found.value)
            after = dataclasses.replace(before, replicas_count=replicas_count)
            if after == before:
                return before
            result = await self._coordinator.txn(
                [Guard(key, found.mod_revision)],
                [Put(key, records.encode_gallery(after))],
                timeout_s=self._left(deadline_s),
            )
            if result.succeeded:
                return after
        raise _contended(name)

    async def train(self, name: GalleryName, *, deadline_s: float) -> Trained:
        """Have a codebook trained and wait until all shards search with it.

        Raises:
            NotFoundError: there is no such gallery.
            InvalidError: too few templates (TOO_FEW_TEMPLATES).
            UnavailableError: the node that trains cannot be reached.
            DeadlineError: a shard does not search with it yet (SHARD_NOT_TRAINED).
        """
        served = await self._directory.find(name, deadline_s=deadline_s)
        shard = served.shard_map.shards[0]
        try:
            response = await self._pool.call(
                self._watcher.topology,
                shard.primary,
                lambda stub: stub.Train,
                shard_pb2.TrainRequest(gallery=name),
                timeout_s=time_for_node_s(deadline_s, self._clock),
            )
        except FacegridError as error:
            raise blamed(error, shard.shard_id, shard.primary) from error
        codebook = response.codebook

        def problem(shard: ShardAssignment, status: shard_pb2.ShardStatus) -> str:
            # A codebook trained still later is as good: the gallery's own record says which.
            current = self._watcher.topology.galleries.get(name, served).gallery.codebook
            later = current not in ("", served.gallery.codebook)
            if status.codebook == codebook or (later and status.codebook == current):
                return _serving_problem(shard, status)
            return status.problem or "it does not search with the new codebook yet"

        await self._until(served, problem, deadline_s, reason="SHARD_NOT_TRAINED")
        return Trained(
            dataclasses.replace(self._newest(served).described, codebook=codebook),
            response.sample_count,
        )

    async def counted(self, served: ServedGallery, *, deadline_s: float) -> Gallery:
        """Return a gallery with the number of its templates and of its shards.

        Raises:
            UnavailableError: a shard did not tell its count; names shard and node.
        """
        for _ in range(PASSES_MAX):
            try:
                count = await self._count(served, deadline_s)
            except FacegridError as error:
                newer = await self._news.next_map(served, error, deadline_s=deadline_s)
                if newer is None:
                    raise
                served = newer
            else:
                return dataclasses.replace(served.described, templates_count=count)
        raise _contended(served.gallery.name)

    async def _count(self, served: ServedGallery, deadline_s: float) -> int:
        """Return the number of templates in the shards of one map."""
        shards = served.shard_map.shards
        answers = await self.statuses({shard.primary for shard in shards}, deadline_s=deadline_s)
        count = 0
        for shard in shards:
            status = _status_of(shard, answers)
            if problem := _serving_problem(shard, status):
                raise UnavailableError(
                    f"shard did not tell its count: {problem}"
                    f" shard={shard.shard_id} node={shard.primary}",
                    reason="COUNT_UNKNOWN",
                    shard=shard.shard_id,
                    node=shard.primary,
                )
            count += status.templates_count
        return count

    async def statuses(
        self, node_ids: Collection[NodeId], *, deadline_s: float
    ) -> dict[NodeId, NodeAnswer]:
        """Return what each node says of itself, or why it says nothing."""
        topology = self._watcher.topology
        timeout_s = min(STATUS_S, time_for_node_s(deadline_s, self._clock))

        async def one(node_id: NodeId) -> tuple[NodeId, NodeAnswer]:
            try:
                answer: NodeAnswer = await self._pool.call(
                    topology,
                    node_id,
                    lambda stub: stub.Status,
                    shard_pb2.StatusRequest(),
                    timeout_s=timeout_s,
                )
            except FacegridError as error:
                answer = error
            return node_id, answer

        return dict(await all_of([one(node_id) for node_id in sorted(node_ids)]))

    async def _recorded(self, spec: GallerySpec, deadline_s: float) -> Gallery:
        """Return the gallery as etcd has it, put there now or before."""
        key, map_key = keys.gallery(spec.name), keys.shard_map(spec.name)
        for _ in range(ATTEMPTS_MAX):
            found = await self._coordinator.get(key, timeout_s=self._left(deadline_s))
            if found is not None:
                return records.decode_gallery(found.value)
            gallery = Gallery(
                **dataclasses.asdict(spec),
                uid=self._new_uid(),
                created_unix_ms=self._clock.unix_ms(),
            )
            topology = self._watcher.topology
            shard_map = placement.place(
                gallery,
                live=await self._welcoming(spec.replicas_count, deadline_s),
                present=[served.shard_map for served in topology.galleries.values()],
            )
            result = await self._coordinator.txn(
                [Guard(key, 0), Guard(map_key, 0)],
                [
                    Put(key, records.encode_gallery(gallery)),
                    Put(map_key, records.encode_shard_map(shard_map)),
                ],
                timeout_s=self._left(deadline_s),
            )
            if result.succeeded:
                return gallery
        raise _contended(spec.name)

    async def _welcoming(self, replicas_count: int, deadline_s: float) -> set[NodeId]:
        """Return the registered nodes that are not draining; all, where those are too few."""
        marks = await self._coordinator.list(keys.MARKS, timeout_s=self._left(deadline_s))
        found = [decode_mark(item.value) for item in marks.items]
        registered = set(self._watcher.topology.nodes)
        rest = registered - {mark.node_id for mark in found if mark.draining}
        return rest if len(rest) >= replicas_count else registered

    async def _note_dropped(self, notes: list[Put], deadline_s: float) -> None:
        for first in range(0, len(notes), DROPPED_AT_ONCE_MAX):
            await self._coordinator.txn(
                [],
                notes[first : first + DROPPED_AT_ONCE_MAX],
                timeout_s=self._left(deadline_s),
            )

    async def _forgotten(self, gallery: Gallery, deadline_s: float) -> None:
        """Wait until this router does not serve the gallery any more."""
        while True:
            topology = self._watcher.topology
            served = topology.galleries.get(gallery.name)
            if served is None or served.gallery.uid != gallery.uid:
                return
            left_s = self._left(deadline_s)
            if not await self._watcher.changed(topology, timeout_s=left_s):
                return

    async def _until(
        self,
        served: ServedGallery,
        problem_of: Callable[[ShardAssignment, shard_pb2.ShardStatus], str],
        deadline_s: float,
        *,
        reason: str = "SHARD_NOT_SERVING",
    ) -> None:
        """Ask the primaries, of the newest map each time, until no shard has a problem."""
        while True:
            shard_map = self._newest(served).shard_map
            answers = await self.statuses(
                {shard.primary for shard in shard_map.shards}, deadline_s=deadline_s
            )
            problems = [
                (shard, problem)
                for shard in shard_map.shards
                if (problem := problem_of(shard, _status_of(shard, answers)))
            ]
            if not problems:
                return
            if time_for_node_s(deadline_s, self._clock) <= POLL_S:
                shard, problem = problems[0]
                raise DeadlineError(
                    f"shards are not ready: {problem} shards={len(problems)}"
                    f" shard={shard.shard_id} node={shard.primary}",
                    reason=reason,
                    shard=shard.shard_id,
                    node=shard.primary,
                )
            await self._clock.sleep(POLL_S)

    def _newest(self, served: ServedGallery) -> ServedGallery:
        """Return the gallery as it is now: another node may have taken a shard over since."""
        found = self._watcher.topology.galleries.get(served.gallery.name)
        return found if found is not None and found.gallery.uid == served.gallery.uid else served

    def _left(self, deadline_s: float) -> float:
        """Return how long etcd may take."""
        return min(5.0, time_for_node_s(deadline_s, self._clock))


def _status_of(
    shard: ShardAssignment, answers: Mapping[NodeId, NodeAnswer]
) -> shard_pb2.ShardStatus:
    """Return what its primary says of a shard; a node that says nothing gives the problem."""
    answer = answers[shard.primary]
    if isinstance(answer, FacegridError):
        return shard_pb2.ShardStatus(shard_id=shard.shard_id, problem=answer.message)
    for status in answer.shards:
        if status.shard_id == shard.shard_id:
            return status
    return shard_pb2.ShardStatus(shard_id=shard.shard_id, problem="the node does not hold it yet")


def _serving_problem(_shard: ShardAssignment, status: shard_pb2.ShardStatus) -> str:
    """Say why a shard does not serve; empty when it does."""
    if status.state == shard_pb2.SHARD_STATE_SERVING:
        return ""
    return status.problem or f"state={shard_pb2.ShardState.Name(status.state)}"


def _dropped_notes(shard_map: ShardMap | None) -> list[Put]:
    """Return the records that order the deletion of all shards that nodes hold."""
    if shard_map is None:
        return []
    return [
        Put(
            keys.dropped(shard.shard_id),
            records.encode_dropped(
                records.Dropped(shard.shard_id, shard_map.gallery_uid, shard.holders)
            ),
        )
        for shard in shard_map.held
    ]


def _contended(name: GalleryName) -> UnavailableError:
    return UnavailableError(
        f"others keep changing the gallery gallery={name}", reason="CONTENDED", gallery=name
    )
