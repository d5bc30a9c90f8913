"""Rows of the fault matrix about an etcd of three members, of which some fail, and its leases."""

from collections.abc import Iterator

import pytest

import facegrid
from bench.chaos.ledger import vectors_of
from facegrid.errors import UnavailableError
from fgctl import admin
from fgctl.local import processes
from fgctl.local.plan import Wanted
from tests.fakes.rig import PATIENCE_S, Rig, enrol, found_problem, holds, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

PEOPLE = [f"one-{number}" for number in range(60)]
GAP_S_MAX = 3.0
START_S = 4.0
"""A start without etcd waits for it no longer than this; it goes on by itself."""
WATCH_NOTICED_S = 5.0
SLACK_S = 5.0
"""For a machine that is busy with other things."""


@pytest.fixture(scope="module")
def _three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    wanted = Wanted(nodes=2, replicas=2, etcd=3, routers=2)
    with Rig(tmp_path_factory.mktemp("three"), wanted) as rig:
        yield rig


@pytest.fixture
def three(_three: Rig) -> Iterator[Rig]:
    """A cluster whose etcd has three members; mended behind each test."""
    try:
        yield _three
    finally:
        _three.heal()


def leader(rig: Rig) -> str:
    """Return the member that leads."""
    for member in rig.cluster.record.of_kind("etcd"):
        if processes.find(member) is not None:
            told = rig.etcd_call("maintenance/status", member.name)
            if told["leader"] == told["header"]["member_id"]:
                return member.name
    return ""


@pytest.mark.alone
@pytest.mark.parametrize("how", ["kill", "stop"])
def test_row_12_the_end_of_the_leader_of_etcd_fails_no_read_and_holds_writes_up_briefly(
    three: Rig, how: str
) -> None:
    """1 mixed load; 2 the leader is killed, or stands still; 3 writes go on within the gap."""
    with three.trial(seed=12) as trial:
        wait_for(holds(lambda: leader(three) != "", "no leader"))
        first = leader(three)
        before = trial.ledger.acks_count
        if how == "kill":
            three.cluster.kill_node(first)
        else:
            three.pause(first)
        hurt_s = three.clock.now_s()
        wait_for(lambda: "" if trial.ledger.acks_count > before + 60 else "no writes")
        went_on_s = three.clock.now_s()
        gap_s = trial.gaps.longest_s

    assert went_on_s - hurt_s < PATIENCE_S
    assert gap_s < GAP_S_MAX + SLACK_S


def test_row_13_reads_outlast_the_majority_of_etcd_and_restarts_of_routers_and_nodes(
    three: Rig,
) -> None:
    """1 two of three members end; 2 writes fail; 3 router and nodes are killed and started, from
    what they have saved; 4 reads go on and say that they are unconfirmed; 5 the members return:
    writes go on.
    """
    with three.client() as client, three.client(5) as hasty:
        three.new_gallery(client, "row13", replicas=2)
        token = enrol(client, "row13", PEOPLE)
        wait_for(lambda: " ".join(one for one in ("n1", "n2") if not has_saved(three, one)))
        for member in ("etcd2", "etcd3"):
            three.cluster.kill_node(member)
        with pytest.raises(UnavailableError):
            enrol(hasty, "row13", ["amid"], request_id="r-13")
        for name in ("router1", "n1", "n2"):
            three.cluster.kill_node(name)
            start_unregistered(three, name)
        with facegrid.Client([three.targets[0]], timeout_s=PATIENCE_S) as restarted:
            wait_for(lambda: found_problem(restarted, "row13", PEOPLE[0]))
            seen = [found_problem(restarted, "row13", one, token) for one in PEOPLE]
            (answer,) = restarted.identify("row13", vectors_of(PEOPLE[:1]), k=1)
        three.heal()
        enrol(client, "row13", ["amid"], request_id="r-13")
        assert client.get_gallery("row13").templates_count == len(PEOPLE) + 1
        client.drop_gallery("row13")

    assert seen == [""] * len(PEOPLE)
    assert answer.coverage.unconfirmed_share == 1


def has_saved(rig: Rig, node: str) -> bool:
    """Tell whether a node has saved the map of the gallery."""
    path = rig.cluster.directory / node / "topology"
    return path.exists() and b"map/row13" in path.read_bytes()


def start_unregistered(rig: Rig, name: str) -> None:
    """Start a process that cannot register: it counts as not ready, and serves all the same."""
    try:
        rig.cluster.start_node(name, timeout_s=START_S)
    except UnavailableError as error:
        if error.reason != "NOT_READY":
            raise


def test_row_16_a_watch_that_dies_silently_is_noticed_within_seconds(three: Rig) -> None:
    """1 a router's links to two of three members go silent; 2 the map changes; 3 it knows."""
    with facegrid.Client([three.targets[1]], timeout_s=PATIENCE_S) as client:
        held = three.etcd_links("router1")
        for name in held[:2]:
            three.hold(name)
        three.new_gallery(client, "row16")
        wait_for(
            holds(lambda: "row16" in known(three.targets[0]), "not noticed"),
            2 * WATCH_NOTICED_S + SLACK_S,
        )
        client.drop_gallery("row16")


def known(target: str) -> set[str]:
    """Return the galleries that a router knows."""
    shards = admin.cluster_status(target, timeout_s=5).shards
    return {shard.id.partition(".")[0] for shard in shards}
