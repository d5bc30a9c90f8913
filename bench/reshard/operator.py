"""What an operator does: asks a router for operations, and waits until they are over."""

import asyncio
from collections.abc import Callable, Sequence

from facegrid.api.admin.v1 import admin_service_pb2 as pb
from facegrid.clock import Clock
from facegrid.errors import DeadlineError, UnavailableError
from fgctl import admin

CALL_S = 10.0
LOOK_S = 0.5
"""Pause between two looks at an operation; each takes work on the cores that are measured."""
OPERATION_S = 180.0
"""How long an operation of this size may take before it counts as stuck."""
ROUNDS_MAX = 3


class Operator:
    """Talks to routers, the first that answers.

    Args:
        targets: host:port of each router.
        clock: for waiting.
        say: told what is done, for people.
    """

    def __init__(
        self, targets: Sequence[str], clock: Clock, *, say: Callable[[str], None]
    ) -> None:
        self._targets = list(targets)
        self._clock = clock
        self._say = say
        self.done_count = 0
        """Operations carried out."""

    def status(self) -> pb.ClusterStatusResponse:
        """Return what a router knows of the cluster."""
        request = pb.ClusterStatusRequest()
        return admin.ask(self._targets, lambda stub: stub.ClusterStatus, request, timeout_s=CALL_S)

    def start(self, spec: pb.OperationSpec) -> pb.Operation:
        """Plan an operation and begin with it, if the map is still the one of the plan."""
        wanted = pb.PlanOperationRequest(spec=spec)
        planned = admin.ask(
            self._targets, lambda stub: stub.PlanOperation, wanted, timeout_s=CALL_S
        )
        request = pb.StartOperationRequest(
            request_id=f"reshard-{self._clock.unix_ms()}-{self.done_count}",
            spec=spec,
            map_version=planned.plan.map_version,
        )
        return admin.ask(
            self._targets, lambda stub: stub.StartOperation, request, timeout_s=CALL_S
        ).operation

    def operation(self, operation_id: str) -> pb.Operation:
        """Return an operation as it is now."""
        request = pb.GetOperationRequest(id=operation_id)
        return admin.ask(
            self._targets, lambda stub: stub.GetOperation, request, timeout_s=CALL_S
        ).operation

    def wait(self, operation_id: str) -> pb.Operation:
        """Return an operation once it is done.

        Raises:
            DeadlineError: it is not after a long time.
            UnavailableError: it was aborted.
        """
        ends_s = self._clock.now_s() + OPERATION_S
        step = ""
        while True:
            operation = self.operation(operation_id)
            if operation.step != step:
                step = operation.step
                self._say(f"{operation_id}: {step} {operation.note}")
            if operation.state == pb.OPERATION_STATE_DONE:
                self.done_count += 1
                return operation
            if operation.state == pb.OPERATION_STATE_ABORTED:
                raise UnavailableError(
                    f"operation was aborted id={operation_id}: {operation.note}", reason="ABORTED"
                )
            if self._clock.now_s() > ends_s:
                raise DeadlineError(
                    f"operation is stuck id={operation_id} step={step}: {operation.note}"
                )
            self.pause(LOOK_S)

    def run(self, spec: pb.OperationSpec) -> pb.Operation:
        """Carry one operation out."""
        return self.wait(self.start(spec).id)

    def mark(self, node_id: str, *, draining: bool) -> None:
        """Mark a node as to be emptied, or not any more."""
        request = pb.MarkNodeRequest(node_id=node_id, draining=draining)
        admin.ask(self._targets, lambda stub: stub.MarkNode, request, timeout_s=CALL_S)

    def rebalance(self, *, settled: bool = False) -> int:
        """Carry out what the cluster proposes, for some rounds or until there is nothing; return
        how much that was. While subjects are enrolled sizes change, and with them what is best.

        Args:
            settled: nobody writes any more, so it must end.

        Raises:
            DeadlineError: it should end, and does not.
        """
        moved = 0
        for _ in range(ROUNDS_MAX):
            request = pb.PlanRebalanceRequest()
            plan = admin.ask(
                self._targets, lambda stub: stub.PlanRebalance, request, timeout_s=CALL_S
            )
            for problem in plan.problems:
                self._say(f"rebalance: {problem}")
            if not plan.moves:
                return moved
            for move in plan.moves:
                self._say(f"rebalance: {move.spec.cause}")
                self.run(move.spec)
                moved += 1
        if settled:
            raise DeadlineError(f"rebalancing goes on proposing moves rounds={ROUNDS_MAX}")
        return moved

    def pause(self, duration_s: float) -> None:
        """Wait."""
        asyncio.run(self._clock.sleep(duration_s))


def replicas(gallery: str, shard_id: str, node_ids: Sequence[str], cause: str) -> pb.OperationSpec:
    """Say where the copies of a shard shall be, the primary first."""
    wanted = pb.OperationSpec.Replicas(shard_id=shard_id, node_ids=node_ids)
    return pb.OperationSpec(gallery=gallery, replicas=wanted, cause=cause)


def split(gallery: str, shard_id: str) -> pb.OperationSpec:
    """Say that a shard shall be two."""
    wanted = pb.OperationSpec.Split(shard_id=shard_id)
    return pb.OperationSpec(gallery=gallery, split=wanted, cause="reshard-check")


def merge(gallery: str, shard_ids: Sequence[str]) -> pb.OperationSpec:
    """Say that neighbours shall be one."""
    wanted = pb.OperationSpec.Merge(shard_ids=shard_ids)
    return pb.OperationSpec(gallery=gallery, merge=wanted, cause="reshard-check")
