"""Canaries of a node: which searches they look at, what may happen meanwhile, and their alarms."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from facegrid import limits
from facegrid.tuning import Profile
from facegrid.vectors import Float32
from indexd.engine import canary as pieces
from indexd.engine.budget import SAVED_S_MAX
from indexd.engine.repack import Repack
from indexd.engine.search import Found
from indexd.engine.state import ShardState
from indexd.replica import canaries as canaries_module
from indexd.replica.canaries import BATCH_PROBES, BATCH_S_MAX, TELL_S, Told
from indexd.replica.shard_copy import Phase
from tests.fakes.canary_world import (
    GALLERY,
    NAME,
    NLIST,
    PEOPLE,
    SHARD,
    CanaryWorld,
    TickingClock,
    enrol,
    people,
    seen_again,
    shard_state,
)

MISSES = "the index misses more than it may"
MISSES_NO_MORE = "the index misses no more than it may"
NEAR = seen_again(PEOPLE, 0.9, 5)


@pytest.fixture
def world() -> CanaryWorld:
    return CanaryWorld()


def only(world: CanaryWorld) -> Told:
    """What canaries say of the one profile that they saw."""
    (told,) = world.canaries.told()
    return told


def held(world: CanaryWorld) -> int:
    """Probes that wait to be compared."""
    return sum(len(one.reservoir) for one in world.canaries._collected.values())


def lacking(found: Found) -> int:
    """Of how many probes, the first of all people, the answer lacks whom they are of."""
    ends = np.cumsum(found.counts).tolist()
    begins = [0, *ends[:-1]]
    spans = enumerate(zip(begins, ends, strict=True))
    return sum(f"s-{i}" not in found.subject_ids[begin:end] for i, (begin, end) in spans)


def repacked(state: ShardState) -> ShardState:
    repack = Repack(state)
    while (step := repack.next_step()) is not None:
        repack.copy(step, repack.encoded(step))
    return repack.finish()


# What is looked at


async def test_what_the_answer_lacked_is_counted(world: CanaryWorld) -> None:
    found = world.search(NEAR[:40])
    await world.compare()

    misses = lacking(found)
    assert misses > 10
    assert only(world) == Told(NAME, Profile.FAST, 40, 40, misses, is_raised=True)


async def test_searches_that_look_into_all_lists_need_no_canary(world: CanaryWorld) -> None:
    world.search(NEAR[:40], Profile.EXHAUSTIVE)
    world.retune(NLIST)
    world.search(NEAR[:40])
    await world.compare()

    assert (held(world), world.canaries.told()) == (0, [])


async def test_galleries_without_codebook_or_tuning_need_no_canary(world: CanaryWorld) -> None:
    world.copy.state = shard_state(book=None)
    world.search(NEAR[:40])
    world.say(replace(GALLERY, tuning=None))
    world.search(NEAR[:40])
    world.say(None)
    world.canaries.observe(None, [world.state], NEAR, *_nothing())
    await world.compare()

    assert (held(world), world.canaries.told()) == (0, [])


def _nothing() -> tuple[canaries_module.Wish, Found]:
    wish = canaries_module.Wish(1, 0.0, Profile.FAST, GALLERY.tuning)
    empty = Found(
        np.zeros(600, np.uint32), np.zeros(0, np.float32), [], [], [],
        scanned=np.zeros(600, np.int64), rows_counts=(600,),
    )  # fmt: skip
    return wish, empty


async def test_a_shard_with_another_codebook_than_the_tuning_is_not_held_to_it(
    world: CanaryWorld,
) -> None:
    world.state.codebook = "cd" * 32
    world.search(NEAR[:40])

    assert held(world) == 0


async def test_profiles_are_counted_apart(world: CanaryWorld) -> None:
    world.search(NEAR[:20], Profile.BALANCED)
    world.search(NEAR[20:40], Profile.FAST)
    await world.compare()

    assert {(one.profile, one.probes) for one in world.canaries.told()} == {
        (Profile.BALANCED, 20),
        (Profile.FAST, 20),
    }


async def test_a_batch_is_bounded_and_no_probe_is_in_it_twice(world: CanaryWorld) -> None:
    for _ in range(3):
        world.search(NEAR[:10])
    assert held(world) == 10, "the same over and over is one sample"
    for _ in range(3):
        world.search(NEAR[10:300])

    assert held(world) <= BATCH_PROBES
    kept = [one.x.tobytes() for one in world.canaries._collected[GALLERY.uid].reservoir.kept]
    assert len(kept) == len(set(kept))


async def test_the_same_seed_takes_the_same_probes() -> None:
    def taken(seed: int) -> list[bytes]:
        world = CanaryWorld(seed=seed)
        world.search(NEAR)
        kept = world.canaries._collected[GALLERY.uid].reservoir.kept
        return [one.x.tobytes() for one in kept]

    assert taken(1) == taken(1) != taken(2)


async def test_probes_are_held_until_compared_and_not_logged(world: CanaryWorld) -> None:
    world.search(NEAR[:40])
    await world.compare()

    assert held(world) == 0
    assert [event for event, _ in world.log.lines] == [MISSES]
    assert set(world.log.lines[0][1]) == {"gallery", "profile", "mates", "misses", "allowed"}


# What may happen between a search and its comparison


async def test_a_shard_that_moved_away_is_not_compared(world: CanaryWorld) -> None:
    world.search(NEAR[:40])
    world.copies.clear()
    await world.compare()

    assert (world.canaries.told(), world.canaries.given_up_count) == ([], 40)


@pytest.mark.parametrize("phase", [Phase.FENCED, Phase.CLOSED, Phase.FAILED])
async def test_a_copy_that_serves_no_more_is_not_compared(
    world: CanaryWorld, phase: Phase
) -> None:
    world.search(NEAR[:40])
    world.copy.phase = phase
    await world.compare()

    assert (world.canaries.told(), world.canaries.given_up_count) == ([], 40)


async def test_repacked_rows_have_other_numbers_and_are_not_compared(world: CanaryWorld) -> None:
    """1 search; 2 erase, repack; 3 search again; 4 compare: only the later search counts."""
    world.search(NEAR[:20])
    world.state.erase_rows(np.arange(300))
    world.copy.state = repacked(world.state)
    world.search(NEAR[400:420])
    await world.compare()

    assert (only(world).probes, world.canaries.given_up_count) == (20, 20)


async def test_a_shard_that_is_repacked_amid_a_comparison_is_given_up(
    world: CanaryWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 half of the rows were looked at; 2 the state is exchanged, and someone erased in the new
    one; 3 that erasure is unknown to the old one: nothing is counted.
    """
    monkeypatch.setattr(pieces, "PIECE_ROWS", 300)
    world.search(NEAR[:40])
    looked = 0
    look = pieces.Comparison.look

    def interrupted(self: pieces.Comparison, piece: pieces.Piece, state: ShardState) -> None:
        nonlocal looked
        looked += 1
        look(self, piece, state)
        if looked == 2:
            world.copy.state = repacked(state)
            world.state.erase_rows(np.arange(40))

    monkeypatch.setattr(pieces.Comparison, "look", interrupted)
    await world.compare()

    assert (looked, world.canaries.told(), world.canaries.given_up_count) == (2, [], 40)


