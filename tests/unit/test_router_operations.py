"""Operations over the network: what operators ask a router, and what it refuses."""

import asyncio
from typing import Any

import pytest

from facegrid import limits
from facegrid.api.admin.v1 import admin_service_pb2 as pb
from facegrid.api.v1 import gallery_service_pb2
from facegrid.coord import keys
from facegrid.coord.port import Put
from facegrid.errors import (
    ConflictError,
    FacegridError,
    FencedError,
    InvalidError,
    NotFoundError,
    PreconditionError,
)
from facegrid.format import operations
from facegrid.format.records import encode_node
from facegrid.ids import NodeId
from facegrid.model import NodeInfo
from tests.fakes.router_cluster import Cluster, RouterClient, cluster, faces

S0, S1, S2, S3 = (f"staff.1f00aa23.{number:04d}" for number in range(4))


def replicas(shard_id: str, *node_ids: str, **fields: Any) -> pb.OperationSpec:
    wanted = pb.OperationSpec.Replicas(shard_id=shard_id, node_ids=node_ids)
    return pb.OperationSpec(gallery="staff", replicas=wanted, **fields)


def split(shard_id: str) -> pb.OperationSpec:
    return pb.OperationSpec(gallery="staff", split=pb.OperationSpec.Split(shard_id=shard_id))


def merge(*shard_ids: str) -> pb.OperationSpec:
    return pb.OperationSpec(gallery="staff", merge=pb.OperationSpec.Merge(shard_ids=shard_ids))


async def plan(client: RouterClient, spec: pb.OperationSpec) -> pb.OperationPlan:
    answer = await client.call(client.admin.PlanOperation, pb.PlanOperationRequest(spec=spec))
    return answer.plan


async def start(
    client: RouterClient, spec: pb.OperationSpec, request_id: str = "r1", map_version: int = 0
) -> pb.Operation:
    request = pb.StartOperationRequest(request_id=request_id, spec=spec, map_version=map_version)
    return (await client.call(client.admin.StartOperation, request)).operation


async def listed(client: RouterClient, **fields: Any) -> pb.ListOperationsResponse:
    return await client.call(client.admin.ListOperations, pb.ListOperationsRequest(**fields))


async def change(client: RouterClient, name: str, action: int) -> pb.Operation:
    request = pb.ChangeOperationRequest(id=name, action=action)
    return (await client.call(client.admin.ChangeOperation, request)).operation


async def filled(running: Cluster, rows: int = 0) -> RouterClient:
    """Create four shards, on n1 and n2 in turn, with some rows."""
    client = running.client
    await client.create(train_at_templates_count=0)
    for first in range(0, rows, 1024):
        subjects = [f"s{number}" for number in range(first, min(first + 1024, rows))]
        await client.enrol(faces(len(subjects)), subjects, request_id=f"e{first}")
    return client


async def test_a_plan_says_what_happens_and_changes_nothing() -> None:
    async with cluster(3, drive=False) as running:
        client = await filled(running)
        before = await running.coordinator.list("")

        planned = await plan(client, replicas(S0, "n3", "n1"))

        after = await running.coordinator.list("")
    assert planned.map_version == 1
    assert [one.partition(":")[0] for one in planned.steps] == [
        "join",
        "verify",
        "serve",
        "cutover",
    ]
    assert [room.node_id for room in planned.rooms] == ["n3"]
    assert planned.duration_s > 0
    assert after == before


async def test_a_plan_for_what_is_so_already_says_that() -> None:
    async with cluster(drive=False) as running:
        client = await filled(running)

        planned = await plan(client, replicas(S0, "n1"))

    assert planned == pb.OperationPlan(map_version=1, nothing_to_do=True)


async def test_a_plan_of_a_split_names_the_new_shards() -> None:
    async with cluster(drive=False) as running:
        client = await filled(running, rows=5 * limits.SPLIT_TEMPLATES_MIN)

        planned = await plan(client, split(S0))

    assert planned.child_ids == ["staff.1f00aa23.0004", "staff.1f00aa23.0005"]
    assert [one.partition(":")[0] for one in planned.steps] == [
        "fill",
        "follow",
        "cutover",
        "drop",
    ]


