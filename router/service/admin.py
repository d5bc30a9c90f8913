"""facegrid.api.admin.v1.AdminService."""

from typing import Any

import grpc.aio
from typing_extensions import override

from facegrid.api.admin.v1 import admin_service_pb2 as pb
from facegrid.api.admin.v1.admin_service_pb2_grpc import AdminServiceServicer
from facegrid.clock import Clock
from facegrid.errors import FacegridError
from facegrid.ids import NodeId
from facegrid.rpc.context import call_context
from facegrid.wire import to_wire_gallery
from router.dispatch.lifecycle import Lifecycle, NodeAnswer
from router.topology.snapshot import Topology
from router.topology.watcher import Watcher

Context = grpc.aio.ServicerContext[Any, Any]


class AdminService(AdminServiceServicer):
    """What operators ask a router."""

    def __init__(self, lifecycle: Lifecycle, watcher: Watcher, clock: Clock) -> None:
        self._lifecycle = lifecycle
        self._watcher = watcher
        self._clock = clock

    @override
    async def ClusterStatus(
        self, request: pb.ClusterStatusRequest, context: Context
    ) -> pb.ClusterStatusResponse:
        call = call_context(context, self._clock)
        topology = self._watcher.topology
        age_s = self._watcher.age_s
        answers = await self._lifecycle.statuses(
            {*topology.nodes, *topology.addresses, *_mapped(topology)}, deadline_s=call.deadline_s
        )
        return pb.ClusterStatusResponse(
            nodes=[_node(topology, node_id, answer) for node_id, answer in answers.items()],
            galleries=[to_wire_gallery(item.gallery) for item in topology.galleries.values()],
            shards=_shards(topology),
            etcd_reachable=self._watcher.reachable,
            map_age_ms=-1 if age_s is None else round(age_s * 1000),
        )


def _mapped(topology: Topology) -> set[NodeId]:
    return {
        node_id
        for served in topology.galleries.values()
        for shard in served.shard_map.shards
        for node_id in shard.node_ids
    }


def _node(
    topology: Topology, node_id: NodeId, answer: NodeAnswer
) -> pb.ClusterStatusResponse.Node:
    node = pb.ClusterStatusResponse.Node(
        id=node_id,
        address=topology.addresses.get(node_id, ""),
        registered=node_id in topology.nodes,
    )
    if isinstance(answer, FacegridError):
        node.problem = answer.message
        return node
    node.shards.extend(answer.shards)
    node.memory_bytes = answer.memory_bytes
    node.version = answer.version
    return node


def _shards(topology: Topology) -> list[pb.ClusterStatusResponse.Shard]:
    return [
        pb.ClusterStatusResponse.Shard(
            id=shard.shard_id,
            gallery=name,
            first=shard.range.first,
            last=shard.range.last,
            node_ids=shard.node_ids,
        )
        for name, served in topology.galleries.items()
        for shard in served.shard_map.shards
    ]
