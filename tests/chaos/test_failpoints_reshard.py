"""Every durable step of a move, a split and a merge fails, on source, target and driver.

What is played of all that could be, so that it takes minutes and not hours:

- refused at first, and carried out with the answer lost at the next try: every point that source
  and target come to, all in one operation of each kind, while the driver's steps fail likewise.
  All leases end meanwhile, so that nodes register and routers stand anew.
- crashes: every point once, in one of the kinds of operations, on source or target, one after the
  other in one operation; the driver dies behind each of its steps, in each kind.
- some points that are not part of one role have plays of their own at the end.

Searches, writes and a bystander go on all the while. Operations follow one another in one cluster:
each shows that another one works after the one before, and so do the last ones, which nothing
hurts.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import pytest

from facegrid.api.admin.v1 import admin_service_pb2 as pb
from facegrid.errors import UnavailableError
from facegrid.failpoint import POINTS
from fgctl import admin
from fgctl.local.plan import Wanted
from tests.fakes.rig import PATIENCE_S, Rig, wait_for
from tests.fakes.stage import CALL_S, OVER, Stage, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

ROUTERS: Final = "facegrid-router"
"""All routers read the same rules."""
KINDS: Final = ("split", "move", "merge")
"""In this order each leaves what the next one needs."""

WRITES: Final = (
    *("store.put.log", "etcd.txn.tip", "store.put.journal", "store.put.segment"),
    *("store.put.manifest", "etcd.txn.manifest"),
)
"""What a primary comes to whose writes go on; it flushes every second or so."""
SWEEPS: Final = ("store.delete.log", "store.delete.segment", "store.delete.manifest")
UNASKED: Final = frozenset({*WRITES, *SWEEPS})
"""What a primary comes to without an operation, as long as it is the primary."""
RECORDS: Final = ("store.put.gallery", "store.delete.gallery")
PINS: Final = ("store.put.pin", "store.delete.pin")
CLAIM: Final = "etcd.txn.generation"
NODE: Final = "etcd.txn.node"
OPERATION: Final = "etcd.txn.operation"
DRIVER: Final = "etcd.txn.driver"

REACHED: Final = {
    ("split", "source"): (*WRITES, *SWEEPS, *RECORDS, *PINS, CLAIM, NODE),
    ("split", "target"): (*WRITES, *SWEEPS, CLAIM, NODE),
    ("move", "source"): (*WRITES[:2], NODE),
    ("move", "target"): (*WRITES, *SWEEPS, *RECORDS, CLAIM, NODE),
    ("merge", "source"): (*WRITES, *PINS, NODE),
    ("merge", "target"): (*WRITES, *SWEEPS, *RECORDS, *PINS, CLAIM, NODE),
}
"""What source and target come to. Of the two sources of a merge the target has one itself; the
other is the source here. The source of a move flushes or not before it has left."""
CRASHES: Final = {
    ("split", "source"): (*PINS, *RECORDS),
    ("split", "target"): (CLAIM, "store.put.log", "etcd.txn.manifest"),
    ("move", "source"): ("etcd.txn.tip",),
    ("move", "target"): ("store.put.journal", *SWEEPS),
    ("merge", "source"): ("store.put.segment", NODE),
    ("merge", "target"): ("store.put.manifest", CLAIM),
}
APART: Final = {
    OPERATION: "every step of the driver",
    DRIVER: "when routers stand, in each kind",
    "etcd.txn.map": "an operator's takeover amid an operation",
    "etcd.txn.dropped": "half a minute after shards were replaced",
}
"""Played by tests of their own, or with everything else."""
NEVER: Final = {
    "etcd.txn.gallery": "a gallery comes or goes",
    "store.put.codebook": "a gallery is trained",
    "store.delete.codebook": "a gallery is trained, or dropped",
    "etcd.txn.mark": "an operator marks a node",
    "etcd.txn.rebalancer": "an operator sets how operations run",
}
"""No operation comes to these; when something does."""
ERRORS: Final = ("before error 1", "after error 1")
"""The first time it is refused, and the next time the answer is lost."""
ONCE: Final = {("merge", "source", "store.delete.pin", ERRORS[0])}
"""Not played: it is not tried again, since the child takes such a pin away by itself."""
MOVES_MAX: Final = 6
"""After three the primary is where it was."""
STEPS: Final = (
    *(f"{OPERATION} before error {number}" for number in (1, 3, 5)),
    f"{OPERATION} after error *",
)
"""Each of the driver's steps is refused, while the numbers reach, and then its answer lost."""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Three nodes that never take over by themselves, so that it is known who does what."""
    with (
        Rig(
            tmp_path_factory.mktemp("reshard"),
            Wanted(nodes=3, replicas=2, etcd=1, routers=3),
            environment={
                "FACEGRID_INDEXD_ERASED_REWRITE_S": "1",
                "FACEGRID_INDEXD_TAKEOVER_AFTER_S": "0",
            },
        ) as rig,
        rig.client() as client,
    ):
        yield Stage(rig, client)


