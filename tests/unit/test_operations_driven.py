"""How operations are driven, step by step, in a world without a network."""

from dataclasses import replace
from itertools import count

import pytest

from facegrid.coord import keys
from facegrid.coord.port import Delete
from facegrid.errors import PreconditionError
from facegrid.format import records
from facegrid.format.operations import (
    NOBODY,
    Merge,
    OperationState,
    Replicas,
)
from facegrid.ids import subject_key
from router.operate import handover
from router.operate.register import Action
from router.plan import kinds
from tests.fakes.shape_nodes import DriverOf, losing_answers
from tests.fakes.shape_play import (
    N1,
    N2,
    N3,
    N4,
    S0,
    S1,
    S2,
    S3,
    change,
    nodes_of,
    step_to,
    written,
)


async def test_a_shard_moves_and_nobody_else_is_touched() -> None:
    world, driver = await written()
    await world.start(Replicas(S0, (N4, N3)))

    done = await driver.run()

    assert (done.state, done.step, done.note) == (OperationState.DONE, "leave", "")
    assert await nodes_of(world) == {S0: (N4, N3), S1: (N2, N3)}
    assert await world.taken() == {}
    assert await world.write("later", 7)


async def test_a_copy_is_not_searched_before_it_is_like_the_primary() -> None:
    world, driver = await written()
    world.wrong.add(S0)
    wrong_copy = await world.start(Replicas(S0, (N1, N2, N4)))
    assert wrong_copy is not None
    told = driver.nodes._told
    driver.nodes._told = lambda key: (
        replace(told(key), digest="00" * 16) if key == (N4, S0) else told(key)
    )

    await driver.run(turns=8)

    stopped = await world.operation("op-1")
    assert stopped.state is OperationState.PAUSED
    assert stopped.note == f"the copy has another digest than the primary shard={S0} node=n4"
    shard_map = await world.map()
    assert shard_map is not None
    assert (shard_map.shards[0].node_ids, shard_map.shards[0].joining) == ((N1, N2), (N4,))


async def test_a_copy_is_compared_though_writes_never_stop() -> None:
    """1. Whenever both sides are asked, one write more is there. 2. Writes are held back for half
    a second, and the sides meet.
    """
    world, driver = await written()
    await world.start(Replicas(S0, (N4, N3)))
    await step_to(world, driver, "verify")
    refused = 0

    async def write() -> None:
        nonlocal refused
        subject = next(f"w{n}" for n in count() if subject_key(f"w{n}") < 2**63)
        refused += not await world.write(subject, 7 + len(world.interruptions))

    world.interruptions += [write] * 40
    await driver.look()

    assert (await world.operation("op-1")).step == "serve"
    assert len(world.holds) == 1
    assert refused > 0
    assert world.copies[N1, S0].held_until_s == 0.0


async def test_a_split_halves_the_range_and_moves_every_row() -> None:
    world, driver = await written()
    shard_map = await world.map()
    await world.start(kinds.split(shard_map, S0, taken=()))

    done = await driver.run()

    assert done.state is OperationState.DONE
    assert await nodes_of(world) == {S2: (N1, N2), S3: (N2, N1), S1: (N2, N3)}
    after = await world.map()
    assert after is not None
    assert [shard.range.size for shard in after.shards] == [2**62, 2**62, 2**63]
    for shard in after.shards:
        assert all(shard.range.contains(subject_key(one)) for one in world.stored[shard.shard_id])
    dropped = await world.coord.get(keys.dropped(S0))
    assert dropped is not None
    assert records.decode_dropped(dropped.value) == records.Dropped(
        S0, "1f00aa23", (N1, N2), gallery_lives=True
    )
    assert [(kept.version, kept.shards) for kept in world.kept] == [(3, after.shards)]


