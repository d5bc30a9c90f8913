"""The part of AdminService that is about operations and rebalancing."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import grpc.aio
from typing_extensions import override

from facegrid import limits
from facegrid.api.admin.v1 import admin_service_pb2 as pb
from facegrid.api.admin.v1.admin_service_pb2_grpc import AdminServiceServicer
from facegrid.clock import Clock
from facegrid.errors import InvalidError, NotFoundError
from facegrid.format.operations import Operation, RebalancerSettings
from facegrid.ids import GalleryName, NodeId, check_gallery_name
from facegrid.rpc.context import call_context
from facegrid.wire import to_wire_gallery
from router.operate.parts import Operate
from router.operate.rebalancing import AsIf, mapped
from router.service.operations import action_of, to_wire_operation, to_wire_plan
from router.service.rebalance import to_wire_proposal
from router.topology.directory import unknown_gallery

Context = grpc.aio.ServicerContext[Any, Any]


class OperationRpcs(AdminServiceServicer):
    """What operators ask about operations.

    Args:
        operate: plans, begins and changes operations.
        clock: for deadlines.
    """

    def __init__(self, operate: Operate, clock: Clock) -> None:
        self._operate = operate
        self._watcher = operate.watcher
        self._clock = clock

    @override
    async def PlanOperation(
        self, request: pb.PlanOperationRequest, context: Context
    ) -> pb.PlanOperationResponse:
        call = call_context(context, self._clock)
        planned = await self._operate.planner.plan(request.spec, deadline_s=call.deadline_s)
        return pb.PlanOperationResponse(plan=to_wire_plan(planned))

    @override
    async def StartOperation(
        self, request: pb.StartOperationRequest, context: Context
    ) -> pb.StartOperationResponse:
        call = call_context(context, self._clock)
        operation = await self._operate.planner.start(
            request.spec,
            request_id=request.request_id,
            map_version=request.map_version,
            deadline_s=call.deadline_s,
        )
        shown = await self._shown([operation], call.deadline_s)
        return pb.StartOperationResponse(operation=shown[0])

    @override
    async def ListOperations(
        self, request: pb.ListOperationsRequest, context: Context
    ) -> pb.ListOperationsResponse:
        call = call_context(context, self._clock)
        register = self._operate.register
        found = await register.operations(deadline_s=call.deadline_s)
        wanted = [
            one.operation for one in reversed(found) if request.all or not one.operation.state.over
        ]
        driver = await register.driver(deadline_s=call.deadline_s)
        shown = await self._shown(wanted, call.deadline_s)
        return pb.ListOperationsResponse(operations=shown, driver=driver)

    @override
    async def GetOperation(
        self, request: pb.GetOperationRequest, context: Context
    ) -> pb.GetOperationResponse:
        call = call_context(context, self._clock)
        found = await self._operate.register.get(request.id, deadline_s=call.deadline_s)
        shown = await self._shown([found.operation], call.deadline_s)
        return pb.GetOperationResponse(operation=shown[0])

    @override
    async def ChangeOperation(
        self, request: pb.ChangeOperationRequest, context: Context
    ) -> pb.ChangeOperationResponse:
        call = call_context(context, self._clock)
        changed = await self._operate.register.change(
            request.id, action_of(request), deadline_s=call.deadline_s
        )
        shown = await self._shown([changed], call.deadline_s)
        return pb.ChangeOperationResponse(operation=shown[0])

    @override
    async def MarkNode(self, request: pb.MarkNodeRequest, context: Context) -> pb.MarkNodeResponse:
        call = call_context(context, self._clock)
        node_id = NodeId(request.node_id)
        await self._check_nodes([node_id], call.deadline_s)
        await self._operate.register.mark(
            node_id, draining=request.draining, deadline_s=call.deadline_s
        )
        return pb.MarkNodeResponse()

    @override
    async def SetReplicas(
        self, request: pb.SetReplicasRequest, context: Context
    ) -> pb.SetReplicasResponse:
        call = call_context(context, self._clock)
        gallery = await self._operate.lifecycle.set_replicas(
            check_gallery_name(request.gallery),
            request.replicas_count,
            deadline_s=call.deadline_s,
        )
        return pb.SetReplicasResponse(gallery=to_wire_gallery(gallery))

    @override
    async def PlanRebalance(
        self, request: pb.PlanRebalanceRequest, context: Context
    ) -> pb.PlanRebalanceResponse:
        call = call_context(context, self._clock)
        topology = self._watcher.topology
        await self._check_nodes(
            [*request.lost_node_ids, *request.draining_node_ids], call.deadline_s
        )
        for one in request.replicas:
            check_replicas_count(one.replicas_count)
            if one.gallery not in topology.galleries:
                raise unknown_gallery(check_gallery_name(one.gallery))
        as_if = AsIf(
            lost=frozenset(NodeId(one) for one in request.lost_node_ids),
            draining=frozenset(NodeId(one) for one in request.draining_node_ids),
            replicas={GalleryName(one.gallery): one.replicas_count for one in request.replicas},
        )
        balance = await self._operate.rebalancing.propose(deadline_s=call.deadline_s, as_if=as_if)
        return to_wire_proposal(balance)

    @override
    async def Rebalancer(
        self, request: pb.RebalancerRequest, context: Context
    ) -> pb.RebalancerResponse:
        call = call_context(context, self._clock)
        register = self._operate.register
        if request.HasField("at_once_max") and not (
            1 <= request.at_once_max <= limits.OPERATIONS_AT_ONCE_MAX
        ):
            raise InvalidError(
                f"at_once_max must be 1 to {limits.OPERATIONS_AT_ONCE_MAX}"
                f" at_once_max={request.at_once_max}",
                reason="OUT_OF_BOUNDS",
                field="at_once_max",
                limit=limits.OPERATIONS_AT_ONCE_MAX,
            )
        settings = await register.set_settings(
            lambda before: _changed(before, request), deadline_s=call.deadline_s
        )
        return pb.RebalancerResponse(
            automatic=settings.automatic,
            at_once_max=settings.at_once_max,
            p99_limit_ms=settings.p99_limit_ms,
            p99_ms=round(self._operate.p99_ms),
            driver=await register.driver(deadline_s=call.deadline_s),
        )

    async def _check_nodes(self, node_ids: Iterable[str], deadline_s: float) -> None:
        """Raise NotFoundError for the first node that is not registered, that no map names, and
        that bears no mark either. A node that was drained is stopped next, and a mark must go
        away also from one that never comes back.
        """
        topology = self._watcher.topology
        unknown = {*node_ids} - {*topology.nodes, *mapped(topology)}
        if unknown:
            unknown -= {*await self._operate.register.marks(deadline_s=deadline_s)}
        for node_id in sorted(unknown):
            raise NotFoundError(
                f"no such node is registered, and no map names it node={node_id[:80]!r}",
                reason="NODE_UNKNOWN",
                node=node_id,
            )

    async def _shown(self, operations: list[Operation], deadline_s: float) -> list[pb.Operation]:
        """Return operations as messages, with what nodes say of how far they have come."""
        progress = await self._operate.progress(operations, deadline_s=deadline_s)
        return [
            to_wire_operation(operation, progress=progress[operation.operation_id])
            for operation in operations
        ]


def _changed(before: RebalancerSettings, request: pb.RebalancerRequest) -> RebalancerSettings:
    after = before
    if request.HasField("automatic"):
        after = replace(after, automatic=request.automatic)
    if request.HasField("at_once_max"):
        after = replace(after, at_once_max=request.at_once_max)
    if request.HasField("p99_limit_ms"):
        after = replace(after, p99_limit_ms=request.p99_limit_ms)
    return after


def check_replicas_count(count: int) -> None:
    """Raise InvalidError unless a shard may have so many copies."""
    if not 1 <= count <= limits.REPLICAS_MAX:
        raise InvalidError(
            f"a shard has 1 to {limits.REPLICAS_MAX} copies replicas_count={count}",
            reason="REPLICAS_OUT_OF_RANGE",
            field="replicas_count",
            limit=limits.REPLICAS_MAX,
        )
