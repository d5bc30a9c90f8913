"""What an operation would do, and its beginning: checked against the maps and the nodes of now."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from facegrid.api.admin.v1 import admin_service_pb2 as pb
from facegrid.clock import Clock
from facegrid.coord import keys
from facegrid.coord.port import Coordinator
from facegrid.errors import (
    FacegridError,
    FencedError,
    InvalidError,
    PreconditionError,
    UnavailableError,
)
from facegrid.format import records
from facegrid.format.operations import (
    Merge,
    Operation,
    OperationKind,
    OperationState,
    Replicas,
    Split,
)
from facegrid.ids import NodeId, ShardId, check_gallery_name, check_request_id
from facegrid.model import ShardMap
from router.dispatch.lifecycle import Lifecycle, NodeAnswer
from router.operate.register import ATTEMPTS_MAX, ETCD_S, Register, request_id_reused
from router.plan import estimate, kinds
from router.plan.estimate import Estimate, ShardSize
from router.plan.versions import check_versions
from router.topology.directory import unknown_gallery
from router.topology.watcher import Watcher

CAUSE_CHARS_MAX: Final = 200
DEFAULT_CAUSE: Final = "asked for by an operator"


@dataclass(frozen=True, slots=True)
class Planned:
    """An operation that could be begun now.

    Attributes:
        kind: what it is.
        shard_map: the map that it was planned for.
        map_revision: of that map.
        estimate: what it costs.
    """

    kind: OperationKind
    shard_map: ShardMap
    map_revision: int
    estimate: Estimate


class Planner:
    """Plans operations and begins them.

    Args:
        coordinator: where maps lie.
        register: where operations and locks lie.
        watcher: knows which nodes are registered.
        lifecycle: asks nodes how they are.
        clock: for deadlines and dates.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        register: Register,
        watcher: Watcher,
        *,
        lifecycle: Lifecycle,
        clock: Clock,
    ) -> None:
        self._coordinator = coordinator
        self._register = register
        self._watcher = watcher
        self._lifecycle = lifecycle
        self._clock = clock

    async def plan(self, spec: pb.OperationSpec, *, deadline_s: float) -> Planned:
        """Return what an operation would do.

        Raises:
            InvalidError: it makes no sense (KIND_MISSING, NODES_MALFORMED, SHARDS_MALFORMED,
                NOT_NEIGHBOURS, SHARD_TOO_SMALL, CAUSE_TOO_LONG).
            NotFoundError: it names what there is not (GALLERY_UNKNOWN, SHARD_UNKNOWN,
                NODE_UNKNOWN).
            PreconditionError: a node has not enough memory left (NO_ROOM), or is of a version
                that cannot read a changing map (NODE_TOO_OLD).
            FencedError: another operation has one of the shards (OPERATION_CONFLICT).
            UnavailableError: etcd, or a node that must tell how much it holds, cannot be reached.
        """
        name = check_gallery_name(spec.gallery)
        if len(spec.cause) > CAUSE_CHARS_MAX or not (spec.cause or "-").isprintable():
            raise InvalidError(
                f"the cause must have at most {CAUSE_CHARS_MAX} printable characters",
                reason="CAUSE_TOO_LONG",
                field="cause",
                limit=CAUSE_CHARS_MAX,
            )
        timeout_s = min(ETCD_S, deadline_s - self._clock.now_s())
        item = await self._coordinator.get(keys.shard_map(name), timeout_s=timeout_s)
        if item is None:
            raise unknown_gallery(name)
        shard_map = records.decode_shard_map(item.value)
        check_versions(self._watcher.topology.nodes.values())
        locks = await self._register.locks(deadline_s=deadline_s)
        kind = _drafted(spec, shard_map, self._watcher.topology.nodes, locks)
        for shard_id in _asked_ids(spec):
            if shard_id in locks:
                raise _conflict(shard_id, locks[shard_id])
        sizes, available = await self._told(kind, shard_map, deadline_s)
        estimate.check_size(kind, sizes)
        found = estimate.estimate(kind, shard_map, sizes=sizes, available=available)
        estimate.check_room(found)
        return Planned(kind, shard_map, item.mod_revision, found)

    async def start(
        self, spec: pb.OperationSpec, *, request_id: str, map_version: int, deadline_s: float
    ) -> Operation:
        """Record an operation; the same request id again finds the one that was recorded.

        Args:
            spec: what is wanted.
            request_id: the caller's name for this wish.
            map_version: of the map that the caller saw; 0: whatever it is.
            deadline_s: until when.

        Raises:
            PreconditionError: the map is another one by now (PLAN_STALE).
            ConflictError: the request id was used for something else (REQUEST_ID_REUSED).
            FacegridError: as `plan`.
        """
        check_request_id(request_id)
        name = _operation_id(request_id)
        for _ in range(ATTEMPTS_MAX):
            before = await self._register.find(name, deadline_s=deadline_s)
            if before is not None:
                if not _asks_for(spec, before.operation):
                    raise request_id_reused(before.operation)
                return before.operation
            planned = await self.plan(spec, deadline_s=deadline_s)
            if map_version not in (0, planned.shard_map.version):
                raise PreconditionError(
                    "the plan was made for another map; look at a new plan"
                    f" planned={map_version} now={planned.shard_map.version}",
                    reason="PLAN_STALE",
                    gallery=spec.gallery,
                    map_version=planned.shard_map.version,
                )
            operation = self._begun(name, spec, planned)
            if await self._register.begin(
                operation, map_revision=planned.map_revision, deadline_s=deadline_s
            ):
                return operation
        raise UnavailableError(
            f"the map keeps changing gallery={spec.gallery}", reason="MAP_CONTENDED"
        )

    def _begun(self, name: str, spec: pb.OperationSpec, planned: Planned) -> Operation:
        now_ms = self._clock.unix_ms()
        return Operation(
            operation_id=name,
            gallery=planned.shard_map.gallery,
            gallery_uid=planned.shard_map.gallery_uid,
            kind=planned.kind,
            state=OperationState.RUNNING,
            step=kinds.steps_of(planned.kind)[0],
            cause=spec.cause or DEFAULT_CAUSE,
            created_unix_ms=now_ms,
            step_unix_ms=now_ms,
            former_node_ids=kinds.former_nodes(planned.shard_map, planned.kind),
            planned_bytes=planned.estimate.moved_bytes,
            planned_s=planned.estimate.duration_s,
        )

    async def _told(
        self, kind: OperationKind, shard_map: ShardMap, deadline_s: float
    ) -> tuple[Mapping[ShardId, ShardSize], Mapping[NodeId, int]]:
        """Return how large the shards are that an operation changes, and what nodes have left."""
        source_ids = kind.shard_ids if isinstance(kind, Merge) else (kind.shard_id,)
        sources = [shard for shard in shard_map.shards if shard.shard_id in source_ids]
        wanted = kind.node_ids if isinstance(kind, Replicas) else ()
        nodes = {*wanted, *(node for shard in sources for node in shard.node_ids)}
        answers = await self._lifecycle.statuses(nodes, deadline_s=deadline_s)
        sizes: dict[ShardId, ShardSize] = {}
        for shard in sources:
            # The primary first; where it has died, another copy is about as large.
            told = (_size_told(answers[node], shard.shard_id) for node in shard.node_ids)
            size = next(filter(None, told), None)
            if size is None:
                raise UnavailableError(
                    "no copy of the shard tells how large it is; if its node has died, try again"
                    " when another one has taken it over"
                    f" shard={shard.shard_id} nodes={','.join(shard.node_ids)}",
                    reason="SIZE_UNKNOWN",
                    shard=shard.shard_id,
                    node=shard.primary,
                )
            sizes[shard.shard_id] = size
        available = {
            node: answer.memory_available_bytes
            for node, answer in answers.items()
            if not isinstance(answer, FacegridError)
        }
        return sizes, available