async def test_a_replaced_shard_takes_no_write_any_more() -> None:
    """1. n1 leads S0. 2. S0 is split; n1 does not hear of it. 3. A router that did not hear either
    sends n1 a write.
    """
    world, driver = await written()
    await world.start(kinds.split(await world.map(), S0, taken=()))
    await step_to(world, driver, "cutover")
    old = world.copies[N1, S0]
    await driver.look()
    assert (await world.operation("op-1")).step == "drop"
    held = await world.coord.get(keys.generation(S0))
    assert held is not None

    assert records.decode_generation(held.value).node_id == NOBODY
    world.copies[N1, S0] = old
    assert not await world.write_to(N1, S0, "late", 5)
    await world.check()


async def test_neighbours_are_merged() -> None:
    world, driver = await written()
    await world.start(Merge((S0, S1), S2))

    done = await driver.run()

    assert done.state is OperationState.DONE
    assert await nodes_of(world) == {S2: (N1, N2)}
    dropped = await world.coord.list(keys.DROPPED)
    assert [keys.name_of(item.key, keys.DROPPED) for item in dropped.items] == [S0, S1]


@pytest.mark.parametrize("step", ["join", "verify", "serve", "cutover"])
async def test_a_move_can_be_aborted_until_its_cutover(step: str) -> None:
    world, driver = await written()
    await world.start(Replicas(S0, (N4, N3)))
    await step_to(world, driver, step)

    await change(world, Action.ABORT)
    done = await driver.run()

    assert (done.state, done.note) == (OperationState.ABORTED, "aborted by an operator")
    assert await nodes_of(world) == {S0: (N1, N2), S1: (N2, N3)}
    assert await world.taken() == {}


@pytest.mark.parametrize("step", ["fill", "follow", "cutover"])
async def test_a_split_can_be_aborted_until_its_cutover(step: str) -> None:
    world, driver = await written()
    await world.start(kinds.split(await world.map(), S0, taken=()))
    await step_to(world, driver, step)

    await change(world, Action.ABORT)
    done = await driver.run()

    assert done.state is OperationState.ABORTED
    assert await nodes_of(world) == {S0: (N1, N2), S1: (N2, N3)}
    left = await world.coord.list(keys.DROPPED)
    children = [] if step == "fill" else [S2, S3]
    assert [keys.name_of(item.key, keys.DROPPED) for item in left.items] == children


@pytest.mark.parametrize("kind", ["move", "split"])
async def test_nothing_is_aborted_after_its_cutover(kind: str) -> None:
    world, driver = await written()
    moved = Replicas(S0, (N4, N3))
    split = kinds.split(await world.map(), S0, taken=())
    await world.start(moved if kind == "move" else split)
    await step_to(world, driver, "leave" if kind == "move" else "drop")

    with pytest.raises(PreconditionError) as refused:
        await change(world, Action.ABORT)

    assert refused.value.reason == "PAST_CUTOVER"
    assert (await driver.run()).state is OperationState.DONE


async def test_what_is_over_cannot_be_changed() -> None:
    world, driver = await written()
    await world.start(Replicas(S0, (N2, N1)))
    await driver.run()

    with pytest.raises(PreconditionError) as refused:
        await change(world, Action.PAUSE)

    assert refused.value.reason == "OPERATION_OVER"


async def test_a_paused_operation_goes_on_where_it_was() -> None:
    world, driver = await written()
    await world.start(Replicas(S0, (N4, N3)))
    await step_to(world, driver, "serve")
    await change(world, Action.PAUSE)

    await driver.run(turns=5)
    paused = await world.operation("op-1")
    await change(world, Action.RESUME)

    assert (paused.state, paused.step) == (OperationState.PAUSED, "serve")
    assert (await driver.run()).state is OperationState.DONE


async def test_two_operations_never_have_one_shard() -> None:
    world, _ = await written()
    assert await world.start(Replicas(S0, (N4,)), "op-1") is not None

    assert await world.start(Merge((S0, S1), S2), "op-2") is None
    assert await world.start(Replicas(S1, (N4,)), "op-3") is not None


