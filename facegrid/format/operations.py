"""What etcd holds about changes of shape (RFC 0009): operations, their locks, and what operators
want of nodes and of the driver. Values to messages of facegrid.api.storage.v1 and back.

Every `decode_x` raises CorruptError as those of `facegrid.format.records` do.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from facegrid import limits
from facegrid.api.storage.v1 import storage_pb2
from facegrid.errors import CorruptError, InvalidError
from facegrid.format.checks import parse, require, serialized
from facegrid.format.records import GenerationClaim
from facegrid.ids import GalleryName, NodeId, ShardId, check_gallery_name, id_problem

NOBODY: Final = NodeId("nobody")
"""In whose name the generation of a replaced shard is raised. No process has a boot id that is the
id of an operation, so whatever nodes are called, no process is meant."""


class OperationState(Enum):
    """How an operation stands. The values are those of the stored record."""

    RUNNING = 1
    PAUSED = 2
    ABORTING = 3
    DONE = 4
    ABORTED = 5

    @property
    def over(self) -> bool:
        """Whether nothing will happen any more."""
        return self in (OperationState.DONE, OperationState.ABORTED)


@dataclass(frozen=True, slots=True)
class Replicas:
    """Where the copies of a shard shall be; the first shall be the primary."""

    shard_id: ShardId
    node_ids: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class Split:
    """Two shards shall take the place of one; `at` is the first key of the upper one."""

    shard_id: ShardId
    at: int
    child_ids: tuple[ShardId, ...]


@dataclass(frozen=True, slots=True)
class Merge:
    """One shard shall take the place of neighbours, which are named by rising key."""

    shard_ids: tuple[ShardId, ...]
    child_id: ShardId


OperationKind = Replicas | Split | Merge


@dataclass(frozen=True, slots=True)
class Operation:
    """ops/<id>: a change of the shape of a gallery, advanced step by step.

    Attributes:
        operation_id: its name.
        gallery: what it changes.
        gallery_uid: which of all galleries that ever had that name.
        kind: what it is to lead to.
        state: how it stands.
        step: name of the step that comes next.
        cause: why somebody wanted it, in words.
        note: what it waits for, or why it was paused or aborted, in words.
        created_unix_ms: when it was recorded.
        step_unix_ms: when the step was reached.
        former_node_ids: before a change of replicas the copies of the shard, to go back to;
            before a split or merge the nodes that held the sources, to be told to delete them.
        planned_bytes: what the plan estimated.
        planned_s: likewise.
    """

    operation_id: str
    gallery: GalleryName
    gallery_uid: str
    kind: OperationKind
    state: OperationState
    step: str
    cause: str = ""
    note: str = ""
    created_unix_ms: int = 0
    step_unix_ms: int = 0
    former_node_ids: tuple[NodeId, ...] = ()
    planned_bytes: int = 0
    planned_s: float = 0.0

    @property
    def source_ids(self) -> tuple[ShardId, ...]:
        """The shards that it changes or replaces."""
        match self.kind:
            case Merge(shard_ids=shard_ids):
                return shard_ids
            case Replicas(shard_id=shard_id) | Split(shard_id=shard_id):
                return (shard_id,)

    @property
    def child_ids(self) -> tuple[ShardId, ...]:
        """The shards that it makes."""
        match self.kind:
            case Split(child_ids=child_ids):
                return child_ids
            case Merge(child_id=child_id):
                return (child_id,)
            case Replicas():
                return ()

    @property
    def locked_ids(self) -> tuple[ShardId, ...]:
        """The shards that nobody else may change meanwhile."""
        return (*self.source_ids, *self.child_ids)


@dataclass(frozen=True, slots=True)
class OperationLock:
    """oplocks/<shard>: the operation that may change the shard."""

    operation_id: str


@dataclass(frozen=True, slots=True)
class NodeMark:
    """marks/<node>: what operators want of a node.

    Attributes:
        node_id: which.
        draining: nothing shall be placed on it, and what it holds shall go elsewhere.
        marked_unix_ms: since when.
    """

    node_id: NodeId
    draining: bool
    marked_unix_ms: int = 0


@dataclass(frozen=True, slots=True)
class RebalancerSettings:
    """The key `rebalancer`: how operations are run.

    Attributes:
        automatic: whether the driver begins operations by itself.
        at_once_max: operations at work at one time.
        p99_limit_ms: while the 99th percentile of search times is above this no further step is
            begun; 0: no limit.
    """

    automatic: bool = False
    at_once_max: int = limits.OPERATIONS_AT_ONCE_DEFAULT
    p99_limit_ms: int = 0


def encode_operation(operation: Operation) -> bytes:
    """Return the value of ops/<id>."""
    message = storage_pb2.OperationRecord(
        operation_id=operation.operation_id,
        gallery=operation.gallery,
        gallery_uid=operation.gallery_uid,
        state=storage_pb2.OperationRecord.State.ValueType(operation.state.value),
        step=operation.step,
        cause=operation.cause,
        note=operation.note,
        created_unix_ms=operation.created_unix_ms,
        step_unix_ms=operation.step_unix_ms,
        former_node_ids=operation.former_node_ids,
        planned_bytes=operation.planned_bytes,
        planned_s=operation.planned_s,
    )
    match operation.kind:
        case Replicas(shard_id, node_ids):
            message.replicas.shard_id = shard_id
            message.replicas.node_ids.extend(node_ids)
        case Split(shard_id, at, child_ids):
            message.split.shard_id = shard_id
            message.split.at = at
            message.split.child_ids.extend(child_ids)
        case Merge(shard_ids, child_id):
            message.merge.shard_ids.extend(shard_ids)
            message.merge.child_id = child_id
    return serialized(message)


def decode_operation(data: bytes) -> Operation:
    """Return the operation that ops/<id> describes. The name of its step is not judged here."""
    what = "operation record"
    message = parse(storage_pb2.OperationRecord(), data, what=what)
    problem = id_problem(message.operation_id)
    require(not problem, what, f"operation id: {problem}")
    require(bool(message.gallery_uid), what, "no gallery uid")
    require(bool(message.step), what, "no step")
    known = [state.value for state in OperationState]
    require(message.state in known, what, f"state={message.state}")
    require(message.planned_s >= 0, what, f"planned_s={message.planned_s}")
    require(message.planned_bytes >= 0, what, f"planned_bytes={message.planned_bytes}")
    return Operation(
        operation_id=message.operation_id,
        gallery=_gallery_name(message.gallery, what),
        gallery_uid=message.gallery_uid,
        kind=_kind(message, what),
        state=OperationState(message.state),
        step=message.step,
        cause=message.cause,
        note=message.note,
        created_unix_ms=message.created_unix_ms,
        step_unix_ms=message.step_unix_ms,
        former_node_ids=tuple(map(NodeId, message.former_node_ids)),
        planned_bytes=message.planned_bytes,
        planned_s=message.planned_s,
    )


def _kind(message: storage_pb2.OperationRecord, what: str) -> OperationKind:
    match message.WhichOneof("kind"):
        case "replicas":
            nodes = tuple(map(NodeId, message.replicas.node_ids))
            require(bool(message.replicas.shard_id), what, "no shard")
            require(bool(nodes) and all(nodes), what, "no nodes")
            require(len(set(nodes)) == len(nodes), what, "a node stands twice")
            return Replicas(ShardId(message.replicas.shard_id), nodes)
        case "split":
            children = tuple(map(ShardId, message.split.child_ids))
            _require_shards((message.split.shard_id, *children), 3, what)
            require(message.split.at > 0, what, "nothing is split off")
            return Split(ShardId(message.split.shard_id), message.split.at, children)
        case "merge":
            sources = tuple(map(ShardId, message.merge.shard_ids))
            _require_shards((*sources, message.merge.child_id), max(3, len(sources) + 1), what)
            return Merge(sources, ShardId(message.merge.child_id))
        case None:
            raise CorruptError(f"{what} is damaged: no kind", what=what)


def _require_shards(shard_ids: tuple[str, ...], count: int, what: str) -> None:
    named = len(set(shard_ids)) == len(shard_ids) and all(shard_ids)
    require(named and len(shard_ids) == count, what, "shards are missing or stand twice")


def encode_lock(lock: OperationLock) -> bytes:
    """Return the value of oplocks/<shard>."""
    return serialized(storage_pb2.OperationLock(operation_id=lock.operation_id))


def decode_lock(data: bytes) -> OperationLock:
    """Return the lock that oplocks/<shard> is."""
    what = "operation lock"
    message = parse(storage_pb2.OperationLock(), data, what=what)
    problem = id_problem(message.operation_id)
    require(not problem, what, f"operation id: {problem}")
    return OperationLock(message.operation_id)


def encode_mark(mark: NodeMark) -> bytes:
    """Return the value of marks/<node>."""
    return serialized(
        storage_pb2.NodeMark(
            node_id=mark.node_id, draining=mark.draining, marked_unix_ms=mark.marked_unix_ms
        )
    )


def decode_mark(data: bytes) -> NodeMark:
    """Return what marks/<node> says."""
    what = "node mark"
    message = parse(storage_pb2.NodeMark(), data, what=what)
    require(bool(message.node_id), what, "no node id")
    return NodeMark(NodeId(message.node_id), message.draining, message.marked_unix_ms)


def encode_rebalancer(settings: RebalancerSettings) -> bytes:
    """Return the value of the key `rebalancer`."""
    return serialized(
        storage_pb2.RebalancerSettings(
            automatic=settings.automatic,
            at_once_max=settings.at_once_max,
            p99_limit_ms=settings.p99_limit_ms,
        )
    )


def decode_rebalancer(data: bytes) -> RebalancerSettings:
    """Return what the key `rebalancer` says, with the default for what was not said."""
    message = parse(storage_pb2.RebalancerSettings(), data, what="rebalancer settings")
    return RebalancerSettings(
        automatic=message.automatic,
        at_once_max=message.at_once_max or limits.OPERATIONS_AT_ONCE_DEFAULT,
        p99_limit_ms=message.p99_limit_ms,
    )


def nobodys(claim: GenerationClaim, operation_id: str) -> GenerationClaim:
    """Return the claim after which no process may commit to a shard that was replaced."""
    return GenerationClaim(claim.generation + 1, NOBODY, operation_id)


def _gallery_name(name: str, what: str) -> GalleryName:
    try:
        return check_gallery_name(name)
    except InvalidError as error:
        require(False, what, error.message)  # noqa: FBT003 - raises always
        raise
