"""fgctl snapshot verify finds every flipped bit, truncation, exchange and loss, and names it."""

import asyncio
from collections.abc import Iterator
from functools import cache
from itertools import combinations

import pytest

from facegrid.clock import SystemClock
from facegrid.coord.port import Put
from facegrid.format.checks import sha256_hex
from facegrid.format.snapshot import (
    PENDING,
    RepositoryMark,
    Snapshot,
    decode_snapshot,
    encode_mark,
    encode_snapshot,
    mark_name,
    object_name,
    snapshot_name,
)
from facegrid.testing.memory_blob import MemoryBlobStore
from facegrid.testing.memory_coord import MemoryCoordinator
from fgctl.snapshot.check import RepositoryReport, check
from fgctl.snapshot.create import Source, create
from tests.fakes.small_store import small_store
from tests.fakes.snapshot_world import tools


@cache
def small() -> dict[str, bytes]:
    """Return a repository with one snapshot of a small store, and the mark of a killed create."""

    async def made() -> MemoryBlobStore:
        source, repo = small_store(), MemoryBlobStore()
        coord = MemoryCoordinator(SystemClock())
        await coord.txn([], [Put(key, value) for key, value in source.meta.values.items()])
        done = await create(Source(coord, source.store), repo, "g", tools=tools())
        killed = RepositoryMark(done.snapshot.snapshot_id, 7)
        name = mark_name(PENDING, killed.snapshot_id, "0" * 8)
        repo.objects[name] = encode_mark(killed)
        return repo

    return asyncio.run(made()).objects


NAMES = sorted(small())


def with_object(name: str, data: bytes | None) -> MemoryBlobStore:
    """Return the repository with one object changed, or without it."""
    store = MemoryBlobStore()
    store.objects = {**small()}
    if data is None:
        del store.objects[name]
    else:
        store.objects[name] = data
    return store


async def problems(store: MemoryBlobStore) -> dict[str, str]:
    report = await check(store)
    assert report.whole == (not report.findings.problems)
    return {one.name: one.reason for one in report.findings.problems}


def flips(data: bytes) -> Iterator[bytes]:
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bytes(flipped)


async def test_a_whole_repository_has_no_problems() -> None:
    report: RepositoryReport = await check(with_object(NAMES[0], small()[NAMES[0]]))

    assert report.findings.problems == []
    assert [note.why for note in report.findings.notes] == [
        "somebody is at work, or was killed at it"
    ]
    assert [(one.whole, one.templates_count) for one in report.snapshots] == [(True, 2)]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name[:24])
async def test_every_flipped_bit_is_found(name: str) -> None:
    for data in flips(small()[name]):
        assert (await problems(with_object(name, data))).keys() == {name}, "and nothing else"


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name[:24])
async def test_every_truncation_and_every_addition_is_found(name: str) -> None:
    whole = small()[name]
    for length in range(len(whole)):
        assert name in await problems(with_object(name, whole[:length]))
    for more in (b"\0", bytes(8), whole):
        assert name in await problems(with_object(name, whole + more))


async def test_every_exchange_of_two_objects_is_found_and_both_are_named() -> None:
    for one, other in combinations(NAMES, 2):
        store = with_object(one, small()[other])
        store.objects[other] = small()[one]

        assert {one, other} <= (await problems(store)).keys()


async def test_every_lost_object_is_found_unless_nothing_needs_it() -> None:
    for name in NAMES:
        found = await problems(with_object(name, None))

        assert found == ({name: "OBJECT_MISSING"} if name.startswith("objects/") else {})


async def test_a_snapshot_that_does_not_add_up_is_found_though_every_byte_is_right() -> None:
    """Each object in turn is left out of the list, by a descriptor whose own hash fits."""
    (name,) = [one for one in NAMES if one.startswith("snapshots/")]
    whole = decode_snapshot(small()[name])
    for left_out in whole.objects:
        kept = tuple(one for one in whole.objects if one != left_out)
        lacking = Snapshot(
            whole.snapshot_id, whole.gallery_uid, whole.created_unix_ms, whole.cut_revision,
            whole.records, kept, whole.templates_count_max,
        )  # fmt: skip
        data = encode_snapshot(lacking)
        store = with_object(name, None)
        place = snapshot_name(whole.gallery_uid, whole.snapshot_id, sha256_hex(data))
        store.objects[place] = data

        assert f"{whole.snapshot_id}:{left_out.name}" in await problems(store)
        assert object_name(left_out.sha256) in store.objects