async def test_a_driver_that_lost_its_lease_changes_nothing() -> None:
    """1. r1 drives. 2. Its lease ends without it hearing of that. 3. r2 drives. 4. r1 goes on."""
    world, first = await written()
    await world.start(Replicas(S0, (N4, N3)))
    await first.look()
    await world.settle()
    before = await world.operation("op-1")
    second = DriverOf(world, "r2")
    await world.coord.txn([], [Delete(keys.DRIVER)])
    assert await second.election._stand(1.0)

    assert first.election.guard is not None
    await first.driver.look()
    assert await world.operation("op-1") == before

    assert (await second.run()).state is OperationState.DONE


async def test_the_next_router_drives_when_the_driver_steps_down() -> None:
    world, first = await written()
    second = DriverOf(world, "r2")
    await world.start(Replicas(S0, (N4, N3)))
    await first.look()
    await second.look()
    assert (first.election.guard is None, second.election.guard is None) == (False, True)

    await first.election._leave()

    assert (await second.run()).state is OperationState.DONE


async def test_a_driver_whose_key_was_deleted_stands_again() -> None:
    world, driver = await written()
    await driver.look()
    await world.coord.txn([], [Delete(keys.DRIVER)])
    await world.start(Replicas(S0, (N4, N3)))

    assert (await driver.run()).state is OperationState.DONE


async def test_a_driver_whose_lease_ran_out_does_not_act() -> None:
    world, driver = await written()
    await driver.look()
    world.coord.stop()

    await world.clock.advance(7.0)

    assert driver.election.guard is None


@pytest.mark.parametrize("step", ["join", "verify", "serve", "cutover", "leave"])
async def test_an_answer_of_etcd_that_is_lost_makes_no_difference(step: str) -> None:
    world, driver = await written()
    await world.start(Replicas(S0, (N4, N3)))
    await step_to(world, driver, step)

    with losing_answers(world, 1):
        await driver.look()

    assert (await driver.run()).state is OperationState.DONE
    assert await nodes_of(world) == {S0: (N4, N3), S1: (N2, N3)}


async def test_a_write_during_the_cutover_makes_it_be_tried_again() -> None:
    """1. The sources are held and compared. 2. The hold ends early, and a write is committed and
    acknowledged. 3. The cutover fails. 4. It is tried again, after a pause.
    """
    world, driver = await written()
    await world.start(kinds.split(await world.map(), S0, taken=()))
    await step_to(world, driver, "cutover")

    async def between() -> None:
        world.copies[N1, S0].held_until_s = 0.0
        subject = next(f"w{n}" for n in range(99) if subject_key(f"w{n}") < 2**63)
        assert await world.write(subject, 99)

    nothing = driver.nodes._world.settle
    world.interruptions += [nothing, nothing, nothing, nothing, between]
    await driver.look()

    assert (await world.operation("op-1")).step == "cutover"
    assert (await driver.run()).state is OperationState.DONE
    first, second = world.holds
    assert second - first >= handover.PAUSE_S


async def test_a_takeover_elsewhere_during_the_cutover_is_not_undone() -> None:
    """1. S0 is held and compared. 2. n3, which leads S1, dies, and n2 takes S1 over. 3. The
    cutover fails, since it was made from the map before.
    """
    world, driver = await written()
    await world.start(Replicas(S1, (N3, N2)), "op-0")
    await driver.run("op-0")
    await world.start(kinds.split(await world.map(), S0, taken=()))
    await step_to(world, driver, "cutover")

    async def between() -> None:
        await world.die(N3)
        await world.take_over()

    world.interruptions.append(between)
    await driver.look()

    assert await nodes_of(world) == {S0: (N1, N2), S2: (N1, N2), S3: (N2, N1), S1: (N2, N3)}
    await world.rise(N3)
    assert (await driver.run()).state is OperationState.DONE


async def test_children_that_answer_worse_do_not_take_over() -> None:
    world, driver = await written()
    world.worse |= {S2}
    await world.start(kinds.split(await world.map(), S0, taken=()))

    await driver.run(turns=30)

    stopped = await world.operation("op-1")
    assert (stopped.state, stopped.step) == (OperationState.RUNNING, "cutover")
    assert stopped.note.startswith("the new shards answer probes differently a worse list")
    # Writers are held back for a second at most each time, and less and less often.
    assert len(world.holds) <= 3
    world.worse.clear()
    assert (await driver.run(turns=200)).state is OperationState.DONE


