"""A cluster on which operations are played, while others search, write and look on.

One gallery is reshaped; its subjects stand in a ledger. Another, the bystander, nobody touches.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Final

import facegrid
from bench.chaos.audit import replica_problems
from bench.chaos.ledger import vectors_of
from facegrid import limits
from facegrid.api.admin.v1 import admin_service_pb2 as pb
from facegrid.coord import keys
from facegrid.errors import FencedError, OverloadedError, UnavailableError
from fgctl import admin
from tests.fakes.rig import (
    PATIENCE_S,
    Rig,
    enrol,
    enrol_noted,
    erase_noted,
    holds,
    wait_for,
)

LIVED_IN: Final = "lived-in"
BYSTANDER: Final = "bystander"
PEOPLE: Final = [f"base-{number}" for number in range(limits.SPLIT_TEMPLATES_MIN + 16)]
OTHERS: Final = [f"other-{number}" for number in range(80)]
PROBES: Final = vectors_of(OTHERS[:16])
BATCH: Final = 260
CALL_S: Final = 20.0
START_S: Final = 3.0
"""Waited for a start before it is looked again: a process may die while it starts."""
WRITE_PAUSE_S: Final = 0.1
BEHIND: Final = 5
"""How many stay enrolled behind the last one; from then on each is erased again."""
OVER: Final = (pb.OPERATION_STATE_DONE, pb.OPERATION_STATE_ABORTED)

Shard = pb.ClusterStatusResponse.Shard
Lists = list[list[tuple[str, str, float]]]


def until(work: Callable[[], object], timeout_s: float = 2 * PATIENCE_S) -> None:
    """Do something again as long as it fails for want of somebody."""

    def problem() -> str:
        try:
            work()
        except (UnavailableError, FencedError, OverloadedError) as error:
            return error.message
        return ""

    wait_for(problem, timeout_s)


class Stage:
    """Makes both galleries.

    Args:
        rig: a cluster of three nodes or more.
        client: of it.
        shards: of the gallery that is reshaped.
    """

    def __init__(self, rig: Rig, client: facegrid.Client, *, shards: int = 1) -> None:
        self.rig = rig
        self.client = client
        self._names = (f"one-{number}" for number in count())
        self._numbers = count()
        rig.new_gallery(client, LIVED_IN, shards=shards, replicas=2)
        rig.new_gallery(client, BYSTANDER, shards=2, replicas=2)
        self.trial = rig.opened(LIVED_IN)
        for first in range(0, len(PEOPLE), BATCH):
            enrol_noted(client, LIVED_IN, self.trial, PEOPLE[first : first + BATCH])
        self._token = self.trial.ledger.token
        self._others = enrol(client, BYSTANDER, OTHERS)
        self._expected = bystanders(client, self._others)

    # What there is

    def shards(self) -> list[Shard]:
        """Return the shards that serve the gallery, by rising key."""
        found = [one for one in self.rig.status().shards if one.id.startswith(f"{LIVED_IN}.")]
        return sorted(found, key=lambda shard: shard.first)

    def nodes(self) -> list[str]:
        """Return the names of all nodes."""
        return [one.name for one in self.rig.cluster.record.of_kind("node")]

    def driver(self) -> str:
        """Return the name of the router that drives."""
        found: list[str] = []

        def problem() -> str:
            item = self.rig.etcd(lambda coord: coord.get(keys.DRIVER))
            address = "" if item is None else item.value.decode().partition("#")[0]
            routers = self.rig.cluster.record.of_kind("router")
            found[:] = [one.name for one in routers if one.address == address]
            return "" if found else "nobody drives"

        wait_for(problem)
        return found[0]

    def end_lease_of(self, router: str) -> None:
        """End the driver's lease that a dead router left, so that nobody has to wait for it."""
        item = self.rig.etcd(lambda coord: coord.get(keys.DRIVER))
        address = self.rig.cluster.record.named(router).address
        if item is not None and item.value.decode().startswith(f"{address}#"):
            self.rig.etcd_call("lease/revoke", ID=str(item.lease_id))

    # Operations

    def spec(self, kind: str) -> pb.OperationSpec:
        """Return a move of the first shard's primary, its split, or a merge of the first two."""
        shards, wanted = self.shards(), pb.OperationSpec(gallery=LIVED_IN, cause="a test")
        if kind == "split":
            wanted.split.shard_id = shards[0].id
        elif kind == "merge":
            wanted.merge.shard_ids.extend(shard.id for shard in shards[:2])
        else:
            first, second = shards[0].node_ids
            third = next(node for node in self.nodes() if node not in (first, second))
            wanted.replicas.shard_id = shards[0].id
            wanted.replicas.node_ids.extend([third, second])
        return wanted

    def begin(self, wanted: pb.OperationSpec, *, first: str = "") -> str:
        """Start an operation, asking one router before the others; return its id."""
        # Ids of operations outlive the galleries of one stage.
        request_id = f"play-{self.rig.clock.unix_ms()}-{next(self._numbers)}"
        request = pb.StartOperationRequest(request_id=request_id, spec=wanted)
        record = self.rig.cluster.record
        ahead = [record.named(first).address] if first else []
        targets = ahead + [one for one in self.rig.targets if one not in ahead]
        begun: list[str] = []

        def start() -> None:
            answer = admin.ask(
                targets, lambda stub: stub.StartOperation, request, timeout_s=CALL_S
            )
            begun.append(answer.operation.id)

        until(start)
        return begun[0]

    def operation(self, name: str) -> pb.Operation:
        """Return an operation as it is now."""
        asked = pb.GetOperationRequest(id=name)
        return admin.ask(
            self.rig.targets, lambda stub: stub.GetOperation, asked, timeout_s=CALL_S
        ).operation

    def abort(self, name: str) -> None:
        """Ask for an operation to be aborted."""
        asked = pb.ChangeOperationRequest(id=name, action=pb.ChangeOperationRequest.ACTION_ABORT)
        until(
            lambda: admin.ask(
                self.rig.targets, lambda stub: stub.ChangeOperation, asked, timeout_s=CALL_S
            )
        )

    def ended(self, name: str, timeout_s: float = 2 * PATIENCE_S) -> pb.Operation:
        """Wait until an operation is over, whoever dies meanwhile; return it."""
        wait_for(holds(lambda: self.operation(name).state in OVER, "not over"), timeout_s)
        return self.operation(name)

    def carried_out(self, kind: str) -> None:
        """Carry an operation out while nothing fails."""
        shown = self.ended(self.begin(self.spec(kind)))
        assert shown.state == pb.OPERATION_STATE_DONE, shown

    def carried_out_amid_deaths(self, kind: str) -> None:
        """Carry an operation out, and start again whoever ends meanwhile."""
        name = self.begin(self.spec(kind))

        def problem() -> str:
            over = holds(lambda: self.operation(name).state in OVER, "not over")
            return self.mended() or over()

        wait_for(problem, 4 * PATIENCE_S)
        shown = self.operation(name)
        assert shown.state == pb.OPERATION_STATE_DONE, shown

    def mended(self, *but: str) -> str:
        """Start what has ended, except some; say what does not run yet."""
        for kind in ("router", "node"):
            for one in self.rig.cluster.record.of_kind(kind):
                if one.name in but or self.rig.is_alive(one.name):
                    continue
                if kind == "router":
                    self.end_lease_of(one.name)
                try:
                    self.rig.cluster.start_node(one.name, timeout_s=START_S)
                except UnavailableError as error:
                    return error.message
        return ""

    # Looking on

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Search, write and look on until the end of the block; demand that nothing was wrong."""
        stop = threading.Event()
        with (
            ThreadPoolExecutor(2) as pool,
            self.rig.reading(LIVED_IN, PEOPLE, self._token, threads=1) as reads,
        ):
            works = [pool.submit(work, stop) for work in (self._write, self._look_on)]
            try:
                yield
            finally:
                stop.set()
            for work in works:
                work.result()
        assert reads.wrong == []

    def _write(self, stop: threading.Event) -> None:
        """Enrol one after the other, and erase those again that came a little earlier."""
        here: list[str] = []
        with self.rig.client(CALL_S) as client:
            while not stop.wait(WRITE_PAUSE_S):
                here.append(next(self._names))
                until(partial(enrol_noted, client, LIVED_IN, self.trial, here[-1:]))
                if len(here) > BEHIND:
                    gone = here.pop(0)
                    until(partial(erase_noted, client, LIVED_IN, self.trial, gone))

    def _look_on(self, stop: threading.Event) -> None:
        with self.rig.client() as client:
            while not stop.wait(WRITE_PAUSE_S):
                found = bystanders(client, self._others)
                assert found == self._expected, "the bystander's answers changed"

    def audit(self) -> None:
        """Demand that all copies are the same, and hold what the ledger says."""

        def problem() -> str:
            return " ".join(
                one for one in replica_problems(self.rig.status()) if BYSTANDER not in one
            )

        wait_for(problem)
        self.rig.audit(self.client, self.trial, LIVED_IN)


def bystanders(client: facegrid.Client, after: facegrid.Token) -> Lists:
    """Return the answers of the gallery that nobody touches, scores to the last bit."""
    lists = client.identify(BYSTANDER, PROBES, k=10, after=after)
    return [[(c.subject_id, c.template_id, c.score) for c in one.candidates] for one in lists]
