"""What routers tell operators, in memory. Operations go a step further whenever somebody looks.

Exact where it matters to `fgctl`: ids, versions, locks, refusals. What it proposes is simple: a
copy on a draining or lost node goes to the first node that has none.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from typing_extensions import override

from facegrid.api.admin.v1 import admin_service_pb2 as pb
from facegrid.api.admin.v1 import admin_service_pb2_grpc
from facegrid.api.shard.v1 import shard_service_pb2 as shard_pb2
from facegrid.api.v1 import types_pb2
from facegrid.errors import (
    FacegridError,
    FencedError,
    InvalidError,
    NotFoundError,
    PreconditionError,
)
from facegrid.ids import KEY_LAST

Status = pb.ClusterStatusResponse
MIB: Final = 1024 * 1024
MOVE_STEPS: Final = ("join", "verify", "serve", "cutover", "leave")
RESHAPE_STEPS: Final = ("fill", "follow", "cutover", "drop")
BEGUN_UNIX_MS: Final = 1_764_000_000_000
AT_WORK: Final = (
    pb.OPERATION_STATE_RUNNING,
    pb.OPERATION_STATE_PAUSED,
    pb.OPERATION_STATE_ABORTING,
)


@dataclass(slots=True)
class FakeCluster:
    """Nodes, galleries, shards and operations; tests change them as they like.

    Attributes:
        nodes: by id.
        galleries: by name.
        shards: in the order of their ranges.
        map_versions: by gallery.
        operations: by id, oldest first.
        requests: operations by request id.
        frozen: operations stay where they are.
        driver: the router that drives operations.
        settings: how operations are run.
        shard_bytes: what one copy of any shard takes.
        problems: what a proposal says that it cannot put right.
        hesitant: operations are aborted instead of going a step further.
        restless: the map changes whenever an operation was planned.
        refusals: raised by the next calls of StartOperation, one each.
    """

    nodes: dict[str, Status.Node] = field(default_factory=dict)
    galleries: dict[str, types_pb2.Gallery] = field(default_factory=dict)
    shards: list[Status.Shard] = field(default_factory=list)
    map_versions: dict[str, int] = field(default_factory=dict)
    operations: dict[str, pb.Operation] = field(default_factory=dict)
    requests: dict[str, str] = field(default_factory=dict)
    frozen: bool = False
    driver: str = "router1"
    settings: pb.RebalancerResponse = field(
        default_factory=lambda: pb.RebalancerResponse(at_once_max=2)
    )
    shard_bytes: int = 100 * MIB
    problems: list[str] = field(default_factory=list)
    hesitant: bool = False
    restless: bool = False
    refusals: list[FacegridError] = field(default_factory=list)

    def add_node(self, node_id: str, **about: Any) -> None:
        """Add a node that is registered and has 8 GiB of memory left."""
        self.nodes[node_id] = Status.Node(
            **{
                "id": node_id,
                "address": f"127.0.0.1:75{len(self.nodes):02d}",
                "registered": True,
                "version": "0.1.0",
                "memory_bytes": 300 * MIB,
                "memory_total_bytes": 16 * 1024 * MIB,
                "memory_available_bytes": 8 * 1024 * MIB,
                **about,
            }
        )

    def add_gallery(self, name: str, *copies: str, replicas: int | None = None) -> None:
        """Add a gallery whose shards lie on these nodes, for instance "n1 n2"."""
        nodes = [text.split() for text in copies]
        self.galleries[name] = types_pb2.Gallery(
            name=name,
            shards_count=len(nodes),
            replicas_count=replicas or len(nodes[0]),
        )
        self.map_versions[name] = 1
        width = (KEY_LAST + 1) // len(nodes)
        for number, node_ids in enumerate(nodes):
            last = KEY_LAST if number == len(nodes) - 1 else (number + 1) * width - 1
            shard = Status.Shard(
                id=f"{name}.1f00aa23.{number:04d}",
                gallery=name,
                first=number * width,
                last=last,
                node_ids=node_ids,
            )
            self.shards.append(shard)

    def find(self, shard_id: str) -> Status.Shard:
        """Return a shard."""
        for shard in self.shards:
            if shard.id == shard_id:
                return shard
        raise NotFoundError(f"no such shard shard={shard_id}", reason="SHARD_UNKNOWN")

    def operation(self, operation_id: str) -> pb.Operation:
        """Return an operation."""
        if operation_id not in self.operations:
            raise NotFoundError(
                f"no such operation operation={operation_id}", reason="OPERATION_UNKNOWN"
            )
        return self.operations[operation_id]

    def status(self) -> Status:
        """Return what a router tells of all this, with reports of all copies."""
        nodes = []
        for one in self.nodes.values():
            node = Status.Node()
            node.CopyFrom(one)
            if one.registered and not one.problem and not one.shards:
                node.shards.extend(self._reports(one.id))
            nodes.append(node)
        return Status(
            nodes=nodes,
            galleries=self.galleries.values(),
            shards=self.shards,
            etcd_reachable=True,
            map_age_ms=300,
            view_confirmed=True,
        )

    def _reports(self, node_id: str) -> Iterator[shard_pb2.ShardStatus]:
        for shard in self.shards:
            if node_id in (*shard.node_ids, *shard.joining_node_ids):
                primary = shard.node_ids[0] == node_id
                joining = node_id in shard.joining_node_ids
                yield shard_pb2.ShardStatus(
                    shard_id=shard.id,
                    gallery=shard.gallery,
                    state=shard_pb2.SHARD_STATE_SERVING,
                    role=shard_pb2.SHARD_ROLE_PRIMARY
                    if primary
                    else shard_pb2.SHARD_ROLE_FOLLOWER,
                    generation=3,
                    position=120 if not joining else 100,
                    templates_count=250_000,
                    indexed_count=250_000,
                    memory_bytes=self.shard_bytes,
                    stored_bytes=self.shard_bytes,
                    map_version=self.map_versions[shard.gallery],
                    confirmed=True,
                )

    def plan(self, spec: pb.OperationSpec) -> pb.OperationPlan:
        """Return what an operation would do, or refuse it."""
        if spec.gallery not in self.galleries:
            raise NotFoundError("no such gallery", reason="GALLERY_UNKNOWN")
        shards = [self.find(shard_id) for shard_id in _shard_ids(spec)]
        plan = pb.OperationPlan(
            map_version=self.map_versions[spec.gallery],
            moved_bytes=self.shard_bytes * len(shards),
            duration_s=75,
            steps=MOVE_STEPS if spec.WhichOneof("kind") == "replicas" else RESHAPE_STEPS,
        )
        if spec.WhichOneof("kind") == "replicas":
            self._plan_replicas(plan, spec, shards[0])
            return plan
        if any(one.last + 1 != two.first for one, two in itertools.pairwise(shards)):
            raise InvalidError("the shards are no neighbours", reason="NOT_NEIGHBOURS")
        number = len(self.shards) + len(self.operations)
        made = 2 if spec.WhichOneof("kind") == "split" else 1
        plan.child_ids.extend(
            f"{spec.gallery}.1f00aa23.{number + more:04d}" for more in range(made)
        )
        self._need_room(plan, shards[0].node_ids, plan.moved_bytes)
        return plan

    def _plan_replicas(
        self, plan: pb.OperationPlan, spec: pb.OperationSpec, shard: Status.Shard
    ) -> None:
        wanted, present = list(spec.replicas.node_ids), list(shard.node_ids)
        for node_id in wanted:
            if node_id not in self.nodes:
                raise NotFoundError(
                    f"no such node node={node_id}", reason="NODE_UNKNOWN", node=node_id
                )
        new = [node_id for node_id in wanted if node_id not in present]
        plan.moved_bytes = self.shard_bytes * len(new)
        plan.nothing_to_do = wanted == present
        self._need_room(plan, new, self.shard_bytes)

    def _need_room(self, plan: pb.OperationPlan, node_ids: Iterable[str], count: int) -> None:
        for node_id in node_ids:
            plan.rooms.add(
                node_id=node_id,
                needed_bytes=count,
                available_bytes=self.nodes[node_id].memory_available_bytes,
            )

    def start(self, request: pb.StartOperationRequest) -> pb.Operation:
        """Record an operation, once for each request id."""
        if request.request_id in self.requests:
            return self.operations[self.requests[request.request_id]]
        if self.refusals:
            raise self.refusals.pop(0)
        plan = self.plan(request.spec)
        if request.map_version not in (0, plan.map_version):
            raise PreconditionError(
                f"the map is another one by now version={plan.map_version}", reason="PLAN_STALE"
            )
        for room in plan.rooms:
            if room.needed_bytes > room.available_bytes > 0:
                raise PreconditionError(f"no room node={room.node_id}", reason="NO_ROOM")
        self._check_locks(request.spec)
        operation = pb.Operation(
            id=f"op-{len(self.operations) + 1}",
            spec=request.spec,
            state=pb.OPERATION_STATE_RUNNING,
            step=plan.steps[0],
            steps_count=len(plan.steps),
            abortable=True,
            created_unix_ms=BEGUN_UNIX_MS,
            step_unix_ms=BEGUN_UNIX_MS,
            planned_bytes=plan.moved_bytes,
            planned_s=plan.duration_s,
            child_ids=plan.child_ids,
        )
        self.operations[operation.id] = operation
        self.requests[request.request_id] = operation.id
        self.map_versions[request.spec.gallery] += 1
        return operation

    def _check_locks(self, spec: pb.OperationSpec) -> None:
        for one in self.operations.values():
            if one.state in AT_WORK and {*_shard_ids(one.spec)} & {*_shard_ids(spec)}:
                raise FencedError(
                    f"another operation has the shard; wait for it operation={one.id}",
                    reason="OPERATION_CONFLICT",
                    operation=one.id,
                )

    def look(self) -> None:
        """Let every operation that runs go a step further."""
        for one in self.operations.values():
            if self.frozen:
                continue
            if one.state == pb.OPERATION_STATE_RUNNING and self.hesitant:
                one.state = pb.OPERATION_STATE_ABORTING
            elif one.state == pb.OPERATION_STATE_RUNNING:
                self._advance(one)
            elif one.state == pb.OPERATION_STATE_ABORTING:
                one.state = pb.OPERATION_STATE_ABORTED

    def _advance(self, one: pb.Operation) -> None:
        steps = MOVE_STEPS if one.spec.WhichOneof("kind") == "replicas" else RESHAPE_STEPS
        if one.step == "cutover":
            self._apply(one)
            one.abortable = False
        one.steps_done += 1
        one.progress = one.steps_done / one.steps_count
        if one.steps_done == one.steps_count:
            one.state = pb.OPERATION_STATE_DONE
            one.abortable = False
        else:
            one.step = steps[one.steps_done]

    def _apply(self, one: pb.Operation) -> None:
        shards = [self.find(shard_id) for shard_id in _shard_ids(one.spec)]
        self.map_versions[one.spec.gallery] += 1
        if one.spec.WhichOneof("kind") == "replicas":
            shards[0].node_ids[:] = one.spec.replicas.node_ids
            return
        place = self.shards.index(shards[0])
        for shard in shards:
            self.shards.remove(shard)
        first, last = shards[0].first, shards[-1].last
        width = (last - first + 1) // len(one.child_ids)
        self.shards[place:place] = [
            Status.Shard(
                id=child_id,
                gallery=one.spec.gallery,
                first=first + number * width,
                last=last
                if number == len(one.child_ids) - 1
                else first + (number + 1) * width - 1,
                node_ids=shards[0].node_ids,
            )
            for number, child_id in enumerate(one.child_ids)
        ]

    def change(self, request: pb.ChangeOperationRequest) -> pb.Operation:
        """Pause, resume or abort an operation."""
        one = self.operation(request.id)
        if one.state not in AT_WORK:
            raise PreconditionError(f"it is over operation={one.id}", reason="OPERATION_OVER")
        match request.action:
            case pb.ChangeOperationRequest.ACTION_PAUSE:
                one.state = pb.OPERATION_STATE_PAUSED
            case pb.ChangeOperationRequest.ACTION_RESUME:
                one.state = pb.OPERATION_STATE_RUNNING
            case pb.ChangeOperationRequest.ACTION_ABORT:
                if not one.abortable:
                    raise PreconditionError(
                        f"it is past its cutover operation={one.id}", reason="PAST_CUTOVER"
                    )
                one.state = pb.OPERATION_STATE_ABORTING
            case _:
                raise InvalidError("say what to do", reason="ACTION_MISSING")
        return one

    def propose(self, request: pb.PlanRebalanceRequest) -> pb.PlanRebalanceResponse:
        """Propose to leave nodes, and to have as many copies as wanted."""
        left = {*request.lost_node_ids, *request.draining_node_ids}
        left |= {node.id for node in self.nodes.values() if node.draining}
        wanted = {name: one.replicas_count for name, one in self.galleries.items()}
        wanted |= {one.gallery: one.replicas_count for one in request.replicas}
        answer = pb.PlanRebalanceResponse(problems=self.problems)
        at_work = {
            shard_id
            for one in self.operations.values()
            if one.state in AT_WORK
            for shard_id in _shard_ids(one.spec)
        }
        for shard in self.shards:
            if shard.id in at_work:
                continue
            target = self._target(shard, left, wanted[shard.gallery])
            if target != list(shard.node_ids):
                spec = pb.OperationSpec(
                    gallery=shard.gallery,
                    replicas=pb.OperationSpec.Replicas(shard_id=shard.id, node_ids=target),
                    cause="copies are not where they should be",
                )
                answer.moves.add(spec=spec, plan=self.plan(spec))
        after = {move.spec.replicas.shard_id: move.spec.replicas.node_ids for move in answer.moves}
        for node in self.nodes.values():
            before = [shard for shard in self.shards if node.id in shard.node_ids]
            later = [
                shard for shard in self.shards if node.id in after.get(shard.id, shard.node_ids)
            ]
            answer.nodes.add(
                node_id=node.id,
                zone=node.zone,
                registered=node.registered,
                draining=node.draining,
                bytes_before=self.shard_bytes * len(before),
                bytes_after=self.shard_bytes * len(later),
                primaries_before=sum(shard.node_ids[0] == node.id for shard in before),
                primaries_after=sum(
                    after.get(shard.id, shard.node_ids)[0] == node.id for shard in later
                ),
                replicas_before=len(before),
                replicas_after=len(later),
            )
        return answer

    def _target(self, shard: Status.Shard, left: set[str], count: int) -> list[str]:
        target = list(shard.node_ids)
        free = [
            node.id
            for node in self.nodes.values()
            if node.registered and node.id not in left and node.id not in target
        ]
        for place, node_id in enumerate(target):
            if node_id in left and free:
                target[place] = free.pop(0)
        return [*target, *free][: max(count, 1)] if count > len(target) else target[:count]


def _shard_ids(spec: pb.OperationSpec) -> tuple[str, ...]:
    match spec.WhichOneof("kind"):
        case "replicas":
            return (spec.replicas.shard_id,)
        case "split":
            return (spec.split.shard_id,)
        case _:
            return tuple(spec.merge.shard_ids)


class FakeAdmin(admin_service_pb2_grpc.AdminServiceServicer):
    """AdminService over a fake cluster."""

    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster

    @override
    async def ClusterStatus(self, request: pb.ClusterStatusRequest, context: Any) -> Any:
        return self._cluster.status()

    @override
    async def PlanOperation(self, request: pb.PlanOperationRequest, context: Any) -> Any:
        plan = self._cluster.plan(request.spec)
        self._cluster.map_versions[request.spec.gallery] += self._cluster.restless
        return pb.PlanOperationResponse(plan=plan)

    @override
    async def StartOperation(self, request: pb.StartOperationRequest, context: Any) -> Any:
        return pb.StartOperationResponse(operation=self._cluster.start(request))

    @override
    async def ListOperations(self, request: pb.ListOperationsRequest, context: Any) -> Any:
        self._cluster.look()
        newest = reversed(self._cluster.operations.values())
        return pb.ListOperationsResponse(
            operations=[one for one in newest if request.all or one.state in AT_WORK],
            driver=self._cluster.driver,
        )

    @override
    async def GetOperation(self, request: pb.GetOperationRequest, context: Any) -> Any:
        return pb.GetOperationResponse(operation=self._cluster.operation(request.id))

    @override
    async def ChangeOperation(self, request: pb.ChangeOperationRequest, context: Any) -> Any:
        return pb.ChangeOperationResponse(operation=self._cluster.change(request))

    @override
    async def MarkNode(self, request: pb.MarkNodeRequest, context: Any) -> Any:
        if request.node_id not in self._cluster.nodes:
            raise NotFoundError(f"no such node node={request.node_id}", reason="NODE_UNKNOWN")
        self._cluster.nodes[request.node_id].draining = request.draining
        return pb.MarkNodeResponse()

    @override
    async def SetReplicas(self, request: pb.SetReplicasRequest, context: Any) -> Any:
        gallery = self._cluster.galleries[request.gallery]
        gallery.replicas_count = request.replicas_count
        return pb.SetReplicasResponse(gallery=gallery)

    @override
    async def PlanRebalance(self, request: pb.PlanRebalanceRequest, context: Any) -> Any:
        return self._cluster.propose(request)

    @override
    async def Rebalancer(self, request: pb.RebalancerRequest, context: Any) -> Any:
        settings = self._cluster.settings
        for name in ("automatic", "at_once_max", "p99_limit_ms"):
            if request.HasField(name):
                setattr(settings, name, getattr(request, name))
        settings.driver = self._cluster.driver
        return settings

    @override
    async def TakeOver(self, request: pb.TakeOverRequest, context: Any) -> Any:
        raise NotFoundError("nobody has died", reason="NODE_UNKNOWN")

    @override
    async def Load(self, request: pb.LoadRequest, context: Any) -> Any:
        raise NotFoundError("nothing can be loaded", reason="GALLERY_UNKNOWN")