async def test_children_with_other_rows_stop_the_operation() -> None:
    world, driver = await written()
    world.wrong |= {S3}
    await world.start(kinds.split(await world.map(), S0, taken=()))

    await driver.run(turns=10)

    stopped = await world.operation("op-1")
    assert stopped.state is OperationState.PAUSED
    assert stopped.note == "the new shards have another digest than the old ones"
    assert world.copies[N1, S0].held_until_s == 0.0


async def test_an_operation_waits_for_a_node_that_died_and_says_so() -> None:
    world, driver = await written()
    await world.start(Replicas(S0, (N4, N2)))
    await step_to(world, driver, "verify")
    await world.die(N4)

    await driver.run(turns=3)

    waiting = await world.operation("op-1")
    assert waiting.note == "waits for a node that is not registered node=n4"
    await change(world, Action.ABORT)
    assert (await driver.run()).state is OperationState.ABORTED
    assert await nodes_of(world) == {S0: (N1, N2), S1: (N2, N3)}


@pytest.mark.parametrize("step", ["join", "verify", "serve", "cutover", "leave"])
async def test_a_takeover_in_the_middle_of_a_move_does_no_harm(step: str) -> None:
    world, driver = await written()
    await world.start(Replicas(S0, (N4, N3)))
    await step_to(world, driver, step)
    shard_map = await world.map()
    assert shard_map is not None
    primary = shard_map.shards[0].primary
    await world.die(primary)
    await world.take_over()
    await world.settle()
    if primary == N4:
        await world.rise(N4)

    done = await driver.run()

    assert done.state is OperationState.DONE
    assert sorted((await nodes_of(world))[S0]) == [N3, N4]


async def test_a_copy_is_not_given_up_for_one_that_died_after_the_cutover() -> None:
    """The way out past the cutover must not leave the shard with one copy."""
    world, driver = await written()
    await world.start(Replicas(S0, (N1, N4)))
    await step_to(world, driver, "leave")
    await world.die(N4)
    before = await nodes_of(world)
    assert before[S0] == (N1, N2, N4)

    done = await driver.run(turns=200)

    assert done.state is OperationState.DONE
    assert (await nodes_of(world))[S0] == (N1, N4, N2)
    assert done.note == "n4 did not come back; n2 kept its copy"


async def test_copies_that_came_by_an_operation_leave_though_one_took_over() -> None:
    """1. n4 serves S0 already. 2. n1 and n2 die, n4 takes over, n2 comes back. 3. The operator
    aborts: n2 leads again, and n4 leaves.
    """
    world, driver = await written()
    await world.start(Replicas(S0, (N4, N2)))
    await step_to(world, driver, "cutover")
    await world.die(N1)
    await world.die(N2)
    await world.take_over()
    await world.settle()
    assert (await nodes_of(world))[S0][0] == N4
    await world.rise(N2)
    await world.settle()

    await change(world, Action.ABORT)
    done = await driver.run()

    assert done.state is OperationState.ABORTED
    assert (await nodes_of(world))[S0] == (N2, N1)


@pytest.mark.parametrize("state", [OperationState.RUNNING, OperationState.PAUSED])
@pytest.mark.parametrize("step", ["follow", "drop"])
async def test_an_operation_ends_with_its_gallery(step: str, state: OperationState) -> None:
    """Else the shards that were just replaced, which no map has any more, would stay."""
    world, driver = await written()
    await world.start(kinds.split(await world.map(), S0, taken=()))
    await step_to(world, driver, step)
    if state is OperationState.PAUSED:
        await change(world, Action.PAUSE)
        await driver.look()
    assert (await world.operation("op-1")).state is state
    await world.drop_gallery()

    done = await driver.run(turns=5)

    assert (done.state, done.note) == (OperationState.ABORTED, "the gallery was dropped")
    assert await world.taken() == {}
    dropped = await world.coord.get(keys.dropped(S0))
    assert (dropped is not None) == (step == "drop")
