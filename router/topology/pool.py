"""The nodes as they are called: connections, recent latency, who fails."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from facegrid.api.shard.v1 import shard_service_pb2 as shard_pb2
from facegrid.api.shard.v1.shard_service_pb2_grpc import ShardServiceStub
from facegrid.clock import Clock
from facegrid.errors import DeadlineError, FacegridError, UnavailableError
from facegrid.ids import NodeId
from facegrid.rpc.call import call
from facegrid.rpc.pool import ChannelPool
from facegrid.rpc.stream_caller import Methods, StreamCaller
from router.plan.fanout import UNKNOWN, NodeLoad
from router.plan.hedge import HEALTH_S, LOOK_AGAIN_S
from router.topology.snapshot import Topology

Request = TypeVar("Request")
Response = TypeVar("Response")

if TYPE_CHECKING:
    # The stubs know an asynchronous face of the stub that does not exist at run time.
    from grpc.aio import UnaryUnaryMultiCallable

    from facegrid.api.shard.v1.shard_service_pb2_grpc import ShardServiceAsyncStub

    Pick = Callable[[ShardServiceAsyncStub], UnaryUnaryMultiCallable[Request, Response]]

Searching = StreamCaller[shard_pb2.SearchRequest, shard_pb2.SearchResponse]

TRANSPORT: Final = "TRANSPORT"
"""Reason of errors that gRPC raised by itself."""
FAILING_S: Final = 1.0
"""How long a node that failed is passed over where another one holds the shard too."""
FAILING_S_MAX: Final = 8.0
"""The same for one that failed again and again: every time is twice as long."""
LATENCY_WEIGHT: Final = 0.2
"""Share of the newest call in the recent latency."""
LATENCY_HALF_S: Final = 10.0
"""A latency counts half after this time without a newer one: a node that was slow once, and is
therefore not asked, would never show that it is quick again.
"""
HUNG_S: Final = 1.0
"""A node that did not answer in this time fails; with less time given the caller was impatient."""
TIDY_S: Final = 60.0
"""How often to look for connections that are not needed any more."""
TIME_OVER_SHARE: Final = 0.95
"""A call that gRPC ended this late was ended because its time was over: node and router count it
down both, and whoever is first breaks the stream.
"""


NOT_HEARD: Final = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)
"""Codes of a health check that nobody answered; with any other the node lives."""


@dataclass(frozen=True, slots=True)
class _Failing:
    """Until when a node that failed is passed over, and how long that is in all; for ever where it
    is silent: then it must answer a health check first.
    """

    until_s: float
    lasts_s: float


class NodePool:
    """Calls nodes and remembers how they did.

    Args:
        channels: connections by address.
        clock: for latencies.
    """

    def __init__(self, channels: ChannelPool, clock: Clock) -> None:
        self._channels = channels
        self._clock = clock
        self._stubs: dict[str, ShardServiceAsyncStub] = {}
        self._searchers: dict[str, Searching] = {}
        self._retired: list[Searching] = []
        """Whose streams have not ended yet."""
        self._loads: dict[NodeId, NodeLoad] = {}
        self._timed_s: dict[NodeId, float] = {}
        self._failing: dict[NodeId, _Failing] = {}

    def loads(self) -> Mapping[NodeId, NodeLoad]:
        """Return what is known of the nodes that were called."""
        now_s = self._clock.now_s()
        for node_id, failing in self._failing.items():
            load = self._loads[node_id]
            if load.failing and now_s >= failing.until_s:
                self._loads[node_id] = NodeLoad(load.latency_s, load.calls_count)
        return {node_id: self._faded(node_id, load) for node_id, load in self._loads.items()}

    def failing(self) -> Collection[NodeId]:
        """Return the nodes that failed recently."""
        # Asked for every search, while seldom any does.
        if not self._failing:
            return ()
        return {node_id for node_id, load in self.loads().items() if load.failing}

    def _faded(self, node_id: NodeId, load: NodeLoad) -> NodeLoad:
        age_s = self._clock.now_s() - self._timed_s.get(node_id, 0.0)
        latency_s = load.latency_s * 0.5 ** (age_s / LATENCY_HALF_S)
        return NodeLoad(latency_s, load.calls_count, load.failing)

    def silent(self, node_id: NodeId) -> bool:
        """Tell whether a node answered nothing, and has answered no health check since."""
        failing = self._failing.get(node_id)
        return failing is not None and math.isinf(failing.until_s)

    async def lives(self, topology: Topology, node_id: NodeId) -> bool:
        """Ask a node for its health and tell whether it answers. If not it is silent from now on:
        passed over until it does.
        """
        address = topology.addresses.get(node_id)
        if address is None:
            return False
        check = health_pb2_grpc.HealthStub(self._channels.get(address)).Check
        try:
            await check(health_pb2.HealthCheckRequest(), timeout=HEALTH_S)
        except grpc.aio.AioRpcError as error:
            if error.code() in NOT_HEARD:
                self._mark(node_id, _Failing(math.inf, math.inf))
                return False
        if self.silent(node_id):
            self._sound(node_id)
        return True

    async def run(self, topology: Callable[[], Topology]) -> None:
        """Look after silent nodes until cancelled, so that no search has to find out, and let go
        of connections to addresses where no node is any more.
        """
        tidied_s = self._clock.now_s()
        while True:
            await self._clock.sleep(LOOK_AGAIN_S)
            async with asyncio.TaskGroup() as group:
                if self._clock.now_s() - tidied_s >= TIDY_S:
                    tidied_s = self._clock.now_s()
                    group.create_task(self.tidy(topology()))
                for node_id in [*self._failing]:
                    if self.silent(node_id):
                        group.create_task(self.lives(topology(), node_id))

    async def tidy(self, topology: Topology) -> None:
        """Let go of connections to nodes that neither are registered nor hold a shard, and to what
        was the address of a node before. One goes when two calls in a row found it so.
        """
        named = {
            node
            for served in topology.galleries.values()
            for shard in served.shard_map.held
            for node in shard.holders
        }
        nodes = named | set(topology.nodes)
        addresses = [at for node, at in topology.addresses.items() if node in nodes]
        for address in self._stubs.keys() - set(addresses):
            # Whoever holds one may go on with it as long as its connection is there.
            del self._stubs[address]
        for address in self._searchers.keys() - set(addresses):
            searcher = self._searchers.pop(address)
            searcher.retire()
            self._retired.append(searcher)
        self._retired = [one for one in self._retired if not one.idle]
        await self._channels.keep(addresses)

    async def call(
        self,
        topology: Topology,
        node_id: NodeId,
        pick: "Pick[Request, Response]",
        request: Request,
        *,
        timeout_s: float,
        may_wait: bool = False,
    ) -> Response:
        """Return a node's answer.

        Args:
            topology: says where the node is.
            node_id: whom to call.
            pick: chooses the method, for instance `lambda stub: stub.Append`.
            request: what to send.
            timeout_s: how long to wait.
            may_wait: it may use up that time and be sound, for it is asked for a position that it
                was not seen to have reached.

        Raises:
            DeadlineError: it did not answer in that time.
            UnavailableError: the node is not known (NODE_UNKNOWN) or cannot be reached
                (NODE_UNREACHABLE).
            FacegridError: what the node raised.
        """
        address = _address(topology, node_id)
        work = call(pick(self._stub(address)), request, timeout_s=timeout_s)
        return await self._judged(node_id, address, work, timeout_s=timeout_s, may_wait=may_wait)

    async def _judged(
        self,
        node_id: NodeId,
        address: str,
        work: Awaitable[Response],
        *,
        timeout_s: float,
        may_wait: bool,
    ) -> Response:
        """Return what a call returns, and remember of the node what its errors say."""
        started_s = self._clock.now_s()
        try:
            response = await work
        except FacegridError as error:
            where = f"node={node_id} address={address}"
            if _is_time_over(error, self._clock.now_s() - started_s, timeout_s):
                if timeout_s >= HUNG_S and not may_wait:
                    self._fail(node_id)
                why = (
                    ", waiting for a position it was not seen to have reached" if may_wait else ""
                )
                raise DeadlineError(
                    f"node did not answer in the time given{why} {where}", node=node_id
                ) from error
            if error.reason == TRANSPORT:
                self._fail(node_id)
                raise UnavailableError(
                    f"node cannot be reached: {error.message} {where}",
                    reason="NODE_UNREACHABLE",
                    node=node_id,
                ) from error
            if isinstance(error, UnavailableError):
                error.facts.setdefault("node", node_id)
            raise
        self._sound(node_id)
        return response

    async def search(
        self,
        topology: Topology,
        node_id: NodeId,
        request: shard_pb2.SearchRequest,
        *,
        timeout_s: float,
        may_wait: bool = False,
    ) -> shard_pb2.SearchResponse:
        """Return a node's answer to a search, and remember how long it took, unless it may have
        waited for something else. Raises as `call`.
        """
        address = _address(topology, node_id)
        work = self._searcher(address).call(request, timeout_s=timeout_s)
        answer = self._judged(node_id, address, work, timeout_s=timeout_s, may_wait=may_wait)
        return await self._timed(node_id, answer, telling=not may_wait)

    async def _timed(
        self, node_id: NodeId, answer: Awaitable[Response], *, telling: bool
    ) -> Response:
        started_s = self._clock.now_s()
        took_s = None
        self._count(node_id, 1)
        try:
            response = await answer
            if telling:
                took_s = self._clock.now_s() - started_s
        except asyncio.CancelledError:
            # Another copy was quicker: this one would have taken at least as long.
            elapsed_s = self._clock.now_s() - started_s
            if telling and elapsed_s > self._loads[node_id].latency_s:
                took_s = elapsed_s
            raise
        finally:
            self._count(node_id, -1, took_s=took_s)
        return response

    def _searcher(self, address: str) -> "Searching":
        searcher = self._searchers.get(address)
        if searcher is None:
            stub = self._stub(address)
            methods = Methods(stub.Search, stub.SearchStream, shard_pb2.SearchStreamRequest)
            searcher = self._searchers[address] = StreamCaller(methods, self._clock)
        return searcher

    async def aclose(self) -> None:
        """End the streams to nodes; before the channels are closed."""
        for searcher in (*self._searchers.values(), *self._retired):
            await searcher.aclose()

    def _stub(self, address: str) -> "ShardServiceAsyncStub":
        stub = self._stubs.get(address)
        if stub is None:
            stub = self._stubs[address] = ShardServiceStub(self._channels.get(address))
        return stub

    def _count(self, node_id: NodeId, step: int, *, took_s: float | None = None) -> None:
        load = self._loads.get(node_id, UNKNOWN)
        latency_s = load.latency_s
        if took_s is not None:
            weight = LATENCY_WEIGHT if latency_s else 1.0
            latency_s += weight * (took_s - latency_s)
            self._timed_s[node_id] = self._clock.now_s()
        self._loads[node_id] = NodeLoad(latency_s, load.calls_count + step, load.failing)

    def _fail(self, node_id: NodeId) -> None:
        before = self._failing.get(node_id)
        now_s = self._clock.now_s()
        if before is None:
            self._mark(node_id, _Failing(now_s + FAILING_S, FAILING_S))
        elif now_s >= before.until_s:
            lasts_s = min(2 * before.lasts_s, FAILING_S_MAX)
            self._mark(node_id, _Failing(now_s + lasts_s, lasts_s))

    def _mark(self, node_id: NodeId, failing: _Failing) -> None:
        self._failing[node_id] = failing
        load = self._loads.get(node_id, UNKNOWN)
        self._loads[node_id] = NodeLoad(load.latency_s, load.calls_count, failing=True)

    def _sound(self, node_id: NodeId) -> None:
        if self._failing.pop(node_id, None) is not None:
            load = self._loads[node_id]
            self._loads[node_id] = NodeLoad(load.latency_s, load.calls_count)


def _address(topology: Topology, node_id: NodeId) -> str:
    address = topology.addresses.get(node_id)
    if address is None:
        raise UnavailableError(
            f"node is not registered node={node_id}", reason="NODE_UNKNOWN", node=node_id
        )
    return address


def _is_time_over(error: FacegridError, took_s: float, timeout_s: float) -> bool:
    """Tell a call that was not answered in the time given from one that failed otherwise, or whose
    node says itself what it waited for.
    """
    if timeout_s <= 0:
        return False
    if isinstance(error, DeadlineError):
        return error.reason == DeadlineError.default_reason
    return error.reason == TRANSPORT and took_s >= TIME_OVER_SHARE * timeout_s