def test_every_point_is_played_in_every_kind_of_operation() -> None:
    """Those that some kind never comes to are named with the reason; all others crash, too."""
    roles = ("source", "target")
    reached = {point for points in REACHED.values() for point in points}
    crashed = {point for points in CRASHES.values() for point in points}

    assert set(REACHED) == set(CRASHES) == {(kind, role) for kind in KINDS for role in roles}
    assert reached | set(APART) | set(NEVER) == set(POINTS)
    assert not reached & set(APART) | reached & set(NEVER) | set(APART) & set(NEVER)
    assert crashed == reached
    assert all(set(CRASHES[play]) <= set(REACHED[play]) for play in REACHED)


def roles(stage: Stage, kind: str) -> dict[str, str]:
    """Return who is source and who target; make what the operation needs, if it is not there."""
    while len(stage.shards()) != (2 if kind == "merge" else 1) and kind != "move":
        stage.carried_out("split" if kind == "merge" else "merge")
    shards = stage.shards()
    first, second = shards[0].node_ids
    match kind:
        case "split":
            return {"source": first, "target": second}
        case "merge":
            return {"source": shards[1].node_ids[0], "target": first}
        case _:
            third = next(node for node in stage.nodes() if node not in (first, second))
            return {"source": first, "target": third}


def begun(stage: Stage, left: Sequence[tuple[str, str]]) -> list[str]:
    """Begin the next move for what is left, unless the primary comes to some of it unasked."""
    primary = stage.shards()[0].node_ids[0]
    if any(process == primary and line.split()[0] in UNASKED for process, line in left):
        return []
    return [stage.begin(stage.spec("move"))]


def end_leases(rig: Rig) -> None:
    """End all leases that etcd knows."""
    for lease in rig.etcd_call("lease/leases").get("leases", []):
        rig.etcd_call("lease/revoke", ID=lease["ID"])


def play(
    stage: Stage, kind: str, rules: dict[str, Sequence[str]], *, leases_end: bool = False
) -> None:
    """1 arm; 2 begin; 3 start what dies, until the operation is done and all rules have struck.

    A move may be over before its source commits anything, or its target deletes anything: then the
    next one is played, as soon as the primary has nothing left to come to by itself.
    """
    rig = stage.rig
    wanted = stage.spec(kind)
    with stage.watched():
        driver = stage.driver()
        for process, lines in rules.items():
            rig.arm(process, *lines)
        names = [stage.begin(wanted, first=driver)]
        if leases_end:
            end_leases(rig)

        def problem() -> str:
            """Start what has ended; say what is still to come."""
            if dead := stage.mended():
                return dead
            left = [
                (process, line)
                for process, lines in rules.items()
                for line in lines
                if line not in rig.struck(process)
            ]
            try:
                shown = stage.operation(names[-1])
                if shown.state not in OVER:
                    return f"{shown.step} {shown.note} {left}"
                if left and kind == "move" and len(names) < MOVES_MAX:
                    names.extend(begun(stage, left))
            except UnavailableError as error:
                return error.message
            return f"never reached: {left}" if left else ""

        wait_for(problem, 2 * PATIENCE_S)
        for process in rules:
            rig.disarm(process)
        wait_for(stage.mended)
    for name in names:
        assert stage.operation(name).state == pb.OPERATION_STATE_DONE
    stage.audit()


@pytest.mark.parametrize("kind", KINDS)
def test_an_operation_outlasts_steps_that_are_refused_and_whose_answers_are_lost(
    stage: Stage, kind: str
) -> None:
    """Every point of source and target both ways, and the driver at every turn."""
    rules: dict[str, Sequence[str]] = {
        node: [
            f"{point} {error}"
            for point in REACHED[kind, role]
            for error in ERRORS
            if (kind, role, point, error) not in ONCE
        ]
        for role, node in roles(stage, kind).items()
    }
    rules[ROUTERS] = [*STEPS, *(f"{DRIVER} {error}" for error in ERRORS[:1])]
    play(stage, kind, rules, leases_end=True)


