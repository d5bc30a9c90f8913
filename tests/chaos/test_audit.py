"""The auditor of `make chaos` can fail: each thing that must not be, shown to it, is noted."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

import facegrid
from bench.chaos import ledger as ledgers
from bench.chaos.audit import Auditor, replica_problems
from bench.chaos.faults import ROUND, schedule
from bench.chaos.ledger import Fate, Ledger, template_of, vector_of, vectors_of
from bench.chaos.tally import Tally, WriteGaps
from facegrid.api.admin.v1 import admin_service_pb2
from facegrid.api.shard.v1 import shard_service_pb2
from facegrid.errors import NotFoundError
from facegrid.model import Coverage
from facegrid.testing.manual_clock import ManualClock

GALLERY = "chaos"


class Held:
    """A gallery in memory, as the auditor asks it. What is `hidden` only search cannot find."""

    def __init__(self, subject_ids: Sequence[str], *, hidden: Sequence[str] = ()) -> None:
        self._subject_ids = list(subject_ids)
        self._shown = [one for one in subject_ids if one not in hidden]
        self.templates_count = len(subject_ids)

    def get_template(
        self,
        gallery: str,
        template_id: str,
        *,
        subject_id: str | None = None,
        after: facegrid.Token | None = None,
    ) -> facegrid.Template:
        assert (gallery, after) == (GALLERY, facegrid.Token())
        if subject_id not in self._subject_ids:
            raise NotFoundError("there is no such template")
        return facegrid.Template(template_id, subject_id, vector_of(subject_id))

    def identify(
        self,
        gallery: str,
        probes: np.ndarray,
        *,
        k: int = 10,
        after: facegrid.Token | None = None,
    ) -> list[facegrid.CandidateList]:
        assert (gallery, after) == (GALLERY, facegrid.Token())
        return [self._answer(probe, k) for probe in probes]

    def get_gallery(self, name: str) -> facegrid.Gallery:
        return facegrid.Gallery(
            name, "1f00aa23", 64, "x@1", 1, 1, 0, templates_count=self.templates_count
        )

    def _answer(self, probe: np.ndarray, k: int) -> facegrid.CandidateList:
        scored = sorted(
            ((float(vector_of(one) @ probe), one) for one in self._shown), reverse=True
        )
        candidates = tuple(
            facegrid.Candidate(one, template_of(one), score, rank)
            for rank, (score, one) in enumerate(scored[:k], start=1)
        )
        return facegrid.CandidateList(candidates, Coverage(1.0, 1, 1))


def audited(fates: dict[str, Fate], held: Held) -> tuple[set[str], set[str], int]:
    """Return who is lost, who came back, and how many other problems there are."""
    tally = Tally()
    Auditor(held, GALLERY, fates, token=facegrid.Token(), tally=tally).run()
    assert tally.clean == (not tally.lost and not tally.resurrected and not tally.problems)
    return tally.lost, tally.resurrected, len(tally.problems)


ENROLLED = Fate("r", enrolled_s=1.0)
UNKNOWN = Fate("r")
ERASED = Fate("r", enrolled_s=1.0, erasing=True, erased_s=2.0)
PERHAPS_ERASED = Fate("r", enrolled_s=1.0, erasing=True)


@pytest.mark.parametrize("held", [["a"], ["a", "b"], ["a", "d"], ["a", "b", "d"]])
def test_whatever_became_of_open_outcomes_is_right(held: list[str]) -> None:
    fates = {"a": ENROLLED, "b": UNKNOWN, "c": ERASED, "d": PERHAPS_ERASED}

    assert audited(fates, Held(held)) == (set(), set(), 0)


def test_an_enrolment_that_is_missing_is_lost() -> None:
    assert audited({"a": ENROLLED, "b": ENROLLED}, Held(["b"])) == ({"a"}, set(), 0)


def test_an_enrolment_that_search_does_not_find_is_lost_too() -> None:
    lost, resurrected, problems = audited({"a": ENROLLED}, Held(["a"], hidden=["a"]))

    assert (lost, resurrected) == ({"a"}, set())
    assert problems == 1


def test_an_erased_subject_that_is_found_is_resurrected() -> None:
    assert audited({"a": ENROLLED, "b": ERASED}, Held(["a", "b"])) == (set(), {"b"}, 0)


def test_a_subject_that_nobody_sent_is_noted() -> None:
    assert audited({"a": ENROLLED}, Held(["a", "stranger"]))[2] == 2


def test_a_template_that_is_counted_twice_is_noted() -> None:
    held = Held(["a"])
    held.templates_count += 1

    assert audited({"a": ENROLLED}, held) == (set(), set(), 1)


def test_what_a_ledger_says_is_what_is_read_back(tmp_path: Path) -> None:
    """1 two are sent; 2 one is acknowledged; 3 it is erased; 4 a third is sent and left open."""
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, ManualClock())
    ledger.send("enrol", "r1", ["a"])
    ledger.send("enrol", "r2", ["b"])
    ledger.acknowledge("enrol", "r1", ["a"], token=facegrid.Token())
    ledger.send("erase", "r3", ["a"])
    ledger.acknowledge("erase", "r3", ["a"])
    ledger.send("enrol", "r4", ["c", "d"])
    ledger.close()

    fates = ledgers.read(path)

    assert fates == ledger.fates
    assert [name for name, fate in fates.items() if fate.must_be_gone] == ["a"]
    assert [name for name, fate in fates.items() if fate.must_be_there] == []
    assert ledger.acks_count == 2


def test_the_same_seed_gives_the_same_faults_and_a_round_has_every_kind() -> None:
    shape = {"nodes": 3, "routers": 2, "etcd": 3}
    length = len(ROUND)
    first = list(islice(schedule(7, **shape), 3 * length))

    assert first == list(islice(schedule(7, **shape), 3 * length))
    assert first != list(islice(schedule(8, **shape), 3 * length))
    for start in (0, length, 2 * length):
        assert sorted(fault.kind for fault in first[start : start + length]) == sorted(ROUND)


async def test_the_gap_is_that_of_the_shard_that_waited_longest() -> None:
    clock = ManualClock()
    gaps = WriteGaps([0, 2**63], clock)
    low, high = (
        next(f"s-{n}" for n in range(99) if gaps.shard_of(f"s-{n}") == shard) for shard in (0, 1)
    )

    await clock.advance(2)
    gaps.acked([low])
    await clock.advance(3)
    gaps.acked([low, high])

    assert gaps.longest_s == 5


def test_vectors_of_different_subjects_are_different() -> None:
    scores = vectors_of(["a", "b", "c"]) @ vectors_of(["a", "b", "c"]).T

    assert np.allclose(np.diag(scores), 1)
    assert np.max(scores - np.eye(3)) < 0.6


def status(*copies: shard_service_pb2.ShardStatus) -> admin_service_pb2.ClusterStatusResponse:
    """Return a shard's copies on n1, the primary, and the others."""
    names = [f"n{number}" for number in range(1, len(copies) + 1)]
    node = admin_service_pb2.ClusterStatusResponse.Node
    return admin_service_pb2.ClusterStatusResponse(
        nodes=[
            node(id=name, registered=True, shards=[copy])
            for name, copy in zip(names, copies, strict=True)
        ],
        shards=[admin_service_pb2.ClusterStatusResponse.Shard(id="s", node_ids=names)],
    )


def copy(position: int, digest: str, *, failed: bool = False) -> shard_service_pb2.ShardStatus:
    state = (
        shard_service_pb2.SHARD_STATE_FAILED if failed else shard_service_pb2.SHARD_STATE_SERVING
    )
    return shard_service_pb2.ShardStatus(
        shard_id="s", state=state, position=position, digest=digest
    )


@pytest.mark.parametrize(
    ("follower", "problem"),
    [
        (copy(7, "aa"), None),
        (copy(6, "bb"), "copy lags shard=s node=n2 position=6 primary=7"),
        (copy(7, "bb"), "copies differ at the same position shard=s node=n2 position=7"),
        (copy(7, "aa", failed=True), "copy does not serve shard=s node=n2 problem="),
    ],
)
def test_copies_are_compared(follower: shard_service_pb2.ShardStatus, problem: str | None) -> None:
    problems = list(replica_problems(status(copy(7, "aa"), follower)))

    assert problems == ([] if problem is None else [problem])
