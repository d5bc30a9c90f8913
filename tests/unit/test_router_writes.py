"""Writes find the primary, also when it changes meanwhile, and never wait long for nothing."""

import asyncio
from typing import Any

import pytest

from facegrid.api.v1 import enrolment_service_pb2
from facegrid.errors import FencedError, UnavailableError
from router.dispatch.primaries import PATIENCE_S
from router.plan.hedge import HEALTH_S, QUIET_S
from tests.fakes.router_cluster import Cluster, cluster, faces

pytestmark = pytest.mark.alone

SILENT_S = QUIET_S + 2 * HEALTH_S
SHARD = "staff.1f00aa23.0000"


async def created(running: Cluster, *, replicas: int = 2) -> None:
    """Create a gallery of one shard, with n1 as its primary."""
    await running.client.create(shards_count=1, replicas_count=replicas)


def enrolling(running: Cluster, group: asyncio.TaskGroup) -> asyncio.Task[Any]:
    return group.create_task(running.client.enrol(faces(2), ["a", "b"], request_id="r7"))


async def timed(work: Any) -> tuple[Any, float]:
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    return await work, loop.time() - started_s


async def failed(running: Cluster) -> UnavailableError | FencedError:
    with pytest.raises((UnavailableError, FencedError)) as caught:
        await running.client.enrol(faces(2), ["a", "b"], request_id="r7", timeout_s=30)
    return caught.value


def requests_of(running: Cluster) -> list[list[str]]:
    """Return the ids of the requests that each node carried out."""
    return [list(node.shards[SHARD].answers) for node in running.nodes]


async def test_a_write_to_a_dead_primary_goes_to_its_successor_under_the_same_id() -> None:
    async with cluster() as running:
        await created(running)
        await running.nodes[0].crash()
        async with asyncio.TaskGroup() as group:
            written = enrolling(running, group)
            await asyncio.wait([written], timeout=PATIENCE_S / 4)
            assert not written.done()
            await running.move_primaries()

        assert written.result().enrolled_count == 2
        assert requests_of(running)[1] == ["r7"]


async def test_a_write_under_way_at_a_silent_primary_is_sent_to_its_successor_at_once() -> None:
    async with cluster() as running:
        await created(running)
        async with running.linked(0) as link, asyncio.TaskGroup() as group:
            link.hold()
            written = enrolling(running, group)
            await asyncio.wait([written], timeout=QUIET_S / 2)
            await running.move_primaries()
            _, took_s = await timed(written)

    assert requests_of(running)[1] == ["r7"]
    assert took_s < QUIET_S


async def test_a_write_to_a_silent_primary_without_successor_is_refused_before_long() -> None:
    async with cluster() as running:
        await created(running)
        async with running.linked(0) as link:
            link.hold()
            first, first_s = await timed(failed(running))
            second, second_s = await timed(failed(running))

    assert [error.reason for error in (first, second)] == ["NODE_SILENT"] * 2
    assert first.facts["shard"] == SHARD
    assert first_s < SILENT_S + 2
    assert second_s < PATIENCE_S + 1


async def test_a_write_to_a_dead_primary_without_successor_is_refused_before_long() -> None:
    async with cluster() as running:
        await created(running)
        await running.nodes[0].crash()
        error, took_s = await timed(failed(running))

    assert (error.reason, error.facts["node"]) == ("NODE_UNREACHABLE", "n1")
    assert took_s < PATIENCE_S + 2


async def test_a_primary_that_lives_and_takes_its_time_is_waited_for() -> None:
    async with cluster() as running:
        await created(running)
        running.nodes[0].mischief.hold["Append"] = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            written = enrolling(running, group)
            await asyncio.wait([written], timeout=SILENT_S + 0.5)
            assert not written.done()
            running.nodes[0].mischief.hold["Append"].set()

        assert written.result().enrolled_count == 2
        assert running.nodes[0].calls.count("Append") == 1


@pytest.mark.parametrize(
    "error",
    [
        UnavailableError("being recovered", reason="SHARD_OPENING"),
        FencedError("not told yet", reason="NOT_PRIMARY"),
    ],
)
async def test_a_primary_that_is_not_ready_yet_is_asked_again_soon(
    error: UnavailableError | FencedError,
) -> None:
    async with cluster() as running:
        await created(running)
        running.nodes[0].mischief.fail["Append"] = error
        async with asyncio.TaskGroup() as group:
            written = enrolling(running, group)
            await running.until(lambda: running.nodes[0].calls.count("Append") >= 2)
            running.nodes[0].mischief.fail.clear()

        assert written.result().enrolled_count == 2


async def test_a_fenced_primary_without_successor_is_told_after_a_second() -> None:
    async with cluster() as running:
        await created(running)
        running.nodes[0].mischief.fail["Append"] = FencedError("a newer primary rules")
        error, took_s = await timed(failed(running))

    assert isinstance(error, FencedError)
    assert took_s < PATIENCE_S + 1


async def test_an_erasure_is_taken_over_likewise() -> None:
    async with cluster() as running:
        await created(running)
        await running.client.enrol(faces(2), ["a", "b"])
        running.copy_rows()
        await running.nodes[0].crash()
        request = enrolment_service_pb2.EraseRequest(
            gallery="staff", request_id="e1", subject_ids=["a"]
        )
        async with asyncio.TaskGroup() as group:
            erased = group.create_task(
                running.client.call(running.client.enrolment.Erase, request)
            )
            await asyncio.wait([erased], timeout=PATIENCE_S / 4)
            await running.move_primaries()
        answer = await running.client.identify(faces(1), after=erased.result().token)

    assert erased.result().erased_templates_count == 1
    assert [row.subject_id for row in answer.lists[0].candidates] == ["b"]
