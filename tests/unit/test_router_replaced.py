"""Writes to shards that are split or merged meanwhile reach those in their place, once."""

import asyncio
from typing import Any

import pytest

from facegrid.api.admin.v1 import admin_service_pb2
from facegrid.api.shard.v1.shard_service_pb2 import LoadSegment
from facegrid.api.v1 import enrolment_service_pb2
from facegrid.errors import FencedError, NotFoundError, UnavailableError
from facegrid.ids import ShardId
from facegrid.wire import from_wire_token
from router.dispatch.map_news import REFRESH_S_MAX
from tests.fakes.reshaping import SUBJECTS, Reshaping, reshaping
from tests.fakes.router_cluster import faces

LATE_S = 4 * REFRESH_S_MAX
NEW = [f"n{row}" for row in range(30)]


async def enrol(running: Reshaping, request_id: str = "r7") -> Any:
    return await running.client.enrol(faces(30, seed=2), NEW, request_id=request_id)


async def erase(running: Reshaping, **ids: list[str]) -> Any:
    request = enrolment_service_pb2.EraseRequest(gallery="staff", request_id="e1", **ids)
    return await running.client.call(running.client.enrolment.Erase, request)


async def held(running: Reshaping) -> list[str]:
    """Return the subjects that the shards of the newest map hold, once for each time."""
    return sorted(
        name[0]
        for shard in (await running.map()).shards
        for name in running.holder(shard.shard_id).shards[shard.shard_id].rows
    )


async def positions(running: Reshaping, written: Any) -> set[ShardId]:
    """Return the shards that a token names, of those in the newest map."""
    serving = {shard.shard_id for shard in (await running.map()).shards}
    return serving & from_wire_token(written.token).positions.keys()


async def test_rows_for_a_shard_that_was_split_go_to_its_children_under_the_same_id() -> None:
    """1. a shard is split, the router hears nothing. 2. rows for it are refused, by a node that
    tells of a newer map. 3. the router hears of it: the rows are divided anew.
    """
    async with reshaping() as running:
        await running.fill(shards_count=1)
        running.maps.hold()
        children = await running.split(0)
        async with asyncio.TaskGroup() as group:
            written = group.create_task(enrol(running))
            await asyncio.wait([written], timeout=LATE_S)
            assert not written.done()
            running.maps.release()
        done = written.result()
        again = await enrol(running)

        assert (done.enrolled_count, done.unchanged_count) == (30, 0)
        assert (again.enrolled_count, again.token) == (30, done.token)
        assert await positions(running, done) == set(children)
        assert await held(running) == sorted([*SUBJECTS, *NEW])


async def test_a_write_that_is_held_back_until_its_shard_is_replaced_goes_on_behind_it() -> None:
    """1. a primary holds a write. 2. its shard is split. 3. the write is fenced off."""
    async with reshaping() as running:
        await running.fill(shards_count=1)
        node = running.nodes[0]
        node.mischief.hold["Append"] = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            written = group.create_task(enrol(running))
            await running.until(lambda: "Append" in node.calls[1:])
            await running.split(0)
            node.mischief.hold.pop("Append").set()

        assert written.result().enrolled_count == 30
        assert await held(running) == sorted([*SUBJECTS, *NEW])


async def test_what_a_source_did_and_did_not_answer_is_found_unchanged_by_its_children() -> None:
    async with reshaping() as running:
        await running.fill(shards_count=1)
        await enrol(running, "r6")
        running.nodes[0].mischief.hold["Append"] = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            written = group.create_task(enrol(running, "r7"))
            await running.until(lambda: running.nodes[0].calls.count("Append") == 3)
            await running.split(0)
            running.nodes[0].mischief.hold.pop("Append").set()

        assert (written.result().enrolled_count, written.result().unchanged_count) == (0, 30)


