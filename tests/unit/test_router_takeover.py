"""Takeover by order of an operator."""

import asyncio

import pytest

from facegrid.api.admin.v1 import admin_service_pb2 as pb
from facegrid.coord import keys
from facegrid.errors import NotFoundError, UnavailableError
from facegrid.format.records import decode_shard_map
from facegrid.ids import GalleryName
from tests.fakes.router_cluster import Cluster, cluster


async def order(running: Cluster, node: str) -> list[tuple[str, str]]:
    client = running.client
    answer = await client.call(client.admin.TakeOver, pb.TakeOverRequest(node_id=node))
    return [(shard.id.rpartition(".")[2], shard.primary) for shard in answer.shards]


async def nodes_of_shards(running: Cluster) -> list[tuple[str, ...]]:
    item = await running.coordinator.get(keys.shard_map(GalleryName("staff")))
    assert item is not None, "the gallery was created"
    return [shard.node_ids for shard in decode_shard_map(item.value).shards]


async def test_the_shards_of_a_node_go_to_its_followers_once() -> None:
    async with cluster() as running:
        await running.client.create(replicas_count=2)
        before = await nodes_of_shards(running)

        first = await order(running, "n1")
        after = await nodes_of_shards(running)
        again = await order(running, "n1")

    mine = [number for number, nodes in enumerate(before) if nodes[0] == "n1"]
    assert first == [(f"{number:04d}", "n2") for number in mine]
    assert [nodes[0] for nodes in after] == ["n2"] * len(after)
    assert [set(nodes) for nodes in after] == [{"n1", "n2"}] * len(after)
    assert again == []


async def test_a_follower_that_serves_is_preferred_to_one_that_is_only_registered() -> None:
    """n2 is registered, comes first in every map, and does not tell what it serves."""
    async with cluster(nodes=3) as running:
        await running.client.create(replicas_count=3, shards_count=3)
        orders = await nodes_of_shards(running)
        ailing = next(nodes[1] for nodes in orders if nodes[0] == "n1")
        (sound,) = {"n2", "n3"} - {ailing}
        node = next(one for one in running.nodes if one.node_id == ailing)
        node.mischief.fail["Status"] = UnavailableError("being opened", reason="SHARD_OPENING")

        taken = await order(running, "n1")
        node.mischief.fail.clear()

    assert {primary for _, primary in taken} == {sound}


async def test_a_node_that_no_map_names_and_one_without_an_heir_are_refused() -> None:
    async with cluster(nodes=1) as running:
        await running.client.create()
        before = await nodes_of_shards(running)

        with pytest.raises(NotFoundError) as unknown:
            await order(running, "n7")
        with pytest.raises(UnavailableError) as alone:
            await order(running, "n1")

        assert (unknown.value.reason, alone.value.reason) == ("NODE_UNKNOWN", "TOO_FEW_NODES")
        assert await nodes_of_shards(running) == before


async def test_a_gallery_whose_primary_dies_while_it_is_created_is_there_with_its_successor() -> (
    None
):
    """1 a node is dead and still listed; 2 a gallery is created on it; 3 others take it over."""
    async with cluster() as running, asyncio.TaskGroup() as tasks:
        await running.nodes[0].crash()
        creating = tasks.create_task(running.client.create(replicas_count=2))
        watcher = running.client.server.watcher
        await running.until(lambda: "staff" in watcher.topology.galleries)
        await order(running, "n1")

        assert (await creating).name == "staff"
        assert [nodes[0] for nodes in await nodes_of_shards(running)] == ["n2"] * 4
