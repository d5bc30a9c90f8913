"""Row 31 of the fault matrix: a router that has not heard of what became of a shard."""

from concurrent.futures import ThreadPoolExecutor

import pytest

import facegrid
from bench.chaos.ledger import vectors_of
from facegrid import limits
from facegrid.api.admin.v1 import admin_service_pb2 as pb
from facegrid.errors import UnavailableError
from fgctl import admin
from tests.fakes.rig import PATIENCE_S, Rig, enrol, holds, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

PEOPLE = [f"one-{number}" for number in range(limits.SPLIT_TEMPLATES_MIN + 200)]
PROBES = vectors_of(PEOPLE[:40])
BATCH = 256


def found(
    client: facegrid.Client, after: facegrid.Token | None = None
) -> list[list[tuple[str, float]]]:
    """Return the candidates of each probe, from the whole of the gallery."""
    lists = client.identify("row31", PROBES, k=10, after=after)
    return [[(one.subject_id, one.score) for one in answer.candidates] for answer in lists]


def test_row_31_a_router_with_an_old_map_answers_nothing_by_it_and_everything_by_the_new_one(
    rig: Rig,
) -> None:
    """1 a router is cut off from etcd; 2 a shard is split through the other one; 3 the first has
    only what is gone, says so, and never answers in part; 4 it hears of the new map amid a search:
    the answer is whole, to the last bit that of before, and nobody is in it twice.
    """
    with rig.client() as client, ThreadPoolExecutor(1) as pool:
        gallery = rig.new_gallery(client, "row31", replicas=2)
        everything = facegrid.Token()
        for first in range(0, len(PEOPLE), BATCH):
            everything |= enrol(client, "row31", PEOPLE[first : first + BATCH])
        old, other = rig.targets
        # A follower may be a moment behind: a token makes it wait.
        before = found(client, everything)
        name = rig.cluster.record.of_kind("router")[0].name
        rig.hold(*rig.etcd_links(name))
        split(other, f"row31.{gallery.uid}.0000")
        with facegrid.Client([old], timeout_s=3) as hasty, pytest.raises(UnavailableError) as told:
            found(hasty)
        with facegrid.Client([old], timeout_s=PATIENCE_S) as patient:
            answer = pool.submit(found, patient)
            rig.change(rig.etcd_links(name), lambda link: link.heal())
            after = answer.result()
            (coverage,) = {one.coverage for one in patient.identify("row31", PROBES, k=1)}

        assert told.value.reason == "COVERAGE_TOO_LOW"
        assert after == before
        assert all(len({name for name, _ in one}) == len(one) == 10 for one in after)
        assert (coverage.share, coverage.shards_count) == (1.0, 2)
        client.drop_gallery("row31")


def split(target: str, shard_id: str) -> None:
    """Split a shard through one of the routers, and wait until that is done."""
    spec = pb.OperationSpec(gallery="row31", split=pb.OperationSpec.Split(shard_id=shard_id))
    request = pb.StartOperationRequest(request_id="row31", spec=spec)
    begun = admin.ask([target], lambda stub: stub.StartOperation, request, timeout_s=20)

    def is_done() -> bool:
        asked = pb.GetOperationRequest(id=begun.operation.id)
        shown = admin.ask([target], lambda stub: stub.GetOperation, asked, timeout_s=20)
        return shown.operation.state == pb.OPERATION_STATE_DONE

    wait_for(holds(is_done, "not split yet"), 2 * PATIENCE_S)
