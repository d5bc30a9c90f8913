"""Confirmed answers: whom a router vouches for, in which order copies are asked, who gets what."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from facegrid.api.v1 import enrolment_service_pb2, identification_service_pb2
from facegrid.errors import NotFoundError, UnavailableError
from facegrid.limits import STALENESS_S
from facegrid.wire import to_wire_vectors
from tests.fakes.router_cluster import Cluster, LeapingClock, cluster, faces

EVERYBODY = [f"s{row}" for row in range(40)]
SHARD = "staff.1f00aa23.{:04d}".format


@asynccontextmanager
async def filled(*, leaping: LeapingClock | None = None, **changes: int) -> AsyncIterator[Cluster]:
    """Run two nodes with a gallery of four shards, two copies of each, and a confirmed router."""
    async with cluster(clock=leaping) as running:
        await running.client.create(**{"replicas_count": 2, **changes})
        await running.client.enrol(faces(40), EVERYBODY)
        running.copy_rows()
        watcher = running.client.server.watcher
        await running.until(lambda: watcher.confirmed and len(watcher.topology.claims) == 4)
        yield running


def best(answer: identification_service_pb2.IdentifyResponse) -> list[str]:
    return [found.candidates[0].subject_id for found in answer.lists]


def cut_off(running: Cluster, *numbers: int) -> None:
    for number in numbers:
        running.nodes[number].mischief.cut_off = True


async def without_etcd(running: Cluster, clock: LeapingClock) -> None:
    """Take etcd away from everybody, for longer than a confirmation lasts."""
    running.coordinator.stop()
    cut_off(running, 0, 1)
    clock.leap(STALENESS_S + 1)


async def refused(running: Cluster, **fields: object) -> UnavailableError:
    with pytest.raises(UnavailableError) as caught:
        await running.client.identify(faces(40), k=1, timeout_s=5, **fields)
    return caught.value


async def test_all_is_confirmed_while_all_is_well() -> None:
    async with filled() as running:
        answer = await running.client.identify(faces(40), k=1)
        status = await running.client.status()

    assert (best(answer), answer.coverage.unconfirmed_share) == (EVERYBODY, 0.0)
    assert status.view_confirmed


async def test_a_primary_that_is_cut_off_from_etcd_is_vouched_for_by_the_router() -> None:
    async with filled() as running:
        cut_off(running, 0, 1)
        answer = await running.client.identify(faces(40), k=1, unconfirmed_max=0)
        trusts = [trust for node in running.nodes for trust in node.trusts]

    assert (best(answer), answer.coverage.unconfirmed_share) == (EVERYBODY, 0.0)
    assert {trust.unconfirmed_accepted for trust in trusts} == {False}


async def test_followers_are_not_vouched_for() -> None:
    async with filled() as running:
        running.nodes[1].mischief.refuse = {SHARD(n): "SHARD_OPENING" for n in range(4)}
        await running.client.identify(faces(40), k=1)
        asked = {
            (node.node_id, item.shard_id, item.trust.primary_boot_id)
            for node in running.nodes
            for request in node.searches
            for item in request.shards
        }

    assert asked == {
        ("n1", SHARD(0), "n1-boot1"),
        ("n1", SHARD(2), "n1-boot1"),
        ("n2", SHARD(1), "n2-boot1"),
        ("n2", SHARD(3), "n2-boot1"),
        ("n1", SHARD(1), ""),
        ("n1", SHARD(3), ""),
    }


async def test_an_old_primary_that_knows_of_no_takeover_is_not_vouched_for_and_refuses() -> None:
    """1. n1 is cut off from etcd. 2. n2 takes its shards over, and n1 hears nothing of that.
    3. while n2 opens them, n1 is asked as a follower, not vouched for, and refuses. 4. n2 answers.
    """
    async with filled() as running:
        cut_off(running, 0)
        await running.move_primaries()
        watcher = running.client.server.watcher
        await running.until(
            lambda: (
                {watcher.topology.claims[SHARD(n)].node_id for n in (0, 2)} == {"n2"}
                and watcher.confirmed
            )
        )
        running.nodes[1].mischief.refuse = {SHARD(0): "SHARD_OPENING"}
        error = await refused(running, unconfirmed_max=0)
        asked = [
            (item.trust.primary_boot_id, item.trust.unconfirmed_accepted)
            for request in running.nodes[0].searches
            for item in request.shards
            if item.shard_id == SHARD(0)
        ]
        running.nodes[1].mischief.refuse = {}
        answer = await running.client.identify(faces(40), k=1, unconfirmed_max=0)

    assert (error.reason, error.facts["shard"], error.facts["node"]) == (
        "UNCONFIRMED",
        SHARD(0),
        "n1",
    )
    assert {*asked} == {("", False)}
    assert (best(answer), answer.coverage.unconfirmed_share) == (EVERYBODY, 0.0)


async def test_with_etcd_away_everything_is_answered_and_says_so() -> None:
    clock = LeapingClock()
    async with filled(leaping=clock) as running:
        await without_etcd(running, clock)
        for node in running.nodes:
            node.searches.clear()
        answer = await running.client.identify(faces(40), k=1)
        searches = sum(len(node.searches) for node in running.nodes)
        status = await running.client.status()

    assert (best(answer), answer.coverage.unconfirmed_share) == (EVERYBODY, 1.0)
    assert searches == 2, "nobody is asked in vain first"
    assert not status.view_confirmed


async def test_with_etcd_away_who_wants_only_confirmed_answers_gets_none() -> None:
    clock = LeapingClock()
    async with filled(leaping=clock) as running:
        await without_etcd(running, clock)
        none = await refused(running, unconfirmed_max=0)
        some = await refused(running, unconfirmed_max=0.75)

    assert [none.reason, some.reason] == ["UNCONFIRMED", "UNCONFIRMED"]
    assert "could not be confirmed" in some.message
    assert some.facts["share"] == "1.0"


async def test_only_what_no_copy_confirms_is_taken_unconfirmed() -> None:
    """n1 cannot reach etcd, and n2 refuses one shard that n1 follows."""
    async with filled() as running:
        cut_off(running, 0)
        running.nodes[1].mischief.refuse = {SHARD(1): "SHARD_OPENING"}
        answer = await running.client.identify(faces(40), k=1, unconfirmed_max=0.25)
        too_much = await refused(running, unconfirmed_max=0.2)
        none = await refused(running, unconfirmed_max=0)

    assert (best(answer), answer.coverage.unconfirmed_share) == (EVERYBODY, 0.25)
    assert [too_much.reason, none.reason] == ["UNCONFIRMED", "UNCONFIRMED"]


async def test_a_caller_may_be_content_with_the_part_that_is_confirmed() -> None:
    async with filled() as running:
        cut_off(running, 0)
        running.nodes[1].mischief.refuse = {SHARD(1): "SHARD_OPENING"}
        answer = await running.client.identify(
            faces(40), k=1, unconfirmed_max=0, coverage_min=0.75
        )

    assert (answer.coverage.share, answer.coverage.unconfirmed_share) == (0.75, 0.0)


async def test_every_copy_is_asked_at_most_once_before_unconfirmed_answers_are_taken() -> None:
    async with filled() as running:
        cut_off(running, 0, 1)
        for node in running.nodes:
            # A vouched primary would answer: here the claim is of a process that is gone.
            for shard in node.shards.values():
                shard.generation = 0
            node.searches.clear()
        answer = await running.client.identify(faces(40), k=1)
        asked = [
            (node.node_id, item.shard_id, item.trust.unconfirmed_accepted)
            for node in running.nodes
            for request in node.searches
            for item in request.shards
        ]

    assert (best(answer), answer.coverage.unconfirmed_share) == (EVERYBODY, 1.0)
    strict = [(node_id, shard_id) for node_id, shard_id, accepted in asked if not accepted]
    taken = [shard_id for _, shard_id, accepted in asked if accepted]
    assert sorted(strict) == [(f"n{node}", SHARD(n)) for node in (1, 2) for n in range(4)]
    assert sorted(taken) == [SHARD(n) for n in range(4)]


async def test_callers_who_insist_and_callers_who_do_not_never_share_a_batch() -> None:
    clock = LeapingClock()
    async with filled(leaping=clock) as running:
        await without_etcd(running, clock)
        for node in running.nodes:
            node.mischief.hold["Search"] = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            blocker = group.create_task(running.client.identify(faces(1), k=1))
            await running.until(lambda: all(node.calls.count("Search") for node in running.nodes))
            lax = [group.create_task(running.client.identify(faces(1), k=1)) for _ in range(3)]
            strict = [
                group.create_task(refused(running, unconfirmed_max=share)) for share in (0, 0.5)
            ]
            await asyncio.wait([blocker], timeout=0.05)
            for node in running.nodes:
                node.mischief.hold["Search"].set()

    assert [best(task.result()) for task in (blocker, *lax)] == [["s0"]] * 4
    assert [task.result().reason for task in strict] == ["UNCONFIRMED"] * 2


async def test_an_unconfirmed_answer_that_was_not_wanted_is_not_used() -> None:
    """A node that does so would break the promise; its answer is worth nothing."""
    async with filled(replicas_count=1) as running:
        cut_off(running, 0)
        running.nodes[0].mischief.unasked = True
        for shard in running.nodes[0].shards.values():
            shard.generation = 0
        error = await refused(running, unconfirmed_max=0)

    assert "which was not wanted" in error.message


async def verify(running: Cluster, *, confirmed_only: bool) -> object:
    request = identification_service_pb2.VerifyRequest(
        gallery="staff",
        subject_id="s7",
        probe=to_wire_vectors(faces(40)[7:8]),
        confirmed_only=confirmed_only,
    )
    return await running.client.call(running.client.identification.Verify, request)


async def nobody(running: Cluster, *, confirmed_only: bool) -> dict[str, str]:
    request = identification_service_pb2.VerifyRequest(
        gallery="staff",
        subject_id="nobody",
        probe=to_wire_vectors(faces(1)),
        confirmed_only=confirmed_only,
    )
    with pytest.raises(NotFoundError) as caught:
        await running.client.call(running.client.identification.Verify, request)
    return caught.value.facts


async def nothing(running: Cluster, *, confirmed_only: bool) -> dict[str, str]:
    request = enrolment_service_pb2.GetTemplateRequest(
        gallery="staff", template_id="nothing", confirmed_only=confirmed_only
    )
    with pytest.raises(NotFoundError) as caught:
        await running.client.call(running.client.enrolment.GetTemplate, request)
    return caught.value.facts


@pytest.mark.parametrize("read", [nobody, nothing])
async def test_that_something_is_not_there_is_confirmed_too_or_says_that_it_is_not(
    read: object,
) -> None:
    clock = LeapingClock()
    assert callable(read)
    async with filled(leaping=clock) as running:
        sound = await read(running, confirmed_only=True)
        await without_etcd(running, clock)
        taken = await read(running, confirmed_only=False)

    assert "unconfirmed" not in sound
    assert taken["unconfirmed"] == "true"


async def get(running: Cluster, *, confirmed_only: bool) -> object:
    request = enrolment_service_pb2.GetTemplateRequest(
        gallery="staff", template_id="t9", confirmed_only=confirmed_only
    )
    return await running.client.call(running.client.enrolment.GetTemplate, request)


@pytest.mark.parametrize("read", [verify, get])
async def test_reads_of_single_shards_are_confirmed_or_say_that_they_are_not(read: object) -> None:
    clock = LeapingClock()
    assert callable(read)
    async with filled(leaping=clock) as running:
        sound = await read(running, confirmed_only=True)
        cut_off(running, 0, 1)
        vouched = [await read(running, confirmed_only=True) for _ in range(4)]
        await without_etcd(running, clock)
        taken = await read(running, confirmed_only=False)
        with pytest.raises(UnavailableError) as caught:
            await read(running, confirmed_only=True)

    assert [answer.unconfirmed for answer in (sound, *vouched)] == [False] * 5
    assert taken.unconfirmed
    assert caught.value.reason == "UNCONFIRMED"