@pytest.mark.parametrize("role", ["source", "target"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_operation_outlasts_the_death_of_source_and_target(
    stage: Stage, kind: str, role: str
) -> None:
    """A node is killed behind one step after the other, and started again each time."""
    node = roles(stage, kind)[role]
    play(stage, kind, {node: [f"{point} after crash 1" for point in CRASHES[kind, role]]})


@pytest.mark.parametrize("kind", KINDS)
def test_an_operation_outlasts_the_death_of_its_driver_behind_every_step(
    stage: Stage, kind: str
) -> None:
    """Whoever drives is killed as soon as it has changed anything; in the split also when it is
    elected.
    """
    roles(stage, kind)
    rules = [f"{OPERATION} after crash *"]
    if kind == "split":
        rules.append(f"{DRIVER} after crash 1")
    play(stage, kind, {ROUTERS: rules})


@pytest.mark.parametrize("kind", KINDS)
def test_an_operation_that_is_aborted_when_its_driver_died_leaves_everything_as_it_was(
    stage: Stage, kind: str
) -> None:
    """1 the driver dies behind the first step; 2 abort; 3 the next one dies behind that, too;
    4 the shape is what it was.
    """
    rig = stage.rig
    roles(stage, kind)
    before = stage.shards()
    with stage.watched():
        driver = stage.driver()
        rig.arm(ROUTERS, f"{OPERATION} after crash 2")
        name = stage.begin(stage.spec(kind), first=driver)
        wait_for(lambda: f"{driver} still runs" if rig.is_alive(driver) else "")
        rig.arm(ROUTERS, f"{OPERATION} after crash 2")
        stage.abort(name)
        wait_for(stage.mended)
        wait_for(lambda: stage.mended() or over(stage, name))
        rig.disarm(ROUTERS)
        wait_for(stage.mended)
    assert stage.operation(name).state == pb.OPERATION_STATE_ABORTED
    assert stage.shards() == before
    stage.audit()


def over(stage: Stage, name: str) -> str:
    """Say what is missing until an operation is over."""
    try:
        shown = stage.operation(name)
    except UnavailableError as error:
        return error.message
    return "" if shown.state in OVER else f"{shown.step} {shown.note}"


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        ("split", "etcd.txn.map before error 1"),
        ("move", "etcd.txn.map after crash 1"),
        ("merge", "etcd.txn.map after error 1"),
    ],
)
def test_an_operation_outlasts_a_takeover_that_fails(stage: Stage, kind: str, rule: str) -> None:
    """1 the source dies amid an operation; 2 an operator gives its shards to others, and a router
    fails at that; 3 the dead node comes back; 4 the operation ends.
    """
    rig = stage.rig
    source = roles(stage, kind)["source"]
    with stage.watched():
        name = stage.begin(stage.spec(kind))
        rig.cluster.kill_node(source)
        rig.arm(ROUTERS, rule)
        until(lambda: taken_over(stage, source))
        wait_for(lambda: "" if rig.struck(ROUTERS) else "never reached")
        wait_for(lambda: stage.mended() or over(stage, name))
        rig.disarm(ROUTERS)
    assert stage.operation(name).state == pb.OPERATION_STATE_DONE
    stage.audit()


def taken_over(stage: Stage, node_id: str) -> None:
    """Have one router after the other give the shards of a node to others."""
    problems = []
    for target in stage.rig.targets:
        try:
            admin.take_over(target, node_id, timeout_s=CALL_S)
        except UnavailableError as error:
            problems.append(error)
        else:
            return
    raise problems[-1]


def test_replaced_shards_are_deleted_whatever_fails_at_that(stage: Stage) -> None:
    """The last transaction of a deletion is refused, and then ends the process. That its answer
    is lost is played by test_failpoints.py.
    """
    rig = stage.rig
    rules = [f"etcd.txn.dropped {rule}" for rule in ("before error 1", "after crash 1")]
    old = []
    with stage.watched():
        for kind in KINDS:
            roles(stage, kind)
            old += [shard.id for shard in stage.shards()]
            if kind != KINDS[-1]:
                stage.carried_out(kind)
                continue
            # Shards of the operations before may be deleted only now: nodes die amid this one.
            for node in stage.nodes():
                rig.arm(node, *rules)
            stage.carried_out_amid_deaths(kind)
        gone = {*old} - {shard.id for shard in stage.shards()}

        def problem() -> str:
            if dead := stage.mended():
                return dead
            struck = {line for node in stage.nodes() for line in rig.struck(node)}
            if missing := {*rules} - struck:
                return f"never reached {missing}"
            return f"not deleted yet {rig.values('dropped/')}" if rig.values("dropped/") else ""

        wait_for(problem, 2 * PATIENCE_S)
        for node in stage.nodes():
            rig.disarm(node)
    assert gone
    assert [one for shard in gone for one in rig.objects(f"/shards/{shard}/")] == []
    stage.audit()
