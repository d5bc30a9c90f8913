"""Every process is exchanged, one after the other, under load, and nobody notices."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from facegrid import __version__
from facegrid.errors import FacegridError
from fgctl.local.plan import Wanted
from tests.fakes.old_build import OLD_VERSION
from tests.fakes.rig import Rig, enrol, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(420)]

PEOPLE = [f"one-{number}" for number in range(40)]
BUDGET_S = 30.0
"""How long the client tries, by default."""
OLD = {
    "node_argv": ("tests.fakes.old_build", "indexd"),
    "router_argv": ("tests.fakes.old_build", "router"),
}


@contextmanager
def writing(rig: Rig, gallery: str) -> Iterator[list[str]]:
    """Enrol and erase without pause, each within the client's time; give what failed."""
    failed: list[str] = []
    stop = threading.Event()

    def write() -> None:
        number = 0
        with rig.client(BUDGET_S) as client:
            while not stop.is_set():
                subject = f"rolling-{number}"
                try:
                    # Of several shards: these are asked first, old and new ones.
                    enrol(client, gallery, [subject, *(f"{subject}-{one}" for one in range(3))])
                    if number % 3 == 0:
                        client.erase(gallery, subject_ids=[subject])
                except FacegridError as error:
                    failed.append(f"{subject} {error.reason}: {error.message}")
                number += 1

    worker = threading.Thread(target=write)
    worker.start()
    try:
        yield failed
    finally:
        stop.set()
        worker.join()


def versions(rig: Rig) -> set[str]:
    """Return the versions of all nodes that answer."""
    return {node.version for node in rig.status().nodes if not node.problem}


def test_an_upgrade_process_by_process_fails_no_read_and_no_write(tmp_path: Path) -> None:
    """1 all processes are old; 2 nodes are exchanged for new ones, one by one, while old and new
    ones serve together; 3 so are routers.
    """
    wanted = Wanted(nodes=3, replicas=2, etcd=1, routers=2)
    with Rig(tmp_path, wanted, **OLD) as rig, rig.client() as client:
        rig.new_gallery(client, "rolling", shards=4, replicas=2)
        token = enrol(client, "rolling", PEOPLE)
        record = rig.cluster.record
        nodes = [process.name for process in record.of_kind("node")]
        routers = [process.name for process in record.of_kind("router")]
        assert versions(rig) == {OLD_VERSION}
        mixed = set()
        with (
            rig.trial() as trial,
            rig.reading("rolling", PEOPLE, token, threads=1) as reads,
            writing(rig, "rolling") as failed,
        ):
            rig.cluster.argv_of = {}
            for name in (*nodes, *routers):
                rig.exchange(name)
                mixed |= {frozenset(versions(rig))}
                seen = len(reads.times)
                wait_for(lambda seen=seen: "" if len(reads.times) > seen + 20 else "no reads")
            acks = trial.ledger.acks_count

    assert reads.wrong == []
    assert failed == []
    assert acks > 100
    assert {OLD_VERSION, __version__} in mixed
    assert {__version__} in mixed
