"""enrol_stream over a connection that breaks."""

from collections.abc import AsyncIterator, Iterator
from itertools import count
from random import Random  # noqa: TID251 - seeded

import numpy as np
import pytest

from facegrid import (
    AsyncClient,
    ConflictError,
    CorruptError,
    DeadlineError,
    EnrolBatch,
    InvalidError,
    NotFoundError,
    Token,
    UnavailableError,
)
from facegrid.client.ambient import Ambient
from facegrid.client.stream import REQUEST_ROWS_MAX, WINDOW
from facegrid.ids import ShardId
from facegrid.testing.fake_router import FakeRouter
from facegrid.testing.skipping_clock import SkippingClock

DIM = 8


@pytest.fixture
async def router() -> AsyncIterator[FakeRouter]:
    async with FakeRouter() as router:
        yield router


@pytest.fixture
async def client(router: FakeRouter) -> AsyncIterator[AsyncClient]:
    async with client_of(router.address) as client:
        await client.create_gallery("staff", dim=DIM, extractor="e@1")
        yield client


def client_of(*targets: str) -> AsyncClient:
    numbers = count()
    return AsyncClient(
        targets,
        timeout_s=20,
        ambient=Ambient(SkippingClock(), Random(1), lambda: f"r-{next(numbers)}"),
    )


def batch(number: int, rows: int = 2, request_id: str | None = None) -> EnrolBatch:
    names = [f"{number}-{row}" for row in range(rows)]
    vectors = np.random.default_rng(number).normal(size=(rows, DIM))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return EnrolBatch(names, names, vectors, request_id)


def stored(router: FakeRouter) -> list[str]:
    return [subject for subject, _ in router.store.find("staff").rows]


async def test_all_batches_are_enrolled_in_order_and_acknowledged_as_they_are(
    router: FakeRouter, client: AsyncClient
) -> None:
    acked: list[int] = []
    batches = [batch(number) for number in range(40)]
    token = await client.enrol_stream("staff", batches, on_ack=acked.append)
    assert token == Token({ShardId("staff.0"): 40})
    assert stored(router) == [name for one in batches for name in one.subject_ids]
    assert acked == list(range(2, 82, 2))


async def test_batches_may_come_from_an_async_generator(
    router: FakeRouter, client: AsyncClient
) -> None:
    async def produce() -> AsyncIterator[EnrolBatch]:
        for number in range(3):
            yield batch(number)

    await client.enrol_stream("staff", produce())
    assert len(stored(router)) == 6


async def test_nothing_to_send_is_no_error(client: AsyncClient) -> None:
    assert await client.enrol_stream("staff", []) == Token()


async def test_a_large_batch_is_sent_in_parts_with_derived_request_ids(
    router: FakeRouter, client: AsyncClient
) -> None:
    large = batch(0, rows=2 * REQUEST_ROWS_MAX + 1, request_id="mine")
    await client.enrol_stream("staff", [large, batch(1, request_id="small")])
    assert router.store.requests == ["mine/0", "mine/1", "mine/2", "small"]
    assert stored(router)[: len(large.subject_ids)] == large.subject_ids


async def test_a_broken_stream_goes_on_from_the_first_batch_not_acknowledged(
    router: FakeRouter, client: AsyncClient
) -> None:
    """1. the stream breaks after 3 acknowledgements, the 4th batch written but not acknowledged.
    2. what is in doubt is sent again, and the first answer to that is lost. 3. the next stream
    breaks at once. 4. the last takes the rest.
    """
    router.faults.dying += [3, 0]
    router.faults.lost_acks = 1
    acked: list[int] = []
    batches = [batch(number) for number in range(WINDOW + 9)]
    await client.enrol_stream("staff", batches, on_ack=acked.append)
    rows_count = 2 * len(batches)
    assert stored(router) == [name for one in batches for name in one.subject_ids]
    assert router.store.find("staff").position == len(batches), "each had the effect of once"
    assert set(router.store.requests) == {f"r-{number}" for number in range(len(batches))}
    assert acked[-1] == rows_count
    assert acked == sorted(set(acked))