async def test_erasures_in_between_are_no_misses(world: CanaryWorld) -> None:
    world.search(NEAR[:40])
    world.state.erase_rows(np.arange(40))
    await world.compare()

    assert (only(world).probes, only(world).misses) == (40, 0)


async def test_enrolments_in_between_are_no_misses(world: CanaryWorld) -> None:
    newcomers = people(400, 77)
    probes = seen_again(newcomers[(newcomers @ PEOPLE.T).max(axis=1) < 0.6], 0.95, 5)[:40]
    world.search(probes)
    enrol(world.state, newcomers)
    world.state.index.absorb()
    await world.compare()

    assert (only(world).probes, only(world).mates, only(world).misses) == (len(probes), 0, 0)


async def test_searches_by_a_tuning_that_was_replaced_are_not_held_against_the_new_one(
    world: CanaryWorld,
) -> None:
    world.search(NEAR[:40])
    world.retune(8)
    await world.compare()

    assert (world.canaries.told(), world.canaries.given_up_count) == ([], 40)


async def test_a_gallery_that_was_dropped_is_forgotten_with_its_probes(
    world: CanaryWorld,
) -> None:
    world.search(NEAR[:40])
    await world.compare()
    world.search(NEAR[40:80])
    world.say(None)
    await world.canaries.tend()

    assert (held(world), world.canaries.told()) == (0, [])


async def test_a_gallery_that_was_made_anew_under_its_name_is_another(world: CanaryWorld) -> None:
    world.search(NEAR[:40])
    await world.compare()
    world.say(replace(GALLERY, uid="2f00aa23"))
    await world.canaries.tend()

    assert world.canaries.told() == []


async def test_a_node_that_was_started_anew_begins_with_nothing(world: CanaryWorld) -> None:
    world.search(NEAR[:40])
    await world.compare()
    again = CanaryWorld()

    assert (again.canaries.told(), again.canaries.alarms(NAME)) == ([], [])
    again.search(NEAR[:40])
    await again.compare()
    assert only(again) == only(world)


# Time


