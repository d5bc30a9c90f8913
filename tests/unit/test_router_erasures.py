"""What was erased while it was read is in no answer given after the acknowledgement."""

import asyncio
from collections.abc import Awaitable, Callable, Collection

import numpy as np
import pytest

from facegrid.api.v1 import enrolment_service_pb2
from facegrid.errors import NotFoundError, UnavailableError
from facegrid.ids import GalleryName
from facegrid.model import Coverage
from router.dispatch.coalesce import Share
from router.dispatch.erasures import Erasures, Gone, Name
from router.dispatch.question import Answer
from router.plan.merge import Merged
from tests.fakes.router_cluster import Cluster, cluster, faces

STAFF, OTHER = GalleryName("staff"), GalleryName("other")
Found = list[Name]


def without(found: Found, gone: Gone) -> Found:
    return [name for name in found if name not in gone]


def erased(
    erasures: Erasures,
    *,
    subject_ids: Collection[str] = (),
    template_ids: Collection[str] = (),
    gallery: GalleryName = STAFF,
) -> None:
    erasures.acknowledge(gallery, subject_ids=subject_ids, template_ids=template_ids)


async def settled(
    erasures: Erasures, found: Found, *during: Callable[[], None]
) -> tuple[Found, int]:
    """Read the same again and again, something happening during each; return how often too."""
    reads = 0

    async def read() -> Found:
        nonlocal reads
        if reads < len(during):
            during[reads]()
        reads += 1
        return found

    return await erasures.settled(STAFF, read, list, without), reads


async def test_what_nobody_erased_is_read_once() -> None:
    erasures = Erasures()
    erased(erasures, subject_ids=["a"])

    def others() -> None:
        erased(erasures, subject_ids=["b"], template_ids=["t9"])
        erased(erasures, subject_ids=["a"], gallery=OTHER)

    assert await settled(erasures, [("a", "t1")], others) == ([("a", "t1")], 1)


@pytest.mark.parametrize("ids", [{"subject_ids": ["a"]}, {"template_ids": ["t1"]}])
async def test_what_was_erased_meanwhile_is_read_again_and_then_left_out(
    ids: dict[str, list[str]],
) -> None:
    erasures = Erasures()
    found = [("a", "t1"), ("b", "t2")]

    once = await settled(erasures, found, lambda: erased(erasures, **ids))
    twice = await settled(erasures, found, *[lambda: erased(erasures, **ids)] * 2)

    assert once == (found, 2)
    assert twice == ([("b", "t2")], 2)


async def test_nothing_is_kept_once_no_read_is_under_way_that_began_before() -> None:
    erasures = Erasures()
    ends = [asyncio.get_running_loop().create_future() for _ in range(3)]
    kept = []

    async def one(end: asyncio.Future[Found]) -> Found:
        return await erasures.settled(STAFF, lambda: end, list, without)

    async with asyncio.TaskGroup() as group:
        for row, end in enumerate(ends):
            reading = group.create_task(one(end))
            await asyncio.wait([reading], timeout=0)
            erased(erasures, subject_ids=[f"s{row}"], template_ids=[f"t{row}"])
            kept.append(erasures.ids_count)
        for end in (ends[1], ends[0], ends[2]):
            end.set_result([])
            await asyncio.wait([end])
            await asyncio.wait([reading], timeout=0)
            kept.append(erasures.ids_count)

    assert kept == [2, 4, 6, 6, 2, 0]


async def test_more_erasures_than_can_be_kept_make_a_read_again_and_then_refuse_it() -> None:
    erasures = Erasures(ids_max=3)

    def many() -> None:
        for row in range(4):
            erased(erasures, subject_ids=[f"other{row}"])

    assert await settled(erasures, [("a", "t1")], many) == ([("a", "t1")], 2)
    assert await settled(erasures, [], many, many) == ([], 1)
    with pytest.raises(UnavailableError) as caught:
        await settled(erasures, [("a", "t1")], many, many)
    assert caught.value.reason == "ERASED_MEANWHILE"
    assert erasures.ids_count == 0


def test_a_share_loses_only_what_is_gone_from_its_own_lists() -> None:
    merged = Merged(
        [0, 1, 3, 5],
        np.array([0.9, 0.8, 0.7, 0.6, 0.5], np.float32),
        ["a", "a", "b", "a", "c"],
        ["1", "2", "3", "4", "5"],
    )
    share = Share(Answer(merged, Coverage(1.0, 1, 1), 1), 1, 2)

    left = share.without({("a", "2"), ("a", "4"), ("x", "x")})

    assert share.names() == [("a", "2"), ("b", "3"), ("a", "4"), ("c", "5")]
    assert left.names() == [("b", "3"), ("c", "5")]
    assert (left.first, left.rows_count, left.answer.merged.starts) == (0, 2, [0, 1, 2])
    assert left.answer.merged.scores.tolist() == merged.scores[[2, 4]].tolist()


async def erase(running: Cluster, *subjects: str) -> None:
    request = enrolment_service_pb2.EraseRequest(
        gallery="staff", request_id=f"erase-{subjects}", subject_ids=subjects
    )
    await running.client.call(running.client.enrolment.Erase, request)


async def reason(call: Awaitable[object]) -> str:
    """Return the reason why there is nothing to be found."""
    with pytest.raises(NotFoundError) as caught:
        await call
    return caught.value.reason


async def test_a_search_that_waits_for_a_slower_node_shows_nobody_erased_meanwhile() -> None:
    x = faces(40)
    async with cluster() as running:
        await running.client.create()
        await running.client.enrol(x, [f"s{row}" for row in range(40)])
        fast, slow = running.nodes
        subject = next(name for shard in fast.shards.values() for name, _ in shard.rows)
        slow.mischief.hold["Search"] = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            searching = group.create_task(running.client.identify(x, k=40))
            while not (fast.answered and slow.searches):
                await asyncio.wait([searching], timeout=0.001)
            await erase(running, subject)
            slow.mischief.hold["Search"].set()
        found = {row.subject_id for one in searching.result().lists for row in one.candidates}

    assert found == {f"s{row}" for row in range(40)} - {subject}
    assert [len(node.searches) for node in running.nodes] == [2, 2]


async def test_a_template_that_waits_for_a_slower_node_is_not_returned_once_erased() -> None:
    x = faces(40)
    async with cluster() as running:
        await running.client.create()
        await running.client.enrol(x, [f"s{row}" for row in range(40)])
        fast, slow = running.nodes
        subject, template = next(name for shard in fast.shards.values() for name in shard.rows)
        slow.mischief.hold["Get"] = asyncio.Event()
        request = enrolment_service_pb2.GetTemplateRequest(gallery="staff", template_id=template)
        async with asyncio.TaskGroup() as group:
            getting = group.create_task(
                reason(running.client.call(running.client.enrolment.GetTemplate, request))
            )
            while not (fast.answered == ["Get", "Get"] and "Get" in slow.calls):
                await asyncio.wait([getting], timeout=0.001)
            await erase(running, subject)
            slow.mischief.hold["Get"].set()

    assert getting.result() == "TEMPLATE_UNKNOWN"
