"""Which operations are at work, and what keeps one of them from harming others."""

from dataclasses import replace

import pytest

from facegrid.coord import keys
from facegrid.coord.port import Put
from facegrid.format import operations, records
from facegrid.format.operations import (
    OperationState,
    RebalancerSettings,
    Replicas,
)
from router.operate.performer import NOT_BEGUN
from router.operate.register import Action
from router.plan import kinds, reshape
from tests.fakes.shape_play import (
    N1,
    N2,
    N3,
    N4,
    S0,
    S1,
    change,
    nodes_of,
    step_to,
    written,
)
from tests.fakes.shape_world import STAFF, World


async def test_only_so_many_are_at_work_and_the_oldest_first() -> None:
    world, driver = await written()
    await set_rules(world, RebalancerSettings(at_once_max=1))
    await world.start(Replicas(S0, (N4, N3)), "op-1")
    await world.clock.advance(1.0)
    await world.start(Replicas(S1, (N4, N3)), "op-2")

    await driver.look()

    first, second = await world.operation("op-1"), await world.operation("op-2")
    assert (first.step, second.step, second.note) == ("verify", "join", "waits for its turn")
    await driver.run("op-1")
    assert (await driver.run("op-2")).state is OperationState.DONE


async def test_no_step_is_begun_while_searches_are_slow() -> None:
    world, driver = await written()
    await set_rules(world, RebalancerSettings(p99_limit_ms=50))
    await world.start(Replicas(S0, (N4, N3)))
    for _ in range(100):
        driver.latencies.note(0.2)

    await driver.look()

    waiting = await world.operation("op-1")
    assert (waiting.step, waiting.note) == ("join", NOT_BEGUN)
    await world.clock.advance(31.0)
    assert (await driver.run()).state is OperationState.DONE


@pytest.mark.parametrize("kind", ["move", "split"])
async def test_what_is_past_its_cutover_ends_though_searches_are_slow_and_it_is_not_its_turn(
    kind: str,
) -> None:
    """1. The first operation is paused. 2. The second is past its cutover. 3. The first goes on,
    one at a time may, and searches are slow for good.
    """
    world, driver = await written()
    await world.start(Replicas(S1, (N4, N3)), "op-1")
    await change(world, Action.PAUSE)
    split = kinds.split(await world.map(), S0, taken=())
    await world.start(split if kind == "split" else Replicas(S0, (N4, N3)), "op-2")
    await step_to(world, driver, "drop" if kind == "split" else "leave", "op-2")
    await set_rules(world, RebalancerSettings(p99_limit_ms=50, at_once_max=1))
    await change(world, Action.RESUME)
    for _ in range(100):
        driver.latencies.note(60.0)

    assert (await driver.run("op-2", turns=20)).state is OperationState.DONE
    assert (await world.operation("op-1")).step == "join"


async def test_sources_stay_until_nobody_answers_for_them_any_more() -> None:
    """Routers have three seconds to hear of the map; copies answer for two more."""
    world, driver = await written()
    await world.start(kinds.split(await world.map(), S0, taken=()))
    await step_to(world, driver, "cutover")
    await driver.look()
    began_ms = (await world.operation("op-1")).step_unix_ms
    while not (await world.operation("op-1")).state.over:
        await world.settle()
        await driver.look()
        await world.clock.advance(0.1)
    assert (await world.operation("op-1")).step_unix_ms - began_ms >= 5000


async def test_what_an_older_process_of_the_primarys_node_says_does_not_count() -> None:
    """1. n4 is to join. 2. n1 is started again and claims the shard. 3. Its old process hears of
    the map in which n4 joins, and not yet of that claim; the new one has not heard of the map.
    """
    world, driver = await written()
    await world.start(Replicas(S0, (N1, N2, N4)))
    await step_to(world, driver, "verify")
    before = records.decode_generation(world.copies[N1, S0].claim)
    newer = records.GenerationClaim(before.generation + 1, N1, "n1-new")
    await world.coord.txn([], [Put(keys.generation(S0), records.encode_generation(newer))])

    await driver.look()

    waiting = await world.operation("op-1")
    assert waiting.step == "verify"
    assert waiting.note == f"waits for the process that claimed the shard last shard={S0} node=n1"
    await world.settle()
    assert (await driver.run()).state is OperationState.DONE


async def test_operations_long_over_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facegrid.limits.OPERATIONS_KEPT_MAX", 2)
    world, driver = await written()
    for number in range(4):
        await world.start(Replicas(S0, (N2, N1) if number % 2 else (N1, N2)), f"op-{number}")
        await driver.run(f"op-{number}")
        await world.clock.advance(1.0)

    await driver.look()

    left = await world.coord.list(keys.OPERATIONS)
    assert [keys.name_of(item.key, keys.OPERATIONS) for item in left.items] == ["op-2", "op-3"]