def _size_told(answer: NodeAnswer, shard_id: ShardId) -> ShardSize | None:
    """Return how large a shard is by what a node says; None where it says nothing of it."""
    for status in () if isinstance(answer, FacegridError) else answer.shards:
        if status.shard_id == shard_id:
            return ShardSize(status.templates_count, status.stored_bytes, status.memory_bytes)
    return None


def _drafted(
    spec: pb.OperationSpec,
    shard_map: ShardMap,
    registered: Collection[NodeId],
    locks: Mapping[ShardId, str],
) -> OperationKind:
    match spec.WhichOneof("kind"):
        case "replicas":
            nodes = [NodeId(node) for node in spec.replicas.node_ids]
            shard_id = ShardId(spec.replicas.shard_id)
            return kinds.replicas(shard_map, shard_id, nodes, registered=registered)
        case "split":
            return kinds.split(shard_map, ShardId(spec.split.shard_id), taken=locks)
        case "merge":
            shards = [ShardId(shard) for shard in spec.merge.shard_ids]
            return kinds.merge(shard_map, shards, taken=locks)
        case None:
            raise InvalidError(
                "say what is to be done: replicas, split or merge",
                reason="KIND_MISSING",
                field="spec",
            )


def _asked_ids(spec: pb.OperationSpec) -> list[ShardId]:
    named = (spec.replicas.shard_id, spec.split.shard_id, *spec.merge.shard_ids)
    return [ShardId(shard_id) for shard_id in named if shard_id]


def _asks_for(spec: pb.OperationSpec, operation: Operation) -> bool:
    """Tell whether an operation is what is asked for."""
    if spec.gallery != operation.gallery or {*_asked_ids(spec)} != {*operation.source_ids}:
        return False
    match operation.kind:
        case Replicas(node_ids=node_ids):
            return tuple(spec.replicas.node_ids) == node_ids
        case Split():
            return spec.WhichOneof("kind") == "split"
        case Merge():
            return spec.WhichOneof("kind") == "merge"


def _operation_id(request_id: str) -> str:
    """Return the name of the operation that a request makes: the same for the same id."""
    hashed = hashlib.blake2b(request_id.encode(), digest_size=6).hexdigest()
    return f"op-{hashed}"


def _conflict(shard_id: ShardId, operation_id: str) -> FencedError:
    return FencedError(
        "another operation has the shard; wait for it, or abort it"
        f" shard={shard_id} operation={operation_id}",
        reason="OPERATION_CONFLICT",
        shard=shard_id,
        operation=operation_id,
    )
