"""AsyncClient against the public services over a real loopback connection."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import count
from random import Random  # noqa: TID251 - seeded

import numpy as np
import pytest

from facegrid import (
    AsyncClient,
    Candidate,
    ConflictError,
    DeadlineError,
    Erasure,
    FacegridError,
    FencedError,
    Gallery,
    InvalidError,
    NotFoundError,
    OverloadedError,
    Token,
    UnavailableError,
    Verification,
)
from facegrid.client.ambient import Ambient
from facegrid.ids import GalleryName, ShardId
from facegrid.testing.fake_router import FakeRouter
from facegrid.testing.skipping_clock import SkippingClock

X = np.eye(8, dtype=np.float32)
IDS = [f"t-{row}" for row in range(8)]
SUBJECTS = [f"s-{row}" for row in range(8)]
STAFF = Gallery(
    name=GalleryName("staff"),
    uid="1f00aa23",
    dim=8,
    extractor="e@1",
    shards_count=1,
    replicas_count=1,
    train_at_templates_count=0,
)


def ambient() -> Ambient:
    numbers = count()
    return Ambient(SkippingClock(), Random(1), lambda: f"r-{next(numbers)}")


@pytest.fixture
async def router() -> AsyncIterator[FakeRouter]:
    async with FakeRouter() as router:
        yield router


@pytest.fixture
async def client(router: FakeRouter) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(router.address, ambient=ambient()) as client:
        await client.create_gallery("staff", dim=8, extractor="e@1")
        yield client


async def enrolled(client: AsyncClient, request_id: str | None = None) -> Token:
    return await client.enrol(
        "staff", template_ids=IDS, subject_ids=SUBJECTS, vectors=X, request_id=request_id
    )


async def test_galleries_are_created_described_listed_trained_and_dropped(
    client: AsyncClient,
) -> None:
    assert await client.create_gallery("staff", dim=8, extractor="e@1") == STAFF
    await enrolled(client)
    assert await client.get_gallery("staff") == replace(STAFF, templates_count=8)
    assert await client.list_galleries() == [STAFF]
    assert await client.train("staff") == replace(STAFF, codebook="c0debeef")
    await client.drop_gallery("staff")
    with pytest.raises(NotFoundError) as caught:
        await client.get_gallery("staff")
    assert (caught.value.reason, caught.value.facts) == ("GALLERY_UNKNOWN", {"gallery": "staff"})


async def test_what_is_enrolled_is_found_until_it_is_erased(client: AsyncClient) -> None:
    token = await enrolled(client)
    assert token == Token({ShardId("staff.0"): 1})
    lists = await client.identify("staff", X[:2], k=1, threshold=0.5, after=token)
    assert [one.candidates for one in lists] == [
        (Candidate("s-0", "t-0", 1.0, 1),),
        (Candidate("s-1", "t-1", 1.0, 1),),
    ]
    assert lists[0].coverage.share == 1.0
    assert await client.verify("staff", "s-2", X[2]) == Verification("s-2", "t-2", 1.0)
    template = await client.get_template("staff", "t-3")
    assert (template.template_id, template.subject_id) == ("t-3", "s-3")
    assert np.array_equal(template.vector, X[3])

    erasure = await client.erase("staff", subject_ids=["s-0"], template_ids=["t-1"])
    assert erasure == Erasure(Token({ShardId("staff.0"): 2}), 2)
    found = await client.identify("staff", X[0], after=erasure.token)
    assert "s-0" not in {candidate.subject_id for candidate in found[0].candidates}


async def test_an_answer_that_is_not_confirmed_says_so_or_is_refused(
    router: FakeRouter, client: AsyncClient
) -> None:
    await enrolled(client)
    router.faults.unconfirmed_share = 0.5

    lists = await client.identify("staff", X[:1], unconfirmed_max=0.5)
    verified = await client.verify("staff", "s-2", X[2])
    template = await client.get_template("staff", "t-3")

    assert lists[0].coverage.unconfirmed_share == 0.5
    assert verified == Verification("s-2", "t-2", 1.0, unconfirmed=True)
    assert template.unconfirmed
    hasty = AsyncClient(router.address, timeout_s=0.3)
    for read in (
        hasty.identify("staff", X[:1], unconfirmed_max=0.49),
        hasty.identify("staff", X[:1], unconfirmed_max=0),
        hasty.verify("staff", "s-2", X[2], confirmed_only=True),
        hasty.get_template("staff", "t-3", confirmed_only=True),
    ):
        with pytest.raises(UnavailableError) as caught:
            await read
        assert caught.value.reason == "UNCONFIRMED"
    await hasty.aclose()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
async def test_every_float_dtype_and_layout_is_taken(client: AsyncClient, dtype: str) -> None:
    x = np.asfortranarray(X).astype(dtype)
    await client.enrol("staff", template_ids=IDS, subject_ids=SUBJECTS, vectors=x)
    lists = await client.identify("staff", x[3:6], k=1)
    assert [one.candidates[0].subject_id for one in lists] == ["s-3", "s-4", "s-5"]


async def test_ids_may_come_in_an_array(client: AsyncClient) -> None:
    await client.enrol(
        "staff", template_ids=np.array(IDS).tolist(), subject_ids=tuple(SUBJECTS), vectors=X
    )
    assert (await client.get_gallery("staff")).templates_count == 8


@pytest.mark.parametrize(
    "error", [UnavailableError("away"), FencedError("newer"), OverloadedError("busy")]
)
async def test_what_may_succeed_later_is_tried_again(
    router: FakeRouter, client: AsyncClient, error: FacegridError
) -> None:
    router.faults.errors += [error, error]
    await enrolled(client)
    assert router.faults.errors == []


async def test_what_people_must_do_something_about_is_told_at_once(
    router: FakeRouter, client: AsyncClient
) -> None:
    router.faults.errors += [UnavailableError("start more", reason="TOO_FEW_NODES")] * 2
    with pytest.raises(UnavailableError) as caught:
        await enrolled(client)
    assert (caught.value.reason, len(router.faults.errors)) == ("TOO_FEW_NODES", 1)


async def test_a_lost_answer_is_asked_again_with_the_same_request_id(
    router: FakeRouter, client: AsyncClient
) -> None:
    router.faults.lost_acks = 2
    assert await enrolled(client) == Token({ShardId("staff.0"): 1})
    assert router.store.requests == ["r-0"] * 3


async def test_a_request_id_given_is_the_one_sent(router: FakeRouter, client: AsyncClient) -> None:
    await enrolled(client, "mine")
    await enrolled(client, "mine")
    assert router.store.requests == ["mine", "mine"]
    assert router.store.find("staff").position == 1


async def test_a_conflict_is_told_with_its_row_and_not_tried_again(
    router: FakeRouter, client: AsyncClient
) -> None:
    await enrolled(client)
    with pytest.raises(ConflictError) as caught:
        await client.enrol(
            "staff", template_ids=["new", "t-5"], subject_ids=["s-0", "s-5"], vectors=X[:2]
        )
    assert (caught.value.row, caught.value.reason) == (1, "TEMPLATE_EXISTS")
    assert len(router.store.requests) == 2


async def test_another_dimension_than_the_gallery_has_is_refused(client: AsyncClient) -> None:
    with pytest.raises(InvalidError) as caught:
        await client.identify("staff", np.eye(12, dtype=np.float32))
    assert (caught.value.reason, caught.value.facts) == ("DIM_MISMATCH", {"field": "probes"})


async def test_the_next_target_is_asked_when_one_is_gone(router: FakeRouter) -> None:
    async with FakeRouter(router.store) as other:
        targets = [router.address, other.address]
        async with AsyncClient(targets, ambient=ambient()) as client:
            await client.create_gallery("staff", dim=8, extractor="e@1")
            await router.stop()
            await enrolled(client)
    assert len(router.store.requests) == 1


async def test_at_the_end_of_its_time_a_call_tells_what_kept_it(router: FakeRouter) -> None:
    error = UnavailableError("half is away", reason="COVERAGE_TOO_LOW")
    router.faults.errors += [error] * 1000
    async with AsyncClient(router.address, timeout_s=20, ambient=ambient()) as client:
        with pytest.raises(UnavailableError) as caught:
            await client.identify("staff", X)
    assert (caught.value.reason, caught.value.message) == ("COVERAGE_TOO_LOW", "half is away")
    assert 10 < 1000 - len(router.faults.errors) < 100


async def test_a_silent_router_ends_in_a_deadline_error(router: FakeRouter) -> None:
    router.faults.hanging = True
    async with AsyncClient(router.address, timeout_s=0.1) as client:
        with pytest.raises(DeadlineError):
            await client.get_gallery("staff")


async def test_nobody_listening_is_unavailable_when_the_time_is_over() -> None:
    async with AsyncClient("127.0.0.1:1", timeout_s=1, ambient=ambient()) as client:
        with pytest.raises(UnavailableError) as caught:
            await client.list_galleries()
    assert caught.value.reason == "TRANSPORT"


async def test_closing_ends_calls_in_flight_and_refuses_later_ones(router: FakeRouter) -> None:
    """1. a call hangs. 2. the client is closed. 3. the call ends. 4. another is refused."""
    router.faults.hanging = True
    client = AsyncClient(router.address)
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012 - the call must be in flight
        async with asyncio.TaskGroup() as group:
            group.create_task(client.get_gallery("staff"))
            await router.faults.struck.wait()
            await client.aclose()
    assert [getattr(error, "reason", "") for error in caught.value.exceptions] == ["CLOSED"]
    await client.aclose()
    with pytest.raises(UnavailableError, match="client is closed"):
        await client.get_gallery("staff")


async def test_cancelling_a_call_cancels_it(router: FakeRouter, client: AsyncClient) -> None:
    router.faults.hanging = True
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await client.get_gallery("staff")
