"""Nodes that refuse, fail, hang or lie, and etcd away: answered from others, or said plainly."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from facegrid.api.v1 import identification_service_pb2, types_pb2
from facegrid.clock import SystemClock
from facegrid.coord import saved
from facegrid.coord.port import Put
from facegrid.errors import DeadlineError, FacegridError, FencedError, UnavailableError
from facegrid.testing.memory_coord import MemoryCoordinator
from facegrid.wire import to_wire_vectors
from router.topology.pool import HUNG_S
from router.topology.snapshot import assemble
from tests.fakes.router_cluster import Cluster, cluster, faces, router
from tests.fakes.waiting import until

SHARD = "staff.1f00aa23.{:04d}".format


async def filled(running: Cluster, **changes: int) -> types_pb2.Token:
    """Create a gallery of four shards with 40 subjects; followers get the same rows."""
    await running.client.create(**changes)
    written = await running.client.enrol(faces(40), [f"s{row}" for row in range(40)])
    shards = [(name, shard) for node in running.nodes for name, shard in node.shards.items()]
    for name, shard in shards:
        for other_name, other in shards:
            if name == other_name and other.rows:
                shard.rows.update(other.rows)
                shard.position = max(shard.position, other.position)
    return written.token


def identify_request(after: types_pb2.Token) -> identification_service_pb2.IdentifyRequest:
    return identification_service_pb2.IdentifyRequest(
        gallery="staff", probes=to_wire_vectors(faces(1)), k=1, after=after
    )


async def best(running: Cluster, **fields: object) -> list[str]:
    """Return the best subject for each of the enrolled vectors."""
    answer = await running.client.identify(faces(40), k=1, **fields)
    return [found.candidates[0].subject_id for found in answer.lists]


EVERYBODY = [f"s{row}" for row in range(40)]


async def test_a_refused_shard_is_asked_of_the_other_replica() -> None:
    async with cluster() as running:
        await filled(running, replicas_count=2)
        running.nodes[0].mischief.refuse = {SHARD(n): "SHARD_OPENING" for n in range(4)}

        assert await best(running) == EVERYBODY


async def test_a_node_that_refuses_every_shard_is_quoted() -> None:
    async with cluster() as running:
        await filled(running)
        for node in running.nodes:
            node.mischief.refuse = {SHARD(n): "FOLLOWER_STALE" for n in range(4)}

        with pytest.raises(UnavailableError) as caught:
            await best(running)

    assert "reason=FOLLOWER_STALE" in caught.value.message


async def test_a_dead_node_is_replaced_by_the_other_replica_and_then_passed_over() -> None:
    async with cluster() as running:
        await filled(running, replicas_count=2)
        await running.nodes[0].crash()

        assert await best(running) == EVERYBODY
        searches = len(running.nodes[1].searches)
        assert await best(running) == EVERYBODY

    assert len(running.nodes[1].searches) == searches + 1


async def test_a_shard_without_another_replica_is_asked_for_again_a_moment_later() -> None:
    async with cluster() as running:
        await filled(running)
        running.nodes[0].mischief.fail["Search"] = UnavailableError("not now", reason="BUSY")

        async with asyncio.TaskGroup() as group:
            answer = group.create_task(best(running))
            while not running.nodes[0].searches:
                await asyncio.wait([answer], timeout=0.001)
            running.nodes[0].mischief.fail.clear()

    assert answer.result() == EVERYBODY


async def test_a_newer_map_starts_over_so_that_an_answer_is_of_one_map() -> None:
    """1. n2 refuses its shards, and n1 holds the question. 2. the map changes. 3. n1 fails, n2
    answers for the shards of n1. 4. all is asked again with the newer map.
    """
    async with cluster() as running:
        await filled(running, replicas_count=2)
        first, second = running.nodes
        first.mischief.hold["Search"] = asyncio.Event()
        first.mischief.fail["Search"] = UnavailableError("not now", reason="BUSY")
        second.mischief.refuse = {SHARD(n): "SHARD_OPENING" for n in range(4)}
        async with asyncio.TaskGroup() as group:
            answer = group.create_task(running.client.identify(faces(40), k=1))
            await running.until(lambda: len(first.searches) == 2)
            await running.move_primaries()
            watcher = running.client.server.watcher
            await running.until(
                lambda: (
                    {item.shard_map.version for item in watcher.topology.galleries.values()} == {2}
                )
            )
            second.mischief.refuse = {}
            first.mischief.hold["Search"].set()

    found = answer.result()
    assert (found.map_version, found.coverage.share) == (2, 1.0)
    assert [one.candidates[0].subject_id for one in found.lists] == EVERYBODY
    assert {request.map_version for request in second.searches[-1:]} == {2}


async def test_what_could_not_be_searched_fails_the_call_and_names_shard_and_node() -> None:
    async with cluster() as running:
        await filled(running)
        running.nodes[1].mischief.refuse = {SHARD(1): "SHARD_OPENING"}

        with pytest.raises(UnavailableError) as caught:
            await best(running)

    assert caught.value.reason == "COVERAGE_TOO_LOW"
    assert caught.value.facts == {
        "share": "0.75",
        "limit": "1.0",
        "missing": "4000000000000000-7fffffffffffffff",
        "shard": SHARD(1),
        "node": "n2",
    }
    assert "SHARD_OPENING" in caught.value.message


async def test_a_caller_may_accept_less_and_is_told_what_is_missing() -> None:
    async with cluster() as running:
        await filled(running)
        running.nodes[1].mischief.refuse = {SHARD(1): "SHARD_OPENING"}

        answer = await running.client.identify(faces(40), k=1, coverage_min=0.75)

    missing = [(item.first, item.last) for item in answer.coverage.missing]
    assert (answer.coverage.share, missing) == (0.75, [(2**62, 2**63 - 1)])
    assert (answer.coverage.shards_answered_count, answer.coverage.shards_count) == (3, 4)


async def test_an_answer_for_another_range_than_the_map_says_is_not_used() -> None:
    async with cluster() as running:
        await filled(running)
        running.nodes[0].mischief.shift = {SHARD(0)}

        with pytest.raises(UnavailableError) as caught:
            await best(running)

    assert caught.value.reason == "COVERAGE_TOO_LOW"
    assert caught.value.facts["shard"] == f"{SHARD(0)},{SHARD(2)}"


async def test_an_answer_older_than_the_token_is_not_used() -> None:
    async with cluster() as running:
        await filled(running)
        demanded = [types_pb2.Token.Position(shard_id=SHARD(0), position=99)]
        after = types_pb2.Token(positions=demanded)

        with pytest.raises(UnavailableError) as caught:
            await best(running, after=after)

    assert "position demanded" in caught.value.message


async def test_a_read_after_a_write_asks_the_primary_until_followers_were_seen_to_have_it() -> (
    None
):
    async with cluster() as running:
        await running.client.create(replicas_count=2)
        written = await running.client.enrol(faces(40), EVERYBODY)
        answers = [
            await running.client.identify(faces(40), k=1, after=written.token) for _ in range(4)
        ]

    assert [[found.candidates[0].subject_id for found in a.lists] for a in answers] == [
        EVERYBODY
    ] * 4


async def test_a_position_that_does_not_come_in_time_is_no_failure_of_the_nodes() -> None:
    async with cluster() as running:
        token = await filled(running)
        for item in token.positions:
            item.position += 9
        for node in running.nodes:
            node.mischief.hold["Search"] = asyncio.Event()

        with pytest.raises(DeadlineError) as caught:
            await running.client.call(
                running.client.identification.Identify,
                identify_request(token),
                timeout_s=HUNG_S + 0.2,
            )
        for node in running.nodes:
            del node.mischief.hold["Search"]
        # With a node marked as failing, a first failure would not be tried again.
        running.nodes[0].mischief.fail["Search"] = UnavailableError("not now", reason="BUSY")
        async with asyncio.TaskGroup() as group:
            answer = group.create_task(best(running))
            before = len(running.nodes[0].searches)
            while len(running.nodes[0].searches) == before:
                await asyncio.wait([answer], timeout=0.001)
            running.nodes[0].mischief.fail.clear()

    assert "node did not answer in the time given, waiting for a position" in caught.value.message
    assert "cannot be reached" not in caught.value.message
    assert answer.result() == EVERYBODY


async def test_a_node_that_says_that_a_position_did_not_come_is_quoted() -> None:
    async with cluster() as running:
        token = await filled(running)
        failure = DeadlineError("shard has not come that far", reason="POSITION_NOT_REACHED")
        for node in running.nodes:
            node.mischief.refuse = {SHARD(n): "POSITION_NOT_REACHED" for n in range(4)}
            node.mischief.fail["Compare"] = failure

        with pytest.raises(DeadlineError) as searched:
            await best(running, after=token)
        request = identification_service_pb2.VerifyRequest(
            gallery="staff", subject_id="s7", probe=to_wire_vectors(faces(1)), after=token
        )
        with pytest.raises(DeadlineError) as verified:
            await running.client.call(running.client.identification.Verify, request)

    assert searched.value.reason == verified.value.reason == "POSITION_NOT_REACHED"
    assert "not come to the position asked for in the time given" in searched.value.message
    assert "shard has not come that far" in verified.value.message


async def test_a_node_that_hangs_ends_the_call_at_its_deadline() -> None:
    async with cluster() as running:
        await filled(running)
        running.nodes[0].mischief.hold["Search"] = asyncio.Event()

        with pytest.raises(DeadlineError):
            await running.client.identify(faces(1), timeout_s=0.2)
        partial = await running.client.identify(faces(1), timeout_s=0.6, coverage_min=0.1)

    assert partial.coverage.share == 0.5


async def test_writes_name_the_shard_and_the_node_that_failed() -> None:
    async with cluster() as running:
        await filled(running)
        await running.nodes[1].crash()

        with pytest.raises(UnavailableError) as caught:
            await running.client.enrol(
                faces(9), [f"new{row}" for row in range(9)], request_id="r2"
            )

    assert caught.value.facts["node"] == "n2"
    assert caught.value.facts["shard"].startswith("staff.1f00aa23.")
    assert "node=n2" in caught.value.message


async def test_a_fenced_primary_is_passed_on_for_the_client_to_retry() -> None:
    async with cluster() as running:
        await filled(running)
        running.nodes[1].mischief.fail["Append"] = FencedError("a newer primary rules")

        with pytest.raises(FencedError):
            await running.client.enrol(faces(40), EVERYBODY, request_id="r2")


async def test_a_verification_goes_to_the_other_replica() -> None:
    async with cluster() as running:
        await filled(running, replicas_count=2)
        failure: FacegridError = UnavailableError("opening", reason="SHARD_OPENING")
        running.nodes[0].mischief.fail["Compare"] = failure
        request = identification_service_pb2.VerifyRequest(
            gallery="staff", subject_id="s7", probe=to_wire_vectors(faces(40)[7:8])
        )
        found = [
            await running.client.call(running.client.identification.Verify, request)
            for _ in range(3)
        ]

    assert [answer.template_id for answer in found] == ["t7"] * 3


async def test_too_few_nodes_are_said() -> None:
    async with cluster() as running:
        with pytest.raises(UnavailableError) as caught:
            await running.client.create(replicas_count=3)

    assert caught.value.reason == "TOO_FEW_NODES"


async def test_reads_go_on_and_writes_to_the_map_fail_while_etcd_is_away() -> None:
    async with cluster() as running:
        await filled(running)
        running.coordinator.stop()

        assert await best(running) == EVERYBODY
        with pytest.raises(UnavailableError):
            await running.client.create("other")

        running.coordinator.start()
        assert (await running.client.create("other")).name == "other"


async def test_a_node_whose_registration_ran_out_is_still_asked() -> None:
    async with cluster() as running:
        await filled(running)
        before = running.client.server.watcher.topology
        await running.nodes[0].unregister()
        assert await running.client.server.watcher.changed(before, timeout_s=5)

        assert await best(running) == EVERYBODY
        status = await running.client.status()

    assert [(node.id, node.registered) for node in status.nodes] == [("n1", False), ("n2", True)]


async def test_a_router_started_while_etcd_is_away_serves_from_its_disk(tmp_path: Path) -> None:
    async with cluster(state_dir=tmp_path) as running:
        await filled(running)
        served = running.client.server.watcher.topology
        await until(lambda: assemble(saved.load(tmp_path), addresses={}).topology == served)
        running.coordinator.stop()

        async with router(running.coordinator, state_dir=tmp_path) as cold:
            answer = await cold.identify(faces(40), k=1)
            status = await cold.status()
            known = cold.server.watcher.topology

    assert [found.candidates[0].subject_id for found in answer.lists] == EVERYBODY
    assert (status.etcd_reachable, status.map_age_ms) == (False, -1)
    assert known == served


async def test_a_router_with_nothing_to_start_from_says_so() -> None:
    coordinator = MemoryCoordinator(SystemClock())
    coordinator.stop()
    with pytest.raises(BaseExceptionGroup) as caught:
        async with asyncio.timeout(5), router(coordinator):
            pass

    (error,) = caught.value.exceptions
    assert isinstance(error, UnavailableError)
    assert error.reason == "COORDINATOR_UNREACHABLE"
    assert "memory" in error.message


async def test_a_gallery_created_through_another_router_is_found_at_once() -> None:
    async with cluster() as running, router(running.coordinator) as other:
        await filled(running)

        answer = await other.identify(faces(1), k=1)

    assert answer.lists[0].candidates[0].subject_id == "s0"


async def test_a_damaged_record_leaves_other_galleries_alone() -> None:
    async with cluster() as running:
        await filled(running)
        before = running.client.server.watcher.topology
        await running.coordinator.txn([], [Put("galleries/x", b"\xff"), Put("map/x", b"\xff")])
        assert await running.client.server.watcher.changed(before, timeout_s=5)

        assert await best(running) == EVERYBODY


async def test_scores_are_the_same_whoever_answers() -> None:
    async with cluster() as running:
        await filled(running, replicas_count=2)
        answers = []
        for node in running.nodes:
            node.mischief.refuse = {SHARD(n): "BUSY" for n in range(4)}
            answers.append(await running.client.identify(faces(5, seed=9), k=10))
            node.mischief.refuse = {}

    assert answers[0] == answers[1]
    assert np.all([len(found.candidates) == 10 for found in answers[0].lists])