async def test_a_record_that_cannot_be_read_keeps_nobody_from_going_on() -> None:
    world, driver = await written()
    await world.coord.txn([], [Put(keys.operation("op-0"), b"\xff")])
    await world.start(Replicas(S0, (N4, N3)))

    assert (await driver.run()).state is OperationState.DONE


async def test_a_bug_met_at_one_operation_stops_that_one_alone() -> None:
    world, driver = await written()
    await world.start(Replicas(S0, (N4, N3)), "op-1")
    await step_to(world, driver, "verify")
    await world.start(Replicas(S1, (N4, N3)), "op-2")

    async def bug() -> None:
        raise ZeroDivisionError

    world.interruptions.append(bug)
    await driver.run("op-2")

    stopped = await world.operation("op-1")
    assert stopped.state is OperationState.PAUSED
    assert stopped.note == "paused, since the driver met a bug: ZeroDivisionError"
    assert (await world.operation("op-2")).state is OperationState.DONE


async def test_what_a_forgotten_operation_left_is_cleared_away() -> None:
    """1. etcd is lost and written anew, with the maps and without operations. 2. A node still
    joins S0, and a pending shard is still filled from S1. 3. Both shards are changed again.
    """
    world, driver = await written()
    before = await world.map()
    assert before is not None
    left = reshape.joined(before, S0, [N3])
    half = kinds.split(before, S1, taken=())
    left = reshape.with_pending(left, reshape.children_of(forgotten(half), left))
    put = Put(keys.shard_map(STAFF), records.encode_shard_map(replace(left, version=2)))
    await world.coord.txn([], [put])
    await world.settle()

    await world.start(Replicas(S0, (N4, N2)), "op-1")
    assert (await driver.run("op-1")).state is OperationState.DONE
    again = kinds.split(await world.map(), S1, taken=())
    await world.start(again, "op-2")
    assert (await driver.run("op-2")).state is OperationState.DONE

    assert set(await nodes_of(world)) == {S0, *again.child_ids}
    dropped = await world.coord.list(keys.DROPPED)
    names = [keys.name_of(item.key, keys.DROPPED) for item in dropped.items]
    assert names == [S1, *half.child_ids]


@pytest.mark.parametrize("step", ["follow", "cutover"])
async def test_shards_that_were_given_up_are_not_made_again(step: str) -> None:
    """1. S0 is split. 2. etcd is set back, and its recovery gives the new shards up: they are
    being deleted. 3. The operation's record is still there.
    """
    world, driver = await written()
    before = await world.map()
    split = kinds.split(before, S0, taken=())
    await world.start(split)
    await step_to(world, driver, step)
    filled = await world.map()
    assert filled is not None
    without = replace(reshape.without_pending(filled, split.child_ids), version=9)
    put = Put(keys.shard_map(STAFF), records.encode_shard_map(without))
    await world.coord.txn([], [put])
    await world.settle()

    done = await driver.run()

    assert (done.state, done.note) == (OperationState.ABORTED, "the new shards were given up")
    assert await world.map() == without
    assert await world.taken() == {}


async def test_shards_made_late_have_numbers_that_no_map_has_counted() -> None:
    """1. A split is begun, which is promised the numbers 2 and 3, and paused. 2. Another one makes
    4 and 5: whoever has that map takes 2 and 3 for replaced, in tokens, in what a restore needs to
    know and in a recovery. 3. The first one goes on.
    """
    world, driver = await written()
    before = await world.map()
    first = kinds.split(before, S0, taken=())
    await world.start(first, "op-1")
    await change(world, Action.PAUSE)
    second = kinds.split(before, S1, taken=await world.taken())
    await world.start(second, "op-2")
    assert (await driver.run("op-2")).state is OperationState.DONE
    counted = await world.map()
    assert counted is not None
    assert counted.next_number == 6
    await change(world, Action.RESUME)

    done = await driver.run("op-1")

    assert done.state is OperationState.DONE
    assert [reshape.number_of(one) for one in done.child_ids] == [6, 7]
    assert set(await nodes_of(world)) == {*done.child_ids, *second.child_ids}
    assert await world.taken() == {}


def forgotten(kind: operations.OperationKind) -> operations.Operation:
    return operations.Operation(
        "op-0", STAFF, "1f00aa23", kind, OperationState.RUNNING, kinds.steps_of(kind)[0]
    )


async def set_rules(world: World, settings: RebalancerSettings) -> None:
    put = Put(keys.REBALANCER, operations.encode_rebalancer(settings))
    await world.coord.txn([], [put])
