"""Rows of the fault matrix about moves, splits and merges; rows 26 and 27 are played point by
point in test_failpoints_reshard.py.
"""

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bench.chaos.load import GALLERY
from facegrid.api.admin.v1 import admin_service_pb2 as pb
from facegrid.errors import FencedError
from fgctl import admin
from tests.fakes.rig import PATIENCE_S, Rig, enrol_noted, found_problem, holds, wait_for
from tests.fakes.stage import BYSTANDER, CALL_S, LIVED_IN, OVER, Stage, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

WAIT_S_MAX = 6.0
"""A second is promised, to which a busy machine adds; whoever waits for the child waits longer."""
STUCK_WRITES = 60
ROUNDS = 6


@pytest.fixture
def stage(rig: Rig) -> Iterator[Stage]:
    """The shared cluster with both galleries, which go again."""
    with rig.client() as client:
        yield Stage(rig, client)
        rig.heal()
        for name in (LIVED_IN, BYSTANDER):
            client.drop_gallery(name)


def test_row_28_of_two_operators_one_wins_and_the_other_is_told_why(stage: Stage) -> None:
    """1 two operators begin a split and a move of one shard, through two routers at once; 2 one is
    refused, with the name of the other's operation; 3 that ends; 4 so does a later one.
    """
    specs = {kind: stage.spec(kind) for kind in ("split", "move")}

    def begin(target: str, kind: str) -> str:
        request = pb.StartOperationRequest(request_id=f"row28-{kind}", spec=specs[kind])
        return admin.ask(
            [target], lambda stub: stub.StartOperation, request, timeout_s=CALL_S
        ).operation.id

    with stage.watched(), ThreadPoolExecutor(2) as pool:
        works = [
            pool.submit(begin, target, kind)
            for target, kind in zip(stage.rig.targets, specs, strict=True)
        ]
        lost = [work.exception() for work in works if work.exception() is not None]
        (won,) = [work.result() for work in works if work.exception() is None]
        shown = stage.ended(won)
        stage.carried_out("move")

    (error,) = lost
    assert isinstance(error, FencedError)
    assert error.reason == "OPERATION_CONFLICT"
    assert won in error.message
    assert shown.state == pb.OPERATION_STATE_DONE
    stage.audit()


def test_row_29_a_target_that_dies_after_the_cutover_loses_nothing(stage: Stage) -> None:
    """1 a primary moves; 2 kill the target once it leads and has acknowledged writes; 3 another
    node takes over, with everything acknowledged; 4 the target comes back, and the move ends.
    """
    rig, wanted = stage.rig, stage.spec("move")
    target = wanted.replicas.node_ids[0]
    with stage.watched():
        name = stage.begin(wanted)
        wait_for(holds(lambda: rig.copies(LIVED_IN)[0] == target, "not cut over"))
        until(lambda: enrol_noted(stage.client, LIVED_IN, stage.trial, ["by-the-target"]))
        rig.cluster.kill_node(target)
        wait_for(holds(lambda: rig.copies(LIVED_IN)[0] != target, "not taken over"))
        until(lambda: enrol_noted(stage.client, LIVED_IN, stage.trial, ["by-another"]))
        for one in ("by-the-target", "by-another"):
            assert found_problem(stage.client, LIVED_IN, one, stage.trial.ledger.token) == ""
        wait_for(stage.mended)
        shown = stage.ended(name)

    assert shown.state == pb.OPERATION_STATE_DONE
    # Who took over leads on: it is one of the wanted nodes, and so is the one that came back.
    assert sorted(rig.copies(LIVED_IN)) == sorted(wanted.replicas.node_ids)
    stage.audit()


def test_row_30_a_child_that_cannot_keep_up_holds_nobody_up_and_is_caught_up_with(
    stage: Stage,
) -> None:
    """1 split a shard, while the node of a child stores nothing: it cannot follow; 2 the step
    stays, and writes to the source go on, each within a moment; 3 the node stores again: the split
    ends, amid the same writes.
    """
    rig, wanted = stage.rig, stage.spec("split")
    child_node = stage.shards()[0].node_ids[1]
    took, stop = [], threading.Event()

    def write() -> None:
        with rig.client(CALL_S) as client:
            for number in itertools.count():
                if stop.is_set():
                    return
                began_s = rig.clock.now_s()
                until(lambda n=number: enrol_noted(client, LIVED_IN, stage.trial, [f"fast-{n}"]))
                took.append(rig.clock.now_s() - began_s)

    with stage.watched(), ThreadPoolExecutor(1) as pool:
        rig.arm(child_node, "store.put.log before error *")
        writer = pool.submit(write)
        try:
            name = stage.begin(wanted)
            wait_for(holds(lambda: stage.operation(name).step == "follow", "does not begin"))
            wait_for(lambda: "" if rig.struck(child_node) else "the child does not store")
            so_far = len(took)
            wait_for(lambda: "" if len(took) > so_far + STUCK_WRITES else "no writes")
            stuck = stage.operation(name)
            rig.disarm(child_node)
            shown = stage.ended(name)
        finally:
            stop.set()
        writer.result()

    assert (stuck.state, stuck.step) == (pb.OPERATION_STATE_RUNNING, "follow")
    assert shown.state == pb.OPERATION_STATE_DONE
    assert max(took) < WAIT_S_MAX
    stage.audit()


def test_row_35_random_links_cut_and_healed_amid_a_move_leave_nothing_wrong(rig: Rig) -> None:
    """1 mixed load, and a move of a primary; 2 links of a random subset are cut, held or slowed,
    and healed in random order; 3 all checkers: every shard takes writes within 10 s, nothing is
    lost or back, no read failed, and copies are the same.
    """
    rng, pause = np.random.default_rng(35), threading.Event()
    hurts = (
        lambda link: link.hold(),
        lambda link: link.hold("back"),
        lambda link: link.cut(),
        lambda link: link.slow(0.05),
    )
    with rig.trial(seed=35):
        (shard, *_) = [one for one in rig.status().shards if one.id.startswith(f"{GALLERY}.")]
        nodes = [one.name for one in rig.cluster.record.of_kind("node")]
        third = next(node for node in nodes if node not in shard.node_ids)
        moved = pb.OperationSpec.Replicas(shard_id=shard.id, node_ids=[third, shard.node_ids[1]])
        name = begun(rig, pb.OperationSpec(gallery=GALLERY, replicas=moved))
        for _ in range(ROUNDS):
            chosen = [one for one in rig.proxies.names if rng.random() < 1 / 3]
            for one in chosen:
                rig.change([one], hurts[int(rng.integers(len(hurts)))])
            pause.wait(float(rng.uniform(0.5, 1.5)))
            for number in rng.permutation(len(chosen)):
                rig.change([chosen[number]], lambda link: link.heal())
                pause.wait(float(rng.uniform(0, 0.2)))
        rig.heal()
        wait_for(holds(lambda: state(rig, name) in OVER, "not over"), 2 * PATIENCE_S)

    assert state(rig, name) == pb.OPERATION_STATE_DONE


def begun(rig: Rig, spec: pb.OperationSpec) -> str:
    """Start an operation; return its id."""
    request = pb.StartOperationRequest(request_id="row35", spec=spec)
    return admin.ask(
        rig.targets, lambda stub: stub.StartOperation, request, timeout_s=CALL_S
    ).operation.id


def state(rig: Rig, name: str) -> "pb.OperationState.ValueType":
    """Return the state of an operation."""
    request = pb.GetOperationRequest(id=name)
    return admin.ask(
        rig.targets, lambda stub: stub.GetOperation, request, timeout_s=CALL_S
    ).operation.state