async def _run(world: CanaryWorld, duration_s: float, probes: Float32) -> None:
    """Let canaries run while somebody searches twice a second."""
    running = asyncio.ensure_future(world.canaries.run())
    for number in range(int(2 * duration_s)):
        await world.clock.advance(0.5)
        world.search(probes[number % 9 :: 9])
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_they_take_no_more_than_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_ROWS", 50)
    clock = TickingClock()
    world = CanaryWorld(share=0.02, clock=clock)
    began_s = clock._now_s
    await _run(world, 25, NEAR)

    elapsed_s = clock._now_s - began_s
    assert only(world).probes >= BATCH_PROBES
    # The last piece may have overdrawn it.
    assert 0.3 < world.canaries.spent_s <= 0.02 * elapsed_s + SAVED_S_MAX + 0.01


async def test_searches_come_in_between_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """One piece of twelve is looked at every five seconds; who searches meanwhile is served."""
    monkeypatch.setattr(pieces, "PIECE_ROWS", 50)
    world = CanaryWorld(share=0.001, clock=TickingClock())
    world.search(NEAR[:40])
    await world.clock.advance(canaries_module.COLLECT_S)
    world.budget.spend(SAVED_S_MAX)
    comparing = asyncio.ensure_future(world.canaries.compare_due())
    await world.clock.advance(30)
    assert not comparing.done()
    world.search(NEAR[:40])
    await world.clock.advance(120)

    assert comparing.done()
    assert only(world).probes == 40


async def test_a_batch_for_which_there_is_no_time_is_given_up() -> None:
    world = CanaryWorld(share=1e-9)
    world.search(NEAR[:40])
    world.budget.spend(1.0)
    await world.compare()

    assert (world.canaries.given_up_count, held(world)) == (40, 0)
    assert world.log.lines == [
        (
            "canaries given up: the time for them is too short",
            {"gallery": NAME, "probes": 40},
        )
    ]


async def test_a_few_probes_wait_for_company(world: CanaryWorld) -> None:
    world.search(NEAR[:3])
    await world.clock.advance(5)
    await world.canaries.compare_due()
    assert held(world) == 3

    await world.clock.advance(6)
    await world.canaries.compare_due()
    assert (held(world), only(world).probes) == (0, 3)


def test_limits_fit_together() -> None:
    assert BATCH_S_MAX > canaries_module.COLLECT_S
    assert limits.REPACK_STEP_ROWS >= pieces.PIECE_ROWS, "a piece is no longer than other work"


# Alarms


async def _search_much(world: CanaryWorld, profile: Profile = Profile.FAST) -> None:
    for first in range(0, 600, 60):
        world.search(NEAR[first : first + 60], profile)
        await world.compare()


async def test_a_bad_effort_raises_an_alarm_which_ends_after_a_better_tuning(
    world: CanaryWorld,
) -> None:
    """1 one list of 16 is looked into; 2 alarm, told of; 3 somebody tunes; 4 it ends by itself."""
    await _search_much(world)
    assert only(world).is_raised
    assert world.canaries.alarms(NAME) == [Profile.FAST]
    assert [event for event, _ in world.log.lines] == [MISSES], "once"
    await world.canaries.tend()
    (alarm,) = world.heard.told
    assert (alarm.gallery, alarm.profile) == (NAME, Profile.FAST)
    assert alarm.misses_count > 0.1 * alarm.mates_count
    await world.canaries.tend()
    assert len(world.heard.told) == 1, "not again so soon"

    world.retune(NLIST - 1)
    await world.clock.advance(TELL_S)
    await world.canaries.tend()
    assert world.canaries.alarms(NAME) == [Profile.FAST], "nothing shows yet that it helped"
    assert len(world.heard.told) == 1, "but it is no reason to tune once more"
    await _search_much(world)

    assert world.canaries.alarms(NAME) == []
    assert [event for event, _ in world.log.lines] == [MISSES, MISSES_NO_MORE]


async def test_an_alarm_is_told_of_until_something_is_done(world: CanaryWorld) -> None:
    await _search_much(world)
    for _ in range(3):
        await world.canaries.tend()
        await world.clock.advance(TELL_S)

    assert len(world.heard.told) == 3
    assert len(set(world.heard.told)) == 1


async def test_an_alarm_ends_when_all_lists_are_searched_from_now_on(world: CanaryWorld) -> None:
    await _search_much(world)
    world.retune(NLIST)
    await world.canaries.tend()

    assert (world.canaries.alarms(NAME), world.heard.told) == ([], [])
    assert [event for event, _ in world.log.lines] == [MISSES, MISSES_NO_MORE]


async def test_a_good_effort_raises_none(world: CanaryWorld) -> None:
    world.retune(NLIST - 1)
    await _search_much(world)
    await _search_much(world)

    assert (only(world).mates, world.canaries.alarms(NAME), world.log.lines) == (1200, [], [])


async def test_drift_is_measured_to_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canaries_module, "DRIFT_S", 3.0)
    world = CanaryWorld(clock=TickingClock())
    await _run(world, 5, NEAR[:9])

    assert world.canaries.drifts()[NAME].ratio == pytest.approx(1, abs=0.1)
    assert SHARD.shard_id in world.copies
