"""Whether a cluster is well again: every shard takes a write, every follower has it."""

from collections.abc import Sequence
from functools import partial
from itertools import count

import grpc

import facegrid
from bench.chaos.audit import replica_problems
from bench.chaos.ledger import Ledger, template_of, vectors_of
from bench.chaos.load import GALLERY, TRANSIENT
from bench.chaos.tally import Tally, WriteGaps
from facegrid.api.admin.v1 import admin_service_pb2
from facegrid.api.shard.v1 import shard_service_pb2
from facegrid.api.shard.v1.shard_service_pb2_grpc import ShardServiceStub
from facegrid.clock import Clock
from facegrid.errors import FacegridError
from facegrid.rpc.channel import channel_options
from fgctl import admin
from fgctl.local.cluster import LocalCluster
from fgctl.local.processes import wait_until

HEALED_S_MAX = 10.0
TRY_S = 2.0
STATUS_S = 5.0


class Healing:
    """Writes to every shard after a fault, and asks every follower for what was written.

    Args:
        cluster: the one that was hurt.
        client: writes.
        ledger: notes these writes like all others.
        tally: told of shards that do not get well in time.
        gaps: knows the shards, and is told of the writes.
        clock: for the time allowed.
    """

    def __init__(
        self,
        cluster: LocalCluster,
        client: facegrid.Client,
        ledger: Ledger,
        *,
        tally: Tally,
        gaps: WriteGaps,
        clock: Clock,
    ) -> None:
        self._cluster = cluster
        self._client = client
        self._ledger = ledger
        self._tally = tally
        self._gaps = gaps
        self._clock = clock
        self._numbers = count()
        self.longest_s = 0.0

    def check(self, after: str) -> None:
        """Return once every shard is well, or after HEALED_S_MAX, which is then noted."""
        started_s = self._clock.now_s()
        end_s = started_s + HEALED_S_MAX
        for number in range(self._gaps.shards_count):
            self._wait(partial(self._write_problem, self._someone_in(number)), end_s, after)
        status = self._status()
        for shard in status.shards:
            for node_id in shard.node_ids[1:]:
                self._wait(partial(self._reach_problem, node_id, shard.id), end_s, after)
        self.longest_s = max(self.longest_s, self._clock.now_s() - started_s)

    def replicas(self) -> None:
        """Note which copies are not the same in the end; nobody writes any more."""
        wait_until(
            lambda: " ".join(replica_problems(self._status())),
            timeout_s=HEALED_S_MAX,
            clock=self._clock,
        )
        for problem in replica_problems(self._status()):
            self._tally.problem(problem)

    def _wait(self, problem: "partial[str]", end_s: float, after: str) -> None:
        left_s = end_s - self._clock.now_s()
        last = wait_until(problem, timeout_s=left_s, clock=self._clock)
        if last:
            self._tally.problem(f"not well {HEALED_S_MAX:g} s after [{after}]: {last}")

    def _someone_in(self, number: int) -> Sequence[str]:
        """Return a new subject of a shard, by the shard's number."""
        while True:
            subject_id = f"well-{next(self._numbers)}"
            if self._gaps.shard_of(subject_id) == number:
                self._ledger.send("enrol", f"enrol-{subject_id}", [subject_id])
                return [subject_id]

    def _write_problem(self, subject_ids: Sequence[str]) -> str:
        request_id = f"enrol-{subject_ids[0]}"
        try:
            token = self._client.enrol(
                GALLERY,
                template_ids=[template_of(subject_id) for subject_id in subject_ids],
                subject_ids=subject_ids,
                vectors=vectors_of(subject_ids),
                request_id=request_id,
            )
        except TRANSIENT as error:
            return f"no write: {error.message}"
        self._gaps.acked(subject_ids)
        self._ledger.acknowledge("enrol", request_id, subject_ids, token=token)
        return ""

    def _reach_problem(self, node_id: str, shard_id: str) -> str:
        position = {str(key): value for key, value in self._ledger.token.positions.items()}
        request = shard_service_pb2.ReachRequest(
            shard_id=shard_id, position=position.get(shard_id, 0)
        )
        address = self._cluster.record.named(node_id).address
        with grpc.insecure_channel(address, options=channel_options()) as channel:
            try:
                ShardServiceStub(channel).Reach(request, timeout=TRY_S)
            except grpc.RpcError as error:
                return f"follower is behind node={node_id} shard={shard_id}: {error}"
        return ""

    def _status(self) -> admin_service_pb2.ClusterStatusResponse:
        for target in self._cluster.router_targets:
            try:
                return admin.cluster_status(target, timeout_s=STATUS_S)
            except FacegridError as error:
                self._tally.problem(f"no status from router {target}: {error.message}")
        return admin_service_pb2.ClusterStatusResponse()
