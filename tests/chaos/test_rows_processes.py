"""Rows of the fault matrix about processes that die, stand still or exist twice."""

import numpy as np
import pytest

import facegrid
from bench.chaos.ledger import template_of
from facegrid.errors import UnavailableError
from tests.fakes.rig import PATIENCE_S, Rig, enrol, enrol_noted, found_problem, wait_for
from tests.fakes.scenarios import a_stopped_primary_commits_nothing, second_process

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

PEOPLE = [f"one-{number}" for number in range(60)]
AFTER_S = 2.0
"""After this long, the matrix says, searches are as quick as before."""


@pytest.mark.alone
def test_row_01_a_killed_follower_fails_no_read(rig: Rig) -> None:
    """1 search without pause; 2 kill -9 the follower; 3 no search fails, nor is slow for long."""
    with rig.client() as client:
        rig.new_gallery(client, "row1", replicas=2)
        token = enrol(client, "row1", PEOPLE)
        _, follower = rig.copies("row1")
        with rig.reading("row1", PEOPLE, token) as reads:
            killed_s = rig.clock.now_s()
            rig.cluster.kill_node(follower)
            wait_for(lambda: "" if len(reads.since(killed_s + AFTER_S)) >= 200 else "too few")
        client.drop_gallery("row1")

    assert reads.wrong == []
    before = float(np.percentile(reads.before(killed_s), 99))
    after = float(np.percentile(reads.since(killed_s + AFTER_S), 99))
    assert after < 4 * before + 0.25, "a fault of the machine may add to it, a dead node may not"


def test_row_03_a_kill_between_log_and_commit_leaves_the_write_absent_or_there_once(
    rig: Rig,
) -> None:
    """1 the log object is stored; 2 kill -9; 3 nobody was told; 4 the retry makes it once."""
    with rig.client() as client, rig.client(3) as hasty:
        rig.new_gallery(client, "row3")
        trial = rig.opened("row3")
        enrol_noted(client, "row3", trial, ["before"])
        (primary,) = rig.copies("row3")
        rig.arm(primary, "store.put.log after crash 1")
        with pytest.raises(UnavailableError):
            enrol_noted(hasty, "row3", trial, ["amid"])
        rig.wait_ended(primary)
        stored = len(rig.objects("/row3."))
        tips = rig.values("tip/row3.")
        rig.start(primary)
        enrol_noted(client, "row3", trial, ["amid"])

        assert rig.struck(primary) == ["store.put.log after crash 1"]
        assert (stored > 0, len(tips)) == (True, 1)
        assert client.get_gallery("row3").templates_count == 2
        rig.audit(client, trial, "row3")
        client.drop_gallery("row3")


def test_row_04_a_kill_between_commit_and_answer_loses_and_doubles_nothing(rig: Rig) -> None:
    """1 the commit takes effect; 2 kill -9; 3 it is there after the start; 4 a retry adds none."""
    with rig.client() as client, rig.client(3) as hasty:
        rig.new_gallery(client, "row4")
        (primary,) = rig.copies("row4")
        rig.arm(primary, "etcd.txn.tip after crash 1")
        with pytest.raises(UnavailableError):
            enrol(hasty, "row4", ["one", "two"], request_id="r-4")
        rig.wait_ended(primary)
        committed = rig.values("tip/row4.")
        rig.start(primary)

        assert len(committed) == 1
        assert client.get_template("row4", template_of("one"), subject_id="one")
        enrol(client, "row4", ["one", "two"], request_id="r-4")
        assert client.get_gallery("row4").templates_count == 2
        assert rig.values("tip/row4.") == committed, "the retry wrote nothing"
        client.drop_gallery("row4")


def test_row_06_wall_clocks_that_jump_by_an_hour_change_nothing(rig: Rig) -> None:
    """Under load the wall clocks of nodes and routers go ahead, then back, by different hours."""
    hour_ms = 3_600_000
    before = rig.values("gen/")
    with rig.trial(seed=6) as trial:
        for shifts in ((1, -1, 2, 1), (-2, 1, -1, -1)):
            for process, hours in zip(("n1", "n2", "n3", "facegrid-router"), shifts, strict=True):
                (rig.rules / f"{process}.wall").write_text(str(hours * hour_ms))
            done = trial.ledger.acks_count
            wait_for(lambda done=done: "" if trial.ledger.acks_count > done + 30 else "no writes")

        claims = rig.values("gen/")
        assert {key: claims[key] for key in before} == before, "nobody took anything over"
        assert {node.id for node in rig.status().nodes if node.registered} == {"n1", "n2", "n3"}


def test_row_07_a_killed_router_costs_no_read_and_no_state(rig: Rig) -> None:
    """1 search and write through both; 2 kill -9 one; 3 the other has all that there is."""
    with rig.client() as client:
        rig.new_gallery(client, "row7", shards=2, replicas=2)
        token = enrol(client, "row7", PEOPLE)
        with rig.reading("row7", PEOPLE, token) as reads:
            rig.cluster.kill_node("router1")
            killed_s = rig.clock.now_s()
            token |= enrol(client, "row7", ["amid"])
            token |= client.erase("row7", subject_ids=[PEOPLE[-1]]).token
            wait_for(lambda: "" if len(reads.since(killed_s)) >= 100 else "too few")
        missing = [one for one in reads.wrong if not one.endswith(PEOPLE[-1])]
        rig.start("router1")
        with facegrid.Client([rig.targets[0]], timeout_s=PATIENCE_S) as again:
            counted = again.get_gallery("row7").templates_count
            assert again.get_template("row7", template_of("amid"), after=token)
        client.drop_gallery("row7")

    assert missing == []
    assert counted == len(PEOPLE)


def test_row_19_the_second_process_of_a_node_id_fences_the_first_off_loudly(rig: Rig) -> None:
    """1 a node serves; 2 another process starts under its id; 3 the first says so and ends."""
    with rig.client() as client:
        rig.new_gallery(client, "row19")
        enrol(client, "row19", PEOPLE[:10])
        (primary,) = rig.copies("row19")
        with second_process(rig, primary):
            rig.wait_ended(primary)
            said = rig.said(primary)
            wait_for(lambda: found_problem(client, "row19", PEOPLE[0]))
            enrol(client, "row19", ["amid"])
        rig.start(primary)

        assert f"another process runs under this node's id node={primary}" in said
        assert client.get_gallery("row19").templates_count == 11
        client.drop_gallery("row19")


def test_row_05_what_a_stopped_primary_commits_after_its_lease_is_refused(rig: Rig) -> None:
    a_stopped_primary_commits_nothing(rig, "row5")
