"""What every coordinator does alike: the one in memory and the one on a real etcd."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from facegrid import limits
from facegrid.clock import SystemClock
from facegrid.coord.etcd import EtcdCoordinator
from facegrid.coord.port import (
    Changed,
    Coordinator,
    Delete,
    Guard,
    KeyValue,
    Listing,
    Progress,
    Put,
    Snapshot,
    TxnResult,
    ValueGuard,
    WatchEvent,
)
from facegrid.errors import DeadlineError, InvalidError, NotFoundError
from facegrid.testing.memory_coord import MemoryCoordinator

LEASE_S = 2
"""The shortest that etcd grants with its default election timeout."""


@pytest.fixture(params=["memory", pytest.param("etcd", marks=pytest.mark.cluster)])
def real(request: pytest.FixtureRequest) -> Any:
    """Where the real etcd is; None for the coordinator in memory, which then starts none."""
    return request.getfixturevalue("etcd") if request.param == "etcd" else None


@pytest.fixture
async def coordinator(real: Any) -> AsyncIterator[Coordinator]:
    clock = SystemClock()
    if real is None:
        yield MemoryCoordinator(clock)
    else:
        client = EtcdCoordinator(real.endpoints, root=real.root, clock=clock)
        yield client
        await client.aclose()


async def put(coordinator: Coordinator, *operations: Put | Delete) -> int:
    """Carry out operations without guards; return the revision."""
    return (await coordinator.txn([], operations)).revision


async def changes_of(watch: AsyncIterator[WatchEvent], count: int) -> list[WatchEvent]:
    """Return the next listings and changes of a watch, leaving progress out."""
    events: list[WatchEvent] = []
    async for event in watch:
        if not isinstance(event, Progress):
            events.append(event)
        if len(events) == count:
            break
    return events


def opened(coordinator: Coordinator, prefix: str) -> Any:
    """Return a watch that is closed at the end of a with block."""
    return aclosing(coordinator.watch(prefix))


async def test_a_key_that_does_not_exist_is_none(coordinator: Coordinator) -> None:
    assert await coordinator.get("map/staff") is None


async def test_a_key_is_read_back_with_the_revision_of_its_last_write(
    coordinator: Coordinator,
) -> None:
    await put(coordinator, Put("map/staff", b"one"))
    revision = await put(coordinator, Put("map/staff", b"two"))

    assert await coordinator.get("map/staff") == KeyValue("map/staff", b"two", revision)


async def test_values_are_bytes_and_may_be_empty(coordinator: Coordinator) -> None:
    revision = await put(coordinator, Put("a", b""), Put("b", bytes(range(256))))

    assert (await coordinator.list("")).items == (
        KeyValue("a", b"", revision),
        KeyValue("b", bytes(range(256)), revision),
    )


async def test_a_list_has_the_keys_of_its_prefix_by_name(coordinator: Coordinator) -> None:
    keys = ["tip/b", "tip/a.1", "tip/a", "tio/z", "tiq", "tip", "tip/"]
    revision = await put(coordinator, *(Put(key, key.encode()) for key in keys))

    assert await coordinator.list("tip/") == Snapshot(
        revision,
        tuple(
            KeyValue(key, key.encode(), revision) for key in ["tip/", "tip/a", "tip/a.1", "tip/b"]
        ),
    )


async def test_several_keys_are_read_at_once_and_of_heads_only_the_revision(
    coordinator: Coordinator,
) -> None:
    first = await put(coordinator, Put("map/staff", b"map"), Put("tip/b", b"2"))
    revision = await put(coordinator, Put("tip/a", b"1"), Put("other", b""))

    assert await coordinator.get_many(["tip/b", "tip/none", "tip/a"], heads=["map/staff"]) == (
        Snapshot(
            revision,
            (
                KeyValue("map/staff", b"", first),
                KeyValue("tip/a", b"1", revision),
                KeyValue("tip/b", b"2", first),
            ),
        )
    )


async def test_more_keys_than_a_transaction_takes_are_not_read(coordinator: Coordinator) -> None:
    limit = limits.ETCD_TXN_OPERATIONS_MAX
    names = [f"tip/{number}" for number in range(limit)]

    assert (await coordinator.get_many(names)).items == ()
    with pytest.raises(InvalidError) as refused:
        await coordinator.get_many(names, heads=["map/staff"])
    assert refused.value.reason == "TXN_TOO_LONG"


async def test_a_list_of_nothing_still_says_its_revision(coordinator: Coordinator) -> None:
    revision = await put(coordinator, Put("a", b""))

    assert await coordinator.list("map/") == Snapshot(revision, ())


async def test_a_txn_needs_all_its_guards(coordinator: Coordinator) -> None:
    first = await put(coordinator, Put("gen/s", b"1"), Put("tip/s", b"x"))

    results = [
        (await coordinator.txn(guards, [Put("done", b"")])).succeeded
        for guards in (
            [Guard("gen/s", first), Guard("tip/s", first + 1)],
            [Guard("gen/s", 0)],
            [ValueGuard("gen/s", b"2")],
            [ValueGuard("missing", b"")],
            [Guard("missing", first)],
        )
    ]

    assert results == [False] * 5
    assert await coordinator.get("done") is None
    held = [Guard("gen/s", first), ValueGuard("gen/s", b"1"), Guard("missing", 0)]
    assert await coordinator.txn(held, [Put("done", b"")]) == TxnResult(
        succeeded=True, revision=first + 1
    )


async def test_a_refused_txn_changes_nothing_and_says_the_revision(
    coordinator: Coordinator,
) -> None:
    revision = await put(coordinator, Put("a", b"1"))

    result = await coordinator.txn([Guard("a", 0)], [Delete("a"), Put("b", b"2")])

    assert result == TxnResult(succeeded=False, revision=revision)
    assert (await coordinator.list("")).items == (KeyValue("a", b"1", revision),)


async def test_deleting_what_is_not_there_changes_nothing(coordinator: Coordinator) -> None:
    revision = await put(coordinator, Put("a", b"1"))

    assert await coordinator.txn([], [Delete("b")]) == TxnResult(succeeded=True, revision=revision)


async def test_guards_refuse_a_key_that_was_deleted_and_written_anew(
    coordinator: Coordinator,
) -> None:
    first = await put(coordinator, Put("a", b"1"))
    await put(coordinator, Delete("a"))
    await put(coordinator, Put("a", b"1"))

    assert not (await coordinator.txn([Guard("a", first)], [Put("a", b"2")])).succeeded


async def test_of_many_claims_at_once_exactly_one_succeeds(coordinator: Coordinator) -> None:
    async with asyncio.TaskGroup() as group:
        claims = [
            group.create_task(coordinator.txn([Guard("gen/s", 0)], [Put("gen/s", b"%d" % n)]))
            for n in range(16)
        ]

    winners = [b"%d" % n for n, claim in enumerate(claims) if claim.result().succeeded]
    item = await coordinator.get("gen/s")
    assert item is not None
    assert winners == [item.value]


async def test_a_key_written_twice_in_one_txn_is_refused(coordinator: Coordinator) -> None:
    with pytest.raises(InvalidError) as caught:
        await coordinator.txn([], [Put("a", b"1"), Delete("a")])

    assert caught.value.reason == "TXN_KEY_TWICE"


async def test_the_longest_txn_passes_and_one_longer_is_refused(coordinator: Coordinator) -> None:
    count = limits.ETCD_TXN_OPERATIONS_MAX
    operations = [Put(f"k{n:03}", b"") for n in range(count + 1)]
    guards = [Guard(f"k{n:03}", 0) for n in range(count)]

    assert (await coordinator.txn(guards, operations[:count])).succeeded
    with pytest.raises(InvalidError) as caught:
        await coordinator.txn([], operations)
    assert caught.value.reason == "TXN_TOO_LONG"


async def test_no_time_left_is_a_deadline_error(coordinator: Coordinator) -> None:
    with pytest.raises(DeadlineError):
        await coordinator.get("a", timeout_s=0.0)


async def test_a_watch_lists_first_then_tells_every_change_in_order(
    coordinator: Coordinator,
) -> None:
    before = await put(coordinator, Put("map/a", b"1"), Put("tip/a", b"-"))
    async with opened(coordinator, "map/") as watch:
        listing = await changes_of(watch, 1)
        second = await put(coordinator, Put("map/a", b"2"), Put("map/b", b"1"), Delete("tip/a"))
        third = await put(coordinator, Delete("map/a"), Put("map/c", b"3"))
        changes = await changes_of(watch, 4)

    assert listing == [Listing(Snapshot(before, (KeyValue("map/a", b"1", before),)))]
    assert changes == [
        Changed("put", "map/a", KeyValue("map/a", b"2", second), second),
        Changed("put", "map/b", KeyValue("map/b", b"1", second), second),
        Changed("delete", "map/a", None, third),
        Changed("put", "map/c", KeyValue("map/c", b"3", third), third),
    ]


async def test_a_watch_misses_nothing_between_its_listing_and_its_first_change(
    coordinator: Coordinator,
) -> None:
    """The consumer takes the listing, and comes back only after ten more writes."""
    async with opened(coordinator, "tip/") as watch:
        (listing,) = await changes_of(watch, 1)
        revisions = [await put(coordinator, Put("tip/s", b"%d" % n)) for n in range(10)]
        changes = await changes_of(watch, 10)

    assert listing == Listing(Snapshot(revisions[0] - 1, ()))
    assert changes == [
        Changed("put", "tip/s", KeyValue("tip/s", b"%d" % n, revision), revision)
        for n, revision in enumerate(revisions)
    ]


async def test_a_quiet_watch_reports_progress_and_claims_no_more_than_it_knows(
    coordinator: Coordinator,
) -> None:
    async with opened(coordinator, "map/") as watch:
        (listing,) = await changes_of(watch, 1)
        revision = await put(coordinator, Put("tip/elsewhere", b""))
        progress = [await anext(watch) for _ in range(2)]

    assert all(isinstance(event, Progress) for event in progress)
    assert all(revision - 1 <= event.revision <= revision for event in progress)
    assert listing == Listing(Snapshot(revision - 1, ()))


async def test_two_watches_see_the_same(coordinator: Coordinator) -> None:
    async with opened(coordinator, "a") as one, opened(coordinator, "") as other:
        await changes_of(one, 1)
        await changes_of(other, 1)
        revision = await put(coordinator, Put("a", b"1"))
        expected = [Changed("put", "a", KeyValue("a", b"1", revision), revision)]

        assert await changes_of(one, 1) == expected
        assert await changes_of(other, 1) == expected


async def test_a_revoked_lease_takes_its_keys_along_in_one_revision(
    coordinator: Coordinator,
) -> None:
    lease_id = await coordinator.grant_lease(60)
    written = await put(
        coordinator, Put("nodes/b", b"2", lease_id), Put("nodes/a", b"1", lease_id)
    )
    async with opened(coordinator, "nodes/") as watch:
        listing = await changes_of(watch, 1)
        await coordinator.revoke_lease(lease_id)
        changes = await changes_of(watch, 2)

    assert listing == [
        Listing(
            Snapshot(
                written,
                (
                    KeyValue("nodes/a", b"1", written, lease_id),
                    KeyValue("nodes/b", b"2", written, lease_id),
                ),
            )
        )
    ]
    assert changes == [
        Changed("delete", "nodes/a", None, written + 1),
        Changed("delete", "nodes/b", None, written + 1),
    ]


async def test_a_lease_that_is_not_renewed_ends_and_takes_its_keys_along(
    coordinator: Coordinator,
) -> None:
    lease_id = await coordinator.grant_lease(LEASE_S)
    written = await put(coordinator, Put("nodes/a", b"1", lease_id), Put("kept", b""))
    async with opened(coordinator, "") as watch:
        await changes_of(watch, 1)
        changes = await changes_of(watch, 1)

    assert changes == [Changed("delete", "nodes/a", None, written + 1)]
    with pytest.raises(NotFoundError):
        await coordinator.renew_lease(lease_id)


async def test_renewing_says_how_long_the_lease_lasts(coordinator: Coordinator) -> None:
    lease_id = await coordinator.grant_lease(60)

    assert await coordinator.renew_lease(lease_id) == 60


async def test_a_key_written_without_its_lease_outlives_it(coordinator: Coordinator) -> None:
    lease_id = await coordinator.grant_lease(60)
    await put(coordinator, Put("a", b"1", lease_id))
    revision = await put(coordinator, Put("a", b"2"))

    await coordinator.revoke_lease(lease_id)

    assert await coordinator.get("a") == KeyValue("a", b"2", revision)


async def test_an_ended_lease_cannot_be_renewed_or_used_but_revoked_again(
    coordinator: Coordinator,
) -> None:
    lease_id = await coordinator.grant_lease(60)
    await coordinator.revoke_lease(lease_id)

    await coordinator.revoke_lease(lease_id)
    with pytest.raises(NotFoundError):
        await coordinator.renew_lease(lease_id)
    with pytest.raises(NotFoundError):
        await coordinator.txn([], [Put("a", b"1", lease_id), Put("b", b"")])
    assert (await coordinator.list("")).items == ()
