"""A shard is brought into pending ones: rows, then every record, each with the effect of once."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from facegrid import vectors
from facegrid.api.shard.v1 import shard_service_pb2 as pb
from facegrid.coord import keys
from facegrid.coord.port import Put
from facegrid.errors import DeadlineError, FencedError, InvalidError, UnavailableError
from facegrid.format import digest as digests
from facegrid.format.log import EnrolRecord, encode_record
from facegrid.format.records import Dropped, encode_dropped
from facegrid.format.sources import SourcePosition
from facegrid.ids import NodeId, ShardId, subject_key
from facegrid.model import HashRange
from facegrid.rpc.together import all_of
from fgctl.bulk.publish import LoadStore
from fgctl.bulk.rows import ShardRows
from fgctl.bulk.segments import build_segment
from indexd.engine.requests import EnrolRequest, EraseRequest, LoadRequest, NamedSegment
from indexd.engine.state import ShardState
from indexd.replica.primary import Primary
from tests.fakes.caller import CALLER
from tests.fakes.mirror_rig import (
    DIM,
    HIGH,
    LOW,
    LOWER,
    N1,
    N2,
    UID,
    UPPER,
    Process,
    Rig,
    S,
    rigged,
    split_map,
    whole_map,
)
from tests.fakes.waiting import until

Key = tuple[str, str]


def enrol(number: int, rows: int = 4) -> EnrolRequest:
    x = np.random.default_rng(number).normal(size=(rows, DIM)).astype(np.float32)
    ids = [f"{number}-{row}" for row in range(rows)]
    return EnrolRequest(
        f"r-{number}", [f"t-{i}" for i in ids], [f"s-{i}" for i in ids], vectors.quantize(x)
    )


def part(request: EnrolRequest, key_range: HashRange) -> EnrolRequest:
    """Return those rows of a request that lie in a range."""
    subjects = enumerate(request.subject_ids)
    at = [row for row, one in subjects if key_range.contains(subject_key(one))]
    return replace(
        request,
        template_ids=[request.template_ids[row] for row in at],
        subject_ids=[request.subject_ids[row] for row in at],
        codes=request.codes[at],
    )


def erase(number: int, *rows: int) -> EraseRequest:
    return EraseRequest(f"e-{number}-{rows}", [], [f"s-{number}-{row}" for row in rows])


async def load(rig: Rig, primary: Primary, *numbers: int) -> None:
    """Load segments with the rows that `enrol` gives to these numbers."""
    load_id = f"load{next(rig.numbers):08d}"
    segments = []
    for number in numbers:
        request = enrol(number)
        ids = (request.template_ids, request.subject_ids)
        segment = build_segment(ShardRows(*ids, request.codes, shard_id=S), load_id)
        await LoadStore(rig.store, load_id).put(segment)
        segments.append(NamedSegment(segment.named.sha256, segment.named.rows_count))
    await primary.load_segments(LoadRequest(f"load-{load_id}", tuple(segments)))
    await LoadStore(rig.store, load_id).unpin_all([S])


def rows_of(state: ShardState) -> dict[Key, bytes]:
    """Return the live rows of a shard."""
    rows = np.arange(state.rows_count, dtype=np.int64)
    live = rows[~state.erased_mask(rows)]
    codes = state.index.codes(live)
    return {
        (state.subjects.name_of_row(row), state.templates[row]): data.tobytes()
        for row, data in zip(live.tolist(), codes, strict=True)
    }


def check_children(rig: Rig) -> None:
    """The children together are the source, and each row is in the one whose range has it."""
    source, low, high = (rig.primary(one) for one in (S, LOW, HIGH))
    assert source is not None
    assert low is not None
    assert high is not None
    states = [one.state for one in (source, low, high)]
    whole, below, above = map(rows_of, states)
    assert {**below, **above} == whole
    assert len(below) + len(above) == len(whole)
    assert all(LOWER.contains(subject_key(subject)) for subject, _ in below)
    assert all(UPPER.contains(subject_key(subject)) for subject, _ in above)
    told = [digests.to_bytes(state.digest).hex() for state in states]
    assert digests.of_disjoint(told[1:]) == told[0]


async def two_nodes(rig: Rig) -> tuple[Process, Process, Primary]:
    first, second = await rig.start(N1), await rig.start(N2)
    return first, second, await rig.serving(S)


async def test_rows_and_all_later_records_come_into_the_children_and_each_row_into_one() -> None:
    async with rigged() as rig:
        _, _, source = await two_nodes(rig)
        for number in range(1, 9):
            await source.write(enrol(number))
        await source.write(erase(3, 0, 1))
        await load(rig, source, 20, 21)
        await rig.say(split_map())
        await rig.brought_over()
        check_children(rig)

        await source.write(enrol(9))
        await source.write(erase(9, 0))
        await source.write(erase(20, 1))
        await source.write(EraseRequest("e-t", ["t-1-0", "t-21-3"], []))
        await load(rig, source, 22, 2, 23)
        await source.write(enrol(24, rows=1))
        await rig.brought_over()
        check_children(rig)
        low = await rig.serving(LOW)
        assert low.state.position < source.state.position, "of what came before, one record"
        assert len(low.state.requests) == len(low.state.erasures) == 0
        status = await rig.service(LOW).Status(pb.StatusRequest(), CALLER)
        told = [(one.shard_id, [*one.sources]) for one in status.shards]
        assert (LOW, [pb.SourcePosition(shard_id=S, position=source.state.position)]) in told


async def test_an_empty_shard_has_nothing_to_be_brought_over_and_its_first_record_comes() -> None:
    async with rigged(shard_map=split_map()) as rig:
        _, _, source = await two_nodes(rig)
        await rig.serving(LOW)
        await rig.serving(HIGH)
        held = await rig.hold(S)
        assert (held.position, held.tip_revision, held.templates_count) == (0, 0, 0)
        await rig.hold(S, 0)
        await source.write(enrol(1))
        await rig.brought_over()
        check_children(rig)


async def test_a_record_without_rows_of_a_range_moves_the_position_there_alone() -> None:
    async with rigged(shard_map=split_map()) as rig:
        _, _, source = await two_nodes(rig)
        await source.write(enrol(1))
        await rig.brought_over()
        low = [one for one in range(10, 60) if LOWER.contains(subject_key(f"s-{one}-0"))]
        for number in low[:5]:
            await source.write(enrol(number, rows=1))
        await rig.brought_over()
        check_children(rig)


async def mirror(rig: Rig, child: ShardId, after: int, last: int, *records: bytes) -> int:
    request = pb.MirrorRequest(
        shard_id=child,
        source_shard_id=S,
        after_position=after,
        last_position=last,
        records=records,
    )
    return (await rig.service(child).Mirror(request, CALLER)).source_position


def record(number: int, position: int, *, low: bool = True) -> bytes:
    """One row, of the lower or the upper half, as a record of the source."""
    wanted = LOWER if low else UPPER
    request = next(
        one
        for one in (enrol(number + 1000 * step, rows=1) for step in range(1, 100))
        if wanted.contains(subject_key(one.subject_ids[0]))
    )
    return encode_record(
        EnrolRecord(
            position,
            request.request_id,
            request.digest(),
            0,
            request.template_ids,
            request.subject_ids,
            request.codes,
            source=SourcePosition(S, position),
        )
    )


async def test_only_what_follows_is_taken_and_a_repetition_hears_how_far_it_is() -> None:
    async with rigged() as rig:
        await rig.start(N2)
        await rig.say(split_map())
        high = await rig.serving(HIGH)
        rows = [record(number, number, low=False) for number in range(1, 9)]
        assert await mirror(rig, HIGH, -1, 0) == 0
        assert await mirror(rig, HIGH, 3, 4, rows[3]) == 0, "there is a gap"
        assert await mirror(rig, HIGH, 0, 2, *rows[:2]) == 2
        assert await mirror(rig, HIGH, 0, 2, *rows[:2]) == 2, "once more"
        assert await mirror(rig, HIGH, 0, 3, *rows[:3]) == 2, "by somebody who is behind"
        assert await mirror(rig, HIGH, 2, 5) == 5, "nothing in between is of this range"
        assert await mirror(rig, HIGH, 5, 8, rows[6]) == 8
        assert (high.state.position, high.state.templates_count) == (4, 3)
        both = [mirror(rig, HIGH, 8, 9, record(9, 9, low=False)) for _ in range(2)]
        assert await all_of(both) == [9, 9]
        assert high.state.templates_count == 4


async def test_records_that_do_not_belong_there_are_refused_and_change_nothing() -> None:
    async with rigged() as rig:
        await rig.start(N2)
        await rig.say(split_map())
        high = await rig.serving(HIGH)
        good, other = record(1, 1, low=False), record(1, 1)
        no_vector = encode_record(
            EnrolRecord(
                1, "r", bytes(16), 0, ["t"], ["s"], np.zeros((1, DIM), np.int8),
                source=SourcePosition(S, 1),
            )
        )  # fmt: skip
        elsewhere = encode_record(
            EnrolRecord(
                1, "r", bytes(16), 0, [], [], np.zeros((0, DIM), np.int8),
                source=SourcePosition(LOW, 1),
            )
        )  # fmt: skip
        for records, last in (
            ([other], 1), ([no_vector], 1), ([elsewhere], 1), ([b"\xff"], 1), ([good, good], 1),
            ([record(2, 2, low=False)], 1), ([], 0),
        ):  # fmt: skip
            with pytest.raises(InvalidError) as refused:
                await mirror(rig, HIGH, 0, last, *records)
            assert refused.value.reason in ("RECORD_REFUSED", "POSITIONS_MALFORMED")
        assert (high.state.position, high.state.sources) == (0, {})


async def test_a_shard_that_serves_takes_no_records_of_another() -> None:
    async with rigged() as rig:
        await rig.start(N1)
        await rig.serving(S)
        with pytest.raises(FencedError) as refused:
            await mirror(rig, S, 0, 1)
        assert refused.value.reason == "NOT_PENDING"


async def test_a_source_keeps_its_log_until_it_was_brought_over_also_after_a_restart() -> None:
    """1 the base is over; 2 the child cannot be reached; 3 the source flushes, and a load is
    rewritten; 4 it dies; 5 its successor flushes; 6 the child is back: nothing is missing.
    """
    async with rigged(shard_map=split_map()) as rig:
        first, second, source = await two_nodes(rig)
        await source.write(enrol(1))
        await rig.brought_over()
        await rig.kill(second)
        for number in range(2, 6):
            await source.write(enrol(number))
        await load(rig, source, 30, 31)
        await source.write(erase(30, 0, 1))
        await source.write(erase(4, 1))
        await source.rewrite()
        await rig.kill(first)
        await rig.start(N1)
        source = await rig.serving(S)
        await source.write(enrol(6))
        await source.write(erase(31, 0))
        await source.rewrite()
        await rig.start(N2)
        await rig.brought_over()
        check_children(rig)
        await source.flush()
        await source.write(enrol(7))
        await source.rewrite()
        await rig.brought_over()
        # The source hears of it with the answer, a moment after the children have it.
        position = source.state.position
        await until(lambda: set(source.mirrored.values()) == {position})
        await source.sweep()
        log = [name for name in rig.store.objects if name.startswith(f"shards/{S}/log/")]
        assert log == [], "what was brought over is not kept any longer"


async def test_what_an_attempt_left_that_died_is_swept() -> None:
    """1 the answer to a base is lost, its call too; 2 it comes the second time; 3 the child
    flushes.
    """
    async with rigged() as rig:
        _, _, source = await two_nodes(rig)
        await source.write(enrol(1))
        lost = iter([True, True])

        def lose(method: str, request: pb.MirrorRequest) -> None:
            if method == "Mirror" and request.records and next(lost, False):
                raise UnavailableError("lost", reason="TRANSPORT")

        rig.wire.before = lose
        await rig.say(split_map())
        await rig.brought_over()
        check_children(rig)
        for child in (LOW, HIGH):
            primary = await rig.serving(child)
            await primary.flush()
            await primary.sweep()
            kinds = [name.split("/")[2] for name in rig.store.objects if f"/{child}/" in name]
            assert sorted(kinds) == ["manifests", "segments"]


async def test_what_was_stored_for_a_shard_that_left_the_map_is_deleted() -> None:
    async with rigged() as rig:
        _, _, source = await two_nodes(rig)
        await source.write(enrol(1))

        def lose(method: str, request: pb.MirrorRequest) -> None:
            if method == "Mirror" and request.records:
                raise UnavailableError("lost", reason="TRANSPORT")

        rig.wire.before = lose
        await rig.say(split_map())
        await until(lambda: any(f"/{HIGH}/segments/" in name for name in rig.store.objects))
        # Whose turn it is to delete them is away.
        orders = [Dropped(one, UID, (NodeId("n9"),), gallery_lives=True) for one in (LOW, HIGH)]
        puts = [Put(keys.dropped(one.shard_id), encode_dropped(one)) for one in orders]
        await rig.coord.txn([], puts)
        await rig.say(whole_map(3))
        await until(lambda: not any(f"/{HIGH}/" in name for name in rig.store.objects))
        await until(lambda: not any(f"/{LOW}/" in name for name in rig.store.objects))


async def test_writes_wait_while_they_are_held_and_go_on_by_themselves() -> None:
    async with rigged(shard_map=split_map()) as rig:
        _, _, source = await two_nodes(rig)
        await source.write(enrol(1))
        held = await rig.hold(S, 200)
        waiting = asyncio.get_running_loop().create_task(source.write(enrol(2)))
        again = await rig.hold(S, 1000)
        assert again == held, "asked again, nothing is prolonged and nothing moved"
        assert not waiting.done()
        assert (held.position, held.templates_count) == (1, 4)
        claim = await rig.coord.get(f"gen/{S}")
        tip = await rig.coord.get(f"tip/{S}")
        assert claim is not None
        assert tip is not None
        assert (held.claim, held.tip_revision) == (claim.value, tip.mod_revision)
        assert held.digest == digests.to_bytes(source.state.digest).hex()
        check_children(rig)
        assert (await waiting).position == 2
        await rig.brought_over()


async def test_held_writes_go_on_at_once_when_told() -> None:
    async with rigged(shard_map=split_map()) as rig:
        _, _, source = await two_nodes(rig)
        await rig.hold(S, 1000)
        await rig.hold(S, 0)
        assert (await source.write(enrol(1))).position == 1


async def test_holds_succeed_under_writes_and_leave_room_for_them() -> None:
    """Writers never rest; holds follow one another. Each shows all that there is, each lets writes
    through that waited before, and no write is refused.
    """
    async with rigged(shard_map=split_map()) as rig:
        _, _, source = await two_nodes(rig)
        stop = asyncio.Event()
        numbers = iter(range(1, 10**6))

        async def write_on() -> int:
            count = 0
            while not stop.is_set():
                await source.write(enrol(next(numbers), rows=2))
                count += 1
            return count

        async with asyncio.TaskGroup() as tasks:
            writers = [tasks.create_task(write_on()) for _ in range(8)]
            await until(lambda: source.state.position > 0)
            positions = []
            for _ in range(5):
                held = await rig.hold(S)
                assert held.digest == digests.to_bytes(source.state.digest).hex()
                check_children(rig)
                positions.append(held.position)
                await rig.hold(S, 0)
            stop.set()
        assert positions == sorted({*positions}), "writes went on in between"
        assert sum(writer.result() for writer in writers) == source.state.position
        await rig.brought_over()
        check_children(rig)


async def test_writes_go_on_when_not_all_can_be_brought_over_in_time() -> None:
    async with rigged(shard_map=split_map()) as rig:
        _, second, source = await two_nodes(rig)
        await source.write(enrol(1))
        await rig.brought_over()
        await rig.kill(second)
        await source.write(enrol(2))
        with pytest.raises(DeadlineError) as late:
            await rig.service(S).Hold(pb.HoldRequest(shard_id=S, hold_ms=50), CALLER)
        assert late.value.reason == "MIRROR_BEHIND"
        assert (await source.write(enrol(3))).position == 3


async def test_writes_are_held_back_too_where_only_copies_are_compared() -> None:
    """The shard is no source of any other: one of its copies joins, and is to come level."""
    async with rigged() as rig:
        await rig.start(N1)
        source = await rig.serving(S)
        await source.write(enrol(1))
        held = await rig.service(S).Hold(pb.HoldRequest(shard_id=S, hold_ms=1000), CALLER)
        assert (held.position, held.templates_count) == (1, 4)
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(source.write(enrol(2)))
            for _ in range(30):
                await rig.clock.sleep(0)
            assert not waiting.done()
            await rig.service(S).Hold(pb.HoldRequest(shard_id=S, hold_ms=0), CALLER)
        assert waiting.result().position == 2
        with pytest.raises(InvalidError):
            await rig.service(S).Hold(pb.HoldRequest(shard_id=S, hold_ms=1001), CALLER)


async def test_two_shards_are_brought_into_one() -> None:
    merged = replace(
        split_map(),
        shards=(
            replace(split_map().pending[0], sources=()),
            replace(split_map().pending[1], sources=()),
        ),
        pending=(replace(split_map().shards[0], sources=(LOW, HIGH)),),
    )
    async with rigged(shard_map=replace(merged, pending=())) as rig:
        await rig.start(N1)
        await rig.start(N2)
        low, high = await rig.serving(LOW), await rig.serving(HIGH)

        async def enrol_both(number: int) -> None:
            for primary, key_range in ((low, LOWER), (high, UPPER)):
                await primary.write(part(enrol(number), key_range))

        for number in range(1, 6):
            await enrol_both(number)
        await rig.say(replace(merged, version=3))
        await rig.brought_over(S, source=LOW)
        await rig.brought_over(S, source=HIGH)
        for number in range(6, 9):
            await enrol_both(number)
            await low.write(erase(number, 0, 1, 2))
        await rig.brought_over(S, source=LOW)
        await rig.brought_over(S, source=HIGH)
        one = await rig.serving(S)
        assert rows_of(one.state) == {**rows_of(low.state), **rows_of(high.state)}
        await one.flush()
        before = (one.state.sources, one.state.digest)
        assert sorted(one.state.sources) == [LOW, HIGH]
        process = next(p for p in rig.processes.values() if S in p.node.copies)
        await rig.kill(process)
        await rig.start(N1)
        again = await rig.serving(S)
        assert (again.state.sources, again.state.digest) == before
