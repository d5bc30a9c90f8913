"""fgctl offline verify finds every flipped bit, truncation, exchange and loss, and names it."""

from collections.abc import Iterator
from itertools import combinations

import pytest

from facegrid.format.erasures import journal_objects
from facegrid.testing.memory_blob import MemoryBlobStore
from fgctl.meta_file import Meta
from fgctl.offline.verify import Scope, survey, verify
from tests.fakes.small_store import FIRST, SECOND, UID, small_store

SMALL = small_store()
KINDS = {
    "manifest": SMALL.manifest,
    "segment": SMALL.segment,
    "codebook": SMALL.codebook,
    "gallery": SMALL.record,
    "erasure journal": SMALL.journal,
    "log": SMALL.enrol,
    "end of the log": SMALL.erase,
    "orphan": SMALL.zombie,
    "first of a log": SMALL.second[0],
}


async def problems(store: MemoryBlobStore, meta: Meta | None = None) -> dict[str, str]:
    """Return what verify finds wrong: reasons by name."""
    report = await verify(await survey(store), Scope(meta=meta, records=True))
    assert report.whole == (not report.findings.problems)
    return {one.name: one.reason for one in report.findings.problems}


def with_object(name: str, data: bytes | None) -> MemoryBlobStore:
    """Return the store with one object changed, or without it."""
    store = MemoryBlobStore()
    store.objects = {**SMALL.store.objects}
    if data is None:
        del store.objects[name]
    else:
        store.objects[name] = data
    return store


def flips(data: bytes) -> Iterator[bytes]:
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bytes(flipped)


async def test_a_whole_store_has_no_problems_and_its_numbers_are_those_after_the_log() -> None:
    report = await verify(await survey(SMALL.store), Scope(meta=SMALL.meta))

    assert report.findings.problems == []
    assert [(one.name, one.why) for one in report.findings.notes] == [
        (SMALL.zombie, "orphan: never committed")
    ]
    assert [(one.position, one.templates_count, one.generation) for one in report.shards] == [
        (4, 0, 2),
        (2, 2, 1),
    ]
    assert report.shards[0].digest == "00" * 16, "every row was erased"


@pytest.mark.parametrize("kind", KINDS)
async def test_every_flipped_bit_is_found(kind: str) -> None:
    name = KINDS[kind]
    for data in flips(SMALL.store.objects[name]):
        assert (await problems(with_object(name, data))).keys() == {name}, "and nothing else"


@pytest.mark.parametrize("kind", KINDS)
async def test_every_truncation_is_found(kind: str) -> None:
    name = KINDS[kind]
    whole = SMALL.store.objects[name]
    for length in range(len(whole)):
        assert (await problems(with_object(name, whole[:length]))).keys() == {name}


@pytest.mark.parametrize("kind", KINDS)
async def test_bytes_behind_the_end_are_found(kind: str) -> None:
    name = KINDS[kind]
    whole = SMALL.store.objects[name]
    for more in (b"\0", bytes(8), whole):
        assert name in await problems(with_object(name, whole + more))


async def test_every_exchange_of_two_objects_is_found_and_both_are_named() -> None:
    for one, other in combinations(SMALL.store.objects, 2):
        store = with_object(one, SMALL.store.objects[other])
        store.objects[other] = SMALL.store.objects[one]
        found = await problems(store)

        assert {one, other} <= found.keys()


async def test_an_older_object_in_the_place_of_a_newer_one_is_found() -> None:
    for one in SMALL.store.objects:
        for other, data in SMALL.store.objects.items():
            if other != one:
                assert one in await problems(with_object(one, data))


async def test_every_object_that_something_refers_to_is_missed() -> None:
    referred = (SMALL.segment, SMALL.codebook, SMALL.journal, SMALL.enrol, SMALL.second[0])
    for name in referred:
        assert (await problems(with_object(name, None)))[name] == "OBJECT_MISSING"


async def test_a_shard_without_its_manifest_is_noticed_by_what_is_left_of_it() -> None:
    """The log object that it covered is named, since the log behind it builds on that."""
    found = await problems(with_object(SMALL.manifest, None))
    assert found == {
        f"shards/{FIRST}/log/0000000001-0000000000000000001-u0": "OBJECT_MISSING",
        f"shards/{FIRST}/manifests/": "MANIFEST_MISSING",
    }

    store = with_object(SMALL.manifest, None)
    for name in (SMALL.enrol, SMALL.erase, SMALL.zombie):
        del store.objects[name]
    assert await problems(store) == {f"shards/{FIRST}/manifests/": "MANIFEST_MISSING"}


async def test_with_saved_records_of_etcd_every_committed_object_is_missed_by_name() -> None:
    for name in SMALL.store.objects:
        found = await problems(with_object(name, None), SMALL.meta)

        if name == SMALL.record:
            assert found == {f"cluster/{UID}/": "RECORDS_MISSING"}
        else:
            assert (name in found) == (name != SMALL.zombie), "what nothing needs is not missed"


async def test_the_records_of_a_gallery_are_missed_without_saved_ones_of_etcd_too() -> None:
    """Without them `fgctl meta recover` could not tell which gallery the shards are of."""
    store = with_object(SMALL.record, None)
    assert await problems(store) == {f"cluster/{UID}/": "RECORDS_MISSING"}

    for name in list(store.objects):
        if "/segments/" not in name:
            del store.objects[name]
    assert "RECORDS_MISSING" not in (await problems(store)).values(), "nothing was committed"


async def test_a_dropped_gallery_has_no_records_any_more_and_that_is_no_problem() -> None:
    store = with_object(SMALL.record, None)
    for shard_id in (FIRST, SECOND):
        assert "RECORDS_MISSING" in (await problems(store)).values(), "one of two is not enough"
        (closing,) = journal_objects(shard_id, None, [], last_position=9, closing=True)
        store.objects[closing.name] = closing.data

    assert "RECORDS_MISSING" not in (await problems(store)).values()


async def test_a_store_set_back_to_before_the_saved_records_is_found() -> None:
    store = MemoryBlobStore()
    assert (await problems(store, SMALL.meta)).keys() == {
        SMALL.manifest,
        SMALL.erase,
        SMALL.second[1],
        SMALL.codebook,
    }


async def test_a_store_that_went_on_after_the_records_were_saved_is_no_problem() -> None:
    assert await problems(SMALL.store, SMALL.earlier) == {}


async def test_damage_of_one_shard_leaves_the_others_checked() -> None:
    data = SMALL.store.objects[SMALL.segment][:-1]
    report = await verify(await survey(with_object(SMALL.segment, data)), Scope())

    assert [one.whole for one in report.shards] == [False, True]
    assert (report.shards[0].digest, report.shards[1].templates_count) == ("", 2)