REFUSED = {
    "an unknown node": (replicas(S0, "n9"), NotFoundError, "NODE_UNKNOWN"),
    "an unknown shard": (replicas("staff.1f00aa23.0009", "n1"), NotFoundError, "SHARD_UNKNOWN"),
    "a node twice": (replicas(S0, "n1", "n1"), InvalidError, "NODES_MALFORMED"),
    "no nodes": (replicas(S0), InvalidError, "NODES_MALFORMED"),
    "a small shard": (split(S0), InvalidError, "SHARD_TOO_SMALL"),
    "one shard": (merge(S0), InvalidError, "SHARDS_MALFORMED"),
    "no neighbours": (merge(S0, S2), InvalidError, "NOT_NEIGHBOURS"),
    "nothing": (pb.OperationSpec(gallery="staff"), InvalidError, "KIND_MISSING"),
    "no gallery": (
        pb.OperationSpec(gallery="nobody", split=pb.OperationSpec.Split(shard_id=S0)),
        NotFoundError,
        "GALLERY_UNKNOWN",
    ),
    "a long cause": (replicas(S0, "n2", cause="x" * 201), InvalidError, "CAUSE_TOO_LONG"),
}


async def test_what_makes_no_sense_is_refused_and_nothing_changes() -> None:
    async with cluster(drive=False) as running:
        client = await filled(running)
        before = await running.coordinator.list("")

        found: dict[str, tuple[type[FacegridError], str]] = {}
        for name, (spec, _, _) in REFUSED.items():
            for ask in (plan, start):
                with pytest.raises(FacegridError) as refused:
                    await ask(client, spec)
                found[name] = (type(refused.value), refused.value.reason)

        after = await running.coordinator.list("")
    assert found == {name: (kind, reason) for name, (_, kind, reason) in REFUSED.items()}
    assert after == before


async def test_a_node_without_room_is_refused() -> None:
    async with cluster(3, drive=False) as running:
        client = await filled(running)
        for node in running.nodes:
            node.memory = (1000, 10)

        with pytest.raises(PreconditionError) as refused:
            await start(client, replicas(S0, "n3"))

    assert refused.value.reason == "NO_ROOM"
    assert refused.value.facts["node"] == "n3"


@pytest.mark.parametrize(
    ("version", "refused"), [("0.0.9", True), ("0.1.0", False), ("2.0", False), ("fake", False)]
)
async def test_nothing_changes_its_shape_while_an_old_node_would_refuse_the_map(
    version: str, *, refused: bool
) -> None:
    async with cluster(3, drive=False) as running:
        client = await filled(running)
        old = NodeInfo(NodeId("n9"), "boot", "127.0.0.1:1", version)
        await running.coordinator.txn([], [Put(keys.node(old.node_id, "boot"), encode_node(old))])
        async with asyncio.timeout(30):
            while "n9" not in await nodes_of(client):
                pass
        if refused:
            with pytest.raises(PreconditionError) as caught:
                await start(client, replicas(S0, "n3"))
            assert (caught.value.reason, caught.value.facts["node"]) == ("NODE_TOO_OLD", "n9")
        else:
            await start(client, replicas(S0, "n3"))
        assert bool((await listed(client)).operations) is not refused


async def nodes_of(client: RouterClient) -> list[str]:
    status = await client.call(client.admin.ClusterStatus, pb.ClusterStatusRequest())
    return [node.id for node in status.nodes]


async def test_of_two_operators_the_second_hears_who_was_first() -> None:
    async with cluster(3, drive=False) as running:
        client = await filled(running)
        first = await start(client, replicas(S0, "n3"), "r1")

        with pytest.raises(FencedError) as refused:
            await start(client, merge(S0, S1), "r2")

    assert refused.value.reason == "OPERATION_CONFLICT"
    assert refused.value.facts["operation"] == first.id


async def test_the_same_request_begins_one_operation() -> None:
    async with cluster(3, drive=False) as running:
        client = await filled(running)

        first = await start(client, replicas(S0, "n3"))
        again = await start(client, replicas(S0, "n3"))
        with pytest.raises(ConflictError) as refused:
            await start(client, replicas(S0, "n2"))

        known = await listed(client)
    assert first == again
    assert refused.value.reason == "REQUEST_ID_REUSED"
    assert [one.id for one in known.operations] == [first.id]
    assert known.operations[0].spec == replicas(S0, "n3", cause="asked for by an operator")


