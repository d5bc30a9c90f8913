"""facegrid.api.admin.v1.AdminService."""

from typing import Any, Final

import grpc.aio
from typing_extensions import override

from facegrid.api.admin.v1 import admin_service_pb2 as pb
from facegrid.api.shard.v1 import shard_service_pb2 as shard_pb2
from facegrid.clock import Clock
from facegrid.errors import FacegridError, UnavailableError
from facegrid.ids import NodeId, ShardId, check_gallery_name, check_request_id
from facegrid.model import Token
from facegrid.rpc.context import call_context
from facegrid.wire import to_wire_gallery, to_wire_token
from router.dispatch.ingest import Ingest
from router.dispatch.lifecycle import NodeAnswer
from router.dispatch.takeover import TakeOver
from router.operate.parts import Operate
from router.operate.rebalancing import mapped
from router.plan.standing import Standing, standing
from router.service.operation_rpcs import OperationRpcs
from router.topology.directory import Directory
from router.topology.snapshot import Topology

MARKS_S: Final = 2.0
"""Time for etcd to tell which nodes are marked."""

Context = grpc.aio.ServicerContext[Any, Any]


class AdminService(OperationRpcs):
    """What operators ask a router."""

    def __init__(
        self,
        takeover: TakeOver,
        operate: Operate,
        *,
        ingest: Ingest,
        directory: Directory,
        clock: Clock,
    ) -> None:
        super().__init__(operate, clock)
        self._ingest = ingest
        self._directory = directory
        self._lifecycle = operate.lifecycle
        self._takeover = takeover

    @override
    async def ClusterStatus(
        self, request: pb.ClusterStatusRequest, context: Context
    ) -> pb.ClusterStatusResponse:
        call = call_context(context, self._clock)
        topology = self._watcher.topology
        age_s = self._watcher.age_s
        draining = await self._draining(call.deadline_s)
        answers = await self._lifecycle.statuses(
            {*topology.nodes, *topology.addresses, *mapped(topology), *draining},
            deadline_s=call.deadline_s,
        )
        return pb.ClusterStatusResponse(
            nodes=[
                _node(topology, node_id, answer, draining=node_id in draining)
                for node_id, answer in answers.items()
            ],
            galleries=[to_wire_gallery(item.described) for item in topology.galleries.values()],
            shards=_shards(topology),
            etcd_reachable=self._watcher.reachable,
            map_age_ms=-1 if age_s is None else round(age_s * 1000),
            view_confirmed=self._watcher.confirmed,
            problems=self._watcher.problems,
        )

    async def _draining(self, deadline_s: float) -> set[NodeId]:
        """Return the nodes that are marked; none where etcd does not say."""
        try:
            marks = await self._operate.register.marks(
                deadline_s=min(deadline_s, self._clock.now_s() + MARKS_S)
            )
        except UnavailableError:
            return set()
        return {node_id for node_id, mark in marks.items() if mark.draining}

    @override
    async def TakeOver(self, request: pb.TakeOverRequest, context: Context) -> pb.TakeOverResponse:
        call = call_context(context, self._clock)
        taken = await self._takeover.take_over(NodeId(request.node_id), deadline_s=call.deadline_s)
        return pb.TakeOverResponse(
            shards=[
                pb.TakeOverResponse.Shard(
                    id=one.shard.shard_id, gallery=one.gallery, primary=one.shard.primary
                )
                for one in taken
            ]
        )

    @override
    async def Load(self, request: pb.LoadRequest, context: Context) -> pb.LoadResponse:
        call = call_context(context, self._clock)
        name = check_gallery_name(request.gallery)
        check_request_id(request.request_id)
        served = await self._directory.find(name, deadline_s=call.deadline_s)
        shard_id = ShardId(request.shard_id)
        if standing(served.shard_map, shard_id) is Standing.LATER:
            # Whoever planned the load knew a newer map than this router.
            served = await self._directory.find(
                name, deadline_s=call.deadline_s, after=Token({shard_id: 0})
            )
        wanted = shard_pb2.LoadRequest(
            shard_id=request.shard_id, request_id=request.request_id, segments=request.segments
        )
        loaded = await self._ingest.load(served, wanted, deadline_s=call.deadline_s)
        return pb.LoadResponse(
            token=to_wire_token(loaded.token),
            enrolled_count=loaded.enrolled_count,
            unchanged_count=loaded.unchanged_count,
        )


def _node(
    topology: Topology, node_id: NodeId, answer: NodeAnswer, *, draining: bool
) -> pb.ClusterStatusResponse.Node:
    registration = topology.nodes.get(node_id)
    node = pb.ClusterStatusResponse.Node(
        id=node_id,
        address=topology.addresses.get(node_id, ""),
        registered=registration is not None,
        zone="" if registration is None else registration.zone,
        draining=draining,
    )
    if isinstance(answer, FacegridError):
        node.problem = answer.message
        return node
    node.shards.extend(answer.shards)
    node.devices.extend(answer.devices)
    node.memory_bytes = answer.memory_bytes
    node.version = answer.version
    node.cpu_ms = answer.cpu_ms
    node.zone = answer.zone or node.zone
    node.memory_total_bytes = answer.memory_total_bytes
    node.memory_available_bytes = answer.memory_available_bytes
    return node


def _shards(topology: Topology) -> list[pb.ClusterStatusResponse.Shard]:
    return [
        pb.ClusterStatusResponse.Shard(
            id=shard.shard_id,
            gallery=name,
            first=shard.range.first,
            last=shard.range.last,
            node_ids=shard.node_ids,
            joining_node_ids=shard.joining,
            source_shard_ids=shard.sources,
        )
        for name, served in topology.galleries.items()
        for shard in served.shard_map.held
    ]
