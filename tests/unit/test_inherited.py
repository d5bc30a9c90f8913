"""A late copy of a request changes nothing, also after its shard was split or merged."""

from dataclasses import replace

import numpy as np

from facegrid import vectors
from facegrid.format.sources import InheritedRequest
from facegrid.ids import subject_key
from facegrid.model import HashRange
from indexd.engine.requests import EnrolRequest, EraseRequest, InheritedRequests
from indexd.replica.primary import Primary
from tests.fakes.mirror_rig import (
    DIM,
    HIGH,
    LOW,
    LOWER,
    N1,
    N2,
    UPPER,
    Rig,
    S,
    rigged,
    split_map,
)

ROWS = 12
"""Enough for both halves of the key space to have some."""


def enrol(number: int, within: HashRange | None = None) -> EnrolRequest:
    """Return the request with a number, or what of it a shard of a range is asked for."""
    x = np.random.default_rng(number).normal(size=(ROWS, DIM)).astype(np.float32)
    codes = vectors.quantize(x)
    subjects = [f"s-{number}-{row}" for row in range(ROWS)]
    at = [
        row
        for row, subject in enumerate(subjects)
        if within is None or within.contains(subject_key(subject))
    ]
    return EnrolRequest(
        f"r-{number}", [f"t-{row}" for row in at], [subjects[row] for row in at], codes[at]
    )


async def erase_all(primary: Primary, number: int) -> None:
    await primary.write(EraseRequest(f"e-{number}", [], enrol(number).subject_ids))


async def write_late(primary: Primary, within: HashRange, *numbers: int) -> None:
    """Let copies of requests arrive, and one that nobody had sent before."""
    for number in numbers:
        outcome = await primary.write(enrol(number, within))
        assert outcome.enrolled_count == 0
        assert primary.state.templates_count == 0
    anew = replace(enrol(1, within), request_id=f"anew-{within.first}")
    assert (await primary.write(anew)).enrolled_count == len(anew.template_ids) > 0
    await primary.write(EraseRequest("e-anew", [], anew.subject_ids))


async def restarted(rig: Rig) -> None:
    """Start all nodes anew."""
    for process in [*rig.processes.values()]:
        await rig.kill(process)
    await rig.start(N1)
    await rig.start(N2)


async def test_what_a_shard_carried_out_its_halves_do_not_carry_out_again() -> None:
    """1 is enrolled and erased before the split, 2 enrolled before and erased amid it, 3 both amid
    it; 4 is there already when it comes under another id, and erased then.
    """
    async with rigged() as rig:
        await rig.start(N1)
        await rig.start(N2)
        source = await rig.serving(S)
        await source.write(enrol(1))
        await erase_all(source, 1)
        await source.write(enrol(2))
        await source.write(enrol(4))
        await rig.say(split_map())
        await rig.brought_over()
        await erase_all(source, 2)
        await source.write(enrol(3))
        await erase_all(source, 3)
        again = replace(enrol(4), request_id="r-4-again")
        assert (await source.write(again)).unchanged_count == ROWS
        await erase_all(source, 4)
        await rig.brought_over()
        for child, within in ((LOW, LOWER), (HIGH, UPPER)):
            primary = await rig.serving(child)
            await write_late(primary, within, 1, 2, 3, 4)
            late = replace(enrol(4, within), request_id="r-4-again")
            assert (await primary.write(late)).enrolled_count == 0
            await primary.flush()
        await restarted(rig)
        for child, within in ((LOW, LOWER), (HIGH, UPPER)):
            primary = await rig.serving(child)
            for number in (1, 2, 3, 4):
                assert (await primary.write(enrol(number, within))).enrolled_count == 0


async def test_a_late_copy_of_an_erasure_does_not_erase_who_was_enrolled_again_since() -> None:
    """1 is erased before the split, and 2 amid it; both are enrolled again; copies of the erasures
    arrive when the halves have taken the shard's place.
    """
    async with rigged() as rig:
        await rig.start(N1)
        await rig.start(N2)
        source = await rig.serving(S)
        for number in (1, 2):
            await source.write(enrol(number))
        await erase_all(source, 1)
        await rig.say(split_map())
        await rig.brought_over()
        await erase_all(source, 2)
        for number in (1, 2):
            await source.write(replace(enrol(number), request_id=f"again-{number}"))
        await rig.brought_over()
        for child in (LOW, HIGH):
            await (await rig.serving(child)).flush()
        await restarted(rig)
        for child in (LOW, HIGH):
            primary = await rig.serving(child)
            there = primary.state.templates_count
            assert there > 0
            for number in (1, 2):
                await erase_all(primary, number)
            assert primary.state.templates_count == there
            await primary.write(EraseRequest("e-anew", [], enrol(1).subject_ids))
            assert primary.state.templates_count < there


async def test_a_merged_shard_takes_what_only_one_of_its_sources_had() -> None:
    """Of a request that reached one half of the key space and not the other, the retry brings the
    rest, and only that.
    """
    halves = tuple(replace(one, sources=()) for one in split_map().pending)
    before = replace(split_map(), shards=halves, pending=())
    after = replace(
        before, version=3, pending=(replace(split_map().shards[0], sources=(LOW, HIGH)),)
    )
    async with rigged(shard_map=before) as rig:
        await rig.start(N1)
        await rig.start(N2)
        low, high = await rig.serving(LOW), await rig.serving(HIGH)
        await low.write(enrol(1, LOWER))
        await erase_all(low, 1)
        await high.write(enrol(2, UPPER))
        await rig.say(after)
        for source in (LOW, HIGH):
            await rig.brought_over(S, source=source)
        one = await rig.serving(S)
        missing = len(enrol(1, UPPER).template_ids)
        assert 0 < missing < ROWS

        outcome = await one.write(enrol(1))

        assert outcome.enrolled_count == missing
        assert outcome.unchanged_count == ROWS - missing


def test_the_oldest_are_forgotten_when_there_are_too_many() -> None:
    requests = InheritedRequests(count_max=3)
    whole, part = HashRange(0, 100), HashRange(0, 50)
    requests.note([InheritedRequest("a", whole), InheritedRequest("a", part)])
    requests.note([InheritedRequest("b", part), InheritedRequest("b", part)])

    assert [requests.done_for("a", 75), requests.done_for("b", 75)] == [True, False]
    requests.note([InheritedRequest("c", whole)])
    assert [requests.done_for("a", key) for key in (25, 75)] == [True, False]
    requests.note([InheritedRequest("d", whole)])
    assert not requests.done_for("a", 25)
    requests.note([InheritedRequest("d", HashRange(101, 200))])
    spans = [HashRange(10, 150), HashRange(10, 201)]
    assert [requests.done_in("d", one) for one in spans] == [True, False]
    assert [one.request_id for one in requests] == ["c", "d", "d"]