async def test_a_plan_made_for_another_map_is_stale() -> None:
    async with cluster(3, drive=False) as running:
        client = await filled(running)
        planned = await plan(client, replicas(S0, "n3"))
        await running.move_primaries()

        with pytest.raises(PreconditionError) as refused:
            await start(client, replicas(S0, "n3"), map_version=planned.map_version)

        known = await listed(client)
    assert refused.value.reason == "PLAN_STALE"
    assert list(known.operations) == []


async def test_an_operation_is_paused_resumed_and_aborted() -> None:
    async with cluster(3, drive=False) as running:
        client = await filled(running)
        begun = await start(client, replicas(S0, "n3"))
        actions = pb.ChangeOperationRequest

        paused = await change(client, begun.id, actions.ACTION_PAUSE)
        resumed = await change(client, begun.id, actions.ACTION_RESUME)
        aborted = await change(client, begun.id, actions.ACTION_ABORT)
        with pytest.raises(PreconditionError):
            await change(client, begun.id, actions.ACTION_RESUME)
        with pytest.raises(NotFoundError) as unknown:
            await change(client, "op-9", actions.ACTION_PAUSE)
        with pytest.raises(InvalidError) as nothing:
            await change(client, begun.id, actions.ACTION_UNSPECIFIED)

    assert [one.state for one in (begun, paused, resumed, aborted)] == [
        pb.OPERATION_STATE_RUNNING,
        pb.OPERATION_STATE_PAUSED,
        pb.OPERATION_STATE_RUNNING,
        pb.OPERATION_STATE_ABORTING,
    ]
    assert begun.abortable
    assert (unknown.value.reason, nothing.value.reason) == ("OPERATION_UNKNOWN", "ACTION_MISSING")


async def test_the_elected_router_drives_without_being_asked() -> None:
    async with cluster(3) as running:
        client = await filled(running)
        begun = await start(client, replicas(S0, "n3"))

        async with running.patience():
            while True:
                request = pb.GetOperationRequest(id=begun.id)
                shown = (await client.call(client.admin.GetOperation, request)).operation
                if shown.step != "join":
                    break
        known = await listed(client)
        status = await client.status()

    assert (shown.step, shown.steps_done, shown.steps_count) == ("verify", 1, 5)
    assert known.driver.startswith("127.0.0.1:0#")
    joining = {shard.id: list(shard.joining_node_ids) for shard in status.shards}
    assert joining == {S0: ["n3"], S1: [], S2: [], S3: []}


async def test_a_node_is_marked_and_unmarked() -> None:
    async with cluster(drive=False) as running:
        client = await filled(running)

        async def marked(*, draining: bool) -> list[str]:
            request = pb.MarkNodeRequest(node_id="n2", draining=draining)
            await client.call(client.admin.MarkNode, request)
            return [node.id for node in (await client.status()).nodes if node.draining]

        found = [await marked(draining=draining) for draining in (True, True, False, False)]
        with pytest.raises(NotFoundError) as refused:
            await client.call(client.admin.MarkNode, pb.MarkNodeRequest(node_id="n9"))

    assert found == [["n2"], ["n2"], [], []]
    assert refused.value.reason == "NODE_UNKNOWN"


async def test_the_mark_of_a_node_that_is_away_is_shown_and_taken_away() -> None:
    """Drained, stopped, and unmarked before it comes back, or because it never will."""
    async with cluster(drive=False) as running:
        client = await filled(running)
        mark = operations.encode_mark(
            operations.NodeMark(NodeId("n9"), draining=True, marked_unix_ms=1)
        )
        await running.coordinator.txn([], [Put(keys.mark(NodeId("n9")), mark)])
        shown = next(node for node in (await client.status()).nodes if node.id == "n9")
        planned = pb.PlanRebalanceRequest(draining_node_ids=["n9"])
        await client.call(client.admin.PlanRebalance, planned)

        await client.call(client.admin.MarkNode, pb.MarkNodeRequest(node_id="n9"))

        after = [node.id for node in (await client.status()).nodes]
        with pytest.raises(NotFoundError):
            await client.call(client.admin.MarkNode, pb.MarkNodeRequest(node_id="n9"))
    assert (shown.draining, shown.registered) == (True, False)
    assert after == ["n1", "n2"]


