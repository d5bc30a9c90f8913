"""Operations, locks, marks and settings as they lie in etcd, read linearizably."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final

from facegrid.clock import Clock
from facegrid.coord import keys
from facegrid.coord.port import Coordinator, Delete, Guard, Put
from facegrid.errors import (
    ConflictError,
    CorruptError,
    NotFoundError,
    PreconditionError,
    UnavailableError,
)
from facegrid.format import operations
from facegrid.format.operations import NodeMark, Operation, OperationState, RebalancerSettings
from facegrid.ids import NodeId, ShardId
from facegrid.telemetry.log import Logger
from router.plan.kinds import abortable

ETCD_S: Final = 5.0
ATTEMPTS_MAX: Final = 5
"""Times a record is tried to be changed while others change it."""


class Action(Enum):
    """What an operator does with an operation that is under way."""

    PAUSE = auto()
    RESUME = auto()
    ABORT = auto()


@dataclass(frozen=True, slots=True)
class Recorded:
    """An operation, and the revision that guards its record."""

    operation: Operation
    revision: int


class Register:
    """Reads and writes what operators and the driver share.

    Args:
        coordinator: where it lies.
        clock: for what is left of deadlines, and for dates.
        logger: told about records that cannot be read.
    """

    def __init__(self, coordinator: Coordinator, clock: Clock, logger: Logger) -> None:
        self._coordinator = coordinator
        self._clock = clock
        self._logger = logger

    async def operations(self, *, deadline_s: float) -> list[Recorded]:
        """Return all operations, oldest first. A record that cannot be read is told and left out,
        so that it never keeps others from going on.
        """
        snapshot = await self._coordinator.list(keys.OPERATIONS, timeout_s=self._left(deadline_s))
        found: list[Recorded] = []
        for item in snapshot.items:
            try:
                operation = operations.decode_operation(item.value)
            except CorruptError as error:
                self._logger.warning("record not used", key=item.key, problem=error.message)
                continue
            found.append(Recorded(operation, item.mod_revision))
        return sorted(found, key=_age)

    async def find(self, operation_id: str, *, deadline_s: float) -> Recorded | None:
        """Return an operation, or None where there is none of that name."""
        key = keys.operation(operation_id)
        item = await self._coordinator.get(key, timeout_s=self._left(deadline_s))
        if item is None:
            return None
        return Recorded(operations.decode_operation(item.value), item.mod_revision)

    async def get(self, operation_id: str, *, deadline_s: float) -> Recorded:
        """Return an operation.

        Raises:
            NotFoundError: there is none of that name (OPERATION_UNKNOWN).
        """
        found = await self.find(operation_id, deadline_s=deadline_s)
        if found is None:
            raise NotFoundError(
                f"there is no such operation operation={operation_id[:80]!r}",
                reason="OPERATION_UNKNOWN",
                operation=operation_id,
            )
        return found

    async def locks(self, *, deadline_s: float) -> Mapping[ShardId, str]:
        """Return which operation has which shard."""
        snapshot = await self._coordinator.list(
            keys.OPERATION_LOCKS, timeout_s=self._left(deadline_s)
        )
        return {
            ShardId(keys.name_of(item.key, keys.OPERATION_LOCKS)): _holder(item.value)
            for item in snapshot.items
        }

    async def begin(self, operation: Operation, *, map_revision: int, deadline_s: float) -> bool:
        """Record an operation and take the locks of its shards; tell whether that was done. Not if
        the map is another one by now, or somebody else has one of the locks or the name.
        """
        shards = operation.locked_ids
        key = keys.operation(operation.operation_id)
        lock = operations.encode_lock(operations.OperationLock(operation.operation_id))
        result = await self._coordinator.txn(
            [
                Guard(key, 0),
                Guard(keys.shard_map(operation.gallery), map_revision),
                *(Guard(keys.operation_lock(shard_id), 0) for shard_id in shards),
            ],
            [
                Put(key, operations.encode_operation(operation)),
                *(Put(keys.operation_lock(shard_id), lock) for shard_id in shards),
            ],
            timeout_s=self._left(deadline_s),
        )
        return result.succeeded

    async def change(self, operation_id: str, action: Action, *, deadline_s: float) -> Operation:
        """Pause, resume or abort an operation; one that is so already stays as it is.

        Raises:
            NotFoundError: there is none of that name (OPERATION_UNKNOWN).
            PreconditionError: it is over (OPERATION_OVER), past the step up to which it can be
                aborted (PAST_CUTOVER), or on its way back (OPERATION_ABORTING).
        """

        def changed(operation: Operation) -> Operation:
            after = _after(operation, action)
            if after.state is not operation.state:
                after = replace(after, step_unix_ms=self._clock.unix_ms())
            return after

        return await self._update(operation_id, changed, deadline_s)

    async def marks(self, *, deadline_s: float) -> Mapping[NodeId, NodeMark]:
        """Return what operators want of nodes. A mark that cannot be read is told and left out."""
        snapshot = await self._coordinator.list(keys.MARKS, timeout_s=self._left(deadline_s))
        found: dict[NodeId, NodeMark] = {}
        for item in snapshot.items:
            try:
                mark = operations.decode_mark(item.value)
            except CorruptError as error:
                self._logger.warning("record not used", key=item.key, problem=error.message)
                continue
            found[mark.node_id] = mark
        return found

    async def mark(self, node_id: NodeId, *, draining: bool, deadline_s: float) -> None:
        """Mark a node as draining, or take the mark away."""
        key, timeout_s = keys.mark(node_id), self._left(deadline_s)
        item = await self._coordinator.get(key, timeout_s=timeout_s)
        if draining == (item is not None and operations.decode_mark(item.value).draining):
            return
        mark = NodeMark(node_id, draining=True, marked_unix_ms=self._clock.unix_ms())
        write = Put(key, operations.encode_mark(mark)) if draining else Delete(key)
        await self._coordinator.txn([], [write], timeout_s=timeout_s)

    async def settings(self, *, deadline_s: float) -> RebalancerSettings:
        """Return how operations are run."""
        item = await self._coordinator.get(keys.REBALANCER, timeout_s=self._left(deadline_s))
        return RebalancerSettings() if item is None else operations.decode_rebalancer(item.value)

    async def set_settings(
        self, change: Callable[[RebalancerSettings], RebalancerSettings], *, deadline_s: float
    ) -> RebalancerSettings:
        """Change how operations are run; return what holds from now on."""
        for _ in range(ATTEMPTS_MAX):
            timeout_s = self._left(deadline_s)
            item = await self._coordinator.get(keys.REBALANCER, timeout_s=timeout_s)
            before = RebalancerSettings()
            if item is not None:
                before = operations.decode_rebalancer(item.value)
            after = change(before)
            if after == before:
                return before
            result = await self._coordinator.txn(
                [Guard(keys.REBALANCER, 0 if item is None else item.mod_revision)],
                [Put(keys.REBALANCER, operations.encode_rebalancer(after))],
                timeout_s=timeout_s,
            )
            if result.succeeded:
                return after
        raise _contended(keys.REBALANCER)

    async def driver(self, *, deadline_s: float) -> str:
        """Return the router that drives operations; empty: none at present."""
        item = await self._coordinator.get(keys.DRIVER, timeout_s=self._left(deadline_s))
        return "" if item is None else item.value.decode(errors="replace")

    async def _update(
        self, operation_id: str, change: Callable[[Operation], Operation], deadline_s: float
    ) -> Operation:
        key = keys.operation(operation_id)
        for _ in range(ATTEMPTS_MAX):
            found = await self.get(operation_id, deadline_s=deadline_s)
            after = change(found.operation)
            if after == found.operation:
                return after
            result = await self._coordinator.txn(
                [Guard(key, found.revision)],
                [Put(key, operations.encode_operation(after))],
                timeout_s=self._left(deadline_s),
            )
            if result.succeeded:
                return after
        raise _contended(key)

    def _left(self, deadline_s: float) -> float:
        return min(ETCD_S, deadline_s - self._clock.now_s())


def _after(operation: Operation, action: Action) -> Operation:
    """Return an operation with which something was done, or raise why not."""
    state, name = operation.state, operation.operation_id
    wanted = {
        Action.PAUSE: OperationState.PAUSED,
        Action.RESUME: OperationState.RUNNING,
        Action.ABORT: OperationState.ABORTING,
    }[action]
    if action is Action.ABORT and state in (OperationState.ABORTING, OperationState.ABORTED):
        return operation
    if state.over:
        raise PreconditionError(
            f"the operation is over; start another one state={state.name} operation={name}",
            reason="OPERATION_OVER",
            operation=name,
        )
    if action is Action.ABORT and not abortable(operation):
        raise PreconditionError(
            "the operation is past its cutover; let it end, and start another one that leads back"
            f" step={operation.step} operation={name}",
            reason="PAST_CUTOVER",
            operation=name,
        )
    if action is not Action.ABORT and state is OperationState.ABORTING:
        raise PreconditionError(
            f"the operation is being aborted; let it end operation={name}",
            reason="OPERATION_ABORTING",
            operation=name,
        )
    notes = {Action.PAUSE: "paused by an operator", Action.ABORT: "aborted by an operator"}
    return (
        replace(operation, state=wanted, note=notes.get(action, ""))
        if (state is not wanted)
        else operation
    )


def _holder(value: bytes) -> str:
    """Return which operation has a lock; one that cannot be read is a lock all the same."""
    try:
        return operations.decode_lock(value).operation_id
    except CorruptError:
        return "unknown"


def _age(recorded: Recorded) -> tuple[int, str]:
    return recorded.operation.created_unix_ms, recorded.operation.operation_id


def _contended(key: str) -> UnavailableError:
    return UnavailableError(f"others keep changing the record key={key}", reason="CONTENDED")


def request_id_reused(operation: Operation) -> ConflictError:
    """Return the error for a request id under which something else was begun."""
    return ConflictError(
        "the request id was used for another operation; take a new one"
        f" operation={operation.operation_id}",
        reason="REQUEST_ID_REUSED",
        operation=operation.operation_id,
    )
