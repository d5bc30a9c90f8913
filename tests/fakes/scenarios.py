"""Scenarios that a sound build survives and a weakened one does not.

The rows of the fault matrix play them on the real build; the negative controls play the very same
ones on builds with one safeguard taken out, and demand that they fail.
"""

import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from bench.chaos.ledger import vectors_of
from facegrid.errors import FacegridError, FencedError, UnavailableError
from facegrid.vectors import quantize
from tests.fakes import power
from tests.fakes.rig import (
    PATIENCE_S,
    Rig,
    enrol,
    enrol_noted,
    erase_noted,
    found_problem,
    wait_for,
)

PEOPLE = [f"one-{number}" for number in range(40)]


def a_stopped_primary_commits_nothing(rig: Rig, gallery: str) -> None:
    """1 SIGSTOP the primary amid a write; 2 another claims its shard; 3 SIGCONT; 4 refused.

    The write is stored and not committed when the primary stops. Its successor commits it, so who
    retries is told that it is there; what matters is that the stopped one adds nothing.
    """
    with rig.client() as client, ThreadPoolExecutor(1) as pool:
        rig.new_gallery(client, gallery)
        enrol(client, gallery, ["before"])
        (primary,) = rig.copies(gallery)
        rig.arm(primary, "etcd.txn.tip before stall 1")
        amid = pool.submit(told_of_enrolment, rig, gallery)
        wait_for(lambda: "" if rig.struck(primary) else "the write has not come to its commit")
        with second_process(rig, primary):
            wait_for(lambda: found_problem(client, gallery, "before"))
            enrol(client, gallery, ["after"])
            told = amid.result(PATIENCE_S)
            tips = rig.values(f"tip/{gallery}.")
            rig.resume(primary)
            rig.wait_ended(primary)
            tips_then = rig.values(f"tip/{gallery}.")
        rig.start(primary)

        assert tips_then == tips, "the stopped one has committed"
        assert "fenced: another process took the shard over" in rig.said(primary)
        count = client.get_gallery(gallery).templates_count
        assert count in ({3} if told is None else {2, 3})
        client.drop_gallery(gallery)


def told_of_enrolment(rig: Rig, gallery: str) -> FacegridError | None:
    """Enrol somebody through a primary that stops meanwhile; return the error, if there is one."""
    with rig.client(15) as client:
        try:
            enrol(client, gallery, ["amid"])
        except (UnavailableError, FencedError) as error:
            return error
    return None


@contextmanager
def second_process(rig: Rig, node: str) -> Iterator[None]:
    """Run another process under a node's id, on a port of its own, beside the first."""
    argv = rig.cluster.record.named(node).argv
    kept = [part for part in argv if not part.startswith(("--listen", "--advertise"))]
    with subprocess.Popen(
        [*kept, "--listen=127.0.0.1:0"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as second:
        try:
            yield
        finally:
            second.send_signal(signal.SIGTERM)
            second.wait(PATIENCE_S)


def a_power_cut_loses_nothing_acknowledged(rig: Rig, journal: Path) -> None:
    """1 enrol, erase, flush, enrol; 2 the node and its disk lose power; 3 all is as was told."""
    with rig.client() as client:
        client.create_gallery("power", dim=64, extractor="x@1", train_at=0)
        trial = rig.opened("power")
        for number, subject_id in enumerate(PEOPLE):
            enrol_noted(client, "power", trial, [subject_id])
            if number == len(PEOPLE) // 2:
                erase_noted(client, "power", trial, PEOPLE[0])
                wait_for(lambda: "" if rig.objects("/segments/") else "nothing flushed yet")
        rig.cluster.kill_node("n1")
        power.cut(rig.cluster.store, journal)
        rig.start("n1")
        problems = [shard.problem for node in rig.status().nodes for shard in node.shards]
        assert problems == [""], "what was acknowledged is gone"
        rig.audit(client, trial, "power")


def a_flipped_bit_is_found(rig: Rig) -> None:
    """1 flush; 2 stop the node; 3 flip a bit of a stored row; 4 nothing is answered from it."""
    with rig.client(5) as client:
        rig.new_gallery(client, "flipped")
        enrol(client, "flipped", PEOPLE)
        before = answers(rig, "flipped")
        rig.signal("n1", signal.SIGTERM)
        rig.wait_ended("n1")
        (segment,) = rig.objects("/segments/")
        data = bytearray(segment.read_bytes())
        data[data.index(quantize(vectors_of(PEOPLE[:1])).tobytes()) + 7] ^= 0x40
        segment.write_bytes(bytes(data))
        rig.start("n1")

        assert answers(rig, "flipped") in (before, []), "a wrong answer was given"


def answers(rig: Rig, gallery: str) -> list[tuple[str, float]]:
    """Return whom the probes of all subjects find, with scores; nothing where it is refused."""
    with rig.client(5) as client:
        try:
            lists = client.identify(gallery, vectors_of(PEOPLE), k=1)
        except FacegridError:
            return []
    return [(one.candidates[0].subject_id, one.candidates[0].score) for one in lists]
