"""Rows of the fault matrix in which another node takes a primary's shards over."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import facegrid
from bench.chaos.ledger import vectors_of
from facegrid.errors import FacegridError, FencedError, UnavailableError
from fgctl.local.plan import Wanted
from tests.fakes.rig import (
    LEASE_S,
    PATIENCE_S,
    Rig,
    enrol,
    enrol_noted,
    erase_noted,
    found_problem,
    holds,
    wait_for,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

PEOPLE = [f"one-{number}" for number in range(40)]
RESUMED_S_MAX = 3 * LEASE_S
SLACK_S = 5.0
"""For a machine that is busy with other things."""


@pytest.fixture(scope="module")
def _eager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with Rig(
        tmp_path_factory.mktemp("eager"),
        Wanted(nodes=3, replicas=2, etcd=1, routers=1),
        environment={"FACEGRID_INDEXD_TAKEOVER_AFTER_S": "1"},
    ) as rig:
        yield rig


@pytest.fixture
def eager(_eager: Rig) -> Iterator[Rig]:
    """A cluster that takes shards over as soon as a lease has ended; mended behind each test."""
    try:
        yield _eager
    finally:
        _eager.heal()


@pytest.mark.alone
def test_row_02_a_killed_primary_loses_nothing_and_writes_resume_elsewhere(eager: Rig) -> None:
    """1 mixed load; 2 kill -9 a primary, for good; 3 every shard takes writes within 3 leases; 4
    the node comes back: nothing acknowledged is lost, nothing is there twice, no read failed.
    """
    with eager.trial(seed=2) as trial:
        firsts = {shard.id: shard.node_ids[0] for shard in eager.status().shards}
        victim = firsts[min(firsts)]
        eager.cluster.kill_node(victim)
        killed_s = eager.clock.now_s()
        wait_for(holds(lambda: victim not in primaries(eager), "not taken over"))
        done = trial.ledger.acks_count
        wait_for(lambda: "" if trial.ledger.acks_count > done + 60 else "no writes")
        resumed_s = eager.clock.now_s() - killed_s

    assert resumed_s < RESUMED_S_MAX + SLACK_S


def primaries(rig: Rig) -> set[str]:
    """Return the first node of every shard."""
    return {shard.node_ids[0] for shard in rig.status().shards}


def test_row_05_a_primary_stopped_beyond_its_lease_finds_its_shard_taken_over(
    eager: Rig,
) -> None:
    """1 SIGSTOP the primary amid a write; 2 the follower takes over and writes; 3 SIGCONT; 4 what
    the stopped one commits is refused; 5 it follows; 6 all copies are the same.
    """
    with eager.client() as client, eager.client(30) as late, ThreadPoolExecutor(1) as pool:
        eager.new_gallery(client, "row5", replicas=2)
        trial = eager.opened("row5")
        enrol_noted(client, "row5", trial, PEOPLE)
        eager.wait_equal("row5")
        primary, follower = eager.copies("row5")
        eager.arm(primary, "etcd.txn.tip before stall 1")
        amid = pool.submit(refusal, late)
        wait_for(lambda: "" if eager.struck(primary) else "the write has not come to its commit")
        wait_for(holds(lambda: eager.copies("row5")[0] == follower, "not taken over"))
        enrol_noted(client, "row5", trial, ["after"])
        erase_noted(client, "row5", trial, PEOPLE[0])
        told = amid.result(PATIENCE_S)
        tips = eager.values("tip/row5.")
        eager.resume(primary)
        eager.heal()
        eager.wait_equal("row5")

        assert eager.values("tip/row5.") == tips
        trial.ledger.send("enrol", "amid", ["amid"])
        if told is None:
            trial.ledger.acknowledge("enrol", "amid", ["amid"])
        eager.audit(client, trial, "row5")
        client.drop_gallery("row5")


def refusal(client: facegrid.Client) -> FacegridError | None:
    """Enrol somebody through a primary that stops meanwhile; return the error, if there is one."""
    try:
        enrol(client, "row5", ["amid"], request_id="amid")
    except (UnavailableError, FencedError) as error:
        return error
    return None


def test_row_10_answers_are_flagged_where_nobody_reaches_etcd(eager: Rig) -> None:
    """1 nodes and router lose etcd; 2 answers go on, and soon say that they are unconfirmed; 3 who
    must not see such is refused; 4 etcd is back: they are confirmed again.
    """
    with eager.client() as client:
        eager.new_gallery(client, "flagged", replicas=2)
        token = enrol(client, "flagged", PEOPLE)
        cut_off = [one for name in ("n1", "n2", "n3", "router1") for one in eager.etcd_links(name)]
        eager.hold(*cut_off)
        wait_for(holds(lambda: unconfirmed(client) == 1, "still confirmed"))
        assert [found_problem(client, "flagged", one, token) for one in PEOPLE] == [""] * 40
        with eager.client(5) as strict, pytest.raises(UnavailableError):
            strict.identify("flagged", vectors_of(PEOPLE[:1]), unconfirmed_max=0)
        eager.heal()
        wait_for(holds(lambda: unconfirmed(client) == 0, "still unconfirmed"))
        client.drop_gallery("flagged")


def unconfirmed(client: facegrid.Client) -> float:
    """Return the share of an answer that is not confirmed."""
    (answer,) = client.identify("flagged", vectors_of(PEOPLE[:1]), k=1)
    return answer.coverage.unconfirmed_share