async def test_a_merge_amid_a_request_leaves_its_counts_right_and_its_id_usable() -> None:
    """1. of a request, the second shard acknowledges its rows, the first holds its own. 2. both
    are merged. 3. the child gets all rows of the request, those that it has included, so that a
    repetition of the request says the same to it.
    """
    async with reshaping() as running:
        await running.fill(shards_count=2)
        first, second = running.nodes
        first.mischief.hold["Append"] = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            written = group.create_task(enrol(running))
            await running.until(lambda: "r7" in next(iter(second.shards.values())).answers)
            (child,) = await running.merge(0)
            first.mischief.hold.pop("Append").set()
        done = written.result()
        again = await enrol(running)

        assert (done.enrolled_count, done.unchanged_count) == (30, 0)
        assert again.enrolled_count + again.unchanged_count == 30
        assert await positions(running, done) == {child}
        assert await held(running) == sorted([*SUBJECTS, *NEW])


async def test_an_erasure_goes_to_all_shards_that_may_have_the_ids() -> None:
    async with reshaping() as running:
        await running.fill(shards_count=2)
        running.maps.hold()
        await running.split(0)
        await running.split(2)
        async with asyncio.TaskGroup() as group:
            erased = group.create_task(
                erase(running, template_ids=["t1", "t2", "t3"], subject_ids=["s3", "s4", "s5"])
            )
            await asyncio.wait([erased], timeout=LATE_S)
            assert not erased.done()
            running.maps.release()
        gone = {"s1", "s2", "s3", "s4", "s5"}

        assert erased.result().erased_templates_count == 5
        assert len(await positions(running, erased.result())) == 4
        assert await held(running) == sorted(set(SUBJECTS) - gone)


async def test_children_that_do_not_take_writes_yet_are_asked_again() -> None:
    async with reshaping(nodes=1) as running:
        await running.fill(shards_count=1)
        await running.split(0)
        node = running.nodes[0]
        node.mischief.fail["CheckIds"] = UnavailableError("not yet", reason="SHARD_PENDING")
        async with asyncio.TaskGroup() as group:
            written = group.create_task(enrol(running))
            await asyncio.wait([written], timeout=LATE_S)
            assert not written.done()
            node.mischief.fail.clear()

        assert written.result().enrolled_count == 30


async def test_a_fenced_source_whose_children_no_map_names_is_told_before_long() -> None:
    async with reshaping() as running:
        await running.fill(shards_count=1)
        running.nodes[0].mischief.fail["Append"] = FencedError("fenced")
        with pytest.raises(FencedError) as caught:
            await enrol(running)

    assert caught.value.reason == "FENCED"


def load_request(shard_id: str) -> admin_service_pb2.LoadRequest:
    segments = [LoadSegment(sha256="ab" * 32, rows_count=5)]
    return admin_service_pb2.LoadRequest(
        gallery="staff", shard_id=shard_id, request_id="l1", segments=segments
    )


@pytest.mark.parametrize("late", [False, True])
async def test_a_load_into_a_replaced_shard_says_what_to_do(*, late: bool) -> None:
    async with reshaping() as running:
        await running.fill(shards_count=1)
        source = (await running.map()).shards[0].shard_id
        if late:
            running.maps.hold()
        await running.split(0)
        async with asyncio.TaskGroup() as group:
            loading = group.create_task(
                refused(running.client.call(running.client.admin.Load, load_request(source)))
            )
            await asyncio.wait([loading], timeout=LATE_S if late else None)
            running.maps.release()

    assert loading.result().reason == "SHARD_REPLACED"
    assert "fgctl load --abort" in loading.result().message


async def refused(work: Any) -> NotFoundError:
    with pytest.raises(NotFoundError) as caught:
        await work
    return caught.value


async def test_a_load_into_a_shard_that_the_router_does_not_know_yet_waits_for_its_map() -> None:
    async with reshaping() as running:
        await running.fill(shards_count=1)
        running.maps.hold()
        children = await running.split(0)
        async with asyncio.TaskGroup() as group:
            loading = group.create_task(
                running.client.call(running.client.admin.Load, load_request(children[1]))
            )
            await asyncio.wait([loading], timeout=LATE_S)
            assert not loading.done()
            running.maps.release()

    assert loading.result().enrolled_count == 5