async def test_a_draining_node_is_emptied_by_what_rebalancing_proposes() -> None:
    async with cluster(3, drive=False) as running:
        client = await filled(running)
        held = [name for name, node in (await where(client)).items() if node == ["n1"]]
        request = pb.MarkNodeRequest(node_id="n1", draining=True)
        await client.call(client.admin.MarkNode, request)

        proposed = await client.call(client.admin.PlanRebalance, pb.PlanRebalanceRequest())

    moved = {move.spec.replicas.shard_id: move for move in proposed.moves}
    assert set(held) <= set(moved)
    for shard_id in held:
        assert "n1" not in moved[shard_id].spec.replicas.node_ids
        assert moved[shard_id].spec.cause == "n1 is draining"
        assert moved[shard_id].plan.map_version == 1
    assert {load.node_id: load.draining for load in proposed.nodes}["n1"]


async def where(client: RouterClient) -> dict[str, list[str]]:
    return {shard.id: list(shard.node_ids) for shard in (await client.status()).shards}


async def test_a_new_gallery_keeps_away_from_draining_nodes() -> None:
    async with cluster(3, drive=False) as running:
        request = pb.MarkNodeRequest(node_id="n1", draining=True)
        await running.client.call(running.client.admin.MarkNode, request)

        await filled(running)

        nodes = await where(running.client)
    assert {node for held in nodes.values() for node in held} == {"n2", "n3"}


async def test_how_operations_are_run_can_be_read_and_changed() -> None:
    async with cluster(drive=False) as running:
        client = await filled(running)

        async def asked(**fields: Any) -> tuple[bool, int, int]:
            request = pb.RebalancerRequest(**fields)
            answer = await client.call(client.admin.Rebalancer, request)
            return answer.automatic, answer.at_once_max, answer.p99_limit_ms

        first = await asked()
        second = await asked(automatic=True, at_once_max=4)
        third = await asked(p99_limit_ms=80)
        with pytest.raises(InvalidError) as refused:
            await asked(at_once_max=0)

    assert (first, second, third) == ((False, 2, 0), (True, 4, 0), (True, 4, 80))
    assert refused.value.reason == "OUT_OF_BOUNDS"


async def test_how_many_copies_a_gallery_shall_have_can_be_said() -> None:
    async with cluster(drive=False) as running:
        client = await filled(running)

        request = pb.SetReplicasRequest(gallery="staff", replicas_count=2)
        answer = await client.call(client.admin.SetReplicas, request)
        request = pb.SetReplicasRequest(gallery="staff", replicas_count=9)
        with pytest.raises(InvalidError) as refused:
            await client.call(client.admin.SetReplicas, request)
        shown = await client.call(
            client.galleries.GetGallery, gallery_service_pb2.GetGalleryRequest(name="staff")
        )

    assert answer.gallery.replicas_count == 2
    assert shown.gallery.replicas_count == 2
    assert refused.value.reason == "REPLICAS_OUT_OF_RANGE"


async def test_a_drop_takes_what_joins_and_what_is_filled_along() -> None:
    async with cluster(3) as running:
        client = await filled(running, rows=5 * limits.SPLIT_TEMPLATES_MIN)
        begun = await start(client, split(S0))
        async with running.patience():
            while not any(shard.source_shard_ids for shard in (await client.status()).shards):
                pass

        request = gallery_service_pb2.DropGalleryRequest(name="staff")
        await client.call(client.galleries.DropGallery, request)

        left = await running.coordinator.list("dropped/")
        async with running.patience():
            while True:
                known = await listed(client, all=True)
                if known.operations[0].state == pb.OPERATION_STATE_ABORTED:
                    break
    assert [item.key for item in left.items] == [
        f"dropped/staff.1f00aa23.{number:04d}" for number in range(6)
    ]
    assert known.operations[0].id == begun.id
    assert known.operations[0].note == "the gallery was dropped"
