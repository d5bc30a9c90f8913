"""What a router proposes when it is asked, and what it tells of records that it cannot use."""

import pytest

from facegrid.api.admin.v1 import admin_service_pb2 as pb
from facegrid.coord import keys
from facegrid.coord.port import Put
from facegrid.errors import FacegridError
from facegrid.format import records
from facegrid.ids import GalleryName
from facegrid.model import Gallery
from tests.fakes.router_cluster import Cluster, cluster

LOST_ONE = Gallery(GalleryName("lost"), "1f00bbbb", 8, "e@1", 1, 1, 0)


async def proposed(running: Cluster, **as_if: object) -> pb.PlanRebalanceResponse:
    request = pb.PlanRebalanceRequest(**as_if)
    answer: pb.PlanRebalanceResponse = await running.client.call(
        running.client.admin.PlanRebalance, request
    )
    return answer


def targets(answer: pb.PlanRebalanceResponse) -> list[list[str]]:
    return [list(move.spec.replicas.node_ids) for move in answer.moves]


async def test_a_proposal_can_be_asked_for_as_if_nodes_were_drained_or_lost() -> None:
    async with cluster(nodes=3) as running:
        await running.client.create(replicas_count=2)
        settled = await proposed(running)
        drained = await proposed(running, draining_node_ids=["n1"])
        lost = await proposed(running, lost_node_ids=["n1"])
        status = await running.client.status()

    held = sum("n1" in shard.node_ids for shard in status.shards)
    assert held > 0
    assert "n1 is registered, and is left only because you call it lost" in lost.problems
    assert not any("n1 is" in move.spec.cause for move in settled.moves)
    for answer, cause in ((drained, "n1 is draining"), (lost, "n1 is lost")):
        assert sum(cause in move.spec.cause for move in answer.moves) == held
        assert not any("n1" in nodes for nodes in targets(answer))
        loads = {load.node_id: load for load in answer.nodes}
        assert (loads["n1"].replicas_before, loads["n1"].replicas_after) == (held, 0)
    assert not any(node.draining for node in status.nodes)


async def test_a_proposal_says_which_shards_an_operation_keeps_as_they_are() -> None:
    async with cluster(nodes=3, drive=False) as running:
        await running.client.create(replicas_count=1)
        wanted = pb.OperationSpec.Replicas(shard_id="staff.1f00aa23.0000", node_ids=["n3"])
        spec = pb.OperationSpec(gallery="staff", replicas=wanted)
        request = pb.StartOperationRequest(request_id="r1", spec=spec)
        begun = await running.client.call(running.client.admin.StartOperation, request)
        answer = await proposed(running, lost_node_ids=["n1"])

    assert (
        f"staff.1f00aa23.0000 stays as it is until operation {begun.operation.id} is over"
        in answer.problems
    )
    assert "staff.1f00aa23.0000" not in [m.spec.replicas.shard_id for m in answer.moves]


async def test_the_shards_of_a_node_that_has_just_died_can_be_planned_for() -> None:
    """Its followers tell how large they are."""
    async with cluster(nodes=3, drive=False) as running:
        await running.client.create(replicas_count=2)
        (shard,) = [s for s in (await running.client.status()).shards if s.first == 0]
        dead, follower = shard.node_ids
        other = next(node for node in ("n1", "n2", "n3") if node not in shard.node_ids)
        await next(node for node in running.nodes if node.node_id == dead).crash()

        wanted = pb.OperationSpec.Replicas(shard_id=shard.id, node_ids=[follower, other])
        spec = pb.OperationSpec(gallery="staff", replicas=wanted)
        request = pb.PlanOperationRequest(spec=spec)
        planned = await running.client.call(running.client.admin.PlanOperation, request)

    assert [room.node_id for room in planned.plan.rooms] == [other]


async def test_a_proposal_can_be_asked_for_as_if_a_gallery_were_to_have_more_copies() -> None:
    async with cluster(nodes=3) as running:
        await running.client.create(replicas_count=1)
        wanted = [pb.PlanRebalanceRequest.Replicas(gallery="staff", replicas_count=3)]
        answer = await proposed(running, replicas=wanted)
        status = await running.client.status()

    assert [sorted(nodes) for nodes in targets(answer)] == [["n1", "n2", "n3"]] * 4
    assert status.galleries[0].replicas_count == 1


@pytest.mark.parametrize(
    ("as_if", "reason"),
    [
        ({"draining_node_ids": ["n9"]}, "NODE_UNKNOWN"),
        ({"lost_node_ids": ["n9"]}, "NODE_UNKNOWN"),
        ({"replicas": [{"gallery": "nobody", "replicas_count": 2}]}, "GALLERY_UNKNOWN"),
        ({"replicas": [{"gallery": "staff", "replicas_count": 0}]}, "REPLICAS_OUT_OF_RANGE"),
        ({"replicas": [{"gallery": "staff", "replicas_count": 6}]}, "REPLICAS_OUT_OF_RANGE"),
    ],
)
async def test_what_does_not_exist_is_not_taken_for_given(
    as_if: dict[str, object], reason: str
) -> None:
    async with cluster() as running:
        await running.client.create()
        with pytest.raises(FacegridError) as refused:
            await proposed(running, **as_if)

    assert refused.value.reason == reason


async def test_a_gallery_without_a_map_and_a_damaged_record_are_told() -> None:
    async with cluster() as running:
        before = running.client.server.watcher.topology
        await running.coordinator.txn(
            [],
            [
                Put(keys.gallery(LOST_ONE.name), records.encode_gallery(LOST_ONE)),
                Put(keys.shard_map(GalleryName("torn")), b"torn"),
            ],
        )
        assert await running.client.server.watcher.changed(before, timeout_s=5)
        await running.until(lambda: len(running.client.server.watcher.problems) == 2)
        status = await running.client.status()

    assert status.problems[1] == "gallery lost has no map"
    assert status.problems[0].startswith("map/torn: ")