async def test_the_stream_goes_on_at_the_next_target(router: FakeRouter) -> None:
    async with (
        FakeRouter(router.store) as other,
        client_of(router.address, other.address) as client,
    ):
        await client.create_gallery("staff", dim=DIM, extractor="e@1")

        async def produce() -> AsyncIterator[EnrolBatch]:
            for number in range(WINDOW * 2):
                if number == WINDOW + 3:
                    await router.stop()
                yield batch(number)

        await client.enrol_stream("staff", produce())
    assert len(stored(router)) == WINDOW * 4


async def test_a_refused_row_is_named_by_its_batch_and_its_row_there(
    router: FakeRouter, client: AsyncClient
) -> None:
    """The refused row lies in the second part of the third batch."""
    large = batch(2, rows=REQUEST_ROWS_MAX + 10)
    row = REQUEST_ROWS_MAX + 7
    await client.enrol(
        "staff",
        template_ids=[large.template_ids[row]],
        subject_ids=[large.subject_ids[row]],
        vectors=batch(9, rows=1).vectors,
    )
    batches = [batch(0), batch(1), large, *(batch(number) for number in range(3, 30))]
    with pytest.raises(ConflictError) as caught:
        await client.enrol_stream("staff", batches)
    assert caught.value.facts == {"row": str(row), "batch": "2"}
    assert caught.value.reason == "TEMPLATE_EXISTS"
    assert caught.value.message == f"taken row=7 batch=2 batch_row={row}"
    before = {*batches[0].subject_ids, *batches[1].subject_ids}
    assert before <= set(stored(router)), "what came before stays enrolled"
    assert large.subject_ids[0] in stored(router), "so do earlier parts"
    assert large.subject_ids[-1] not in stored(router)


async def test_a_malformed_row_is_refused_before_it_is_sent(
    router: FakeRouter, client: AsyncClient
) -> None:
    bad = batch(1)
    bad.vectors[1] = np.nan
    with pytest.raises(InvalidError) as caught:
        await client.enrol_stream("staff", [batch(0), bad])
    assert caught.value.facts == {"row": "1", "field": "vectors", "batch": "1"}
    assert "1-0" not in stored(router)


async def test_an_unknown_gallery_is_told_at_once(client: AsyncClient) -> None:
    with pytest.raises(NotFoundError):
        await client.enrol_stream("other", (batch(number) for number in count()))


async def test_damage_is_told_and_not_tried_again(router: FakeRouter, client: AsyncClient) -> None:
    # Twice, since gRPC may lose the error of a stream that is written to at that moment.
    router.faults.errors += [CorruptError("bad segment")] * 2
    with pytest.raises(CorruptError, match="bad segment"):
        await client.enrol_stream("staff", [batch(0)])
    assert router.store.requests == []


async def test_it_gives_up_when_no_acknowledgement_comes_in_time(
    router: FakeRouter, client: AsyncClient
) -> None:
    router.faults.errors += [UnavailableError("the node died")] * 1000
    with pytest.raises(UnavailableError, match="the node died"):
        await client.enrol_stream("staff", [batch(0)])
    assert 0 < len(router.faults.errors) < 1000


async def test_a_silent_router_ends_in_a_deadline_error(router: FakeRouter) -> None:
    router.faults.hanging = True
    async with AsyncClient(router.address, timeout_s=0.1) as client:
        with pytest.raises(DeadlineError):
            await client.enrol_stream("staff", [batch(0)])


async def test_nobody_listening_is_unavailable() -> None:
    async with client_of("127.0.0.1:1") as client:
        with pytest.raises(UnavailableError):
            await client.enrol_stream("staff", [batch(0)])


async def test_what_the_callers_generator_raises_comes_out(client: AsyncClient) -> None:
    def produce() -> Iterator[EnrolBatch]:
        yield batch(0)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await client.enrol_stream("staff", produce())


async def test_a_generator_is_read_only_as_far_as_the_window_is_open(client: AsyncClient) -> None:
    """Back-pressure: batches taken are at most WINDOW ahead of those acknowledged."""
    ahead: list[int] = []
    acked = 0

    def note(rows: int) -> None:
        nonlocal acked
        acked = rows // 2

    def produce() -> Iterator[EnrolBatch]:
        for number in range(WINDOW * 4):
            ahead.append(number - acked)
            yield batch(number)

    await client.enrol_stream("staff", produce(), on_ack=note)
    assert max(ahead) == WINDOW
