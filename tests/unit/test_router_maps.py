"""Reads while the shape of a gallery changes: nothing fails, nothing twice, nothing missing."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from facegrid.api.v1 import (
    enrolment_service_pb2,
    gallery_service_pb2,
    identification_service_pb2,
    types_pb2,
)
from facegrid.coord import keys
from facegrid.errors import InvalidError, UnavailableError
from facegrid.format import records
from facegrid.wire import to_wire_vectors
from router.dispatch.map_news import REFRESH_S_MAX
from tests.fakes.reshaping import SUBJECTS, Reshaping, reshaping
from tests.fakes.router_cluster import faces

LATE_S = 3 * REFRESH_S_MAX
"""Later than a router waits that was told of nothing."""

Change = Callable[[Reshaping], Awaitable[object]]


async def split(running: Reshaping) -> None:
    await running.split(1)


async def merge(running: Reshaping) -> None:
    await running.merge(1)


async def move(running: Reshaping) -> None:
    await running.move(0, "n2")


async def twice(running: Reshaping) -> None:
    await running.split(0)
    await running.merge(3)


CHANGES = [split, merge, move, twice]


async def identify(running: Reshaping, **fields: Any) -> Any:
    return await running.client.identify(faces(40), k=40, **fields)


def check(answer: Any, version: int) -> None:
    """Everybody is found, once, by one map that covers everything."""
    assert (answer.map_version, answer.coverage.share) == (version, 1.0)
    assert answer.coverage.unconfirmed_share == 0.0
    assert [found.candidates[0].subject_id for found in answer.lists] == SUBJECTS
    for found in answer.lists:
        assert sorted(row.subject_id for row in found.candidates) == sorted(SUBJECTS)


async def get(running: Reshaping, template_id: str, subject_id: str = "", **fields: Any) -> Any:
    request = enrolment_service_pb2.GetTemplateRequest(
        gallery="staff", template_id=template_id, subject_id=subject_id, **fields
    )
    return await running.client.call(running.client.enrolment.GetTemplate, request)


async def verify(running: Reshaping, row: int, **fields: Any) -> Any:
    request = identification_service_pb2.VerifyRequest(
        gallery="staff",
        subject_id=SUBJECTS[row],
        probe=to_wire_vectors(faces(40)[row : row + 1]),
        **fields,
    )
    return await running.client.call(running.client.identification.Verify, request)


async def late(running: Reshaping, *work: asyncio.Task[Any]) -> None:
    """Let the router hear of maps long after it was told that there are newer ones."""
    await asyncio.wait(work, timeout=LATE_S)
    assert not any(task.done() for task in work)
    running.maps.release()


@pytest.mark.parametrize("change", CHANGES)
async def test_a_search_by_an_old_map_waits_for_the_one_that_a_node_tells_of(
    change: Change,
) -> None:
    async with reshaping() as running:
        await running.fill()
        running.maps.hold()
        await change(running)
        async with asyncio.TaskGroup() as group:
            answer = group.create_task(identify(running))
            await late(running, answer)

        check(answer.result(), (await running.map()).version)
        check(await identify(running), (await running.map()).version)


@pytest.mark.parametrize("change", CHANGES)
async def test_other_reads_by_an_old_map_wait_likewise(change: Change) -> None:
    async with reshaping() as running:
        await running.fill()
        served = [*(await running.map()).shards]
        running.maps.hold()
        await change(running)
        gone = {shard.shard_id for shard in served} - {
            shard.shard_id for shard in (await running.map()).shards
        }
        names = {
            row
            for row, subject in enumerate(SUBJECTS)
            for node in running.nodes
            for shard in node.shards.values()
            for name in shard.rows
            if name[0] == subject
        }
        assert len(names) == 40
        assert change is move or gone
        async with asyncio.TaskGroup() as group:
            found = group.create_task(get(running, "t7"))
            scores = [group.create_task(verify(running, row)) for row in range(40)]
            await asyncio.wait([found, *scores], timeout=LATE_S)
            assert not found.done()
            running.maps.release()

    assert found.result().subject_id == "s7"
    assert {round(one.result().score, 2) for one in scores} == {1.0}


async def test_a_map_that_changes_amid_a_fan_out_gives_one_answer_of_the_newer_one() -> None:
    """1. n1 has answered nothing yet, n2 holds the question. 2. a shard of n2 is split, which both
    hear at once. 3. n2 refuses what it has no more. 4. everything is asked anew.
    """
    async with reshaping() as running:
        await running.fill()
        second = running.nodes[1]
        second.mischief.hold["Search"] = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            answer = group.create_task(identify(running))
            await running.until(lambda: len(second.searches) == 1)
            await running.split(1)
            second.mischief.hold["Search"].set()

        check(answer.result(), 3)
        assert {request.map_version for request in second.searches} == {1, 3}


async def test_copies_that_join_are_asked_and_those_that_leave_are_not_missed() -> None:
    """1. a shard of n1 is served by n2 too, and n1 is slow: n2 is asked. 2. n1 leaves. 3. it comes
    back, n2 leaves: n1 is asked again.
    """
    async with reshaping() as running:
        await running.fill(shards_count=1)
        first, second = running.nodes
        await running.move(0, "n2", leave=False)
        first.mischief.hold["Search"] = asyncio.Event()
        check(await identify(running), 4)
        first.mischief.hold.pop("Search").set()
        assert second.searches
        await running.put(shards=(replace((await running.map()).shards[0], node_ids=("n2",)),))
        before = len(first.searches)
        check(await identify(running), 5)
        assert len(first.searches) == before
        await running.move(0, "n1")
        check(await identify(running), 9)
        assert len(first.searches) > before


async def test_searches_go_on_while_shapes_change_again_and_again() -> None:
    async with reshaping() as running:
        await running.fill()
        answers: list[Any] = []
        done = asyncio.Event()

        async def search() -> None:
            while not done.is_set():
                answers.append(await identify(running))

        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(search())
            for _ in range(4):
                await running.split(0)
                await running.move(0, "n2")
                await running.move(0, "n1")
                await running.merge(0)
            last = (await running.map()).version
            await running.until(lambda: bool(answers) and answers[-1].map_version == last)
            done.set()

        for answer in answers:
            check(answer, answer.map_version)
        # What late answers told of shards that are gone goes with the next change.
        await running.move(0, "n2")
        await running.until(lambda: running.client.server._positions.shards_count == 4)


async def test_nodes_that_hear_of_a_map_later_than_the_router_are_asked_again() -> None:
    """1. the router knows of a split, and the node of the children does not yet. 2. it refuses
    them, for longer than a router waits for something else. 3. it hears of it, and answers.
    """
    async with reshaping(nodes=1) as running:
        await running.fill()
        node = running.nodes[0]
        children = await running.split(1)
        node.mischief.refuse = dict.fromkeys(children, "SHARD_PENDING")
        async with asyncio.TaskGroup() as group:
            answer = group.create_task(identify(running, unconfirmed_max=0.0))
            await asyncio.wait([answer], timeout=LATE_S)
            assert not answer.done()
            node.mischief.refuse = {}

        check(answer.result(), 3)


async def test_a_node_that_knows_of_a_map_which_never_comes_holds_nobody_up_for_ever() -> None:
    async with reshaping() as running:
        await running.fill()
        running.maps.hold()
        await running.split(1)
        with pytest.raises(UnavailableError) as caught:
            await running.client.identify(faces(40), k=1, timeout_s=2)
        answer = await running.client.identify(faces(40), k=40, coverage_min=0.1, timeout_s=2)

    assert caught.value.reason == "COVERAGE_TOO_LOW"
    assert "SHARD_NOT_HERE" in caught.value.message
    assert answer.coverage.share == 0.75


def token(*positions: tuple[str, int]) -> types_pb2.Token:
    named = [types_pb2.Token.Position(shard_id=name, position=at) for name, at in positions]
    return types_pb2.Token(positions=named)


async def test_a_token_of_a_replaced_shard_asks_nothing_more() -> None:
    async with reshaping() as running:
        await running.fill()
        served = (await running.map()).shards
        before = token(*((shard.shard_id, 1) for shard in served))
        await running.split(1)
        await running.merge(3)

        check(await identify(running, after=before), 5)
        assert (await verify(running, 3, after=before)).score > 0.9
        assert (await get(running, "t3", after=before)).subject_id == "s3"
        assert running.client.server._positions.reached({served[0].shard_id: 1})


async def test_a_token_of_a_shard_that_is_not_known_yet_waits_for_its_map() -> None:
    async with reshaping() as running:
        await running.fill()
        running.maps.hold()
        children = await running.split(1)
        after = token(*((child, 1) for child in children))
        async with asyncio.TaskGroup() as group:
            answer = group.create_task(identify(running, after=after))
            await late(running, answer)

        check(answer.result(), 3)


async def test_a_token_of_a_pending_shard_waits_for_its_map() -> None:
    async with reshaping() as running:
        await running.fill()
        children = await running.split(1)
        pending = await running.map()
        assert pending.next_number == 6
        running.maps.hold()
        again = await running.split(0)
        async with asyncio.TaskGroup() as group:
            answer = group.create_task(identify(running, after=token((again[0], 1))))
            await late(running, answer)

        check(answer.result(), 5)
        assert children[0].endswith(".0004")


@pytest.mark.parametrize("number", ["0009", "9", "x", "0001.1"])
async def test_a_token_of_a_shard_that_no_map_knows_is_refused(number: str) -> None:
    async with reshaping() as running:
        await running.fill()
        prefix = (await running.map()).shards[0].shard_id.rpartition(".")[0]
        for name in (f"{prefix}.{number}", f"staff.00000000.{number}"):
            with pytest.raises(InvalidError) as caught:
                await identify(running, after=token((name, 1)))
            assert caught.value.reason == "TOKEN_FOREIGN"


async def test_a_gallery_tells_how_many_shards_it_has_now() -> None:
    async with reshaping() as running:
        await running.fill()
        await running.split(1)
        client = running.client
        request = gallery_service_pb2.GetGalleryRequest(name="staff")
        described = await client.call(client.galleries.GetGallery, request)
        listed = await client.call(
            client.galleries.ListGalleries, gallery_service_pb2.ListGalleriesRequest()
        )
        again = await client.create()

    assert described.gallery.shards_count == 5
    assert described.gallery.templates_count == 40
    assert [gallery.shards_count for gallery in listed.galleries] == [5]
    assert again.shards_count == 5


async def test_a_gallery_is_dropped_with_its_pending_shards_and_joining_copies() -> None:
    async with reshaping() as running:
        await running.fill(shards_count=1)
        (source,) = (await running.map()).shards
        pending = replace(source, shard_id=source.shard_id[:-1] + "1", sources=(source.shard_id,))
        joined = replace(source, joining=("n2",))
        await running.put(shards=(joined,), pending=(pending,), made_count=2)
        request = gallery_service_pb2.DropGalleryRequest(name="staff")
        await running.client.call(running.client.galleries.DropGallery, request)
        found = await running.coordinator.list(keys.DROPPED)

    dropped = [records.decode_dropped(item.value) for item in found.items]
    assert [(one.shard_id, one.node_ids) for one in dropped] == [
        (source.shard_id, ("n1", "n2")),
        (pending.shard_id, ("n1",)),
    ]
