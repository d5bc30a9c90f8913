"""fgctl offline verify knows what bulk loads store: it finds every damage there, and names it."""

from itertools import combinations

import numpy as np
import pytest

from facegrid.format import digest as digests
from facegrid.format.load_pin import LoadPin, encode_pin, pin_name
from facegrid.format.log import LoadedSegment, LoadRecord, LogRef, log_name
from facegrid.format.segment import segment_name
from facegrid.testing.memory_blob import MemoryBlobStore
from fgctl.bulk.rows import ShardRows
from fgctl.bulk.segments import BuiltSegment, build_segment
from fgctl.offline.verify import Scope, StoreReport, survey, verify
from tests.fakes.small_store import SECOND, add_log, codes, enrol, erase

LOAD = "a" * 32


def segment(*numbers: int) -> BuiltSegment:
    """A segment with the rows that `enrol` gives to these numbers."""
    return build_segment(
        ShardRows(
            [f"t-{number}" for number in numbers],
            [f"s-{number}" for number in numbers],
            codes(*numbers),
            shard_id=SECOND,
        ),
        LOAD,
    )


def put(store: MemoryBlobStore, built: BuiltSegment) -> str:
    name = segment_name(SECOND, built.named.sha256)
    store.objects[name] = built.data
    return name


STORE = MemoryBlobStore()
LOADED, PENDING, NEEDLESS = segment(5, 6, 7), segment(8), segment(5)
FIRST_LOG = add_log(STORE, SECOND, None, [enrol(1, 5)], generation=1, uuid="v1")
RECORD = LoadRecord(
    2,
    "load-a-0001",
    bytes(16),
    2000,
    [
        LoadedSegment(LOADED.named.sha256, 3, np.array([True, False, False])),
        LoadedSegment(NEEDLESS.named.sha256, 1, np.array([True])),
    ],
)
LOAD_LOG = add_log(STORE, SECOND, FIRST_LOG, [RECORD], generation=1, uuid="v2")
ERASE_LOG = add_log(
    STORE,
    SECOND,
    LOAD_LOG,
    [erase(3, template_ids=[], subject_ids=["s-6"])],
    generation=1,
    uuid="v3",
)
PIN = LoadPin(SECOND, LOAD, PENDING.named.sha256)
STORE.objects[pin_name(PIN)] = encode_pin(PIN)
KINDS = {
    "loaded segment": put(STORE, LOADED),
    "pinned segment": put(STORE, PENDING),
    "pin": pin_name(PIN),
    "log object of the load": log_name(SECOND, LOAD_LOG),
}


async def report_of(objects: dict[str, bytes]) -> StoreReport:
    store = MemoryBlobStore()
    store.objects = objects
    return await verify(await survey(store), Scope())


async def problems(objects: dict[str, bytes]) -> dict[str, str]:
    found = (await report_of(objects)).findings.problems
    return {one.name: one.reason for one in found}


async def test_a_load_is_part_of_the_log_and_its_pins_are_named() -> None:
    report = await report_of(STORE.objects)

    assert report.findings.problems == []
    assert [(one.name, one.why) for one in report.findings.notes] == [
        (KINDS["pin"], f"pin of load {LOAD}: not committed")
    ]
    (shard,) = report.shards
    left = [(f"s-{number}", f"t-{number}", codes(number).tobytes()) for number in (5, 7)]
    expected = sum(digests.row_digest(*one) for one in left) % 2**128
    assert (shard.position, shard.templates_count) == (3, 2)
    assert shard.digest == digests.to_bytes(expected).hex()


@pytest.mark.parametrize("kind", KINDS)
async def test_every_flipped_bit_is_found(kind: str) -> None:
    name = KINDS[kind]
    whole = STORE.objects[name]
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        found = await problems({**STORE.objects, name: bytes(flipped)})
        assert found.keys() == {name}, "and nothing else"


@pytest.mark.parametrize("kind", KINDS)
async def test_every_truncation_is_found(kind: str) -> None:
    name = KINDS[kind]
    whole = STORE.objects[name]
    for length in range(len(whole)):
        assert (await problems({**STORE.objects, name: whole[:length]})).keys() == {name}


async def test_every_exchange_of_two_objects_is_found_and_both_are_named() -> None:
    for one, other in combinations(STORE.objects, 2):
        exchanged = {one: STORE.objects[other], other: STORE.objects[one]}
        assert {one, other} <= (await problems({**STORE.objects, **exchanged})).keys()


async def test_a_loaded_segment_is_missed_and_a_pinned_one_is_not() -> None:
    without = {**STORE.objects}
    del without[KINDS["loaded segment"]]
    assert await problems(without) == {KINDS["loaded segment"]: "OBJECT_MISSING"}
    without = {**STORE.objects}
    del without[KINDS["pinned segment"]]
    assert await problems(without) == {}


async def test_a_segment_of_another_size_than_the_record_says_is_found() -> None:
    store = MemoryBlobStore()
    wrong = LoadRecord(1, "r", bytes(16), 1, [LoadedSegment(LOADED.named.sha256, 4)])
    ref: LogRef = add_log(store, SECOND, None, [wrong], generation=1, uuid="w")
    name = put(store, LOADED)
    assert await problems(store.objects) == {name: "SEGMENT_MISMATCH"}
    assert ref.last_position == 1


async def test_a_template_that_a_load_brings_twice_is_found() -> None:
    store = MemoryBlobStore()
    first = add_log(store, SECOND, None, [enrol(1, 5)], generation=1, uuid="w1")
    again = LoadRecord(2, "r", bytes(16), 1, [LoadedSegment(LOADED.named.sha256, 3)])
    ref = add_log(store, SECOND, first, [again], generation=1, uuid="w2")
    put(store, LOADED)
    found = await problems(store.objects)
    assert found == {log_name(SECOND, ref): "TEMPLATE_TWICE"}
