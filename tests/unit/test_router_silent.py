"""Nodes that say nothing: others are asked, searches go on, and later ones pass them over."""

import asyncio
from typing import Any

import pytest

from facegrid.api.v1 import enrolment_service_pb2, identification_service_pb2, types_pb2
from facegrid.errors import UnavailableError
from facegrid.wire import to_wire_vectors
from router.plan.hedge import HEALTH_S, QUIET_S
from tests.fakes.router_cluster import Cluster, cluster, faces

pytestmark = pytest.mark.alone

EVERYBODY = [f"s{row}" for row in range(40)]
SILENCE_S = QUIET_S + HEALTH_S


async def filled(running: Cluster, **changes: int) -> types_pb2.Token:
    """Create a gallery of four shards with 40 subjects, alike on all copies."""
    await running.client.create(**{"replicas_count": 2, **changes})
    written = await running.client.enrol(faces(40), EVERYBODY)
    running.copy_rows()
    return written.token


async def timed(work: Any) -> tuple[Any, float]:
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    return await work, loop.time() - started_s


def best(answer: identification_service_pb2.IdentifyResponse) -> list[str]:
    return [found.candidates[0].subject_id for found in answer.lists]


async def test_a_black_hole_costs_one_search_a_second_and_later_ones_nothing() -> None:
    """1. the link to n1 holds everything back. 2. a search waits for n1 until a health check is
    not answered either, and asks n2. 3. later ones do not ask n1.
    """
    async with cluster() as running:
        await filled(running)
        async with running.linked(0) as link:
            link.hold()
            first, first_s = await timed(running.client.identify(faces(40), k=1))
            later = [await timed(running.client.identify(faces(40), k=1)) for _ in range(5)]

    assert best(first) == EVERYBODY
    assert first.coverage.share == 1.0
    assert SILENCE_S * 0.9 < first_s < SILENCE_S + 2
    assert [best(answer) for answer, _ in later] == [EVERYBODY] * 5
    assert sum(took_s for _, took_s in later) < SILENCE_S


async def test_a_silent_node_is_asked_again_once_it_answers_health_checks() -> None:
    async with cluster() as running:
        await filled(running)
        pool = running.client.server._pool
        async with running.linked(0) as link:
            link.hold()
            await running.client.identify(faces(1))
            silent = [pool.silent(node.node_id) for node in running.nodes]
            link.heal()
            await running.until(lambda: not pool.silent(running.nodes[0].node_id))
            failing = [load.failing for load in pool.loads().values()]

    assert silent == [True, False]
    assert failing == [False, False]


async def test_reads_of_single_shards_go_on_too() -> None:
    async with cluster() as running:
        await filled(running)
        async with running.linked(0) as link:
            link.hold()
            probe = to_wire_vectors(faces(40)[7:8])
            verify = identification_service_pb2.VerifyRequest(
                gallery="staff", subject_id="s7", probe=probe
            )
            get = enrolment_service_pb2.GetTemplateRequest(gallery="staff", template_id="t9")
            verified, verify_s = await timed(
                running.client.call(running.client.identification.Verify, verify)
            )
            got, get_s = await timed(
                running.client.call(running.client.enrolment.GetTemplate, get)
            )

    assert (verified.template_id, got.subject_id) == ("t7", "s9")
    assert verify_s + get_s < SILENCE_S + 2


async def test_a_node_that_lives_and_waits_for_a_position_is_not_silent() -> None:
    """The token is of another router, so this one saw nobody reach it: waiting is no failure."""
    async with cluster() as running:
        token = await filled(running)
        for item in token.positions:
            item.position += 1
        for node in running.nodes:
            node.mischief.hold["Search"] = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            answer = group.create_task(running.client.identify(faces(1), k=1, after=token))
            await asyncio.wait([answer], timeout=2 * SILENCE_S)
            asked = [len(node.searches) for node in running.nodes]
            pool = running.client.server._pool
            silent = [pool.silent(node.node_id) for node in running.nodes]
            for node in running.nodes:
                for shard in node.shards.values():
                    shard.position += 1
                node.mischief.hold["Search"].set()

    assert sum(asked) == 2
    assert silent == [False, False]
    assert best(answer.result()) == ["s0"]


async def test_a_silent_node_is_noticed_even_where_it_might_wait_for_a_position() -> None:
    async with cluster() as running:
        token = await filled(running)
        for node in running.nodes:
            for shard in node.shards.values():
                shard.position += 1
        for item in token.positions:
            item.position += 1
        async with running.linked(0) as link:
            link.hold()
            answer, took_s = await timed(
                running.client.identify(faces(40), k=1, after=token, timeout_s=30)
            )

    assert best(answer) == EVERYBODY
    assert took_s < SILENCE_S + 2


async def test_a_silent_node_without_another_copy_is_waited_for() -> None:
    async with cluster() as running:
        await filled(running, replicas_count=1)
        async with running.linked(0) as link:
            link.hold()
            async with asyncio.TaskGroup() as group:
                answer = group.create_task(running.client.identify(faces(40), k=1))
                await asyncio.wait([answer], timeout=2 * SILENCE_S)
                assert not answer.done()
                link.heal()

    assert best(answer.result()) == EVERYBODY


async def test_nobody_waits_for_a_silent_node_where_the_other_copy_only_lacks_confirmation() -> (
    None
):
    """n1 is silent and n2 cut off from etcd: who takes unconfirmed answers gets them of n2, who
    does not hears why.
    """
    async with cluster() as running:
        await filled(running)
        running.nodes[1].mischief.cut_off = True
        async with running.linked(0) as link:
            link.hold()
            answer, took_s = await timed(running.client.identify(faces(40), k=1, timeout_s=30))
            with pytest.raises(UnavailableError) as caught:
                await running.client.identify(faces(40), unconfirmed_max=0, timeout_s=30)

    # The router vouches for n2 where it is the primary, of half of the shards.
    assert (best(answer), answer.coverage.unconfirmed_share) == (EVERYBODY, 0.5)
    assert took_s < SILENCE_S + 2
    assert caught.value.reason == "UNCONFIRMED"
